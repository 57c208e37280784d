// What the WebGPU executor needs beside the tensors, for a budget that is made before there is a device. Pure. It counts for a device
// without optional features: where one has them, kernels differ and partial sums may take a little more or less.

import type { ExecutorCosts } from "../plan/dryRun.ts";
import type { Plan } from "../plan/step.ts";
import { SLOT_BYTES, slotsOf } from "./executable.ts";
import type { Dispatch } from "./kernels/kernel.ts";
import { lower } from "./kernels/lower.ts";
import { isShardable } from "./shards.ts";

/** Buffers are counted by what was asked for. */
const ALIGNMENT = 4;

export const webgpuCosts = (): ExecutorCosts => {
  const lowered = new WeakMap<Plan, readonly Dispatch[]>();
  const dispatchesOf = (plan: Plan): readonly Dispatch[] => {
    const dispatches = lowered.get(plan) ?? plan.steps.flatMap((step) => lower(step));
    lowered.set(plan, dispatches);
    return dispatches;
  };
  return {
    kind: "webgpu",
    isDivisible: isShardable,
    alignment: ALIGNMENT,
    planBytes: (plan) => Math.max(slotsOf(dispatchesOf(plan)).slots.length, 1) * SLOT_BYTES,
    scratchBytes: (plan) => dispatchesOf(plan).reduce((most, { scratchBytes }) => Math.max(most, scratchBytes), 0),
  };
};

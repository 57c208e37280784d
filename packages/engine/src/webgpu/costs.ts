// What the WebGPU executor needs beside the tensors, for a budget that is made before there is a device. Pure. It counts for a device
// without optional features: where one has them, kernels differ and partial sums may take a little more or less.

import type { ExecutorCosts } from "../plan/dryRun.ts";
import type { Plan, Step, Tensor } from "../plan/step.ts";
import { SLOT_BYTES, slotsOf } from "./executable.ts";
import type { Dispatch } from "./kernels/kernel.ts";
import { lower } from "./kernels/lower.ts";
import { isShardable } from "./shards.ts";

/** Buffers are counted by what was asked for. */
const ALIGNMENT = 4;

const isTensor = (value: unknown): value is Tensor => typeof value === "object" && value !== null && "shape" in value;

/** Steps of one kind: their kernels are the same but for the tensors' names. */
const kindOf = (step: Step): string =>
  Object.values(step)
    .map((value) => (isTensor(value) ? `${value.dtype} ${value.home} ${value.shape}${value.view ? " part" : ""}` : JSON.stringify(value)))
    .join("; ");

export const webgpuCosts = (): ExecutorCosts => {
  const byKind = new Map<string, readonly Dispatch[]>();
  const byPlan = new WeakMap<Plan, readonly Dispatch[]>();
  /** Every kind of dispatch of a plan, once: a model has as many kinds of steps as one layer. */
  const dispatchesOf = (plan: Plan): readonly Dispatch[] => {
    const known = byPlan.get(plan);
    if (known) return known;
    const kinds = new Map(plan.steps.map((step) => [kindOf(step), step]));
    const dispatches = [...kinds].flatMap(([kind, step]) => {
      const found = byKind.get(kind) ?? lower(step);
      byKind.set(kind, found);
      return found;
    });
    byPlan.set(plan, dispatches);
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

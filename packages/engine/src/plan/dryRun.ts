// A backend that only counts: whatever is built on it asks for what it would ask a device for, and nothing is allocated or computed. So
// a budget is not a second account of what a policy needs; it is the policy's own construction, added up (memory.ts).

import type { DeviceKind } from "../contract.ts";
import { byteLengthOf } from "../weights/formats.ts";
import { planArena } from "./arena.ts";
import type { Backend } from "./backend.ts";
import { checkAllocate } from "./checkAllocate.ts";
import { type Home, operandsOf, type Plan, sizeOf, type Tensor } from "./step.ts";

/** What an executor needs beside the tensors themselves. */
export interface ExecutorCosts {
  readonly kind: DeviceKind;
  /** Storage begins at multiples of it. */
  readonly alignment: number;
  /** What a plan keeps for itself: command tables, parameters. */
  readonly planBytes: (plan: Plan) => number;
  /** Work space beside the arena; all plans share the largest. */
  readonly scratchBytes: (plan: Plan) => number;
  /** What a tensor takes, in the order that its kernels like. Default: byteLengthOf. */
  readonly tensorBytes?: (tensor: Tensor) => number;
  /** Whether it may lie in several pieces, so that no limit of one tensor binds it. Default: none may. */
  readonly isDivisible?: (tensor: Tensor) => boolean;
}

export interface DryRun {
  readonly backend: Backend;
  /** Bytes by home; arena with scratch, io with what plans keep. */
  readonly bytes: Readonly<Record<Home, number>>;
  /** The largest tensor that has to lie in one piece, arena ones included. */
  readonly largest: Tensor;
}

const parentOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;

export const createDryRun = (costs: ExecutorCosts): DryRun => {
  const bytes: Record<Home, number> = { weights: 0, state: 0, kv: 0, arena: 0, io: 0 };
  const stored = new Set<Tensor>();
  let [arenaBytes, scratchBytes] = [0, 0];
  let largest: Tensor = { name: "nothing", shape: [0], dtype: "f32", home: "weights" };

  const aligned = (byteLength: number): number => Math.ceil(byteLength / costs.alignment) * costs.alignment;
  const see = (tensor: Tensor): void => {
    if (byteLengthOf(tensor) > byteLengthOf(largest) && !costs.isDivisible?.(tensor)) largest = tensor;
  };
  const store = (tensor: Tensor): void => {
    stored.add(tensor);
    bytes[tensor.home] += aligned((costs.tensorBytes ?? byteLengthOf)(tensor));
    see(tensor);
  };

  const backend: Backend = {
    device: { kind: costs.kind, description: `dry run of ${costs.kind}` },
    allocate: async (tensor, data) => {
      checkAllocate(tensor, data, stored.has(tensor));
      store(tensor);
    },
    fill: async () => {},
    compile: async (plan) => {
      const operands = new Set(plan.steps.flatMap((step) => Object.values(operandsOf(step)).flat()).map(parentOf));
      for (const tensor of operands) {
        if (tensor.home === "io" && !stored.has(tensor)) store(tensor);
        else if (tensor.home === "arena") see(tensor);
      }
      arenaBytes = Math.max(arenaBytes, planArena(plan).byteLength);
      scratchBytes = Math.max(scratchBytes, costs.scratchBytes(plan));
      bytes.arena = aligned(arenaBytes) + aligned(scratchBytes);
      bytes.io += aligned(costs.planBytes(plan));
      return { run: async () => {}, dispose: () => {} };
    },
    write: () => {},
    read: async (tensor, length = sizeOf(tensor)) => (tensor.dtype === "i32" ? new Int32Array(length) : new Float32Array(length)),
    get byteLength() {
      return Object.values(bytes).reduce((sum, part) => sum + part, 0);
    },
    dispose: async () => {},
  };
  return {
    backend,
    bytes,
    get largest() {
      return largest;
    },
  };
};

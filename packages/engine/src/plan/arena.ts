// Where each activation of a plan lies in the one arena that all plans of a backend share. Pure: live ranges in, offsets out.
// A tensor lives from the first step that mentions it to the last one, both included, so that no operand of a step
// overlaps another one of it. A view counts as its parent. Offsets are aligned to 256 bytes (WebGPU's binding alignment).

import { EngineError } from "../errors.ts";
import { operandsOf, type Plan, type Step, sizeOf, type Tensor } from "./step.ts";

const ALIGNMENT = 256;

export interface Arena {
  readonly byteLength: number;
  /** Byte offset of an arena tensor or of a view of one. */
  readonly offsetOf: (tensor: Tensor) => number;
}

/** First and last step (indices, inclusive) in which a tensor or a view of it is an operand. */
export interface LiveRange {
  readonly tensor: Tensor;
  readonly first: number;
  readonly last: number;
}

const parentOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;

/**
 * A linearBackward or rmsNormBackward that does not accumulate overwrites dx, a logprobBackward with less room than logits overwrites z;
 * everything else reads what OPERANDS says.
 */
const isRead = (step: Step, tensor: Tensor): boolean => {
  if ("accumulate" in step && !step.accumulate && tensor === step.dx) return false;
  if (step.op === "logprobBackward" && tensor === step.z && tensor.shape[1]! < step.w.shape[0]!) return false;
  return operandsOf(step).reads.includes(tensor);
};

/** Live ranges of the arena tensors of a plan (views merged into their parents), in order of birth. Throws when one is read before it was written. */
export const liveRanges = (plan: Plan): LiveRange[] => {
  const ranges = new Map<Tensor, { tensor: Tensor; first: number; last: number }>();
  for (const [index, step] of plan.steps.entries()) {
    const { reads, writes } = operandsOf(step);
    // Reads first: an inout operand that nobody has written is an error, not a birth.
    for (const operand of new Set([...reads, ...writes])) {
      if (operand.home !== "arena") continue;
      const tensor = parentOf(operand);
      const range = ranges.get(tensor);
      if (range) range.last = index;
      else if (isRead(step, operand)) {
        throw new EngineError(
          "bad-request",
          `planArena: an arena tensor is written before it is read, got plan "${plan.name}" step ${index} (${step.op}) reading "${operand.name}" first; emit a step that writes or zeroes it`,
        );
      } else ranges.set(tensor, { tensor, first: index, last: index });
    }
  }
  return [...ranges.values()];
};

/** Greedy by size: the largest tensor first, each at the lowest offset that is free while it lives. */
export const planArena = (plan: Plan): Arena => {
  const placed: (LiveRange & { offset: number; end: number })[] = [];
  const offsets = new Map<Tensor, number>();
  const bySize = liveRanges(plan).sort((a, b) => sizeOf(b.tensor) - sizeOf(a.tensor) || a.first - b.first);
  let byteLength = 0;
  for (const range of bySize) {
    const size = Math.ceil((sizeOf(range.tensor) * 4) / ALIGNMENT) * ALIGNMENT;
    let offset = 0;
    // `placed` is sorted by offset: the first gap that is wide enough is the lowest one.
    for (const other of placed) {
      if (other.last < range.first || other.first > range.last) continue;
      if (other.offset >= offset + size) break;
      offset = Math.max(offset, other.end);
    }
    const entry = { ...range, offset, end: offset + size };
    const at = placed.findIndex((other) => other.offset > offset);
    placed.splice(at < 0 ? placed.length : at, 0, entry);
    offsets.set(range.tensor, offset);
    byteLength = Math.max(byteLength, entry.end);
  }
  const offsetOf = (tensor: Tensor): number => {
    const offset = offsets.get(parentOf(tensor));
    if (offset === undefined) {
      throw new EngineError("bad-request", `planArena: "${tensor.name}" (home ${tensor.home}) is no arena tensor of plan "${plan.name}"`);
    }
    return offset + (tensor.view?.offset ?? 0) * 4;
  };
  return { byteLength, offsetOf };
};

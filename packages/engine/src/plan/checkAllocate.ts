// The one rule of Backend.allocate, for every executor: what may be given storage, and how much data comes with it.

import { EngineError } from "../errors.ts";
import { byteLengthOf } from "../weights/formats.ts";
import type { TensorData } from "./backend.ts";
import { sizeOf, type Tensor } from "./step.ts";

/** Throws EngineError("bad-request") for a view, for an arena or io tensor, for one that has storage, and for data of another length. */
export const checkAllocate = (tensor: Tensor, data: TensorData | undefined, hasStorage: boolean): void => {
  if (tensor.view || tensor.home === "arena" || tensor.home === "io" || hasStorage) {
    throw new EngineError(
      "bad-request",
      `allocate: takes a weights, state or kv tensor once, got "${tensor.name}" (home ${tensor.home}${tensor.view ? ", a view" : ""}${hasStorage ? ", again" : ""})`,
    );
  }
  if (data && data.byteLength !== byteLengthOf(tensor)) {
    throw new EngineError(
      "bad-request",
      `allocate: "${tensor.name}" has ${sizeOf(tensor)} elements in ${byteLengthOf(tensor)} bytes (${tensor.dtype}), got ${data.length} in ${data.byteLength}`,
    );
  }
};

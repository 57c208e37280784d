// The one rule of Backend.allocate and of Backend.fill, for every executor: what may be given storage, and how much data comes with it.

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

/** Throws EngineError("bad-request") for a view, for a tensor of another home or without storage, and for words outside it. */
export const checkFill = (tensor: Tensor, words: Uint32Array, offset: number, hasStorage: boolean): void => {
  const size = byteLengthOf(tensor) / 4;
  if (tensor.view || tensor.home !== "weights" || !hasStorage || !Number.isInteger(offset) || offset < 0 || offset + words.length > size) {
    throw new EngineError(
      "bad-request",
      `fill: takes words of an allocated weights tensor and stays inside it, got ${words.length} from ${offset} on for "${tensor.name}" (${size} words, home ${tensor.home}${tensor.view ? ", a view" : ""}${hasStorage ? "" : ", not allocated"})`,
    );
  }
};

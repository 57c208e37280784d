// What the WASM executor needs beside the tensors, for a budget that is made before there is a machine. Pure.

import type { ExecutorCosts } from "../plan/dryRun.ts";
import { sizeOf, type Tensor } from "../plan/step.ts";
import { GROUP, isPacked, isQuantised, packedLayout } from "../weights/formats.ts";
import { encodePlan, scratchBytes } from "./encode.ts";
import { ALIGNMENT } from "./memory.ts";

/** The kernels' gemmScratch(). */
const GEMM_SCRATCH = 401_664;

/** Bytes of a tensor's values, for a matrix of weights with room for whole panels of 8 rows (assembly/panels.ts), and of its scales. */
export const placeOf = (tensor: Tensor): { readonly values: number; readonly scales: number } => {
  const [outer, inner = 1] = tensor.shape as [number, number?];
  const isMatrix = tensor.home === "weights" && tensor.shape.length === 2;
  const count = isMatrix ? Math.ceil(outer / 8) * 8 * inner : sizeOf(tensor);
  if (!isPacked(tensor.dtype)) return { values: count * 4, scales: 0 };
  return { values: packedLayout(tensor.dtype, count).scaleWord * 4, scales: isQuantised(tensor.dtype) ? (count / GROUP) * 2 : 0 };
};

export const wasmCosts = (threads: number): ExecutorCosts => ({
  kind: "wasm",
  alignment: ALIGNMENT,
  planBytes: (plan) => encodePlan(plan, { of: () => 0, scalesOf: () => 0 }, { address: 0, perThread: 0 }).byteLength,
  scratchBytes: (plan) => threads * scratchBytes(plan, GEMM_SCRATCH),
  tensorBytes: (tensor) => {
    const { values, scales } = placeOf(tensor);
    return values + scales;
  },
});

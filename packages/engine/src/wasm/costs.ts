// What the WASM executor needs beside the tensors, for a budget that is made before there is a machine. Pure.

import type { ExecutorCosts } from "../plan/dryRun.ts";
import type { Tensor } from "../plan/step.ts";
import { encodePlan, scratchBytes } from "./encode.ts";
import { ALIGNMENT } from "./memory.ts";

/** The kernels' gemmScratch(). */
const GEMM_SCRATCH = 139_392;

/** Panels of a frozen weight [O, I]: eight output rows side by side (assembly/gemm.ts). */
export const panelBytes = ({ shape }: Tensor): number => Math.ceil(shape[0]! / 8) * 8 * shape[1]! * 4;

export const wasmCosts = (threads: number): ExecutorCosts => ({
  kind: "wasm",
  alignment: ALIGNMENT,
  planBytes: (plan) => encodePlan(plan, { of: () => 0, packed: () => 0 }, { address: 0, perThread: 0 }).byteLength,
  scratchBytes: (plan) => threads * scratchBytes(plan, GEMM_SCRATCH),
  packedBytes: (weight) => (weight.home === "weights" ? panelBytes(weight) : 0),
  isCut: () => false,
});

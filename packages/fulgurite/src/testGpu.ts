// The engine's self-test of this machine's GPU, for a page or a script that shows what came of it.

import type { SelfTestOptions, SelfTestReport } from "@fulgurite/engine/gpuCheck";
import { edge } from "#edge";

export type { SelfTestEntry, SelfTestOptions, SelfTestReport } from "@fulgurite/engine/gpuCheck";

/**
 * Runs every WebGPU kernel of the engine, in every variant that this device has, against the reference executor. In Node it needs the
 * package webgpu. loadPolicy does the same by itself at a GPU's first start, and keeps the verdict; this keeps nothing.
 * Throws EngineError("device") where there is no WebGPU.
 */
export const testGpu = async (options: SelfTestOptions = {}): Promise<SelfTestReport> =>
  (await import("@fulgurite/engine/gpuCheck")).testGpu((kind, open) => edge.openDevice(kind, open), options);

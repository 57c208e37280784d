// The engine's door for browsers and workers. Node has its own beside it (./node), with the same createBackend.
// Executors are imported on first use: a page that trains on WebGPU never loads the WASM kernels.

import type { DeviceKind } from "./contract.ts";
import { type BackendOptions, type DeviceEdges, openBackend } from "./device.ts";
import { EngineError } from "./errors.ts";
import type { Backend } from "./plan/backend.ts";
import type { SelfTestEntry, SelfTestReport } from "./selfTest.ts";

export type * from "./contract.ts";
export type { BackendOptions } from "./device.ts";
export { EngineError, type EngineErrorCode } from "./errors.ts";
export type { AdapterBase, BaseModel } from "./lora/base.ts";
export { type FileToWrite, type MergedModel, type MergeOptions, mergedFolder, openMerged } from "./lora/merge.ts";
export { castPeft, fromPeft, toPeft } from "./lora/peft.ts";
export {
  describeMemory,
  fitMemory,
  limitsOf,
  type MemoryLimits,
  type MemoryOptions,
  type MemorySettings,
  memoryOf,
  type PolicyMemory,
} from "./memory.ts";
export { parseConfig } from "./model/families.ts";
export { ropeTable } from "./model/rope.ts";
export { kindOf, type LinearName, type LoraSpec, type ModelSpec } from "./model/spec.ts";
export type { LayerTensors, ModelTensors } from "./model/tensors.ts";
export type { Backend } from "./plan/backend.ts";
export { createPolicy, type PolicyModel, type PolicyOptions } from "./policy.ts";
export { type RecoveryOptions, withRecovery } from "./recovery.ts";
export type { SelfTestEntry, SelfTestReport } from "./selfTest.ts";
export type { VerdictStore } from "./webgpu/checked.ts";
export { parseIndex, type WeightFiles } from "./weights/checkpoint.ts";
export { CONVERTED_VERSION, type ConvertedEntry, type ConvertedFile, type ConvertedWriter } from "./weights/converted.ts";
export { defaultWeightFormat } from "./weights/defaultFormat.ts";
export { WEIGHT_FORMATS, type WeightFormat } from "./weights/formats.ts";
export { encodeValues, readSafetensors, type StoredDtype, toFloat32, writeSafetensors } from "./weights/safetensors.ts";
export type { StreamHash } from "./weights/sha256.ts";
export { isWeightSource, type WeightReceiver, type WeightSource } from "./weights/source.ts";
export type { WeightProgress } from "./weights/stream.ts";

export { exposePolicy, wrapPolicy } from "./worker.ts";

const requireGpu = (): GPU => {
  const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (!gpu)
    throw new EngineError("device", "webgpu: navigator.gpu exists, got none; use a browser with WebGPU over https, or the device wasm");
  return gpu;
};

const edges: DeviceEdges = {
  webgpu: async ({ verdicts }) => {
    const gpu = requireGpu();
    const { createWebGpuBackend } = await import("./webgpu/backend.ts");
    if (!verdicts) return createWebGpuBackend(gpu);
    const { openChecked } = await import("./webgpu/checked.ts");
    return openChecked((choose) => createWebGpuBackend(gpu, { choose }), { verdicts });
  },
  wasm: async (options) => (await import("./wasm/backend.ts")).createWasmBackend(options),
  reference: async () => (await import("./reference/backend.ts")).createReferenceBackend(),
};

/** Opens an executor in a browser or worker. "auto": WebGPU if there is a GPU, else WASM. Throws EngineError. */
export const createBackend = (kind: DeviceKind | "auto" = "auto", options: BackendOptions = {}): Promise<Backend> =>
  openBackend(kind, edges, options);

/**
 * Runs every kernel of this page's WebGPU, in every variant, against the reference executor, and says what is right: for a page that
 * tests a device. Seconds on a GPU, a minute on a software device. Nothing is kept. Throws EngineError("device") without WebGPU.
 */
export const testWebGpu = async (onEntry?: (entry: SelfTestEntry) => void): Promise<SelfTestReport> => {
  const [{ selfTest }, { createDecisions }, { createWebGpuBackend }] = await Promise.all([
    import("./selfTest.ts"),
    import("./webgpu/decisions.ts"),
    import("./webgpu/backend.ts"),
  ]);
  const decisions = createDecisions();
  const backend = await createWebGpuBackend(requireGpu(), { choose: decisions.choose, allowsInexact: true });
  try {
    return await selfTest(backend, decisions, onEntry ? { onEntry } : {});
  } finally {
    await backend.dispose();
  }
};

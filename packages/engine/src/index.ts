// The engine's door for browsers and workers. Node has its own beside it (./node), with the same createBackend.
// Executors are imported on first use: a page that trains on WebGPU never loads the WASM kernels.

import type { DeviceKind } from "./contract.ts";
import { type BackendOptions, type DeviceEdges, openBackend } from "./device.ts";
import { EngineError } from "./errors.ts";
import type { Backend } from "./plan/backend.ts";

export type * from "./contract.ts";
export { type BackendOptions, type GpuCheck, PRECISIONS, type Precision } from "./device.ts";
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
export { parseIndex, type WeightFiles } from "./weights/checkpoint.ts";
export { CONVERTED_VERSION, type ConvertedEntry, type ConvertedFile, type ConvertedWriter } from "./weights/converted.ts";
export { defaultWeightFormat } from "./weights/defaultFormat.ts";
export { WEIGHT_FORMATS, type WeightFormat } from "./weights/formats.ts";
export { encodeValues, readSafetensors, type StoredDtype, toFloat32, writeSafetensors } from "./weights/safetensors.ts";
export type { StreamHash } from "./weights/sha256.ts";
export { isWeightSource, type WeightReceiver, type WeightSource } from "./weights/source.ts";
export type { WeightProgress } from "./weights/stream.ts";

export { exposePolicy, wrapPolicy } from "./worker.ts";

const edges: DeviceEdges = {
  webgpu: async ({ check = (open) => open() }) => {
    const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
    if (!gpu)
      throw new EngineError("device", "webgpu: navigator.gpu exists, got none; use a browser with WebGPU over https, or the device wasm");
    const { createWebGpuBackend } = await import("./webgpu/backend.ts");
    return check((options) => createWebGpuBackend(gpu, options));
  },
  wasm: async (options) => (await import("./wasm/backend.ts")).createWasmBackend(options),
  reference: async () => (await import("./reference/backend.ts")).createReferenceBackend(),
};

/** Opens an executor in a browser or worker. "auto": WebGPU if there is a GPU, else WASM. Throws EngineError. */
export const createBackend = (kind: DeviceKind | "auto" = "auto", options: BackendOptions = {}): Promise<Backend> =>
  openBackend(kind, edges, options);

// The engine's door for Node: executors, opened Node's way. Everything else is the main entry's.

import type { DeviceKind } from "../contract.ts";
import { type BackendOptions, type DeviceEdges, openBackend } from "../device.ts";
import type { Backend } from "../plan/backend.ts";

const edges: DeviceEdges = {
  webgpu: async ({ check = (open) => open() }) => {
    const { openNodeWebGpu } = await import("./webgpu.ts");
    return check(openNodeWebGpu);
  },
  wasm: async (options) => {
    const [{ createWasmBackend }, { nodeThreads }] = await Promise.all([import("../wasm/backend.ts"), import("./wasmThreads.ts")]);
    return createWasmBackend({ ...options, spawn: nodeThreads });
  },
  reference: async () => (await import("../reference/backend.ts")).createReferenceBackend(),
};

/**
 * Opens an executor in Node. "auto": WebGPU if the optional package `webgpu` is installed and finds a GPU, else WASM.
 * Throws EngineError.
 */
export const createBackend = (kind: DeviceKind | "auto" = "auto", options: BackendOptions = {}): Promise<Backend> =>
  openBackend(kind, edges, options);

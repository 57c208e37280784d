// The engine's door for Node: executors, opened Node's way. Everything else is the main entry's.

import type { DeviceKind } from "../contract.ts";
import { type BackendOptions, type DeviceEdges, openBackend } from "../device.ts";
import type { Backend } from "../plan/backend.ts";
import type { SelfTestEntry, SelfTestReport } from "../selfTest.ts";

const edges: DeviceEdges = {
  webgpu: async ({ verdicts }) => {
    const { openNodeWebGpu } = await import("./webgpu.ts");
    if (!verdicts) return openNodeWebGpu();
    const { openChecked } = await import("../webgpu/checked.ts");
    return openChecked((choose) => openNodeWebGpu({ choose }), { verdicts });
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

/** The self-test of the engine's main entry (testWebGpu), for this machine's GPU through the optional package `webgpu`. */
export const testWebGpu = async (onEntry?: (entry: SelfTestEntry) => void): Promise<SelfTestReport> => {
  const [{ selfTest }, { createDecisions }, { openNodeWebGpu }] = await Promise.all([
    import("../selfTest.ts"),
    import("../webgpu/decisions.ts"),
    import("./webgpu.ts"),
  ]);
  const decisions = createDecisions();
  const backend = await openNodeWebGpu({ choose: decisions.choose, allowsInexact: true });
  try {
    return await selfTest(backend, decisions, onEntry ? { onEntry } : {});
  } finally {
    await backend.dispose();
  }
};

// Which executor runs. Opening one is the platform's matter (index.ts for browsers, node/index.ts for Node); choosing is not.

import type { DeviceKind } from "./contract.ts";
import { EngineError } from "./errors.ts";
import type { Backend } from "./plan/backend.ts";
import type { WebGpuBackend } from "./webgpu/backend.ts";
import type { DeviceOptions } from "./webgpu/device.ts";

/** From a way to open a GPU to an open one. Throws EngineError("wrong-results") for one that computes wrong. */
export type GpuCheck = (
  open: (options?: Pick<DeviceOptions, "choose" | "allowsInexact">) => Promise<WebGpuBackend>,
) => Promise<WebGpuBackend>;

export const PRECISIONS = ["f32", "f16"] as const;
export type Precision = (typeof PRECISIONS)[number];

export interface BackendOptions {
  /** WASM threads. Default: what the machine allows. */
  readonly threads?: number;
  /**
   * WASM's kernels, compiled ahead: what a bundler makes of `import kernels from "@fulgurite/engine/kernels.wasm"` for an edge worker, where
   * nothing may be compiled later. They run on one thread. Default: compiled here.
   */
  readonly kernels?: WebAssembly.Module;
  /**
   * "f16" lets WebGPU round the factors of large products to 16 bits (relative error 2·10⁻³; sums stay f32) where the device has shader-f16
   * and the tuner finds it faster. Default "f32". Other executors compute in f32 whatever it is.
   */
  readonly precision?: Precision;
  /** Looks at a GPU before it is taken: openChecked of gpuCheck.ts tests its kernels and times them. Absent: it is trusted. */
  readonly check?: GpuCheck;
  /** Stands behind WASM's description: why it is not WebGPU. */
  readonly note?: string;
}

/** What a platform can open. Each entry imports its executor on first use and throws EngineError("device") where there is none. */
export type DeviceEdges = Readonly<Record<DeviceKind, (options: BackendOptions) => Promise<Backend>>>;

/** WebGPU's executor says so of SwiftShader, llvmpipe and their like. */
const isSoftware = ({ device }: Backend): boolean => device.description.includes("(software)");

/**
 * Opens the executor of this kind. "auto" takes WebGPU where there is a GPU, else WASM: WebGPU emulated on the CPU
 * (SwiftShader, llvmpipe) is many times slower than WASM and is taken only when asked for by name. The reference is a specification, never a choice.
 * A GPU that computes wrong numbers is passed by, and WASM's description says so.
 * Throws EngineError("bad-request") for an unknown kind, EngineError("wrong-results") for such a GPU asked for by name, EngineError("device") when it cannot be opened.
 */
export const openBackend = async (kind: DeviceKind | "auto", edges: DeviceEdges, given: BackendOptions = {}): Promise<Backend> => {
  const { precision = "f32", check = (open) => open() } = given;
  if (!PRECISIONS.includes(precision))
    throw new EngineError(
      "bad-request",
      `precision: one of ${PRECISIONS.join(", ")}, got ${JSON.stringify(precision)}; leave it out for f32`,
    );
  const allowsInexact = precision === "f16";
  const options: BackendOptions = { ...given, check: (open) => check((device) => open({ allowsInexact, ...device })) };
  if (kind !== "auto") {
    if (!Object.hasOwn(edges, kind))
      throw new EngineError(
        "bad-request",
        `device: known kinds are auto, ${Object.keys(edges).join(", ")}, got ${JSON.stringify(kind)}; name one of them`,
      );
    return edges[kind](options);
  }
  let gpu: Backend | undefined;
  let note: string | undefined;
  try {
    gpu = await edges.webgpu(options);
  } catch (error) {
    if (!(error instanceof EngineError && (error.code === "device" || error.code === "wrong-results"))) throw error;
    if (error.code === "wrong-results") note = "this machine's WebGPU failed the self-test";
  }
  if (gpu && !isSoftware(gpu)) return gpu;
  await gpu?.dispose();
  return edges.wasm(note === undefined ? options : { ...options, note });
};

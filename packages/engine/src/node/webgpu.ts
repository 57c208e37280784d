// WebGPU in Node: Dawn from the optional package `webgpu`. Nothing else in the engine knows about it.
// Dawn's binding crashes the process when the object from create() is garbage-collected while devices or pending calls still
// use it (node-webgpu issue 18), so it lies in a set on globalThis until it is released, after the device is gone.

import { EngineError } from "../errors.ts";
import { createWebGpuBackend, type WebGpuBackend, type WebGpuOptions } from "../webgpu/backend.ts";

/** What is used of the package. */
export interface DawnModule {
  create(flags: string[]): GPU;
}

export interface NodeGpuOptions {
  /** Dawn's flags, such as "backend=null" or "adapter=<name>". */
  readonly flags?: readonly string[];
  /** Loads the package; tests pass their own. */
  readonly load?: () => Promise<DawnModule>;
}

export interface NodeGpu {
  readonly gpu: GPU;
  /** Lets Dawn be collected. Call it when every device from this `gpu` has been destroyed; idempotent. */
  release(): void;
}

const HELD = Symbol.for("fulgurite.dawn");

const held = (): Set<GPU> => {
  const holder = globalThis as { [HELD]?: Set<GPU> };
  holder[HELD] ??= new Set();
  return holder[HELD];
};

/** Throws EngineError("device") when the package is missing or cannot be loaded here. */
export const openNodeGpu = async ({ flags = [], load = () => import("webgpu") }: NodeGpuOptions = {}): Promise<NodeGpu> => {
  let dawn: DawnModule;
  try {
    dawn = await load();
  } catch (cause) {
    const isMissing =
      /ERR_MODULE_NOT_FOUND|MODULE_NOT_FOUND/.test((cause as { code?: string }).code ?? "") ||
      /Cannot find|Failed to load url/.test(String(cause));
    throw new EngineError(
      "device",
      isMissing
        ? "openNodeGpu: WebGPU in Node needs the package webgpu, got none; run: npm install webgpu"
        : `openNodeGpu: the package webgpu must load on ${process.platform}-${process.arch}, got "${(cause as Error).message}"; run: npm install webgpu`,
      { cause },
    );
  }
  const gpu = dawn.create([...flags]);
  held().add(gpu);
  return { gpu, release: () => void held().delete(gpu) };
};

const NAP_MS = 0.2;
const never = new Int32Array(new SharedArrayBuffer(4));

/**
 * While anything is pending, Dawn's binding asks the device in every turn of the event loop, without a pause: one core is busy with
 * asking. A turn that begins with a nap leaves the core to the device, which on a software device is this very processor.
 */
const waitWithNaps = <T>(pending: Promise<T>): Promise<T> => {
  let isSettled = false;
  const settle = (): void => {
    isSettled = true;
  };
  pending.then(settle, settle);
  const nap = (): void => {
    if (isSettled) return;
    Atomics.wait(never, 0, 0, NAP_MS);
    setImmediate(nap);
  };
  setImmediate(nap);
  return pending;
};

/** A WebGPU backend on Dawn; its dispose() lets Dawn go too, so that the process can end. */
export const openNodeWebGpu = async (options: WebGpuOptions & NodeGpuOptions = {}): Promise<WebGpuBackend> => {
  const { gpu, release } = await openNodeGpu(options);
  try {
    return await createWebGpuBackend(gpu, {
      wait: waitWithNaps,
      ...options,
      onDispose: () => {
        release();
        options.onDispose?.();
      },
    });
  } catch (error) {
    release();
    throw error;
  }
};

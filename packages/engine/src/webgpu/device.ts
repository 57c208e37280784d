// From a browser's or Dawn's `GPU` to a device that says what happened to it. WebGPU reports most trouble late and elsewhere
// (uncaptured errors, a `lost` promise); here it is kept and thrown by the next call: EngineError("lost") when the device went away, else "device".
// Optional features are taken where the adapter has them; every kernel also has a variant that runs on what WebGPU promises.
// Software adapters are allowed and named.

import { EngineError } from "../errors.ts";
import type { Feature, Target } from "./kernels/target.ts";

export interface DeviceOptions {
  /** Default "high-performance": on laptops the other GPU is many times slower. */
  readonly powerPreference?: GPUPowerPreference;
  /** How this platform waits for the device. Default: it just does; node/webgpu.ts keeps Dawn from polling a core busy meanwhile. */
  readonly wait?: <T>(pending: Promise<T>) => Promise<T>;
  /** Optional features that may be used. Default: all that the adapter has. */
  readonly features?: readonly Feature[];
  /** Bytes of the largest storage binding, at most the adapter's. Default: the adapter's. */
  readonly bindingBytes?: number;
  /** Lets kernels in that round more than f32 does. Default false. */
  readonly allowsInexact?: boolean;
  /** Takes kernels for a processor (short texts) or for a GPU. Default: by the adapter's name. */
  readonly isSoftware?: boolean;
  /** Which of several kernel variants to use (the tuner's choice). Default: the first candidate. */
  readonly choose?: Target["choose"];
  /** Called once when the device goes away without dispose(): driver reset, sleep, memory pressure. */
  readonly onLost?: (error: EngineError) => void;
}

export interface OpenDevice {
  readonly device: GPUDevice;
  /** "WebGPU, NVIDIA H100 PCIe"; software adapters say so. */
  readonly description: string;
  /** Everything that the adapter says about itself. */
  readonly identity: string;
  /** What kernels may be made for. */
  readonly target: Target;
  /** Awaits what the device will settle. */
  wait<T>(pending: Promise<T>): Promise<T>;
  /** Throws the first failure that was seen, if any. */
  check(where: string): void;
  /** What an operation that rejected means. A rejection may come a moment before the loss that explains it, which is waited for. */
  failure(where: string, cause: unknown): Promise<EngineError>;
  /** Destroys the device and waits until it is gone. */
  close(): Promise<void>;
}

const LOSS_DELAY_MS = 100;
const FEATURES: readonly Feature[] = ["shader-f16", "subgroups"];

const SOFTWARE = " (software)";

const describe = ({ description, vendor, architecture, device, isFallbackAdapter }: GPUAdapterInfo): string => {
  const name = description || [vendor, architecture, device].filter(Boolean).join(" ") || "unnamed adapter";
  return `WebGPU, ${name}${isFallbackAdapter || /llvmpipe|swiftshader|lavapipe/i.test(`${name} ${architecture}`) ? SOFTWARE : ""}`;
};

const identify = ({ vendor, architecture, device, description, isFallbackAdapter }: GPUAdapterInfo): string =>
  JSON.stringify([vendor, architecture, device, description, isFallbackAdapter]);

/** Needs nothing but a `GPU`: `navigator.gpu`, or what Dawn's create() returns. */
export const openDevice = async (
  gpu: GPU,
  {
    powerPreference = "high-performance",
    features = FEATURES,
    bindingBytes = Number.POSITIVE_INFINITY,
    allowsInexact = false,
    isSoftware,
    choose,
    onLost,
    wait = (pending) => pending,
  }: DeviceOptions = {},
): Promise<OpenDevice> => {
  const adapter = await gpu.requestAdapter({ powerPreference });
  if (!adapter) {
    throw new EngineError(
      "device",
      "webgpu: requestAdapter() must find an adapter, got null; use another device, or see docs/gpu.md for drivers and browser flags",
    );
  }
  const description = describe(adapter.info);
  // Reductions by subgroups number them, which is a feature of the language.
  const usable = features.filter(
    (feature) => adapter.features.has(feature) && (feature !== "subgroups" || gpu.wgslLanguageFeatures.has("subgroup_id")),
  );
  let device: GPUDevice;
  try {
    device = await adapter.requestDevice({
      label: "fulgurite",
      requiredFeatures: usable,
      requiredLimits: {
        maxBufferSize: adapter.limits.maxBufferSize,
        maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
      },
    });
  } catch (cause) {
    throw new EngineError("device", `webgpu: ${description} refused a device; see the cause`, { cause });
  }

  let failed: EngineError | undefined;
  let isClosed = false;
  device.addEventListener("uncapturederror", ({ error }) => {
    failed ??= new EngineError("device", `webgpu: ${description} reported "${error.message}"; dispose the backend and create another one`, {
      cause: error,
    });
  });
  const lost = device.lost.then(({ reason, message }) => {
    if (isClosed) return;
    // Loss explains whatever else was reported just before it.
    failed = new EngineError(
      "lost",
      `webgpu: ${description} was lost (${reason}: ${message}); create another backend and load the last state`,
    );
    onLost?.(failed);
  });

  const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
  return {
    device,
    description,
    identity: identify(adapter.info),
    target: {
      features: new Set(usable),
      isSoftware: isSoftware ?? description.endsWith(SOFTWARE),
      bindingBytes: Math.min(bindingBytes, maxBufferSize, maxStorageBufferBindingSize),
      allowsInexact,
      ...(choose && { choose }),
    },
    wait,
    check: (where): void => {
      if (isClosed) throw new EngineError("disposed", `${where}: the backend was disposed; create another one`);
      if (failed) throw new EngineError(failed.code, `${where}: ${failed.message}`, { cause: failed });
    },
    failure: async (where, cause): Promise<EngineError> => {
      if (!isClosed && failed?.code !== "lost")
        await Promise.race([lost, new Promise<void>((resolve) => void setTimeout(resolve, LOSS_DELAY_MS))]);
      if (isClosed) return new EngineError("disposed", `${where}: the backend was disposed meanwhile; create another one`, { cause });
      const message = failed?.message ?? `${description} failed; dispose the backend and create another one`;
      return new EngineError(failed?.code ?? "device", `${where}: ${message}`, { cause: failed ?? cause });
    },
    close: async (): Promise<void> => {
      isClosed = true;
      device.destroy();
      await lost;
    },
  };
};

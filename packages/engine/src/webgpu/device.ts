// From a browser's or Dawn's `GPU` to a device that says what happened to it. WebGPU reports most trouble late and elsewhere
// (uncaptured errors, a `lost` promise); here it is kept and thrown as EngineError("device") by the next call.
// Features are asked for where they exist and never needed: the baseline kernels run on what WebGPU promises (kernels/variant.ts).
// Software adapters are allowed and named.

import { EngineError } from "../errors.ts";

export interface DeviceOptions {
  /** Default "high-performance": on laptops the other GPU is many times slower. */
  readonly powerPreference?: GPUPowerPreference;
  /** How this platform waits for the device. Default: it just does; node/webgpu.ts keeps Dawn from polling a core busy meanwhile. */
  readonly wait?: <T>(pending: Promise<T>) => Promise<T>;
  /** Called once when the device goes away without dispose(): driver reset, sleep, memory pressure. */
  readonly onLost?: (error: EngineError) => void;
}

export interface OpenDevice {
  readonly device: GPUDevice;
  /** "WebGPU, NVIDIA H100 PCIe"; software adapters say so. */
  readonly description: string;
  /** Awaits what the device will settle. */
  wait<T>(pending: Promise<T>): Promise<T>;
  /** Throws the first failure that was seen, if any. */
  check(where: string): void;
  /** What an operation that rejected on a dead device means. */
  failure(where: string, cause: unknown): EngineError;
  /** Destroys the device and waits until it is gone. */
  close(): Promise<void>;
}

/** What some variant of the kernels, or the tuner, uses where it exists; none is needed. */
const FEATURES: readonly GPUFeatureName[] = ["shader-f16", "subgroups", "timestamp-query"];

const describe = ({ description, vendor, architecture, device, isFallbackAdapter }: GPUAdapterInfo): string => {
  const name = description || [vendor, architecture, device].filter(Boolean).join(" ") || "unnamed adapter";
  return `WebGPU, ${name}${isFallbackAdapter || /llvmpipe|swiftshader|lavapipe/i.test(`${name} ${architecture}`) ? " (software)" : ""}`;
};

/** Needs nothing but a `GPU`: `navigator.gpu`, or what Dawn's create() returns. */
export const openDevice = async (
  gpu: GPU,
  { powerPreference = "high-performance", onLost, wait = (pending) => pending }: DeviceOptions = {},
): Promise<OpenDevice> => {
  const adapter = await gpu.requestAdapter({ powerPreference });
  if (!adapter) {
    throw new EngineError(
      "device",
      "webgpu: requestAdapter() must find an adapter, got null; use another device, or see docs/gpu.md for drivers and browser flags",
    );
  }
  const description = describe(adapter.info);
  let device: GPUDevice;
  try {
    device = await adapter.requestDevice({
      label: "fulgurite",
      requiredFeatures: FEATURES.filter((name) => adapter.features.has(name)),
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
      "device",
      `webgpu: ${description} was lost (${reason}: ${message}); create another backend and load the last state`,
    );
    onLost?.(failed);
  });

  return {
    device,
    description,
    wait,
    check: (where): void => {
      if (isClosed) throw new EngineError("disposed", `${where}: the backend was disposed; create another one`);
      if (failed) throw new EngineError("device", `${where}: ${failed.message}`, { cause: failed });
    },
    failure: (where, cause): EngineError =>
      isClosed
        ? new EngineError("disposed", `${where}: the backend was disposed meanwhile; create another one`, { cause })
        : new EngineError("device", `${where}: ${failed?.message ?? `${description} failed; dispose the backend and create another one`}`, {
            cause: failed ?? cause,
          }),
    close: async (): Promise<void> => {
      isClosed = true;
      device.destroy();
      await lost;
    },
  };
};

// Whether a model can fit on a device at all: told from config.json alone, before its weights are downloaded.
// It refuses only what is certain to fail. What fits here may still run out of memory: activations come on top, and other
// programs have their share.

import { type Backend, type DeviceKind, EngineError, type PolicyMemory } from "@fulgurite/engine";

/** What a 32-bit address reaches. */
const WASM_BYTES = 2 ** 32;
/** Of one binding, promised by every WebGPU device: below it nobody has to be asked. */
const WEBGPU_TENSOR_BYTES = 128 * 2 ** 20;

const shown = (bytes: number): string => `${bytes} bytes (${(bytes / 2 ** 20).toFixed(1)} MiB)`;

export interface FitOptions {
  readonly device: DeviceKind | "auto";
  /** Opens the device for a look at its limits; called only for models that some device cannot hold. */
  readonly openDevice: (device: DeviceKind | "auto") => Promise<Backend>;
}

type Limits = Pick<Backend, "maxTensorBytes"> & { readonly kind: DeviceKind };

const limitsOf = async ({ device, openDevice }: FitOptions): Promise<Limits> => {
  if (device === "wasm" || device === "reference") return { kind: device };
  const backend = await openDevice(device);
  const { maxTensorBytes } = backend;
  await backend.dispose();
  return { kind: backend.device.kind, ...(maxTensorBytes !== undefined && { maxTensorBytes }) };
};

/** Throws EngineError("device") with both numbers. */
export const refuseTooLarge = async (source: string, memory: PolicyMemory, options: FitOptions): Promise<void> => {
  const { byteLength, weightBytes, largest } = memory;
  if (byteLength <= WASM_BYTES && largest.byteLength <= WEBGPU_TENSOR_BYTES) return;
  const { kind, maxTensorBytes = Number.POSITIVE_INFINITY } = await limitsOf(options);
  if (kind === "wasm" && byteLength > WASM_BYTES) {
    const advice = weightBytes < WASM_BYTES ? "take fewer slots, a shorter maxContext, or a smaller model" : "take a smaller model";
    throw new EngineError(
      "device",
      `loadPolicy: ${source} fits in the ${shown(WASM_BYTES)} that WASM addresses, got ${shown(byteLength)}, of which f32 weights ${shown(weightBytes)}; ${advice}`,
    );
  }
  if (largest.byteLength > maxTensorBytes)
    throw new EngineError(
      "device",
      `loadPolicy: each tensor of ${source} fits in the ${shown(maxTensorBytes)} of this ${kind} device, got ${shown(largest.byteLength)} for ${largest.name}; take a smaller model or another device`,
    );
};

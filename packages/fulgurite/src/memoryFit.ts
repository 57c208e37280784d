// Whether a model can fit on a device, and with which settings: told from config.json alone, before its weights are downloaded.
// It refuses only what is certain to fail. What fits here may still run out of memory: other programs have their share.

import {
  type Backend,
  type DeviceKind,
  fitMemory,
  limitsOf,
  type MemoryOptions,
  type ModelSpec,
  memoryOf,
  type PolicyMemory,
} from "@fulgurite/engine";

/** What every WebGPU device promises, of one binding and of one buffer: below it nobody has to be asked. */
const PROMISED = { tensorBytes: 128 * 2 ** 20, arenaBytes: 256 * 2 ** 20 };

export interface FitOptions extends Omit<MemoryOptions, "device"> {
  readonly device: DeviceKind | "auto";
  /** At most so many bytes. Default: what the device can address. */
  readonly memoryBytes?: number;
  /** Opens the device for a look at its limits; called only for models that some device cannot hold. */
  readonly openDevice: (device: DeviceKind | "auto") => Promise<Backend>;
}

/** The largest of what the devices that "auto" may mean would hold, when each of them can. */
const withoutLooking = async (
  spec: ModelSpec,
  { device, memoryBytes = Number.POSITIVE_INFINITY, ...options }: Omit<FitOptions, "openDevice">,
): Promise<PolicyMemory | undefined> => {
  const kinds: readonly DeviceKind[] = device === "auto" ? ["webgpu", "wasm"] : [device];
  const memories = await Promise.all(kinds.map((kind) => memoryOf(spec, { ...options, device: kind })));
  const isSafe = ({ byteLength, largest, items }: PolicyMemory): boolean =>
    byteLength <= Math.min(memoryBytes, 2 ** 31) && largest.byteLength <= PROMISED.tensorBytes && items.activations <= PROMISED.arenaBytes;
  return memories.every(isSafe) ? memories.reduce((a, b) => (b.byteLength > a.byteLength ? b : a)) : undefined;
};

/**
 * What the policy will hold, with the settings that createPolicy will choose; on a device that was not looked at, at most that much.
 * Throws EngineError("device") with what it needs, the limit, and what to lower.
 */
export const budgetFor = async (source: string, spec: ModelSpec, { openDevice, ...options }: FitOptions): Promise<PolicyMemory> => {
  const safe = await withoutLooking(spec, options);
  if (safe) return safe;
  const { device, memoryBytes, ...settings } = options;
  const limits = async () => {
    if (device === "wasm" || device === "reference")
      return { kind: device, limits: memoryBytes === undefined ? {} : { bytes: memoryBytes } };
    const backend = await openDevice(device);
    const found = { kind: backend.device.kind, limits: limitsOf(backend, memoryBytes) };
    await backend.dispose();
    return found;
  };
  const { kind, limits: found } = await limits();
  return fitMemory(spec, { ...settings, device: kind, name: source }, found);
};

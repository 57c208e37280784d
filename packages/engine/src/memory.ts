// The budget of a policy: what it will hold, by item, known from config.json before a byte of weights is there; and the fastest settings
// that fit into given limits, or a refusal that says what to lower to what. Nothing is estimated: the policy's own parts are built on a
// backend that counts (plan/dryRun.ts). It allocates nothing and asks no device.

import type { DeviceKind } from "./contract.ts";
import { EngineError } from "./errors.ts";
import type { LoraSpec, ModelSpec } from "./model/spec.ts";
import { modelTensors, storedTensors } from "./model/tensors.ts";
import type { Backend } from "./plan/backend.ts";
import { createDryRun, type ExecutorCosts } from "./plan/dryRun.ts";
import { createLock } from "./plan/lock.ts";
import { createPolicyParts, type MemorySettings } from "./policyParts.ts";
import { byteLengthOf, type WeightFormat } from "./weights/formats.ts";

export type { MemorySettings } from "./policyParts.ts";

export interface MemoryOptions extends Partial<MemorySettings> {
  /** Default rank 8, alpha 16. */
  readonly lora?: LoraSpec;
  /** Longest prompt + completion. Default: the model's, at most 512. */
  readonly maxContext?: number;
  /** What the base's matrices are kept in. Default f32. */
  readonly weightFormat?: WeightFormat;
  /** Of the model, for messages. */
  readonly name?: string;
  /** Whose memory. Default webgpu. */
  readonly device?: DeviceKind;
  /** Of the WASM executor; each has a work space. Default 4. */
  readonly threads?: number;
}

export interface PolicyMemory extends MemorySettings {
  readonly device: DeviceKind;
  readonly lora: LoraSpec;
  readonly maxContext: number;
  readonly weightFormat: WeightFormat;
  /** Bytes: base weights · adapters, gradient, moments · activations of the largest run · keys and values of running completions · inputs, results, command lists. */
  readonly items: Readonly<Record<"weights" | "adapters" | "activations" | "cache" | "other", number>>;
  readonly byteLength: number;
  /** The largest single tensor; on WebGPU the largest that has to fit one binding (model matrices are cut). */
  readonly largest: { readonly name: string; readonly byteLength: number };
}

export interface MemoryLimits {
  /** All that a policy may hold. Default: what the executor can address. */
  readonly bytes?: number;
  /** A single tensor, and all activations together (Backend.maxTensorBytes, maxArenaBytes). */
  readonly tensorBytes?: number;
  readonly arenaBytes?: number;
}

export const DEFAULT_LORA: LoraSpec = { rank: 8, alpha: 16 };
const DEFAULT_CONTEXT = 512;
const DEFAULT_MICRO_BATCH = 1024;
const MAX_SLOTS = 64;
const CACHE_BYTES = 512 * 2 ** 20;
const WASM_PAGE = 65536;
/** What a 32-bit address reaches: one past the end must still be an address. */
export const WASM_BYTES: number = 2 ** 32 - WASM_PAGE;
const DEFAULT_THREADS = 4;

/** What a backend can hold, within `bytes` if they are given. */
export const limitsOf = ({ maxTensorBytes, maxArenaBytes }: Backend, bytes?: number): MemoryLimits => ({
  ...(bytes !== undefined && { bytes }),
  ...(maxTensorBytes !== undefined && { tensorBytes: maxTensorBytes }),
  ...(maxArenaBytes !== undefined && { arenaBytes: maxArenaBytes }),
});

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;

/** "704 MiB: weights 330 MiB, …": of every item, in words. */
export const describeMemory = ({
  byteLength,
  items,
  slots,
  microBatchTokens,
  checkpoint,
  maxContext,
  weightFormat,
}: PolicyMemory): string =>
  `${mebibytes(byteLength)}: weights ${mebibytes(items.weights)} (${weightFormat}), adapter state ${mebibytes(items.adapters)}, ` +
  `activations ${mebibytes(items.activations)} (${microBatchTokens} tokens at once${checkpoint ? ", checkpointed" : ""}), ` +
  `KV cache ${mebibytes(items.cache)} (${slots} × ${maxContext}), other ${mebibytes(items.other)}`;

const costsOf = async (device: DeviceKind, threads = DEFAULT_THREADS): Promise<ExecutorCosts> => {
  if (device === "wasm") return (await import("./wasm/costs.ts")).wasmCosts(threads);
  if (device === "webgpu") return (await import("./webgpu/costs.ts")).webgpuCosts();
  return { kind: "reference", alignment: 4, planBytes: () => 0, scratchBytes: () => 0 };
};

/** A KV cache of 512 MiB holds so many, at most 64. */
const defaultSlots = ({ layers, kvHeads, headWidth, maxPositions }: ModelSpec): number => {
  const bytes = 2 * layers * maxPositions * kvHeads * headWidth * 4;
  return Math.min(MAX_SLOTS, Math.max(1, Math.floor(CACHE_BYTES / bytes)));
};

const resolve = (full: ModelSpec, options: MemoryOptions) => {
  const { lora = DEFAULT_LORA, device = "webgpu", weightFormat = "f32" } = options;
  const maxContext = Math.min(full.maxPositions, options.maxContext ?? DEFAULT_CONTEXT);
  const spec: ModelSpec = { ...full, maxPositions: maxContext };
  const { slots = defaultSlots(spec), microBatchTokens = Math.max(DEFAULT_MICRO_BATCH, maxContext), checkpoint = false } = options;
  return { spec, lora, device, maxContext, weightFormat, slots, microBatchTokens, checkpoint };
};

type Settings = ReturnType<typeof resolve>;

/** An adapter is a list of views of one buffer; the tensors of a model need no copy either. */
const count = async ({ spec, ...settings }: Settings, costs: ExecutorCosts): Promise<PolicyMemory> => {
  const dryRun = createDryRun(costs);
  const { backend, bytes } = dryRun;
  const weights = modelTensors(spec, settings.weightFormat);
  for (const tensor of [...storedTensors(weights), ...weights.ropes]) await backend.allocate(tensor);
  const { trainer } = await createPolicyParts({ ...settings, backend, spec, weights, lock: createLock() });
  await trainer.prepare("ppoClip");
  const { largest } = dryRun;
  return {
    ...settings,
    items: { weights: bytes.weights, adapters: bytes.state, activations: bytes.arena, cache: bytes.kv, other: bytes.io },
    byteLength: backend.byteLength,
    largest: { name: largest.name, byteLength: byteLengthOf(largest) },
  };
};

/** What a policy of this model holds with these settings; those left out are the defaults, whether they fit or not. */
export const memoryOf = async (spec: ModelSpec, options: MemoryOptions = {}): Promise<PolicyMemory> => {
  const settings = resolve(spec, options);
  return count(settings, await costsOf(settings.device, options.threads));
};

/** from, half of it, … , least. */
const halvings = (from: number, least: number): number[] =>
  from <= least ? [from] : [from, ...halvings(Math.max(least, from >> 1), least)];

/** The first value that is enough, of values that need less and less. */
const firstEnough = async <T>(values: readonly T[], isEnough: (value: T) => Promise<boolean>): Promise<T | undefined> => {
  // Most often none is, or the last one alone decides.
  if (values.length === 0 || !(await isEnough(values.at(-1)!))) return undefined;
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (await isEnough(values[middle]!)) high = middle;
    else low = middle + 1;
  }
  return values[high];
};

/**
 * Settings of a training run, the fastest first. Time a token, in units of a run that fills the device: a checkpointed one computes
 * four thirds (the forward a second time); a small one leaves the device idle, as if 64 more tokens were computed.
 */
export const byTime = <Run extends Pick<MemorySettings, "microBatchTokens" | "checkpoint">>(runs: readonly Run[]): Run[] => {
  const time = ({ microBatchTokens, checkpoint }: Run): number => (checkpoint ? 4 / 3 : 1) * (1 + 64 / microBatchTokens);
  return [...runs].sort((a, b) => time(a) - time(b));
};

const fits = ({ byteLength, items, largest }: PolicyMemory, limits: Required<MemoryLimits>): boolean =>
  byteLength <= limits.bytes && items.activations <= limits.arenaBytes && largest.byteLength <= limits.tensorBytes;

/** Which limit is missed, with both numbers. */
const missed = (memory: PolicyMemory, { bytes, tensorBytes, arenaBytes }: Required<MemoryLimits>): string => {
  if (memory.largest.byteLength > tensorBytes)
    return `limit ${mebibytes(tensorBytes)} for one tensor, got ${mebibytes(memory.largest.byteLength)} for ${memory.largest.name}`;
  if (memory.items.activations > arenaBytes) return `limit ${mebibytes(arenaBytes)} for activations`;
  return `limit ${mebibytes(bytes)}`;
};

/**
 * The settings that fit, the fastest first to be tried: options that are given are kept; microBatchTokens (never below maxContext, the
 * longest datum) and checkpoint are chosen for speed, and slots are halved only when nothing else helps.
 * Throws EngineError("device"): "needs …, limit …; lower X to Y".
 */
export const fitMemory = async (full: ModelSpec, options: MemoryOptions = {}, limits: MemoryLimits = {}): Promise<PolicyMemory> => {
  const base = resolve(full, options);
  const costs = await costsOf(base.device, options.threads);
  const within: Required<MemoryLimits> = {
    bytes: Math.min(limits.bytes ?? Number.POSITIVE_INFINITY, base.device === "wasm" ? WASM_BYTES : Number.POSITIVE_INFINITY),
    tensorBytes: limits.tensorBytes ?? Number.POSITIVE_INFINITY,
    arenaBytes: limits.arenaBytes ?? Number.POSITIVE_INFINITY,
  };
  const counted = new Map<string, Promise<PolicyMemory>>();
  const sized = (settings: Settings): Promise<PolicyMemory> => {
    const { spec: _, ...key } = settings;
    const name = JSON.stringify(key);
    const found = counted.get(name) ?? count(settings, costs);
    counted.set(name, found);
    return found;
  };

  const isEnough = async (settings: Settings): Promise<boolean> => fits(await sized(settings), within);

  const rows = options.microBatchTokens === undefined ? halvings(base.microBatchTokens, base.maxContext) : [base.microBatchTokens];
  const checkpoints = options.checkpoint === undefined ? [false, true] : [options.checkpoint];
  const runs = byTime(rows.flatMap((microBatchTokens) => checkpoints.map((checkpoint) => ({ microBatchTokens, checkpoint }))));
  const smallestRun = { microBatchTokens: rows.at(-1)!, checkpoint: checkpoints.at(-1)! };
  const fastest = { ...base, ...runs[0]! };
  if (await isEnough(fastest)) return sized(fastest);
  const slots = await firstEnough(options.slots === undefined ? halvings(base.slots, 1) : [base.slots], (count) =>
    isEnough({ ...base, ...smallestRun, slots: count }),
  );
  if (slots !== undefined) for (const run of runs) if (await isEnough({ ...base, ...run, slots })) return sized({ ...base, ...run, slots });
  const least: Settings = { ...base, ...smallestRun, slots: options.slots ?? 1 };
  const smallest = await sized(least);
  throw new EngineError(
    "device",
    `memory: ${options.name ?? "the policy"} needs ${describeMemory(smallest)}; ${missed(smallest, within)}; ${await adviceFor(least, full, isEnough)}`,
  );
};

/** Fewer bits in each step; the first of 16 bits loses nothing of most checkpoints. */
const BY_SIZE: readonly WeightFormat[] = ["f32", "bf16", "q8", "q4"];
const smallerFormats = (from: WeightFormat): readonly WeightFormat[] => BY_SIZE.slice(BY_SIZE.indexOf(from === "f16" ? "bf16" : from) + 1);

interface Lever {
  readonly name: string;
  /** Smaller and smaller. */
  readonly values: readonly (number | true | WeightFormat)[];
  readonly set: (settings: Settings, value: never) => Settings;
}

/** What a refused policy may lower: settings that change no number, then those that change what it can do. */
const leversOf = (full: ModelSpec, from: Settings): { readonly free: readonly Lever[]; readonly dear: readonly Lever[] } => {
  const smaller = (value: number, least: number): number[] => halvings(value, least).slice(1);
  return {
    free: [
      { name: "checkpoint", values: from.checkpoint ? [] : [true], set: (settings) => ({ ...settings, checkpoint: true }) },
      { name: "slots", values: smaller(from.slots, 1), set: (settings, slots: number) => ({ ...settings, slots }) },
      {
        name: "microBatchTokens",
        values: smaller(from.microBatchTokens, from.maxContext),
        set: (settings, microBatchTokens: number) => ({ ...settings, microBatchTokens }),
      },
    ],
    dear: [
      {
        name: "weightFormat",
        values: smallerFormats(from.weightFormat),
        set: (settings, weightFormat: WeightFormat) => ({ ...settings, weightFormat }),
      },
      {
        name: "lora.rank",
        values: smaller(from.lora.rank, 1),
        set: (settings, rank: number) => ({ ...settings, lora: { ...settings.lora, rank } }),
      },
      {
        name: "maxContext",
        values: smaller(from.maxContext, 64),
        set: (settings, maxContext: number) => ({
          ...settings,
          maxContext,
          spec: { ...full, maxPositions: maxContext },
          microBatchTokens: Math.min(settings.microBatchTokens, maxContext),
        }),
      },
    ],
  };
};

const order = (name: string, value: number | true | WeightFormat): string =>
  typeof value === "number" ? `lower ${name} to ${value}` : `set ${name} to ${value}`;

/** One lever that is enough, or several, each but the last at its least. */
const pull = async (
  levers: readonly Lever[],
  from: Settings,
  isEnough: (settings: Settings) => Promise<boolean>,
): Promise<string | undefined> => {
  for (const { name, values, set } of levers) {
    const value = await firstEnough(values, (one) => isEnough(set(from, one as never)));
    if (value !== undefined) return order(name, value);
  }
  const orders: string[] = [];
  let settings = from;
  for (const { name, values, set } of levers) {
    const least = values.at(-1);
    if (least === undefined) continue;
    const value = await firstEnough(values, (one) => isEnough(set(settings, one as never)));
    orders.push(order(name, value ?? least));
    if (value !== undefined) return orders.join(" and ");
    settings = set(settings, least as never);
  }
  return undefined;
};

const adviceFor = async (from: Settings, full: ModelSpec, isEnough: (settings: Settings) => Promise<boolean>): Promise<string> => {
  const { free, dear } = leversOf(full, from);
  return (
    (await pull(free, from, isEnough)) ??
    (await pull([...free, ...dear], from, isEnough)) ??
    "take a smaller model, or a device with more memory"
  );
};

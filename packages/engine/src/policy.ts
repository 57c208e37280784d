// One policy: frozen base weights, an adapter in training, and the copy of it that is served. It wires sampler and trainer
// to one backend behind one lock, and moves adapters in and out of files. It fetches nothing and knows no text.
//
//   lora.p ── trainer writes ── publish copies ──► lora.served ── sampler reads
//   lora.<name> ◄── loadAdapter: further adapters on the same weights, each with a plan of its own
//
// Kept promises
// - Calls on the backend never overlap: everything goes through the lock.
// - Training, importAdapter and loadState change lora.p only; what is served changes with publish, between completions.
// - importAdapter and loadState discard gradients that wait for a step: they belong to the adapter that was replaced.

import type { PeftFiles, Policy } from "./contract.ts";
import { EngineError } from "./errors.ts";
import { initLora } from "./lora/init.ts";
import { type Adapter, type AdapterBase, adaptedModel, fromPeft, readPeft, toPeft, toValues } from "./lora/peft.ts";
import { loadState, saveState } from "./lora/state.ts";
import { inferPlan, kvCache } from "./model/plans.ts";
import type { LoraSpec, ModelSpec } from "./model/spec.ts";
import { type LoraTensors, loraTensors, modelTensors, storedTensors } from "./model/tensors.ts";
import { createTrainer } from "./optimizer/trainer.ts";
import type { Backend } from "./plan/backend.ts";
import { createLock, type Lock } from "./plan/lock.ts";
import { sizeOf, type Tensor } from "./plan/step.ts";
import { createSampler } from "./sampler/sampler.ts";
import { hashWeights, type WeightFiles } from "./weights/checkpoint.ts";
import { loadModel } from "./weights/load.ts";
import { sha256 } from "./weights/sha256.ts";

export interface PolicyModel {
  /** config.json of a Hugging Face folder. */
  readonly config: Uint8Array;
  /** Its model.safetensors; of a sharded model the shards and model.safetensors.index.json, by file name. */
  readonly weights: WeightFiles;
  /** tokenizer.json; only its hash is used, so that an adapter is not put on a base with another vocabulary. */
  readonly tokenizer?: Uint8Array;
  /** Hugging Face id or address, written into exported adapters. */
  readonly name?: string;
}

export interface PolicyOptions {
  /** Belongs to the policy from here on: dispose() disposes it, a failing createPolicy too. */
  readonly backend: Backend;
  readonly model: PolicyModel;
  /** Default rank 8, alpha 16. */
  readonly lora?: LoraSpec;
  /** u32, of the adapter's first A. Default 0. */
  readonly seed?: number;
  /** Longest prompt + completion in tokens. Default: the model's, at most 512. */
  readonly maxContext?: number;
  /** Completions sampled at once. Default: what a KV cache of 512 MiB holds, at most 64. */
  readonly slots?: number;
  /** Token rows that a training run takes at once, also the longest datum. Default: 1024, or maxContext if that is more. */
  readonly microBatchTokens?: number;
}

const DEFAULT_LORA: LoraSpec = { rank: 8, alpha: 16 };
const DEFAULT_CONTEXT = 512;
const DEFAULT_MICRO_BATCH = 1024;
const MAX_SLOTS = 64;
const CACHE_BYTES = 512 * 2 ** 20;
/** Rows of one sampler tick: enough that feeding a prompt fills the device, few enough that running completions do not stall. */
const TICK_ROWS = 256;

const bad = (rule: string, got: unknown, advice: string): EngineError =>
  new EngineError("bad-request", `createPolicy: ${rule}, got ${got}; ${advice}`);

const isCount = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 1;

const checkOptions = ({ lora = DEFAULT_LORA, seed = 0, maxContext, slots }: PolicyOptions): void => {
  if (!isCount(lora.rank)) throw bad("lora.rank is a positive integer", lora.rank, "8 is a good start");
  if (!(lora.alpha > 0 && lora.alpha < Number.POSITIVE_INFINITY))
    throw bad("lora.alpha is a positive number", lora.alpha, "twice the rank is a good start");
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) throw bad("seed is an integer 0 … 2^32 − 1", seed, "take it modulo 2^32");
  if (maxContext !== undefined && !isCount(maxContext)) throw bad("maxContext is a positive integer", maxContext, "512 is the default");
  if (slots !== undefined && !isCount(slots)) throw bad("slots is a positive integer", slots, "leave it out for what fits");
};

const defaultSlots = ({ layers, kvHeads, headWidth, maxPositions }: ModelSpec): number => {
  const bytes = 2 * layers * maxPositions * kvHeads * headWidth * 4;
  return Math.min(MAX_SLOTS, Math.max(1, Math.floor(CACHE_BYTES / bytes)));
};

export interface PolicyMemory {
  /** Base weights in f32, with the rope tables. */
  readonly weightBytes: number;
  /** Weights, adapters with gradients and moments, KV cache: held as long as the policy lives. Activations come on top. */
  readonly byteLength: number;
  /** The largest single tensor; on WebGPU it has to fit one binding. */
  readonly largest: { readonly name: string; readonly byteLength: number };
}

/** What a policy of this model will hold at least, known before any weight is there. */
export const memoryOf = (full: ModelSpec, options: Pick<PolicyOptions, "lora" | "maxContext" | "slots"> = {}): PolicyMemory => {
  const { lora = DEFAULT_LORA, maxContext = DEFAULT_CONTEXT } = options;
  const spec: ModelSpec = { ...full, maxPositions: Math.min(full.maxPositions, maxContext) };
  const model = modelTensors(spec);
  const weights = [...storedTensors(model), ...model.ropes];
  const adapters = ["p", "g", "m", "v", "served"].map((name) => loraTensors(spec, lora, `lora.${name}`).flat);
  const cache = kvCache(spec, { slots: options.slots ?? defaultSlots(spec), positions: spec.maxPositions });
  const all = [...weights, ...adapters, ...cache.layers.flatMap(({ k, v }) => [k, v])];
  const bytesOf = (tensor: Tensor): number => sizeOf(tensor) * 4;
  const sum = (tensors: readonly Tensor[]): number => tensors.reduce((bytes, tensor) => bytes + bytesOf(tensor), 0);
  const largest = all.reduce((a, b) => (bytesOf(b) > bytesOf(a) ? b : a));
  return { weightBytes: sum(weights), byteLength: sum(all), largest: { name: largest.name, byteLength: bytesOf(largest) } };
};

const describeBase = async ({ config, weights, tokenizer, name }: PolicyModel): Promise<AdapterBase> => ({
  name: name ?? null,
  configSha256: await sha256(config),
  weightsSha256: await hashWeights(weights),
  ...(tokenizer && { tokenizerSha256: await sha256(tokenizer) }),
});

const disposedError = (): EngineError => new EngineError("disposed", "policy: it is alive, got a disposed one; create a new policy");

/** Everything that can fail half-way; createPolicy cleans up behind it. */
const build = async (options: PolicyOptions, lock: Lock) => {
  const { backend, model, seed = 0, lora = DEFAULT_LORA } = options;
  checkOptions(options);
  const { spec, weights } = await loadModel(model, backend, { maxContext: options.maxContext ?? DEFAULT_CONTEXT });
  if (options.maxContext !== undefined && options.maxContext > spec.maxPositions)
    throw bad(`maxContext ≤ ${spec.maxPositions} (max_position_embeddings)`, options.maxContext, "the model has no longer context");
  const parameters = loraTensors(spec, lora, "lora.p");
  const served = loraTensors(spec, lora, "lora.served");
  const initial = initLora(parameters, seed);
  await backend.allocate(parameters.flat, initial);
  await backend.allocate(served.flat, initial);

  const slots = options.slots ?? defaultSlots(spec);
  const cache = kvCache(spec, { slots, positions: spec.maxPositions });
  const capacity = { rows: Math.max(TICK_ROWS, slots), outRows: slots };
  const plan = inferPlan(spec, weights, { tensors: served, spec: lora }, cache, capacity);
  const microBatchTokens = options.microBatchTokens ?? Math.max(DEFAULT_MICRO_BATCH, spec.maxPositions);
  const trainer = await createTrainer({ backend, spec, weights, lora: { spec: lora, parameters }, microBatchTokens, lock });
  const sampler = await createSampler({ backend, spec, plan, cache, lock });
  const publish = await backend.compile({ name: "publish", steps: [{ op: "copy", x: parameters.flat, y: served.flat }] });
  /** An adapter to serve beside the published one: its tensors, and a plan that shares all else. */
  const another = (name: string) => {
    const tensors = loraTensors(spec, lora, `lora.${name}`, "io");
    return { tensors, plan: inferPlan(spec, weights, { tensors, spec: lora }, cache, capacity, plan) };
  };
  return { lora, parameters, initial, trainer, sampler, publish, another };
};

/**
 * Loads a model onto the backend, with a fresh adapter that computes nothing yet (B = 0). policyVersion starts at 0.
 * Throws EngineError: bad-file, unsupported (the model), bad-request (the options), device (memory).
 */
export const createPolicy = async (options: PolicyOptions): Promise<Policy> => {
  const { backend, model } = options;
  const disposal = new AbortController();
  const serialise = createLock();
  /** What waits for its turn when the policy is disposed never gets it. */
  const lock: Lock = (run) =>
    serialise(async () => {
      if (disposal.signal.aborted) throw disposedError();
      return run();
    });
  const base = describeBase(model);
  base.catch(() => {}); // told by export and import, which need it; sampling and training do not

  const built = await build(options, lock).catch(async (error: unknown) => {
    await backend.dispose();
    throw error;
  });
  const { lora, parameters, initial, trainer, sampler, publish, another } = built;
  const { state } = trainer;

  /** A call that ends with the policy at the latest. */
  const alive = <T>(work: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> =>
    new Promise((resolve, reject) => {
      if (disposal.signal.aborted) throw disposedError();
      const end = (): void => reject(disposedError());
      disposal.signal.addEventListener("abort", end, { once: true });
      work(signal ? AbortSignal.any([signal, disposal.signal]) : disposal.signal)
        .then(resolve, reject)
        .finally(() => disposal.signal.removeEventListener("abort", end));
    });

  const read = async ({ flat }: LoraTensors): Promise<Float32Array> => Float32Array.from(await backend.read(flat));
  const replace = ({ p, m, v }: { p: Float32Array; m: Float32Array; v: Float32Array }, adamStep: number): Promise<void> =>
    lock(async () => {
      backend.write(state.parameters.flat, p);
      backend.write(state.firstMoments.flat, m);
      backend.write(state.secondMoments.flat, v);
      backend.write(state.gradients.flat, new Float32Array(p.length));
      state.adamStep = adamStep;
    });

  const exportAdapter = async (): Promise<PeftFiles> => {
    const { values, step } = await lock(async () => ({ values: await read(parameters), step: state.adamStep }));
    const adapter: Adapter = { values, layout: parameters, lora, base: await base };
    return toPeft(adapter, { adapterVersion: sampler.policyVersion, step });
  };
  const importAdapter = async (files: PeftFiles): Promise<void> => {
    const p = await fromPeft(files, { values: initial, layout: parameters, lora, base: await base });
    const zero = new Float32Array(sizeOf(parameters.flat));
    await replace({ p, m: zero, v: zero }, 0);
  };
  const save = (): Promise<Uint8Array> =>
    lock(async () => {
      const [p, m, v] = [await read(state.parameters), await read(state.firstMoments), await read(state.secondMoments)];
      return saveState({ p, m, v, adamStep: state.adamStep }, parameters, lora);
    });
  const load = async (bytes: Uint8Array): Promise<void> => {
    const saved = loadState(bytes, parameters, lora);
    await replace(saved, saved.adamStep);
  };

  const loadAdapter = async (name: string, files: PeftFiles): Promise<void> => {
    if (typeof name !== "string" || name === "")
      throw new EngineError("bad-request", `loadAdapter: name is a string of one character or more, got ${JSON.stringify(name)}; name it`);
    const adapter = await readPeft(files, adaptedModel(parameters), await base);
    if (adapter.rank > lora.rank)
      throw new EngineError(
        "unsupported",
        `loadAdapter: the rank of ${name} is at most the policy's, ${lora.rank}, got ${adapter.rank}; create the policy with lora.rank ${adapter.rank}`,
      );
    const { tensors, plan } = another(name);
    const values = toValues(adapter, { layout: tensors, lora, initial: new Float32Array(sizeOf(tensors.flat)) });
    await sampler.add({ name, plan, version: adapter.version ?? 0, write: () => backend.write(tensors.flat, values) });
  };

  let ended: Promise<void> | undefined;
  const end = async (): Promise<void> => {
    disposal.abort();
    await sampler.dispose();
    // What runs on the backend now ends first.
    await serialise(async () => {});
    trainer.dispose();
    publish.dispose();
    await backend.dispose();
  };

  return {
    device: backend.device,
    sampler,
    trainer: {
      forward: (data, forwardOptions) => alive((signal) => trainer.forward(data, { ...forwardOptions, signal }), forwardOptions?.signal),
      forwardBackward: (data, loss, forwardOptions) =>
        alive((signal) => trainer.forwardBackward(data, loss, { ...forwardOptions, signal }), forwardOptions?.signal),
      optimStep: (adam) => alive(() => trainer.optimStep(adam)),
      exportAdapter: () => alive(exportAdapter),
      importAdapter: (files) => alive(() => importAdapter(files)),
      saveState: () => alive(save),
      loadState: (bytes) => alive(() => load(bytes)),
    },
    publish: (version) =>
      alive(async () => {
        if (!Number.isInteger(version) || version < 0)
          throw new EngineError("bad-request", `publish: version is a non-negative integer, got ${version}; count versions up from 1`);
        await sampler.publish(() => publish.run({}), version);
      }),
    loadAdapter: (name, files) => alive(() => loadAdapter(name, files)),
    unloadAdapter: (name) => alive(() => sampler.remove(name)),
    dispose: () => {
      ended ??= end();
      return ended;
    },
  };
};

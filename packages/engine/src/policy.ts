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
import { type BaseModel, describeBase } from "./lora/base.ts";
import { initLora } from "./lora/init.ts";
import { type Adapter, adaptedModel, fromPeft, readPeft, toPeft, toValues } from "./lora/peft.ts";
import { loadState, saveState } from "./lora/state.ts";
import { DEFAULT_LORA, fitMemory, limitsOf } from "./memory.ts";
import { parseConfig } from "./model/families.ts";
import type { LoraSpec } from "./model/spec.ts";
import { type LoraTensors, loraTensors } from "./model/tensors.ts";
import type { Backend } from "./plan/backend.ts";
import { createLock, type Lock } from "./plan/lock.ts";
import { sizeOf } from "./plan/step.ts";
import { createPolicyParts } from "./policyParts.ts";
import type { WeightFiles } from "./weights/checkpoint.ts";
import type { ConvertedEntry } from "./weights/converted.ts";
import { defaultWeightFormat } from "./weights/defaultFormat.ts";
import { WEIGHT_FORMATS, type WeightFormat } from "./weights/formats.ts";
import { parseJson } from "./weights/json.ts";
import { loadModel } from "./weights/load.ts";
import type { WeightSource } from "./weights/source.ts";
import type { WeightProgress } from "./weights/stream.ts";

export interface PolicyModel extends Omit<BaseModel, "weights"> {
  /** Files that are here, or where they come from: then they are converted as they arrive, and never held. */
  readonly weights: WeightFiles | WeightSource;
}

export interface PolicyOptions {
  /** Belongs to the policy from here on: dispose() disposes it, a failing createPolicy too. */
  readonly backend: Backend;
  readonly model: PolicyModel;
  /**
   * What the base's matrices are kept in; embedding and head of q4 are q8, everything else f32. Adapters, activations and all arithmetic
   * are f32 whatever it is. Default: exact, with the checkpoint's 16 bits where f32 would be large (weights/defaultFormat.ts).
   */
  readonly weightFormat?: WeightFormat;
  /** Where the converted weights are kept from one load to the next. Absent: nowhere. */
  readonly converted?: ConvertedEntry;
  /** While weights arrive. */
  readonly onProgress?: (progress: WeightProgress) => void;
  /** Ends the load. */
  readonly signal?: AbortSignal;
  /** Default rank 8, alpha 16. */
  readonly lora?: LoraSpec;
  /** u32, of the adapter's first A. Default 0. */
  readonly seed?: number;
  /** Longest prompt + completion in tokens. Default: the model's, at most 512. */
  readonly maxContext?: number;
  /** Completions sampled at once. Default: what a KV cache of 512 MiB holds, at most 64; fewer where memory is short. */
  readonly slots?: number;
  /** Token rows that a training run takes at once, also the longest datum. Default: 1024, or maxContext if that is more; down to maxContext where memory is short. */
  readonly microBatchTokens?: number;
  /** Gradient checkpointing: the same numbers in less memory and a third more time. Default: where memory is short. */
  readonly checkpoint?: boolean;
  /** Bytes that the policy may hold; settings that are left out are chosen to fit (memory.ts). Default: what the backend can address. */
  readonly memoryBytes?: number;
}

const CONFIG = "config.json";

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

const disposedError = (): EngineError => new EngineError("disposed", "policy: it is alive, got a disposed one; create a new policy");

/** Everything that can fail half-way; createPolicy cleans up behind it. */
const build = async (options: PolicyOptions, lock: Lock) => {
  const { backend, model, seed = 0, lora = DEFAULT_LORA } = options;
  checkOptions(options);
  const config = parseJson(model.config, CONFIG);
  const full = parseConfig(config, CONFIG);
  const weightFormat = options.weightFormat ?? defaultWeightFormat(config, full);
  if (!WEIGHT_FORMATS.includes(weightFormat))
    throw bad(`weightFormat is one of ${WEIGHT_FORMATS.join(", ")}`, weightFormat, "leave it out");
  if (options.maxContext !== undefined && options.maxContext > full.maxPositions)
    throw bad(`maxContext ≤ ${full.maxPositions} (max_position_embeddings)`, options.maxContext, "the model has no longer context");
  // What cannot fit is refused before any of it is there.
  const memory = await fitMemory(
    full,
    { ...options, weightFormat, ...(model.name !== undefined && { name: model.name }), device: backend.device.kind },
    limitsOf(backend, options.memoryBytes),
  );
  const { converted, onProgress, signal } = options;
  const { spec, weights, weightsSha256 } = await loadModel(model, backend, {
    maxContext: memory.maxContext,
    weightFormat,
    ...(converted && { converted }),
    ...(onProgress && { onProgress }),
    ...(signal && { signal }),
  });
  const base = describeBase(model, weightsSha256);
  base.catch(() => {}); // told by export and import, which need it; sampling and training do not
  const initial = initLora(loraTensors(spec, lora, "initial"), seed);
  const parts = await createPolicyParts({ ...memory, backend, spec, weights, initial, lock });
  return { lora, initial, base, ...parts };
};

/**
 * Loads a model onto the backend, with a fresh adapter that computes nothing yet (B = 0). policyVersion starts at 0.
 * Throws EngineError: bad-file, unsupported (the model), bad-request (the options), device (memory).
 */
export const createPolicy = async (options: PolicyOptions): Promise<Policy> => {
  const { backend } = options;
  const disposal = new AbortController();
  const serialise = createLock();
  /** What waits for its turn when the policy is disposed never gets it. */
  const lock: Lock = (run) =>
    serialise(async () => {
      if (disposal.signal.aborted) throw disposedError();
      return run();
    });
  const built = await build(options, lock).catch(async (error: unknown) => {
    await backend.dispose();
    throw error;
  });
  const { lora, base, parameters, initial, trainer, sampler, publish, another } = built;
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

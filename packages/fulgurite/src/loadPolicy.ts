// From a name or a folder to a policy that can be sampled and trained, with the text format that goes with it.

import { type ChatFormat, loadChatFormat } from "@fulgurite/agent";
import {
  type DeviceKind,
  defaultWeightFormat,
  EngineError,
  type LoraSpec,
  type ModelSpec,
  type Policy,
  type PolicyMemory,
  type Precision,
  parseConfig,
  type WeightFormat,
  withRecovery,
} from "@fulgurite/engine";
import { edge } from "#edge";
import { budgetFor } from "./memoryFit.ts";
import { type LoadProgress, type ModelFiles, type ModelFilesOptions, type ModelFolder, openModelFolder, readModel } from "./modelFiles.ts";

export interface LoadedPolicy extends Policy {
  /** What it was loaded from. */
  readonly source: string;
  readonly format: ChatFormat;
  /** The files that it was loaded from, read again (from the cache, if they are in one): an export starts from the original checkpoint. */
  readModel(options?: Pick<ModelFilesOptions, "signal" | "onProgress">): Promise<ModelFiles>;
}

export interface LoadPolicyOptions extends ModelFilesOptions {
  /** "auto": WebGPU if there is one, else WASM. */
  readonly device?: DeviceKind | "auto";
  /** Adapter shape; default rank 8, alpha 16. */
  readonly lora?: LoraSpec;
  /** Seed of the adapter's initial A; B is zero, so version 0 is the base model whatever the seed. */
  readonly seed?: number;
  /** Longest prompt + response in tokens. */
  readonly maxContext?: number;
  /** Completions sampled at once. */
  readonly slots?: number;
  /** Token rows that a training run takes at once. Default: 1024, fewer where memory is short. */
  readonly microBatchTokens?: number;
  /** Gradient checkpointing: the same numbers, less memory, a third more time. Default: where memory is short. */
  readonly checkpoint?: boolean;
  /**
   * What the base's matrices are kept in; embedding and head of q4 are q8. Default: exact, with the checkpoint's own 16 bits where f32
   * would be large; "q8" takes half of that, "q4" a quarter.
   */
  readonly weightFormat?: WeightFormat;
  /** Bytes that the policy may take; settings that are left out are chosen to fit. Default: what the machine has, where it says so. */
  readonly memoryBytes?: number;
  /** What the policy will hold, by item, before its weights are downloaded; where "auto" was not looked up yet, at most that much. */
  readonly onMemory?: (memory: PolicyMemory) => void;
  /** WASM threads; absent: what the machine allows. */
  readonly threads?: number;
  /** "f16" lets WebGPU round the factors of large products to 16 bits where that is faster. Default "f32". */
  readonly precision?: Precision;
}

const CONFIG = "config.json";

const decode = (bytes: Uint8Array | undefined): string | undefined => bytes && new TextDecoder().decode(bytes);

/** What was downloaded and is no such file must not come out of the cache again. */
const checked = async <T>(folder: ModelFolder, work: () => T | Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    const { code } = error as { code?: unknown };
    if (code === "bad-file" || code === "bad-format") await folder.forget();
    throw error;
  }
};

/** And the format that the weights are kept in when nobody says. */
const readSpec = (config: string): { spec: ModelSpec; weightFormat: WeightFormat } => {
  let json: unknown;
  try {
    json = JSON.parse(config);
  } catch (cause) {
    throw new EngineError("bad-file", `${CONFIG}: it is JSON, got ${(cause as Error).message}; download it again`, { cause });
  }
  const spec = parseConfig(json, CONFIG);
  return { spec, weightFormat: defaultWeightFormat(json, spec) };
};

/** Everything that says how text becomes tokens. The tokenizer's bytes go along, since adapters name their base by its hash. */
const readFormat = async (folder: ModelFolder, config: string): Promise<{ format: ChatFormat; tokenizer: Uint8Array }> => {
  const tokenizer = await folder.read("tokenizer.json");
  const tokenizerConfig = decode(await folder.read("tokenizer_config.json"))!;
  const chatTemplate = decode(await folder.readOptional("chat_template.jinja"));
  const generationConfig = decode(await folder.readOptional("generation_config.json"));
  const format = await checked(folder, () =>
    loadChatFormat({
      config,
      tokenizer: decode(tokenizer)!,
      tokenizerConfig,
      ...(chatTemplate !== undefined && { chatTemplate }),
      ...(generationConfig !== undefined && { generationConfig }),
    }),
  );
  return { format, tokenizer };
};

/**
 * `source`: "spark" (built in), a folder (in Node a path, anywhere a URL), or a name on the hub: owner/repo, owner/repo@revision.
 * In Node a folder that exists wins over a hub name; in a page write ./models/mine for a folder beside it.
 * What can be refused from the small files is refused before the weights are downloaded.
 * Throws EngineError: bad-file (a file is missing or wrong, no access), unsupported (another architecture), device (too large,
 * no such device), aborted; AgentError("bad-format") for a tokenizer or template that cannot be read.
 */
export const loadPolicy = async (source = "spark", options: LoadPolicyOptions = {}): Promise<LoadedPolicy> => {
  // what openModelFolder takes, and the engine's own
  const { device = "auto", hub, token, cache, cacheFolder, signal, onProgress, onReport, onMemory, ...given } = options;
  const memoryBytes = given.memoryBytes ?? edge.memoryBytes();
  const folder = await openModelFolder(source, options);
  const config = await folder.read(CONFIG);
  const { spec, weightFormat } = await checked(folder, () => readSpec(decode(config)!));
  const rest = { weightFormat, ...given, ...(memoryBytes !== undefined && { memoryBytes }) };
  const memory = await budgetFor(source, spec, { ...rest, device, openDevice: edge.openDevice });
  onMemory?.(memory);
  const { format, tokenizer } = await readFormat(folder, decode(config)!);
  if (format.vocabSize > spec.vocab)
    throw new EngineError(
      "bad-file",
      `loadPolicy: token ids of ${source} are below vocab_size (${spec.vocab}), got ${format.vocabSize - 1} in tokenizer.json; take both files from one model`,
    );
  const { name } = folder;
  /** Once from what was just read; after a loss from the cache, the same commit of it. */
  let first: { readonly config: Uint8Array; readonly tokenizer: Uint8Array } | undefined = { config, tokenizer };
  let kind = device;
  /** The load's last progress names how many files there were. */
  let filesInAll = 0;
  const show = (progress: LoadProgress): void => {
    filesInAll = progress.files;
    onProgress?.(progress);
  };
  const start = async (): Promise<Policy> => {
    const small = first ?? { config: await folder.read(CONFIG), tokenizer: await folder.read("tokenizer.json") };
    first = undefined;
    const { isCached, ...state } = folder.state();
    const place = {
      source,
      ...state,
      options: {
        ...(hub !== undefined && { hub }),
        ...(token !== undefined && { token }),
        cache: isCached, // one that failed has been reported
        ...(cacheFolder !== undefined && { cacheFolder }),
      },
    };
    const model = { ...small, ...(name !== undefined && { name }) };
    const hooks = { onProgress: show, ...(signal && { signal }), ...(onReport && { onReport }) };
    const policy = await checked(folder, () => edge.startPolicy({ ...rest, device: kind, model, weights: place }, hooks));
    folder.end();
    onProgress?.({ file: "", bytes: 0, totalBytes: 0, filesDone: filesInAll, files: filesInAll });
    // What "auto" found stays: an adapter's numbers must not change with the device.
    kind = policy.device.kind;
    return policy;
  };
  const policy = await withRecovery(start, {
    onRecovery: (loss, attempt) => onReport?.(`loadPolicy: the device of ${source} was lost, attempt ${attempt} to go on: ${loss.message}`),
  });
  if (signal?.aborted) {
    await policy.dispose();
    throw new EngineError("aborted", `loadPolicy: aborted while starting ${source}`, { cause: signal.reason });
  }
  return {
    source,
    format,
    readModel: (again = {}) =>
      readModel(source, {
        ...(hub !== undefined && { hub }),
        ...(token !== undefined && { token }),
        ...(cache !== undefined && { cache }),
        ...(cacheFolder !== undefined && { cacheFolder }),
        ...again,
      }),
    get device() {
      return policy.device;
    },
    sampler: policy.sampler,
    trainer: policy.trainer,
    publish: (version) => policy.publish(version),
    loadAdapter: (name, files) => policy.loadAdapter(name, files),
    unloadAdapter: (name) => policy.unloadAdapter(name),
    dispose: () => policy.dispose(),
  };
};

// From a name or a folder to a policy that can be sampled and trained, with the text format that goes with it.

import { type ChatFormat, loadChatFormat } from "@fulgurite/agent";
import { type DeviceKind, EngineError, type LoraSpec, type Policy } from "@fulgurite/engine";
import { sparkFiles } from "@fulgurite/spark";
import { edge } from "#edge";

export interface LoadedPolicy extends Policy {
  /** What it was loaded from. */
  readonly source: string;
  readonly format: ChatFormat;
}

export interface LoadPolicyOptions {
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
  /** WASM threads; absent: what the machine allows. */
  readonly threads?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { file: string; filesDone: number; files: number }) => void;
}

const REQUIRED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] as const;
const OPTIONAL = ["chat_template.jinja", "generation_config.json"] as const;

/**
 * `source`: "spark" (built in), or the URL (in Node also the path) of a Hugging Face folder of a Llama-style model.
 * Throws EngineError: bad-file (a file is missing or wrong), unsupported (another architecture), device.
 */
export const loadPolicy = async (source = "spark", options: LoadPolicyOptions = {}): Promise<LoadedPolicy> => {
  const { device = "auto", signal, onProgress, ...rest } = options;
  const files = await readFolder(source, signal, onProgress);
  const text = (name: string): string | undefined => {
    const bytes = files.get(name);
    return bytes && new TextDecoder().decode(bytes);
  };
  const chatTemplate = text("chat_template.jinja");
  const generationConfig = text("generation_config.json");
  const format = loadChatFormat({
    tokenizer: text("tokenizer.json") as string,
    tokenizerConfig: text("tokenizer_config.json") as string,
    ...(chatTemplate !== undefined && { chatTemplate }),
    ...(generationConfig !== undefined && { generationConfig }),
  });
  const policy = await edge.startPolicy({
    ...rest,
    device,
    model: {
      config: files.get("config.json") as Uint8Array,
      weights: files.get("model.safetensors") as Uint8Array,
      tokenizer: files.get("tokenizer.json") as Uint8Array,
    },
  });
  return {
    source,
    format,
    device: policy.device,
    sampler: policy.sampler,
    trainer: policy.trainer,
    publish: (version) => policy.publish(version),
    dispose: () => policy.dispose(),
  };
};

const readFolder = async (
  source: string,
  signal: AbortSignal | undefined,
  onProgress: LoadPolicyOptions["onProgress"],
): Promise<Map<string, Uint8Array>> => {
  const names = [...REQUIRED, ...OPTIONAL];
  const built = source === "spark" ? (sparkFiles as Readonly<Record<string, URL>>) : undefined;
  const folder = built ? undefined : edge.folderUrl(source);
  const files = new Map<string, Uint8Array>();
  for (const [filesDone, file] of names.entries()) {
    onProgress?.({ file, filesDone, files: names.length });
    const required = (REQUIRED as readonly string[]).includes(file);
    const url = built ? built[file] : new URL(file, folder);
    if (!url) continue;
    try {
      files.set(file, await edge.readFile(url, signal));
    } catch (cause) {
      if (signal?.aborted) throw new EngineError("aborted", `loadPolicy: aborted while reading ${file}`, { cause });
      if (required)
        throw new EngineError("bad-file", `loadPolicy: ${source} needs ${file}, could not read ${url}; known built-in policy: spark`, {
          cause,
        });
    }
  }
  onProgress?.({ file: "", filesDone: names.length, files: names.length });
  return files;
};

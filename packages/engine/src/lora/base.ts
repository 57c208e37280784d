// The model that an adapter belongs to: its files as they were loaded, and what an adapter's sidecar says of them.

import type { WeightFiles } from "../weights/checkpoint.ts";
import { sha256 } from "../weights/sha256.ts";

export interface BaseModel {
  /** config.json of a Hugging Face folder. */
  readonly config: Uint8Array;
  /** Its model.safetensors; of a sharded model the shards and model.safetensors.index.json, by file name. */
  readonly weights: WeightFiles;
  /** tokenizer.json; only its hash is used, so that an adapter is not put on a base with another vocabulary. */
  readonly tokenizer?: Uint8Array;
  /** Hugging Face id or address, written into exported adapters. */
  readonly name?: string;
}

/** Hashes are lower-case hex SHA-256 of the files. */
export interface AdapterBase {
  /** Hugging Face id or path, for people and for PEFT; null if unknown. */
  readonly name: string | null;
  readonly configSha256: string;
  readonly weightsSha256: string;
  readonly tokenizerSha256?: string | undefined;
}

/** Throws EngineError("unsupported") where there is no WebCrypto. `weightsSha256`: as hashWeights has it. */
export const describeBase = async (
  { config, tokenizer, name }: Omit<BaseModel, "weights">,
  weightsSha256: string | Promise<string>,
): Promise<AdapterBase> => ({
  name: name ?? null,
  configSha256: await sha256(config),
  weightsSha256: await weightsSha256,
  ...(tokenizer && { tokenizerSha256: await sha256(tokenizer) }),
});

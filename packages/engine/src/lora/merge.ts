// An adapter made part of its base: W′ = W + s·B·A in f32 from the original checkpoint, then cast. What comes out is an ordinary
// Hugging Face folder under the checkpoint's own names: a vision tower stays where it is, a tied head is not written.
// Tensors are made one by one as they are asked for: beside the checkpoint's bytes there is one of them in f32, never a second model.
//
// Left out: merging into quantised weights. That would quantise again and change the policy; quantise the folder instead.

import type { PeftFiles } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { parseConfig } from "../model/families.ts";
import { LINEARS, type LinearName, linearShape, type ModelSpec } from "../model/spec.ts";
import { type ModelTensors, modelTensors, storedTensors } from "../model/tensors.ts";
import { hashWeights, readCheckpoint, readStored, textNames } from "../weights/checkpoint.ts";
import { checkTensors, isRedundant } from "../weights/checkTensors.ts";
import { parseJson } from "../weights/json.ts";
import { encodeValues, entryByteLength, layOut, type StoredDtype, type StoredTensor, toFloat32 } from "../weights/safetensors.ts";
import { type BaseModel, describeBase } from "./base.ts";
import { type PeftModule, readPeft } from "./peft.ts";

/** A file as a stream of parts; `parts` may be called again and makes them anew. */
export interface FileToWrite {
  readonly name: string;
  readonly byteLength: number;
  readonly parts: () => Iterable<Uint8Array<ArrayBuffer>>;
}

export interface MergedModel {
  readonly spec: ModelSpec;
  readonly tensors: ModelTensors;
  /** Values of a tensor of the language model, by the name it has in `tensors`: f32, fresh at each call. */
  readonly values: (name: string) => Float32Array<ArrayBuffer>;
  /** Whether the adapter changes it. */
  readonly isAdapted: (name: string) => boolean;
}

/** w += s·B·A: each sum over the rank in f64, rounded once. w [O, I]. */
const addProduct = (w: Float32Array, { a, b, rank, scale }: PeftModule): void => {
  const outer = b.length / rank;
  const inner = a.length / rank;
  const row = new Float64Array(inner);
  for (let o = 0; o < outer; o++) {
    row.fill(0);
    for (let r = 0; r < rank; r++) {
      const factor = scale * b[o * rank + r]!;
      const from = r * inner;
      for (let i = 0; i < inner; i++) row[i]! += factor * a[from + i]!;
    }
    const to = o * inner;
    for (let i = 0; i < inner; i++) w[to + i]! += row[i]!;
  }
};

/**
 * The language model of a checkpoint with an adapter merged, or as it is without one. Reads and checks headers; values are read
 * when they are asked for. Throws EngineError("bad-file" | "unsupported"): an adapter of another base, files of another model.
 */
export const openMerged = async (model: BaseModel, adapter?: PeftFiles): Promise<MergedModel> => {
  const spec = parseConfig(parseJson(model.config, "config.json"), "config.json");
  const tensors = modelTensors(spec);
  const checkpoint = readCheckpoint(model.weights);
  checkTensors(checkpoint, storedTensors(tensors), spec);
  const shapes = { layers: spec.layers, shapeOf: (linear: LinearName) => linearShape(spec, linear) };
  const peft = adapter && (await readPeft(adapter, shapes, await describeBase(model, hashWeights(model.weights))));
  const adapted = new Map(
    peft
      ? tensors.layers.flatMap(({ linear }, layer) =>
          LINEARS.filter((name) => peft.targets.includes(name)).map((name) => [linear[name].name, { layer, linear: name }] as const),
        )
      : [],
  );
  return {
    spec,
    tensors,
    values: (name) => {
      const stored = checkpoint.tensors.get(name);
      if (!stored)
        throw new EngineError(
          "bad-request",
          `openMerged: ${checkpoint.file} has the tensor, got none named ${name}; take one of \`tensors\``,
        );
      const values = toFloat32(stored.tensor, stored.file);
      const place = adapted.get(name);
      if (place) addProduct(values, peft!.module(place.layer, place.linear)!);
      return values;
    },
    isAdapted: (name) => adapted.has(name),
  };
};

export interface MergeOptions {
  /** "original": each tensor as the checkpoint stores it. Default "original". */
  readonly dtype?: StoredDtype | "original";
  /** Above it weights are split into shards with an index. Default 4·10⁹: below the largest array of Node 20. */
  readonly maxShardBytes?: number;
}

const DEFAULT_SHARD = 4e9;
const TORCH: Readonly<Record<StoredDtype, string>> = { F32: "float32", F16: "float16", BF16: "bfloat16" };

/** config.json with the dtype of the weights in every place that names one; transformers 5 calls the key dtype, before it was torch_dtype. */
const withDtype = (config: Uint8Array, dtype: StoredDtype): Uint8Array<ArrayBuffer> => {
  const json = parseJson(config, "config.json") as Record<string, unknown>;
  const change = (part: Record<string, unknown>, isWhole: boolean): Record<string, unknown> => {
    const keys = ["dtype", "torch_dtype"].filter((key) => part[key] !== undefined);
    const named = keys.length > 0 || !isWhole ? keys : ["torch_dtype"];
    const nested = ["text_config", "vision_config"].filter((key) => typeof part[key] === "object" && part[key] !== null);
    return {
      ...part,
      ...Object.fromEntries(named.map((key) => [key, TORCH[dtype]])),
      ...Object.fromEntries(nested.map((key) => [key, change(part[key] as Record<string, unknown>, false)])),
    };
  };
  return new TextEncoder().encode(`${JSON.stringify(change(json, true), null, 2)}\n`);
};

interface Planned {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  readonly bytes: () => Uint8Array<ArrayBuffer>;
}

/** As many tensors in a shard as fit, in the order of the checkpoint; at least one. */
const toShards = (tensors: readonly Planned[], maxBytes: number): Planned[][] => {
  const shards: Planned[][] = [[]];
  let size = 0;
  for (const tensor of tensors) {
    const byteLength = entryByteLength(tensor);
    if (size > 0 && size + byteLength > maxBytes) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)!.push(tensor);
    size += byteLength;
  }
  return shards;
};

const toFile = (name: string, tensors: readonly Planned[]): FileToWrite => {
  const { header, order, byteLength } = layOut(tensors, { format: "pt" });
  const parts = function* (): Iterable<Uint8Array<ArrayBuffer>> {
    yield header;
    for (const tensor of order) yield tensor.bytes();
  };
  return { name, byteLength, parts };
};

const smallFile = (name: string, bytes: Uint8Array<ArrayBuffer>): FileToWrite => ({ name, byteLength: bytes.length, parts: () => [bytes] });

/**
 * config.json and the weights of the merged model: model.safetensors, or shards and their index. Tokenizer files are the caller's to copy.
 * Throws EngineError like openMerged; a value that does not fit the dtype shows while its part is made ("bad-request").
 */
export const mergedFolder = async (model: BaseModel, adapter?: PeftFiles, options: MergeOptions = {}): Promise<FileToWrite[]> => {
  const { dtype = "original", maxShardBytes = DEFAULT_SHARD } = options;
  if (!(maxShardBytes > 0))
    throw new EngineError("bad-request", `merge: maxShardBytes is a positive number, got ${maxShardBytes}; 4e9 is the default`);
  if (dtype !== "original" && !Object.hasOwn(TORCH, dtype))
    throw new EngineError(
      "bad-request",
      `merge: dtype is one of original, ${Object.keys(TORCH).join(", ")}, got ${JSON.stringify(dtype)}; name one of them`,
    );
  const merged = await openMerged(model, adapter);
  const { tensors } = readStored(model.weights);
  const nameOf = textNames(tensors.keys());

  const plan = (name: string, tensor: StoredTensor, file: string): Planned => {
    const plain = nameOf(name);
    const isAdapted = plain !== undefined && merged.isAdapted(plain);
    const to = dtype === "original" ? tensor.dtype : dtype;
    const bytes = (): Uint8Array<ArrayBuffer> => {
      if (!isAdapted && to === tensor.dtype) return new Uint8Array(tensor.bytes);
      return encodeValues(isAdapted ? merged.values(plain) : toFloat32(tensor, file), to, name);
    };
    return { name, dtype: to, shape: tensor.shape, bytes };
  };
  const planned = [...tensors].flatMap(([name, { tensor, file }]) => {
    const plain = nameOf(name);
    return plain !== undefined && isRedundant(plain, merged.spec) ? [] : [plan(name, tensor, file)];
  });

  const config = smallFile("config.json", dtype === "original" ? new Uint8Array(model.config) : withDtype(model.config, dtype));
  const shards = toShards(planned, maxShardBytes);
  if (shards.length === 1) return [config, toFile("model.safetensors", planned)];
  const five = (n: number): string => `${n}`.padStart(5, "0");
  const shardName = (i: number): string => `model-${five(i + 1)}-of-${five(shards.length)}.safetensors`;
  const index = {
    metadata: { total_size: planned.reduce((sum, tensor) => sum + entryByteLength(tensor), 0) },
    weight_map: Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, shardName(i)]))),
  };
  return [
    config,
    ...shards.map((shard, i) => toFile(shardName(i), shard)),
    smallFile("model.safetensors.index.json", new TextEncoder().encode(`${JSON.stringify(index, null, 2)}\n`)),
  ];
};

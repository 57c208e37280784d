// The folder that transformers.js loads: config.json that says what it needs, onnx/model.onnx (weights in it up to 2 GB, beyond that in
// files beside it) and the tokenizer. Weights are made tensor by tensor as the files are written.

import {
  type BaseModel,
  EngineError,
  encodeValues,
  type FileToWrite,
  type MergedModel,
  openMerged,
  type PeftFiles,
} from "@fulgurite/engine";
import { decoderGraph, type WeightType } from "./decoder.ts";
import { bytesOf, type External, type Initializer, type Message, message, model as toModel } from "./proto.ts";

export interface OnnxOptions {
  /** How weights are stored; the arithmetic is f32. Default "F32". F16 halves the files and rounds the weights. */
  readonly dtype?: WeightType;
  /** Positions of the rotary tables, 4·C bytes each. Default: all that the model was made for. */
  readonly maxPositions?: number;
  /**
   * Default true: logits of every row, 4·V bytes each (600 MB for a prompt of 1000 tokens at V = 152k). false: the graph has the input
   * num_logits_to_keep, which transformers.js fills with 1.
   */
  readonly allLogits?: boolean;
  /** Above it weights go into files of their own, at most so large each. Default 2·10⁹: a protobuf file ends at 2³¹. */
  readonly maxFileBytes?: number;
}

export interface OnnxModel extends BaseModel {
  /** tokenizer_config.json, generation_config.json, chat_template.jinja …: passed through, but see tokenizerConfig. */
  readonly files?: Readonly<Record<string, Uint8Array>>;
}

const DEFAULT_FILE = 2e9;
/** The name that transformers.js gives a file of that type, and the type. */
const NAMES: Readonly<Record<WeightType, { readonly file: string; readonly dtype: string }>> = {
  F32: { file: "model.onnx", dtype: "fp32" },
  F16: { file: "model_fp16.onnx", dtype: "fp16" },
};
/** External data begins at multiples of a page, so that runtimes can map it; smaller tensors stay in the model's file. */
const PAGE = 4096;

type Json = Record<string, unknown>;
const parse = (bytes: Uint8Array): Json => JSON.parse(new TextDecoder().decode(bytes)) as Json;
const toJson = (json: Json): Uint8Array<ArrayBuffer> => new TextEncoder().encode(`${JSON.stringify(json, null, 2)}\n`);
const smallFile = (name: string, bytes: Uint8Array): FileToWrite => {
  const plain = new Uint8Array(bytes);
  return { name, byteLength: plain.length, parts: () => [plain] };
};

/** config.json of the language model alone, with every key that transformers.js sizes the cache by. */
const toConfig = (config: Uint8Array, { spec }: MergedModel, dtype: string, chunks: number): Json => {
  const { text_config: text, vision_config: _, "transformers.js_config": known, ...json } = parse(config);
  return {
    ...json,
    ...(text as Json | undefined),
    model_type: spec.family,
    hidden_size: spec.width,
    num_hidden_layers: spec.layers,
    num_attention_heads: spec.heads,
    num_key_value_heads: spec.kvHeads,
    head_dim: spec.headWidth,
    vocab_size: spec.vocab,
    "transformers.js_config": { ...(known as Json | undefined), dtype, ...(chunks > 0 && { use_external_data_format: chunks }) },
  };
};

/** transformers.js looks for a chat template in tokenizer_config.json alone. */
const tokenizerConfig = (config: Uint8Array, template: Uint8Array | undefined): Uint8Array => {
  const json = parse(config);
  if (!template || json.chat_template !== undefined) return config;
  return toJson({ ...json, chat_template: new TextDecoder().decode(template) });
};

interface Placed {
  readonly initializer: Initializer;
  /** Number of its file. */
  readonly file: number;
  readonly offset: number;
}

/** Puts large tensors into files, one after the other; a tensor larger than a file gets its own. */
const place = (initializers: readonly Initializer[], maxBytes: number): Placed[] => {
  let [file, offset] = [0, 0];
  return initializers
    .filter(({ data }) => data.byteLength >= PAGE)
    .map((initializer) => {
      const { byteLength } = initializer.data;
      if (offset > 0 && offset + byteLength > maxBytes) [file, offset] = [file + 1, 0];
      const placed = { initializer, file, offset };
      offset += Math.ceil(byteLength / PAGE) * PAGE;
      return placed;
    });
};

const toFile = (name: string, content: Message): FileToWrite => ({ name, byteLength: content.byteLength, parts: () => bytesOf(content) });

/** Tensors at their offsets, zeros between them. */
const dataFile = (name: string, placed: readonly Placed[]): FileToWrite => {
  const parts = placed.flatMap(({ initializer: { data }, offset }, i) => {
    const next = placed[i + 1]?.offset ?? offset + data.byteLength;
    return [data, new Uint8Array(next - offset - data.byteLength)];
  });
  return toFile(name, { byteLength: parts.reduce((sum, { byteLength }) => sum + byteLength, 0), parts });
};

/**
 * A model with an adapter merged into it (or as it is) as transformers.js and ONNX Runtime load it. Throws EngineError: bad-file,
 * unsupported (the model, the adapter), bad-request (the options; while a part is made: a weight that does not fit F16).
 */
export const onnxFolder = async (base: OnnxModel, adapter?: PeftFiles, options: OnnxOptions = {}): Promise<FileToWrite[]> => {
  const { dtype = "F32", maxFileBytes = DEFAULT_FILE } = options;
  const bad = (rule: string, got: unknown, advice: string): EngineError =>
    new EngineError("bad-request", `onnx: ${rule}, got ${got}; ${advice}`);
  if (!Object.hasOwn(NAMES, dtype))
    throw bad(`dtype is one of ${Object.keys(NAMES).join(", ")}`, JSON.stringify(dtype), "name one of them");
  if (!(maxFileBytes > 0 && maxFileBytes <= DEFAULT_FILE))
    throw bad(`maxFileBytes is in 1 … ${DEFAULT_FILE}`, maxFileBytes, "leave it out");
  const merged = await openMerged(base, adapter);
  const { maxPositions = merged.spec.maxPositions, allLogits = true } = options;
  if (!(Number.isInteger(maxPositions) && maxPositions >= 1 && maxPositions <= merged.spec.maxPositions))
    throw bad(`maxPositions is in 1 … ${merged.spec.maxPositions} (max_position_embeddings)`, maxPositions, "leave it out");

  const graph = decoderGraph(merged, { weights: dtype, maxPositions, allLogits, encode: encodeValues });
  const { file, dtype: name } = NAMES[dtype];
  const size = graph.initializers.reduce((sum, { data }) => sum + data.byteLength, 0);
  const placed = size > maxFileBytes ? place(graph.initializers, maxFileBytes) : [];
  const chunks = (placed.at(-1)?.file ?? -1) + 1;
  const dataName = (chunk: number): string => `${file}_data${chunk === 0 ? "" : `_${chunk}`}`;
  const externals = new Map(
    placed.map(({ initializer, file, offset }): [Initializer, External] => [initializer, { location: dataName(file), offset }]),
  );

  const { "chat_template.jinja": template, "tokenizer_config.json": tokenizer, ...others } = base.files ?? {};
  const folder: Readonly<Record<string, Uint8Array>> = {
    ...others,
    ...(base.tokenizer && { "tokenizer.json": base.tokenizer }),
    ...(template && { "chat_template.jinja": template }),
    ...(tokenizer && { "tokenizer_config.json": tokenizerConfig(tokenizer, template) }),
    "config.json": toJson(toConfig(base.config, merged, name, chunks)),
  };
  return [
    ...Object.entries(folder).map(([path, bytes]) => smallFile(path, bytes)),
    toFile(`onnx/${file}`, message(toModel(graph, (initializer) => externals.get(initializer)))),
    ...Array.from({ length: chunks }, (_, chunk) =>
      dataFile(
        `onnx/${dataName(chunk)}`,
        placed.filter((one) => one.file === chunk),
      ),
    ),
  ];
};

// Model folders for the tests: the golden families' random checkpoints with a tokenizer of single characters, whole or in shards.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { readSafetensors, toFloat32, writeSafetensors } from "@fulgurite/engine";

export type Files = Record<string, Uint8Array>;

const golden = join(import.meta.dirname, "../../golden/families");
export const toBytes = (value: unknown): Uint8Array => new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));

/** Ids 0 … 2 are special, then the characters: fewer than the fixtures' 83 tokens. */
const SPECIAL = ["<pad>", "<s>", "<eos>"];
const characters = [...SPECIAL, ..."abcdefghijklmnopqrstuvwxyz0123456789 .:"];

export const tokenizerFile = (tokens: readonly string[] = characters): Uint8Array =>
  toBytes({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: SPECIAL.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: "Fuse" },
    model: { type: "BPE", unk_token: "<pad>", vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [] },
  });

const template = "{% for message in messages %}{{ message.role }}: {{ message.content }}<eos>{% endfor %}";

export const modelFiles = (family: string): Files => ({
  "config.json": new Uint8Array(readFileSync(join(golden, family, "config.json"))),
  "tokenizer.json": tokenizerFile(),
  "tokenizer_config.json": toBytes({ tokenizer_class: "PreTrainedTokenizerFast", eos_token: "<eos>", chat_template: template }),
  "model.safetensors": new Uint8Array(readFileSync(join(golden, family, "model.safetensors"))),
});

/** The same model in two shards with their index, and a second copy of the weights that nobody wants. */
export const sharded = ({ "model.safetensors": weights, ...rest }: Files): Files => {
  const tensors = [...readSafetensors(weights!, "model.safetensors").tensors.values()];
  const half = Math.ceil(tensors.length / 2);
  const shards = [tensors.slice(0, half), tensors.slice(half)].map((part, i) => ({
    file: `model-0000${i + 1}-of-00002.safetensors`,
    names: part.map(({ name }) => name),
    bytes: writeSafetensors(part.map((tensor) => ({ name: tensor.name, shape: tensor.shape, data: toFloat32(tensor, "shard") }))),
  }));
  const weight_map = Object.fromEntries(shards.flatMap(({ file, names }) => names.map((name) => [name, file])));
  return {
    ...rest,
    "model.safetensors.index.json": toBytes({ metadata: {}, weight_map }),
    ...Object.fromEntries(shards.map(({ file, bytes }) => [file, bytes])),
    "consolidated.safetensors": weights!,
  };
};

export const writeFolder = (folder: string, files: Files): string => {
  for (const [file, bytes] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), bytes);
  }
  return folder;
};

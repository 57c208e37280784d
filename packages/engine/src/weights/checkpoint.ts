// model.safetensors, or the shards of a larger model with their index → stored tensors under the names of a plain text model.
// Which of them a model wants is load.ts's business; reading their values too.

import * as z from "zod/mini";
import { EngineError } from "../errors.ts";
import { checkShape } from "../schema.ts";
import { parseJson } from "./json.ts";
import { readSafetensors, type StoredTensor } from "./safetensors.ts";
import { sha256 } from "./sha256.ts";

/**
 * One file, or file name → bytes: the shards (model-00001-of-00002.safetensors …) and model.safetensors.index.json. Other files are
 * not looked at: Mistral's repositories carry a second copy of the weights, consolidated.safetensors.
 */
export type WeightFiles = Uint8Array | Readonly<Record<string, Uint8Array>>;

export interface Checkpoint {
  /** What messages about the whole of it call it. */
  readonly file: string;
  readonly tensors: ReadonlyMap<string, { readonly tensor: StoredTensor; readonly file: string }>;
}

export const SINGLE = "model.safetensors";
export const INDEX = "model.safetensors.index.json";

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) });

const bad = (rule: string, got: string, advice: string): EngineError =>
  new EngineError("bad-file", `${INDEX}: ${rule}, got ${got}; ${advice}`);

/** model.safetensors.index.json: tensor → file, and the files in the order of their names. Throws EngineError("bad-file"). */
export const parseIndex = (bytes: Uint8Array): { readonly map: ReadonlyMap<string, string>; readonly shards: readonly string[] } => {
  const { data, issue } = checkShape(indexSchema, parseJson(bytes, INDEX));
  if (issue) throw bad("weight_map maps tensor names to file names", issue.message, "download it again");
  const map = new Map(Object.entries(data.weight_map));
  return { map, shards: [...new Set(map.values())].sort() };
};

/** The same, with all of the files there. */
const readIndex = (files: Readonly<Record<string, Uint8Array>>): ReturnType<typeof parseIndex> => {
  const bytes = files[INDEX];
  if (!bytes) throw bad("it stands beside the shards", Object.keys(files).join(", ") || "no files", "pass every file of the model folder");
  const index = parseIndex(bytes);
  const absent = index.shards.filter((file) => !files[file]);
  if (absent.length > 0) throw bad("every file of weight_map is there", `no ${absent.join(", ")}`, "pass every file of the model folder");
  return index;
};

const readShards = (files: Readonly<Record<string, Uint8Array>>): Checkpoint["tensors"] => {
  const { map, shards } = readIndex(files);
  const disagree = "index and shards are of different models; download both again";
  const stored = shards.flatMap((file) => [...readFile(files[file]!, file)]);
  const tensors = new Map(stored);
  if (tensors.size !== stored.length) throw bad("each tensor lies in one shard", `${stored.length - tensors.size} in two`, disagree);
  for (const [name, file] of map) {
    const found = tensors.get(name)?.file;
    if (found !== file) throw bad(`${name} lies in ${file}`, found ?? "a file without it", disagree);
  }
  const unlisted = [...tensors.keys()].find((name) => !map.has(name));
  if (unlisted !== undefined) throw bad("weight_map names every tensor of the shards", `none of ${unlisted}`, disagree);
  return tensors;
};

const readFile = (bytes: Uint8Array, file: string): Checkpoint["tensors"] =>
  new Map([...readSafetensors(bytes, file).tensors].map(([name, tensor]) => [name, { tensor, file }]));

/** Where vision checkpoints keep the language model: on disk since transformers 4.5x, and before. */
const TOWERS: readonly { readonly prefix: string; readonly plain: string }[] = [
  { prefix: "model.language_model.", plain: "model." },
  { prefix: "language_model.", plain: "" },
];

/**
 * What a checkpoint's tensors are called in the language model alone; undefined for a vision tower's. In a plain text checkpoint
 * names stay as they are. The head may lie outside the tower.
 */
export const textNames = (names: Iterable<string>): ((name: string) => string | undefined) => {
  const all = [...names];
  const tower = TOWERS.find(({ prefix }) => all.some((name) => name.startsWith(prefix)));
  if (!tower) return (name) => name;
  return (name) => {
    if (name.startsWith(tower.prefix)) return tower.plain + name.slice(tower.prefix.length);
    return name === "lm_head.weight" ? name : undefined;
  };
};

const textTower = (tensors: Checkpoint["tensors"]): Checkpoint["tensors"] => {
  const nameOf = textNames(tensors.keys());
  return new Map(
    [...tensors].flatMap(([name, stored]) => {
      const plain = nameOf(name);
      return plain === undefined ? [] : [[plain, stored] as const];
    }),
  );
};

/** The one file of an unsharded model, however it was passed. */
const singleOf = (files: WeightFiles): Uint8Array | undefined =>
  files instanceof Uint8Array ? files : files[INDEX] ? undefined : files[SINGLE];

/** Every tensor of the files, other towers' too, under the name it has there. Throws EngineError("bad-file"). */
export const readStored = (files: WeightFiles): Checkpoint => {
  const single = singleOf(files);
  if (single) return { file: SINGLE, tensors: readFile(single, SINGLE) };
  return { file: INDEX, tensors: readShards(files as Readonly<Record<string, Uint8Array>>) };
};

/** The language model. Reads every header and checks it; no value is converted. Throws EngineError("bad-file"). */
export const readCheckpoint = (files: WeightFiles): Checkpoint => {
  const { file, tensors } = readStored(files);
  return { file, tensors: textTower(tensors) };
};

/**
 * SHA-256 of the weights, lower-case hex. Of shards: of their own hashes, one line a file as sha256sum prints them, in the order of
 * their names. Throws EngineError("bad-file") like readCheckpoint.
 */
export const hashWeights = async (files: WeightFiles): Promise<string> => {
  const single = singleOf(files);
  if (single) return sha256(single);
  const byName = files as Readonly<Record<string, Uint8Array>>;
  const lines = readIndex(byName).shards.map(async (file) => `${await sha256(byName[file]!)}  ${file}\n`);
  return sha256(new TextEncoder().encode((await Promise.all(lines)).join("")));
};

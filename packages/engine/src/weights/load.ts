// A model folder's bytes → tensors on a backend. Fetching and caching are the caller's.

import { EngineError } from "../errors.ts";
import { parseConfig } from "../model/families.ts";
import { ropeTable } from "../model/rope.ts";
import type { ModelSpec } from "../model/spec.ts";
import { gainsOf, type ModelTensors, modelTensors, storedTensors } from "../model/tensors.ts";
import type { Backend } from "../plan/backend.ts";
import type { Tensor } from "../plan/step.ts";
import { type Checkpoint, readCheckpoint, type WeightFiles } from "./checkpoint.ts";
import { parseJson } from "./json.ts";
import { toFloat32 } from "./safetensors.ts";

export interface ModelFiles {
  /** config.json */
  readonly config: Uint8Array;
  /** model.safetensors, or the shards and their index by file name. */
  readonly weights: WeightFiles;
}

export interface Model {
  readonly spec: ModelSpec;
  readonly weights: ModelTensors;
}

const CONFIG = "config.json";

/** Tensors that other tools leave in checkpoints and that repeat what config.json says. */
export const isRedundant = (name: string, spec: ModelSpec): boolean =>
  name.endsWith("rotary_emb.inv_freq") || (spec.tiedHead && name === "lm_head.weight");

const list = (names: readonly string[]): string =>
  names.length > 8 ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more` : names.join(", ");

/** Whether a checkpoint is that of the config: complete, with nothing else in it, every shape as it should be. Throws EngineError("bad-file"). */
export const checkTensors = ({ file, tensors: stored }: Checkpoint, wanted: readonly Tensor[], spec: ModelSpec): void => {
  const names = new Set(wanted.map((tensor) => tensor.name));
  const missing = [...names].filter((name) => !stored.has(name));
  if (missing.length > 0)
    throw new EngineError(
      "bad-file",
      `${file}: it has every tensor of the config, got none named ${list(missing)}; take weights and config.json from one model`,
    );
  const unknown = [...stored.keys()].filter((name) => !names.has(name) && !isRedundant(name, spec));
  if (unknown.length > 0)
    throw new EngineError(
      "bad-file",
      `${file}: it has only tensors of the config, got ${list(unknown)}; take weights and config.json from one model`,
    );
  for (const { name, shape } of wanted) {
    const { tensor, file: shard } = stored.get(name)!;
    const got = tensor.shape;
    if (got.length !== shape.length || got.some((size, i) => size !== shape[i]))
      throw new EngineError(
        "bad-file",
        `${shard}: ${name} is [${shape}] by ${CONFIG}, got [${got}]; take weights and config.json from one model`,
      );
  }
};

/**
 * Every file check comes before the first allocation but the values', which are checked tensor by tensor; a caller that
 * gets an error disposes the backend. `maxContext` shortens the rope table to the positions that will be used.
 * Throws EngineError("bad-file" | "unsupported" | "device").
 */
export const loadModel = async (files: ModelFiles, backend: Backend, options: { readonly maxContext?: number } = {}): Promise<Model> => {
  const full = parseConfig(parseJson(files.config, CONFIG), CONFIG);
  const spec: ModelSpec = { ...full, maxPositions: Math.min(full.maxPositions, options.maxContext ?? full.maxPositions) };
  const weights = modelTensors(spec);
  const checkpoint = readCheckpoint(files.weights);
  const { tensors: stored } = checkpoint;
  const wanted = storedTensors(weights);
  checkTensors(checkpoint, wanted, spec);

  const gains = new Set(gainsOf(weights));
  for (const tensor of wanted) {
    const found = stored.get(tensor.name)!;
    const values = toFloat32(found.tensor, found.file);
    // Rounded to f32 as the reference's own 1 + w is: norms need no switch at run time.
    if (spec.gainOffset !== 0 && gains.has(tensor)) for (let i = 0; i < values.length; i++) values[i]! += spec.gainOffset;
    await backend.allocate(tensor, values);
  }
  for (const [i, table] of weights.ropes.entries())
    await backend.allocate(table, ropeTable(spec.maxPositions, spec.headWidth, spec.ropes[i]!));
  return { spec, weights };
};

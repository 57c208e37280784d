// A model folder's bytes → tensors on a backend. Fetching, caching and sharded checkpoints are the caller's.

import { EngineError } from "../errors.ts";
import { parseConfig } from "../model/families.ts";
import type { ModelSpec } from "../model/spec.ts";
import { type ModelTensors, modelTensors } from "../model/tensors.ts";
import type { Backend } from "../plan/backend.ts";
import type { Tensor } from "../plan/step.ts";
import { parseJson } from "./json.ts";
import { readSafetensors, toFloat32 } from "./safetensors.ts";

export interface ModelFiles {
  /** config.json */
  readonly config: Uint8Array;
  /** model.safetensors */
  readonly weights: Uint8Array;
}

export interface Model {
  readonly spec: ModelSpec;
  readonly weights: ModelTensors;
}

const CONFIG = "config.json";
const WEIGHTS = "model.safetensors";

/**
 * cos and sin of position × theta^(−2i/C), [P, C]: cos in columns 0 … C/2 − 1, sin in the rest. Computed in f64: at
 * position 10⁵ an f32 angle is off by up to 0.004 rad.
 */
export const ropeTable = (positions: number, headWidth: number, theta: number): Float32Array<ArrayBuffer> => {
  const half = headWidth / 2;
  const table = new Float32Array(positions * headWidth);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      const angle = p * theta ** ((-2 * i) / headWidth);
      table[p * headWidth + i] = Math.cos(angle);
      table[p * headWidth + half + i] = Math.sin(angle);
    }
  }
  return table;
};

/** Tensors that other tools leave in checkpoints and that repeat what config.json says. */
const isRedundant = (name: string, spec: ModelSpec): boolean =>
  name.endsWith("rotary_emb.inv_freq") || (spec.tiedHead && name === "lm_head.weight");

const list = (names: readonly string[]): string =>
  names.length > 8 ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more` : names.join(", ");

/**
 * Every file check comes before the first allocation but the values', which are checked tensor by tensor; a caller that
 * gets an error disposes the backend. `maxContext` shortens the rope table to the positions that will be used.
 * Throws EngineError("bad-file" | "unsupported" | "device").
 */
export const loadModel = async (files: ModelFiles, backend: Backend, options: { readonly maxContext?: number } = {}): Promise<Model> => {
  const full = parseConfig(parseJson(files.config, CONFIG), CONFIG);
  const spec: ModelSpec = { ...full, maxPositions: Math.min(full.maxPositions, options.maxContext ?? full.maxPositions) };
  const weights = modelTensors(spec);
  const stored = readSafetensors(files.weights, WEIGHTS).tensors;

  const wanted: Tensor[] = [
    ...new Set([
      weights.embed,
      ...weights.layers.flatMap((layer) => [layer.inputNorm, layer.postAttentionNorm, ...Object.values(layer.linear)]),
      weights.norm,
      weights.head,
    ]),
  ];
  const names = new Set(wanted.map((tensor) => tensor.name));
  const missing = [...names].filter((name) => !stored.has(name));
  if (missing.length > 0)
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: it has every tensor of the config, got none named ${list(missing)}; take weights and config.json from one model`,
    );
  const unknown = [...stored.keys()].filter((name) => !names.has(name) && !isRedundant(name, spec));
  if (unknown.length > 0)
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: it has only tensors of the config, got ${list(unknown)}; take weights and config.json from one model`,
    );
  for (const { name, shape } of wanted) {
    const got = stored.get(name)!.shape;
    if (got.length !== shape.length || got.some((size, i) => size !== shape[i]))
      throw new EngineError(
        "bad-file",
        `${WEIGHTS}: ${name} is [${shape}] by ${CONFIG}, got [${got}]; take weights and config.json from one model`,
      );
  }

  for (const tensor of wanted) await backend.allocate(tensor, toFloat32(stored.get(tensor.name)!, WEIGHTS));
  await backend.allocate(weights.rope, ropeTable(spec.maxPositions, spec.headWidth, spec.ropeTheta));
  return { spec, weights };
};

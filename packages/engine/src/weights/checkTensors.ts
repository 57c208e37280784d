// Whether a checkpoint is that of its config: complete, with nothing else in it, every shape as it should be.

import { EngineError } from "../errors.ts";
import type { ModelSpec } from "../model/spec.ts";
import type { Tensor } from "../plan/step.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** Tensors that other tools leave in checkpoints and that repeat what config.json says. */
export const isRedundant = (name: string, spec: ModelSpec): boolean =>
  name.endsWith("rotary_emb.inv_freq") || (spec.tiedHead && name === "lm_head.weight");

const list = (names: readonly string[]): string =>
  names.length > 8 ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more` : names.join(", ");

const bad = (file: string, rule: string, got: string): EngineError =>
  new EngineError("bad-file", `${file}: ${rule}, got ${got}; take weights and config.json from one model`);

/** `stored`: the names of the language model. Throws EngineError("bad-file"). */
export const checkNames = (file: string, stored: ReadonlySet<string>, wanted: readonly Tensor[], spec: ModelSpec): void => {
  const names = new Set(wanted.map((tensor) => tensor.name));
  const missing = [...names].filter((name) => !stored.has(name));
  if (missing.length > 0) throw bad(file, "it has every tensor of the config", `none named ${list(missing)}`);
  const unknown = [...stored].filter((name) => !names.has(name) && !isRedundant(name, spec));
  if (unknown.length > 0) throw bad(file, "it has only tensors of the config", list(unknown));
};

/** Throws EngineError("bad-file"). */
export const checkTensorShape = ({ name, shape }: Tensor, got: readonly number[], file: string): void => {
  if (got.length !== shape.length || got.some((size, i) => size !== shape[i]))
    throw bad(file, `${name} is [${shape}] by config.json`, `[${got}]`);
};

/** Both, of a checkpoint whose headers have been read. Throws EngineError("bad-file"). */
export const checkTensors = ({ file, tensors: stored }: Checkpoint, wanted: readonly Tensor[], spec: ModelSpec): void => {
  checkNames(file, new Set(stored.keys()), wanted, spec);
  for (const tensor of wanted) {
    const { tensor: found, file: shard } = stored.get(tensor.name)!;
    checkTensorShape(tensor, found.shape, shard);
  }
};

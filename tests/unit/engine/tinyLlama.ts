// A random Llama folder (or, by its overrides, one of another family), small enough to follow by hand: the model of the engine's tests. Made from a seed, so that every test sees the same one.

import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import { modelTensors, storedTensors } from "../../../packages/engine/src/model/tensors.ts";
import { sizeOf } from "../../../packages/engine/src/plan/step.ts";
import { uniform } from "../../../packages/engine/src/random.ts";
import { writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";

export const TINY_CONFIG = {
  model_type: "llama",
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  vocab_size: 48,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
};

export const encode = (json: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(json));

/** config.json and model.safetensors of the config; weights uniform in ±1.5·√(3/I), gains in 1 ± 0.1: logits differ enough that no test hangs on a tie. */
export const tinyLlama = (overrides: object = {}, seed = 1): { config: Uint8Array; weights: Uint8Array } => {
  const config = { ...TINY_CONFIG, ...overrides };
  const model = modelTensors(parseConfig(config, "config.json"));
  const tensors = storedTensors(model).map(({ name, shape, ...rest }, place) => {
    const isNorm = shape.length === 1;
    const bound = isNorm ? 0.1 : Math.sqrt(3 / shape[1]!) * 1.5;
    const data = Float32Array.from(
      { length: sizeOf({ name, shape, ...rest }) },
      (_, i) => (isNorm ? 1 : 0) + (2 * uniform(seed + place, i) - 1) * bound,
    );
    return { name, shape, data };
  });
  return { config: encode(config), weights: writeSafetensors(tensors, { format: "pt" }) };
};

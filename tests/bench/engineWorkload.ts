// What every contestant of the engine's bench computes: the built-in policy's weights as plain arrays, one adapter, one batch.
// The contestants' losses are compared before anything is timed: who computes something else is no peer.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseConfig } from "../../packages/engine/src/model/families.ts";
import { ropeTable } from "../../packages/engine/src/model/rope.ts";
import { LINEARS, type LinearName, linearShape, type ModelSpec, moduleOf } from "../../packages/engine/src/model/spec.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../../packages/engine/src/weights/safetensors.ts";
import { randoms } from "../randoms.ts";

export const SPARK = join(import.meta.dirname, "../../packages/spark/model");
export const LORA = { rank: 8, alpha: 16 } as const;
export const ADAM = { learningRate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8 } as const;

export interface LinearWeights {
  readonly outputs: number;
  readonly inputs: number;
  /** [O, I] */
  readonly values: Float32Array;
  /** [R, I] and [O, R]; b is not zero, so that every gradient is at work. */
  readonly a: Float32Array;
  readonly b: Float32Array;
}

export type LayerWeights = Readonly<Record<LinearName, LinearWeights>> & {
  readonly inputNorm: Float32Array;
  readonly feedForwardNorm: Float32Array;
};

export interface Workload {
  readonly spec: ModelSpec;
  readonly embed: Float32Array;
  readonly norm: Float32Array;
  readonly layers: readonly LayerWeights[];
  /** The adapter as PEFT keeps it. */
  readonly adapter: Readonly<Record<string, Uint8Array>>;
}

/** `rows` sequences of `length` tokens, row-major; the tokens from targetStart on are learned. */
export interface TrainBatch {
  readonly rows: number;
  readonly length: number;
  readonly targetStart: number;
  readonly tokens: Int32Array;
}

export const trainBatch = ({ spec }: Workload, rows: number, length: number): TrainBatch => {
  const random = randoms(7);
  const tokens = Int32Array.from({ length: rows * length }, () => Math.floor(random() * spec.vocab));
  return { rows, length, targetStart: length / 2, tokens };
};

/** cos and sin of the positions 0 … length − 1, [T, C], the two halves alike: what the "rotate half" form multiplies by. */
export const ropeHalves = ({ spec }: Workload, length: number): { cos: Float32Array; sin: Float32Array } => {
  const C = spec.headWidth;
  const table = ropeTable(length, C, spec.ropes[0]!);
  const pick = (shift: number) => Float32Array.from({ length: length * C }, (_, i) => table[i - (i % C) + (i % (C / 2)) + shift]!);
  return { cos: pick(0), sin: pick(C / 2) };
};

export const loadWorkload = async (): Promise<Workload> => {
  const spec = parseConfig(JSON.parse(await readFile(join(SPARK, "config.json"), "utf8")), "config.json");
  const { tensors } = readSafetensors(await readFile(join(SPARK, "model.safetensors")), "model.safetensors");
  const value = (name: string): Float32Array => toFloat32(tensors.get(name)!, "model.safetensors");
  const random = randoms(1);
  const small = (count: number, bound: number): Float32Array => Float32Array.from({ length: count }, () => (2 * random() - 1) * bound);
  const layers = Array.from({ length: spec.layers }, (_, i): LayerWeights => {
    const at = `model.layers.${i}`;
    const linears = LINEARS.map((name) => {
      const [outputs, inputs] = linearShape(spec, name);
      const values = value(`${at}.${moduleOf(name)}.${name}.weight`);
      return [
        name,
        { outputs, inputs, values, a: small(LORA.rank * inputs, inputs ** -0.5), b: small(outputs * LORA.rank, 0.02) },
      ] as const;
    });
    return {
      ...(Object.fromEntries(linears) as Record<LinearName, LinearWeights>),
      inputNorm: value(`${at}.input_layernorm.weight`),
      feedForwardNorm: value(`${at}.post_attention_layernorm.weight`),
    };
  });
  const adapter = writeSafetensors(
    layers.flatMap((layer, i) =>
      LINEARS.flatMap((name) => {
        const { outputs, inputs, a, b } = layer[name];
        const at = `base_model.model.model.layers.${i}.${moduleOf(name)}.${name}`;
        return [
          { name: `${at}.lora_A.weight`, shape: [LORA.rank, inputs], data: a },
          { name: `${at}.lora_B.weight`, shape: [outputs, LORA.rank], data: b },
        ];
      }),
    ),
    { format: "pt" },
  );
  const config = { peft_type: "LORA", task_type: "CAUSAL_LM", r: LORA.rank, lora_alpha: LORA.alpha, target_modules: LINEARS, bias: "none" };
  return {
    spec,
    embed: value("model.embed_tokens.weight"),
    norm: value("model.norm.weight"),
    layers,
    adapter: { "adapter_model.safetensors": adapter, "adapter_config.json": new TextEncoder().encode(JSON.stringify(config)) },
  };
};

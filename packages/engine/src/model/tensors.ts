// The named tensors of a model and of its adapter. Made once; every plan shares these objects.

import type { Tensor } from "../plan/step.ts";
import { LINEARS, type LinearName, type LoraSpec, linearShape, type ModelSpec } from "./spec.ts";

export interface LayerTensors {
  readonly inputNorm: Tensor;
  readonly postAttentionNorm: Tensor;
  readonly linear: Readonly<Record<LinearName, Tensor>>;
}

export interface ModelTensors {
  readonly embed: Tensor;
  readonly layers: readonly LayerTensors[];
  readonly norm: Tensor;
  /** The same object as embed when the head is tied. */
  readonly head: Tensor;
  /** [P, C]: cos in the first half of a row, sin in the second. Computed in f64, stored in f32. */
  readonly rope: Tensor;
}

const weight = (name: string, ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home: "weights" });

/** Tensor names are those of the Hugging Face checkpoint. */
export const modelTensors = (spec: ModelSpec): ModelTensors => {
  const embed = weight("model.embed_tokens.weight", spec.vocab, spec.width);
  return {
    embed,
    layers: Array.from({ length: spec.layers }, (_, i) => ({
      inputNorm: weight(`model.layers.${i}.input_layernorm.weight`, spec.width),
      postAttentionNorm: weight(`model.layers.${i}.post_attention_layernorm.weight`, spec.width),
      linear: Object.fromEntries(
        LINEARS.map((name) => {
          const block = name === "gate_proj" || name === "up_proj" || name === "down_proj" ? "mlp" : "self_attn";
          return [name, weight(`model.layers.${i}.${block}.${name}.weight`, ...linearShape(spec, name))];
        }),
      ) as Record<LinearName, Tensor>,
    })),
    norm: weight("model.norm.weight", spec.width),
    head: spec.tiedHead ? embed : weight("lm_head.weight", spec.vocab, spec.width),
    rope: weight("rope", spec.maxPositions, spec.headWidth),
  };
};

/** A [R, I] and B [O, R] of one linear layer: views of the flat buffer. */
export interface LoraPair {
  readonly a: Tensor;
  readonly b: Tensor;
}

export interface LoraTensors {
  /** One flat f32 buffer, [n]; every view starts at a multiple of 64 elements, gaps stay zero. */
  readonly flat: Tensor;
  readonly layers: readonly Readonly<Record<LinearName, LoraPair>>[];
}

/** The same layout for parameters, gradients, both moments and the sampler's copy: only the name differs. */
export const loraTensors = (spec: ModelSpec, { rank }: LoraSpec, name: string): LoraTensors => {
  let length = 0;
  const pending: { name: string; shape: readonly number[]; offset: number }[] = [];
  const reserve = (suffix: string, shape: readonly [number, number]): number => {
    pending.push({ name: `${name}.${suffix}`, shape, offset: length });
    length += Math.ceil((shape[0] * shape[1]) / 64) * 64;
    return pending.length - 1;
  };
  const slots = Array.from({ length: spec.layers }, (_, i) =>
    LINEARS.map((linear) => {
      const [outer, inner] = linearShape(spec, linear);
      return [linear, reserve(`${i}.${linear}.a`, [rank, inner]), reserve(`${i}.${linear}.b`, [outer, rank])] as const;
    }),
  );
  const flat: Tensor = { name, shape: [length], dtype: "f32", home: "state" };
  const views = pending.map(({ offset, ...rest }): Tensor => ({ ...rest, dtype: "f32", home: "state", view: { of: flat, offset } }));
  return {
    flat,
    layers: slots.map(
      (layer) =>
        Object.fromEntries(layer.map(([linear, a, b]) => [linear, { a: views[a]!, b: views[b]! }])) as Record<LinearName, LoraPair>,
    ),
  };
};

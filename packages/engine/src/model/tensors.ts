// The named tensors of a model and of its adapter. Made once; every plan shares these objects.

import type { Tensor } from "../plan/step.ts";
import { GROUP, type WeightFormat } from "../weights/formats.ts";
import { kindOf, LINEARS, type LinearName, type LoraSpec, linearShape, type ModelSpec, moduleOf } from "./spec.ts";

export interface LayerTensors {
  /** Norm of what attention reads, and of what the MLP reads. */
  readonly inputNorm: Tensor;
  readonly feedForwardNorm: Tensor;
  /** spec.postNorms: norm of what attention and MLP give, before it is added to the residual. */
  readonly attentionOutNorm?: Tensor;
  readonly feedForwardOutNorm?: Tensor;
  /** spec.qkNorm: [C]. */
  readonly qNorm?: Tensor;
  readonly kNorm?: Tensor;
  readonly linear: Readonly<Record<LinearName, Tensor>>;
  /** [O], of spec.biases. */
  readonly bias: Readonly<Partial<Record<LinearName, Tensor>>>;
  /** One of ModelTensors.ropes. */
  readonly rope: Tensor;
}

export interface ModelTensors {
  readonly embed: Tensor;
  readonly layers: readonly LayerTensors[];
  readonly norm: Tensor;
  /** The same object as embed when the head is tied. */
  readonly head: Tensor;
  /** One table for each of spec.ropes, [P, C] (rope.ts). They are computed, not stored in checkpoints. */
  readonly ropes: readonly Tensor[];
}

const weight = (name: string, ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home: "weights" });

/**
 * What each weight of a policy in `format` is kept in: matrices in the format, everything else in f32. Embedding and head of q4 are q8,
 * since four bits cost small models too much there. A matrix whose rows are no multiple of 32 stays f32.
 */
const dtypeOf = (format: WeightFormat, inner: number, isVocabulary: boolean): WeightFormat => {
  if (inner % GROUP !== 0) return "f32";
  return format === "q4" && isVocabulary ? "q8" : format;
};

/**
 * Tensor names are those of the Hugging Face checkpoint. `post_attention_layernorm` is two things: with post-norms the norm of
 * attention's output, without them the norm of the MLP's input.
 */
export const modelTensors = (spec: ModelSpec, format: WeightFormat = "f32"): ModelTensors => {
  const matrix = (name: string, [outer, inner]: readonly [number, number], isVocabulary = false): Tensor => ({
    ...weight(name, outer, inner),
    dtype: dtypeOf(format, inner, isVocabulary),
  });
  const embed = matrix("model.embed_tokens.weight", [spec.vocab, spec.width], true);
  const ropes = spec.ropes.map((_, i) => weight(`rope.${i}`, spec.maxPositions, spec.headWidth));
  const layerTensors = (i: number): LayerTensors => {
    const norm = (name: string, width: number): Tensor => weight(`model.layers.${i}.${name}.weight`, width);
    const linearName = (name: LinearName): string => `model.layers.${i}.${moduleOf(name)}.${name}`;
    return {
      inputNorm: norm("input_layernorm", spec.width),
      feedForwardNorm: norm(spec.postNorms ? "pre_feedforward_layernorm" : "post_attention_layernorm", spec.width),
      ...(spec.postNorms && {
        attentionOutNorm: norm("post_attention_layernorm", spec.width),
        feedForwardOutNorm: norm("post_feedforward_layernorm", spec.width),
      }),
      ...(spec.qkNorm && { qNorm: norm("self_attn.q_norm", spec.headWidth), kNorm: norm("self_attn.k_norm", spec.headWidth) }),
      linear: Object.fromEntries(LINEARS.map((name) => [name, matrix(`${linearName(name)}.weight`, linearShape(spec, name))])) as Record<
        LinearName,
        Tensor
      >,
      bias: Object.fromEntries(spec.biases.map((name) => [name, weight(`${linearName(name)}.bias`, linearShape(spec, name)[0])])),
      rope: ropes[kindOf(spec, i).rope]!,
    };
  };
  return {
    embed,
    layers: Array.from({ length: spec.layers }, (_, i) => layerTensors(i)),
    norm: weight("model.norm.weight", spec.width),
    head: spec.tiedHead ? embed : matrix("lm_head.weight", [spec.vocab, spec.width], true),
    ropes,
  };
};

/** The norms' gains, which a checkpoint may store as differences from 1 (spec.gainOffset). */
export const gainsOf = ({ layers, norm }: ModelTensors): Tensor[] => [
  ...layers.flatMap((layer) =>
    [layer.inputNorm, layer.feedForwardNorm, layer.attentionOutNorm, layer.feedForwardOutNorm, layer.qNorm, layer.kNorm].filter(
      (tensor) => tensor !== undefined,
    ),
  ),
  norm,
];

/** Everything that a checkpoint stores, each once. */
export const storedTensors = (model: ModelTensors): Tensor[] => [
  ...new Set([
    model.embed,
    ...model.layers.flatMap((layer) => [...Object.values(layer.linear), ...Object.values(layer.bias)]),
    ...gainsOf(model),
    model.head,
  ]),
];

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

/**
 * The same layout for parameters, gradients, both moments and the sampler's copies: only name and home differ. An adapter of home io
 * lives as long as the plans that are compiled over it.
 */
export const loraTensors = (spec: ModelSpec, { rank }: LoraSpec, name: string, home: "state" | "io" = "state"): LoraTensors => {
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
  const flat: Tensor = { name, shape: [length], dtype: "f32", home };
  const views = pending.map(({ offset, ...rest }): Tensor => ({ ...rest, dtype: "f32", home, view: { of: flat, offset } }));
  return {
    flat,
    layers: slots.map(
      (layer) =>
        Object.fromEntries(layer.map(([linear, a, b]) => [linear, { a: views[a]!, b: views[b]! }])) as Record<LinearName, LoraPair>,
    ),
  };
};

// What a decoder of one of the five families is, in numbers and named switches. Read from config.json by families.ts.
// One model file serves all of them: forward.ts and backward.ts look at the switches and never at the family's name.

import type { Activation } from "../plan/step.ts";

/** config.json's model_type. */
export const FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"] as const;
export type Family = (typeof FAMILIES)[number];

/** How the rotary frequencies of a longer context were made from those of a shorter one. */
export type RopeScaling =
  | { readonly kind: "linear"; readonly factor: number }
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      /** Positions of the model before it was stretched. */
      readonly originalPositions: number;
    };

export interface RopeSpec {
  readonly theta: number;
  readonly scaling?: RopeScaling;
}

export interface LayerKind {
  /** A row sees itself and the window − 1 rows before it. Absent: everything before it. */
  readonly window?: number;
  /** Which of ModelSpec.ropes turns its queries and keys. */
  readonly rope: number;
}

export type LinearName = "q_proj" | "k_proj" | "v_proj" | "o_proj" | "gate_proj" | "up_proj" | "down_proj";

export const LINEARS: readonly LinearName[] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

export interface ModelSpec {
  readonly family: Family;
  /** D. */
  readonly width: number;
  readonly layers: number;
  /** H. */
  readonly heads: number;
  /** K, divides H. */
  readonly kvHeads: number;
  /** C, even; H·C need not be D. */
  readonly headWidth: number;
  /** F. */
  readonly feedForward: number;
  /** V. */
  readonly vocab: number;
  /** P: positions that the model was made for. */
  readonly maxPositions: number;
  readonly normEps: number;
  /** A norm multiplies by gainOffset + w, w as stored. The sum is made at load. */
  readonly gainOffset: 0 | 1;
  /** Queries and keys are normed over C before rope. */
  readonly qkNorm: boolean;
  /** Attention and MLP outputs are normed before they are added to the residual. */
  readonly postNorms: boolean;
  /** The linears that have a bias. */
  readonly biases: readonly LinearName[];
  /** tanhGelu: PyTorch's gelu(approximate="tanh"). */
  readonly activation: Activation;
  /** Factor on the embedding (not on the head). */
  readonly embedScale: number;
  /** Factor on q·k. */
  readonly attentionScale: number;
  readonly ropes: readonly RopeSpec[];
  /** Layer i is layerKinds[i mod length]: one entry where all layers are alike. */
  readonly layerKinds: readonly LayerKind[];
  readonly tiedHead: boolean;
}

export const kindOf = ({ layerKinds }: ModelSpec, layer: number): LayerKind => layerKinds[layer % layerKinds.length]!;

/** The module of a block that a linear belongs to, as checkpoints and PEFT name it. */
export const moduleOf = (name: LinearName): "mlp" | "self_attn" =>
  name === "gate_proj" || name === "up_proj" || name === "down_proj" ? "mlp" : "self_attn";

/** [O, I] of a linear layer of one block. */
export const linearShape = (spec: ModelSpec, name: LinearName): readonly [number, number] => {
  const q = spec.heads * spec.headWidth;
  const kv = spec.kvHeads * spec.headWidth;
  const shapes: Record<LinearName, readonly [number, number]> = {
    q_proj: [q, spec.width],
    k_proj: [kv, spec.width],
    v_proj: [kv, spec.width],
    o_proj: [spec.width, q],
    gate_proj: [spec.feedForward, spec.width],
    up_proj: [spec.feedForward, spec.width],
    down_proj: [spec.width, spec.feedForward],
  };
  return shapes[name];
};

export interface LoraSpec {
  /** R. */
  readonly rank: number;
  /** s = alpha / rank. */
  readonly alpha: number;
}

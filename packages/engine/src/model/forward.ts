// Emits the forward steps of a Llama-style decoder with LoRA on its seven linears. One emitter for sampling and training:
// they differ only in how a row sees earlier rows (a cache, or the packed rows of the same run). What backward needs is
// returned; in a plan without backward the arena frees it at its last use.

import type { Rows, Step, Tensor } from "../plan/step.ts";
import { LINEARS, type LinearName, type LoraSpec, linearShape, type ModelSpec } from "./spec.ts";
import type { LoraPair, LoraTensors, ModelTensors } from "./tensors.ts";

export interface Lora {
  readonly tensors: LoraTensors;
  readonly spec: LoraSpec;
}

/** s of y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ. */
export const loraScale = ({ alpha, rank }: LoraSpec): number => alpha / rank;

/** An activation of `rows.capacity` rows; width 0 makes a vector of one number a row. */
export const activation = (name: string, rows: Rows, width: number): Tensor => ({
  name,
  shape: width === 0 ? [rows.capacity] : [rows.capacity, width],
  dtype: "f32",
  home: "arena",
});

/** y = residual + x·Wᵀ + s·(x·Aᵀ)·Bᵀ. Returns h = x·Aᵀ [T, R], which the gradient of B needs. */
const adaptedLinear = (
  steps: Step[],
  rows: Rows,
  { x, w, pair, scale, y, residual }: { x: Tensor; w: Tensor; pair: LoraPair; scale: number; y: Tensor; residual?: Tensor },
): Tensor => {
  const h = activation(`${y.name}.lora`, rows, pair.a.shape[0]!);
  steps.push(
    { op: "linear", rows, x, w, y, scale: 1, ...(residual && { residual }) },
    { op: "linear", rows, x, w: pair.a, y: h, scale: 1 },
    { op: "linear", rows, x: h, w: pair.b, residual: y, y, scale },
  );
  return h;
};

/**
 * What one block leaves behind for its gradient. The norms' and the gated unit's outputs are not kept: a row-wise step makes
 * them again, and they are a third of the memory.
 */
export interface BlockActivations {
  /** Input of the block and of its second half, [T, D]. */
  readonly x: Tensor;
  readonly x1: Tensor;
  /** After rope, [T, H·C] and [T, K·C]. */
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly o: Tensor;
  /** [T, H]. */
  readonly lse: Tensor;
  /** Before the gated unit, [T, F]. */
  readonly gate: Tensor;
  readonly up: Tensor;
  /** x·Aᵀ of each linear, [T, R]. */
  readonly h: Readonly<Record<LinearName, Tensor>>;
}

/** Emits attention from q, k, v into o; lse is written only where training needs it. */
export type Attend = (steps: Step[], layer: number, operands: Pick<BlockActivations, "q" | "k" | "v" | "o" | "lse">) => void;

export interface DecoderRows {
  readonly rows: Rows;
  /** [T] i32. */
  readonly tokens: Tensor;
  readonly positions: Tensor;
  readonly attend: Attend;
}

/** Embedding and all blocks. Returns the residual stream after the last block, [T, D]. */
export const emitDecoder = (
  steps: Step[],
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  { rows, tokens, positions, attend }: DecoderRows,
): { blocks: BlockActivations[]; x: Tensor } => {
  const scale = loraScale(lora.spec);
  const blocks: BlockActivations[] = [];
  let x = activation("x.0", rows, spec.width);
  steps.push({ op: "embed", rows, table: weights.embed, tokens, y: x });

  for (const [i, layer] of weights.layers.entries()) {
    const tensor = (name: string, width: number): Tensor => activation(`${name}.${i}`, rows, width);
    const outputs = Object.fromEntries(LINEARS.map((name) => [name, tensor(name, linearShape(spec, name)[0])])) as Record<
      LinearName,
      Tensor
    >;
    const h = {} as Record<LinearName, Tensor>;
    const adapted = (name: LinearName, input: Tensor, y: Tensor = outputs[name], residual?: Tensor): void => {
      const pair = lora.tensors.layers[i]![name];
      h[name] = adaptedLinear(steps, rows, { x: input, w: layer.linear[name], pair, scale, y, ...(residual && { residual }) });
    };

    const [n, rstd] = [tensor("n", spec.width), tensor("rstd", 0)];
    const { q_proj: q, k_proj: k, v_proj: v, gate_proj: gate, up_proj: up } = outputs;
    const [o, lse] = [tensor("o", spec.heads * spec.headWidth), tensor("lse", spec.heads)];
    steps.push({ op: "rmsNorm", rows, x, gain: layer.inputNorm, y: n, rstd, eps: spec.normEps });
    adapted("q_proj", n);
    adapted("k_proj", n);
    adapted("v_proj", n);
    steps.push(
      { op: "rope", rows, x: q, table: weights.rope, positions, heads: spec.heads, direction: 1 },
      { op: "rope", rows, x: k, table: weights.rope, positions, heads: spec.kvHeads, direction: 1 },
    );
    attend(steps, i, { q, k, v, o, lse });
    const x1 = tensor("x1", spec.width);
    adapted("o_proj", o, x1, x);

    const [n1, rstd1, a] = [tensor("n1", spec.width), tensor("rstd1", 0), tensor("a", spec.feedForward)];
    steps.push({ op: "rmsNorm", rows, x: x1, gain: layer.postAttentionNorm, y: n1, rstd: rstd1, eps: spec.normEps });
    adapted("gate_proj", n1);
    adapted("up_proj", n1);
    steps.push({ op: "glu", rows, gate, up, y: a });
    const next = activation(`x.${i + 1}`, rows, spec.width);
    adapted("down_proj", a, next, x1);

    blocks.push({ x, x1, q, k, v, o, lse, gate, up, h });
    x = next;
  }
  return { blocks, x };
};

/** Causal attention over packed rows: row t sees start[t] … t. */
export const attendPacked =
  (spec: ModelSpec, rows: Rows, start: Tensor): Attend =>
  (steps, _layer, { q, k, v, o, lse }) => {
    const { heads, kvHeads } = spec;
    steps.push({ op: "attention", rows, q, k, v, start, o, lse, heads, kvHeads, scale: spec.headWidth ** -0.5 });
  };

/** The rows that reach the head: gathered, normed. Returns both, [N, D], with rstd [N]. */
export const emitOutputRows = (
  steps: Step[],
  spec: ModelSpec,
  weights: ModelTensors,
  outRows: Rows,
  { x, outIndex }: { x: Tensor; outIndex: Tensor },
): { x: Tensor; n: Tensor; rstd: Tensor } => {
  const gathered = activation("out.x", outRows, spec.width);
  const [n, rstd] = [activation("out.n", outRows, spec.width), activation("out.rstd", outRows, 0)];
  steps.push(
    { op: "gatherRows", rows: outRows, x, index: outIndex, y: gathered },
    { op: "rmsNorm", rows: outRows, x: gathered, gain: weights.norm, y: n, rstd, eps: spec.normEps },
  );
  return { x: gathered, n, rstd };
};

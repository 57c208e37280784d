// Emits the forward steps of a decoder with LoRA on its seven linears, by the switches of its spec. One emitter for sampling and
// training: they differ only in how a row sees earlier rows (a cache, or the packed rows of the same run). What backward needs
// is returned; in a plan without backward the arena frees it at its last use.

import type { Rows, Step, Tensor } from "../plan/step.ts";
import { kindOf, LINEARS, type LinearName, type LoraSpec, linearShape, type ModelSpec } from "./spec.ts";
import type { LayerTensors, LoraPair, LoraTensors, ModelTensors } from "./tensors.ts";

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

interface AdaptedLinear {
  readonly x: Tensor;
  readonly w: Tensor;
  readonly bias: Tensor | undefined;
  readonly pair: LoraPair;
  readonly scale: number;
  readonly y: Tensor;
  readonly residual: Tensor | undefined;
}

/** h = x·Aᵀ, [T, R]: what the gradient of B needs of a linear. */
const emitLora = (steps: Step[], rows: Rows, x: Tensor, { a }: LoraPair, name: string): Tensor => {
  const h = activation(`${name}.lora`, rows, a.shape[0]!);
  steps.push({ op: "linear", rows, x, w: a, y: h, scale: 1 });
  return h;
};

/** y = residual + bias + x·Wᵀ + s·(x·Aᵀ)·Bᵀ. Returns h = x·Aᵀ. */
const adaptedLinear = (steps: Step[], rows: Rows, { x, w, bias, pair, scale, y, residual }: AdaptedLinear): Tensor => {
  steps.push({ op: "linear", rows, x, w, y, scale: 1, ...(bias && { bias }), ...(residual && { residual }) });
  const h = emitLora(steps, rows, x, pair, y.name);
  steps.push({ op: "linear", rows, x: h, w: pair.b, residual: y, y, scale });
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
  /** As attention saw them, [T, H·C] and [T, K·C]; with qkNorm as the linears gave them (emitHeads makes them again). */
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
  /** postNorms: inputs of the norms on the way back to the residual. */
  readonly attentionOut?: NormInput;
  readonly feedForwardOut?: NormInput;
}

export interface NormInput {
  /** [T, D]. */
  readonly x: Tensor;
  /** [T]. */
  readonly rstd: Tensor;
}

export interface Heads {
  readonly q: Tensor;
  readonly k: Tensor;
  /** qkNorm: [T, H] and [T, K]. */
  readonly qRstd?: Tensor;
  readonly kRstd?: Tensor;
}

/** Queries and keys from what the linears gave: normed (into tensors of their own, prefixed) where the family does, then turned in place. */
export const emitHeads = (
  steps: Step[],
  spec: ModelSpec,
  { qNorm, kNorm, rope: table }: LayerTensors,
  { rows, positions }: { rows: Rows; positions: Tensor },
  { q, k }: { q: Tensor; k: Tensor },
  prefix: string,
): Heads => {
  const norm = (x: Tensor, gain: Tensor, heads: number): { y: Tensor; rstd: Tensor } => {
    const [y, rstd] = [activation(`${prefix}.${x.name}`, rows, x.shape[1]!), activation(`${prefix}.${x.name}.rstd`, rows, heads)];
    steps.push({ op: "rmsNorm", rows, x, gain, y, rstd, eps: spec.normEps });
    return { y, rstd };
  };
  const turn = (x: Tensor, heads: number): void => {
    steps.push({ op: "rope", rows, x, table, positions, heads, direction: 1 });
  };
  const normed = qNorm && kNorm && { q: norm(q, qNorm, spec.heads), k: norm(k, kNorm, spec.kvHeads) };
  const heads: Heads = normed ? { q: normed.q.y, qRstd: normed.q.rstd, k: normed.k.y, kRstd: normed.k.rstd } : { q, k };
  turn(heads.q, spec.heads);
  turn(heads.k, spec.kvHeads);
  return heads;
};

/** Heads, scale and window of a layer's attention. */
export const attentionShape = (
  spec: ModelSpec,
  layer: number,
): { readonly heads: number; readonly kvHeads: number; readonly scale: number; readonly window?: number } => {
  const { window } = kindOf(spec, layer);
  return { heads: spec.heads, kvHeads: spec.kvHeads, scale: spec.attentionScale, ...(window !== undefined && { window }) };
};

/** Emits attention from q, k, v into o; lse is written only where training needs it. */
export type Attend = (steps: Step[], layer: number, operands: Pick<BlockActivations, "q" | "k" | "v" | "o" | "lse">) => void;

export interface DecoderRows {
  readonly rows: Rows;
  /** [T] i32. */
  readonly tokens: Tensor;
  readonly positions: Tensor;
  readonly attend: Attend;
}

/** Which block, and under which names. */
export interface Block {
  readonly layer: number;
  /** Its input, [T, D]. */
  readonly x: Tensor;
  /** Emitted a second time, for its gradient alone: names get a suffix, and an output that no gradient reads is left out. */
  readonly isAgain: boolean;
}

/** One block. `next` is its output; where it was left out, nothing reads it. */
export const emitBlock = (
  steps: Step[],
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  { rows, positions, attend }: Omit<DecoderRows, "tokens">,
  { layer: i, x, isAgain }: Block,
): { block: BlockActivations; next: Tensor } => {
  const layer = weights.layers[i]!;
  const scale = loraScale(lora.spec);
  const suffix = isAgain ? ".again" : "";
  const tensor = (name: string, width: number): Tensor => activation(`${name}.${i}${suffix}`, rows, width);
  const outputs = Object.fromEntries(LINEARS.map((name) => [name, tensor(name, linearShape(spec, name)[0])])) as Record<LinearName, Tensor>;
  const h = {} as Record<LinearName, Tensor>;
  const adapted = (name: LinearName, input: Tensor, y: Tensor = outputs[name], residual?: Tensor): void => {
    const pair = lora.tensors.layers[i]![name];
    h[name] = adaptedLinear(steps, rows, { x: input, w: layer.linear[name], bias: layer.bias[name], pair, scale, y, residual });
  };
  /** y = residual + linear(input), the linear's output normed on the way where the family does. */
  const addToResidual = (name: LinearName, input: Tensor, gain: Tensor | undefined, residual: Tensor, y: Tensor): NormInput | undefined => {
    if (!gain) {
      adapted(name, input, y, residual);
      return undefined;
    }
    adapted(name, input);
    const out: NormInput = { x: outputs[name], rstd: tensor(`${name}.rstd`, 0) };
    steps.push({ op: "rmsNorm", rows, x: out.x, gain, residual, y, rstd: out.rstd, eps: spec.normEps });
    return out;
  };

  const [n, rstd] = [tensor("n", spec.width), tensor("rstd", 0)];
  const { q_proj: q, k_proj: k, v_proj: v, gate_proj: gate, up_proj: up } = outputs;
  const [o, lse] = [tensor("o", spec.heads * spec.headWidth), tensor("lse", spec.heads)];
  steps.push({ op: "rmsNorm", rows, x, gain: layer.inputNorm, y: n, rstd, eps: spec.normEps });
  adapted("q_proj", n);
  adapted("k_proj", n);
  adapted("v_proj", n);
  const seen = emitHeads(steps, spec, layer, { rows, positions }, { q, k }, "normed");
  attend(steps, i, { q: seen.q, k: seen.k, v, o, lse });
  const x1 = tensor("x1", spec.width);
  const attentionOut = addToResidual("o_proj", o, layer.attentionOutNorm, x, x1);

  const [n1, rstd1, a] = [tensor("n1", spec.width), tensor("rstd1", 0), tensor("a", spec.feedForward)];
  steps.push({ op: "rmsNorm", rows, x: x1, gain: layer.feedForwardNorm, y: n1, rstd: rstd1, eps: spec.normEps });
  adapted("gate_proj", n1);
  adapted("up_proj", n1);
  steps.push({ op: "glu", rows, gate, up, y: a, activation: spec.activation });
  const next = activation(`x.${i + 1}${suffix}`, rows, spec.width);
  let feedForwardOut: NormInput | undefined;
  if (isAgain && !layer.feedForwardOutNorm)
    h.down_proj = emitLora(steps, rows, a, lora.tensors.layers[i]!.down_proj, outputs.down_proj.name);
  else feedForwardOut = addToResidual("down_proj", a, layer.feedForwardOutNorm, x1, next);

  const outs = { ...(attentionOut && { attentionOut }), ...(feedForwardOut && { feedForwardOut }) };
  return { block: { x, x1, q, k, v, o, lse, gate, up, h, ...outs }, next };
};

/** Embedding and all blocks. Returns the residual stream after the last block, [T, D]. */
export const emitDecoder = (
  steps: Step[],
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  { tokens, ...emission }: DecoderRows,
): { blocks: BlockActivations[]; x: Tensor } => {
  const { rows } = emission;
  const blocks: BlockActivations[] = [];
  let x = activation("x.0", rows, spec.width);
  steps.push({ op: "embed", rows, table: weights.embed, tokens, y: x, scale: spec.embedScale });
  for (const layer of weights.layers.keys()) {
    const { block, next } = emitBlock(steps, spec, weights, lora, emission, { layer, x, isAgain: false });
    blocks.push(block);
    x = next;
  }
  return { blocks, x };
};

/** Causal attention over packed rows: row t sees start[t] … t, as far as the layer's window goes. */
export const attendPacked =
  (spec: ModelSpec, rows: Rows, start: Tensor): Attend =>
  (steps, layer, { q, k, v, o, lse }) => {
    steps.push({ op: "attention", rows, q, k, v, start, o, lse, ...attentionShape(spec, layer) });
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

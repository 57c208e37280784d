// The plans of a policy: sample, score, train, optimise. Each is a list of steps and the io tensors that a caller writes and
// reads. Row counts are dynamic up to a capacity; nothing else is.
// The head makes no logits: forward reduces them tile by tile, backward makes their gradient a slice of the vocabulary at a time, for all
// rows at once. A slice, not a tile: a workgroup that went from x to dx by itself would hold [64, D] sums, ten times its memory. Where all
// logits fit into a slice, backward finds those of the forward; where not, it makes them again: half more work for the head, a tenth for a model.

import { HEAD_SLICE, headParts, LANE_WIDTH, type LossName, type Plan, type Rows, type Step, sizeOf, type Tensor } from "../plan/step.ts";
import { emitDecoderBackward } from "./backward.ts";
import {
  activation,
  attendPacked,
  attentionShape,
  type BlockActivations,
  emitBlock,
  emitDecoder,
  emitOutputRows,
  type Lora,
} from "./forward.ts";
import type { ModelSpec } from "./spec.ts";
import type { LoraTensors, ModelTensors } from "./tensors.ts";

/** One pair a layer, [slots, positions, K·C], home kv. */
export interface KvCache {
  readonly layers: readonly { readonly k: Tensor; readonly v: Tensor }[];
  readonly slots: number;
  readonly positions: number;
}

export interface InferPlan {
  readonly plan: Plan;
  /** [rows] i32: token, position and cache slot of each row. Prefill and decode rows may be mixed; a run leaves those of the next in the first rows. */
  readonly tokens: Tensor;
  readonly positions: Tensor;
  readonly slots: Tensor;
  /** [outRows] i32: the rows after which a token is sampled. */
  readonly outIndex: Tensor;
  /** [outRows]; 0: greedy. */
  readonly inverseTemperature: Tensor;
  /** [outRows], in [0, 1). */
  readonly uniform: Tensor;
  /** [outRows] i32 and f32, out. */
  readonly token: Tensor;
  readonly logprob: Tensor;
  /** [outRows, LANE_WIDTH + STOP_TOKENS] i32, by LANE. All zero: every run stands for itself. */
  readonly lanes: Tensor;
  /** [outRows, steps, 2], out: what each lane sampled, token and log-prob, by its count. */
  readonly history: Tensor;
}

/** Copies the beginnings of cache rows, all layers. rows: pairs. */
export interface PrefixPlan {
  readonly plan: Plan;
  /** [slots] i32: cache rows, and how many positions of them. */
  readonly from: Tensor;
  readonly to: Tensor;
  readonly length: Tensor;
}

export interface ScorePlan {
  readonly plan: Plan;
  /** [rows] i32. start: first row of a row's sequence. */
  readonly tokens: Tensor;
  readonly positions: Tensor;
  readonly start: Tensor;
  /** [outRows] i32: the row whose prediction is scored, and the token that followed. outIndex is distinct. */
  readonly outIndex: Tensor;
  readonly target: Tensor;
  /** [outRows]. */
  readonly inverseTemperature: Tensor;
  /** [outRows], out. */
  readonly logprob: Tensor;
  readonly entropy: Tensor;
}

export interface TrainPlan extends ScorePlan {
  /** [rows] i32: the row after the last one of a row's sequence. */
  readonly end: Tensor;
  /** [outRows]: old log-probs; advantages (crossEntropy: weights). */
  readonly old: Tensor;
  readonly advantage: Tensor;
  /** [4]: clipLow, clipHigh, dualClip, unused. */
  readonly lossParams: Tensor;
  /** [outRows], out. */
  readonly tokenLoss: Tensor;
}

export interface Capacity {
  readonly rows: number;
  readonly outRows: number;
}

export interface InferCapacity extends Capacity {
  /** Runs of one burst, the columns of its history; default 16. */
  readonly steps?: number;
}

export interface TrainCapacity extends Capacity {
  /** Of a slice of logits, if that many are enough for HEAD_SLICE columns. Default 8 MiB. */
  readonly headBytes?: number;
  /** Keep only each block's input and run its forward again before its gradient: the same bits, less memory, about a third more time. */
  readonly checkpoint?: boolean;
}

const DEFAULT_HEAD_BYTES = 8 << 20;
const DEFAULT_STEPS = 16;
/** Stop tokens of a lane that the device knows. A model has one to three; the sampler sees the others when it reads. */
export const STOP_TOKENS = 10;

const io = (name: string, length: number, dtype: Tensor["dtype"] = "f32"): Tensor => ({ name, shape: [length], dtype, home: "io" });

export const kvCache = (spec: ModelSpec, { slots, positions }: { slots: number; positions: number }): KvCache => {
  const tensor = (name: string): Tensor => ({
    name,
    shape: [slots, positions, spec.kvHeads * spec.headWidth],
    dtype: "f32",
    home: "kv",
  });
  return {
    layers: Array.from({ length: spec.layers }, (_, i) => ({ k: tensor(`cache.k.${i}`), v: tensor(`cache.v.${i}`) })),
    slots,
    positions,
  };
};

/**
 * One pass over prefill and decode rows of any mix: K and V go into the cache, then every row looks back through it.
 * `shared`: a plan of the same capacity whose io tensors this one uses too, so that a second adapter costs only itself.
 */
export const inferPlan = (
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  cache: KvCache,
  capacity: InferCapacity,
  shared?: InferPlan,
): InferPlan => {
  const rows: Rows = { count: "rows", base: 0, capacity: capacity.rows };
  const outRows: Rows = { count: "outRows", base: 0, capacity: capacity.outRows };
  const tensors: Omit<InferPlan, "plan"> = shared ?? {
    tokens: io("tokens", capacity.rows, "i32"),
    positions: io("positions", capacity.rows, "i32"),
    slots: io("slots", capacity.rows, "i32"),
    outIndex: io("outIndex", capacity.outRows, "i32"),
    inverseTemperature: io("inverseTemperature", capacity.outRows),
    uniform: io("uniform", capacity.outRows),
    token: io("token", capacity.outRows, "i32"),
    logprob: io("logprob", capacity.outRows),
    lanes: { name: "lanes", shape: [capacity.outRows, LANE_WIDTH + STOP_TOKENS], dtype: "i32", home: "io" },
    history: { name: "history", shape: [capacity.outRows, capacity.steps ?? DEFAULT_STEPS, 2], dtype: "f32", home: "io" },
  };
  const { tokens, positions, slots, outIndex, inverseTemperature, uniform, token, logprob, lanes, history } = tensors;

  const steps: Step[] = [];
  const { x } = emitDecoder(steps, spec, weights, lora, {
    rows,
    tokens,
    positions,
    attend: (list, i, { q, k, v, o }) => {
      const { k: kCache, v: vCache } = cache.layers[i]!;
      list.push(
        { op: "kvAppend", rows, k, v, slots, positions, kCache, vCache },
        { op: "attentionCached", rows, q, kCache, vCache, slots, positions, o, ...attentionShape(spec, i) },
      );
    },
  });
  const { n } = emitOutputRows(steps, spec, weights, outRows, { x, outIndex });
  const parts = activation("parts", outRows, headParts(spec.vocab));
  steps.push(
    { op: "sample", rows: outRows, x: n, w: weights.head, parts, inverseTemperature, uniform, token, logprob },
    { op: "advance", rows: outRows, token, logprob, lanes, history, tokens, positions, slots, uniform },
  );
  const plan: Plan = { name: `infer, ${capacity.rows} rows, ${capacity.outRows} out`, steps };
  return { ...tensors, plan };
};

/** [outRows, V], io: where withLogits leaves them. One serves every plan of a capacity. */
export const logitsTensor = (spec: ModelSpec, { outRows }: Capacity): Tensor => ({
  name: "logits, read",
  shape: [outRows, spec.vocab],
  dtype: "f32",
  home: "io",
});

/** The same plan, but its logits can be read: for requests whose next token the host chooses. */
export const withLogits = ({ plan }: InferPlan, z: Tensor): Plan => ({
  name: `${plan.name}, logits read`,
  steps: plan.steps.map((step): Step => (step.op === "sample" ? { ...step, z } : step)),
});

export const prefixPlan = (cache: KvCache): PrefixPlan => {
  const rows: Rows = { count: "rows", base: 0, capacity: cache.slots };
  const [from, to, length] = [io("from", cache.slots, "i32"), io("to", cache.slots, "i32"), io("length", cache.slots, "i32")];
  const steps = cache.layers.map(({ k: kCache, v: vCache }): Step => ({ op: "kvCopy", rows, from, to, length, kCache, vCache }));
  return { plan: { name: `prefix, ${cache.slots} slots`, steps }, from, to, length };
};

/** Columns of logits that exist at once. */
const sliceColumns = ({ vocab }: ModelSpec, { outRows, headBytes = DEFAULT_HEAD_BYTES }: TrainCapacity): number => {
  const columns = Math.floor(headBytes / (4 * outRows));
  return Math.min(vocab, columns >= vocab ? vocab : Math.max(columns - (columns % HEAD_SLICE), HEAD_SLICE));
};

/** What forwardPlan and trainPlan share: io tensors and the way to the rows below the head. */
const emitScored = (spec: ModelSpec, weights: ModelTensors, lora: Lora, capacity: Capacity) => {
  const rows: Rows = { count: "rows", base: 0, capacity: capacity.rows };
  const outRows: Rows = { count: "outRows", base: 0, capacity: capacity.outRows };
  const [tokens, positions] = [io("tokens", capacity.rows, "i32"), io("positions", capacity.rows, "i32")];
  const start = io("start", capacity.rows, "i32");
  const [outIndex, target] = [io("outIndex", capacity.outRows, "i32"), io("target", capacity.outRows, "i32")];
  const inverseTemperature = io("inverseTemperature", capacity.outRows);
  const [logprob, entropy] = [io("logprob", capacity.outRows), io("entropy", capacity.outRows)];
  const steps: Step[] = [];
  const emission = { rows, positions, attend: attendPacked(spec, rows, start) };
  const { blocks, x } = emitDecoder(steps, spec, weights, lora, { ...emission, tokens });
  const emitAgain = (layer: number, input: Tensor): BlockActivations =>
    emitBlock(steps, spec, weights, lora, emission, { layer, x: input, isAgain: true }).block;
  const out = emitOutputRows(steps, spec, weights, outRows, { x, outIndex });
  const tensors = { tokens, positions, start, outIndex, target, inverseTemperature, logprob, entropy };
  const head = { rows: outRows, x: out.n, w: weights.head, target, inverseTemperature, lse: activation("out.lse", outRows, 0) };
  /** z: where the logits are left. */
  const emitLogprob = (z?: Tensor): void => {
    const parts = activation("parts", outRows, headParts(spec.vocab));
    steps.push({ op: "logprob", ...head, parts, logprob, entropy, ...(z && { z }) });
  };
  return { rows, outRows, steps, blocks, emitAgain, out, head, emitLogprob, tensors };
};

/** Scoring only: log-probs and entropies of targets. */
export const forwardPlan = (spec: ModelSpec, weights: ModelTensors, lora: Lora, capacity: Capacity): ScorePlan => {
  const { steps, emitLogprob, tensors } = emitScored(spec, weights, lora, capacity);
  emitLogprob();
  return { plan: { name: `forward, ${capacity.rows} rows, ${capacity.outRows} out`, steps }, ...tensors };
};

/** Forward, token loss, backward. ADDS the gradient of the token sum to `grads`. */
export const trainPlan = (
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  grads: LoraTensors,
  loss: LossName,
  capacity: TrainCapacity,
): TrainPlan => {
  const { rows, outRows, steps, blocks, emitAgain, out, head, emitLogprob, tensors } = emitScored(spec, weights, lora, capacity);
  const [old, advantage, lossParams] = [io("old", capacity.outRows), io("advantage", capacity.outRows), io("lossParams", 4)];
  const [end, tokenLoss] = [io("end", capacity.rows, "i32"), io("tokenLoss", capacity.outRows)];
  const [dn, dOut] = [activation("d.out.n", outRows, spec.width), activation("d.out.x", outRows, spec.width)];

  const z = activation("logits", outRows, sliceColumns(spec, capacity));
  const dLogprob = activation("d.logprob", outRows, 0);
  emitLogprob(z.shape[1] === spec.vocab ? z : undefined);
  steps.push(
    { op: "tokenLoss", rows: outRows, loss, logprob: tensors.logprob, old, advantage, lossParams, tokenLoss, dLogprob },
    { op: "logprobBackward", ...head, z, dLogprob, dx: dn },
  );
  const dx = activation("d.x", rows, spec.width);
  steps.push(
    { op: "rmsNormBackward", rows: outRows, x: out.x, gain: weights.norm, rstd: out.rstd, dy: dn, dx: dOut, accumulate: false },
    { op: "scatterRows", rows, outRows, dy: dOut, index: tensors.outIndex, dx },
  );
  const { positions, start } = tensors;
  emitDecoderBackward(steps, spec, weights, lora, grads, {
    ...{ rows, positions, start, end, blocks, dx },
    ...(capacity.checkpoint && { emitAgain }),
  });
  const plan: Plan = {
    name: `train ${loss}${capacity.checkpoint ? ", checkpointed" : ""}, ${capacity.rows} rows, ${capacity.outRows} out`,
    steps,
  };
  return { plan, ...tensors, end, old, advantage, lossParams, tokenLoss };
};

export interface OptimPlan {
  readonly plan: Plan;
  /** [1], out: Σ g² before clipping. */
  readonly sumSquares: Tensor;
}

/** One AdamW step over the flat buffers; the gradients are zero afterwards, also when a non-finite norm refused the step. */
export const optimPlan = (parameters: LoraTensors, grads: LoraTensors, m: LoraTensors, v: LoraTensors): OptimPlan => {
  const sumSquares = io("sumSquares", 1);
  const [p, g] = [parameters.flat, grads.flat];
  return {
    plan: {
      name: `optimise, ${sizeOf(p)} parameters`,
      steps: [
        { op: "sumSquares", x: g, sum: sumSquares },
        { op: "adamW", p, g, m: m.flat, v: v.flat, sumSquares },
        { op: "zero", x: g },
      ],
    },
    sumSquares,
  };
};

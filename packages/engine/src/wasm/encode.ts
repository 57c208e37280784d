// Plan → the table of 32-bit words that assembly/index.ts walks. Pure. Layouts of a program and a step's header stand there, the words
// of each op stand above its function in assembly/*.ts, in the order written here.

import { EngineError } from "../errors.ts";
import type { Activation, LossName, OpName, Plan, Rows, Step, Tensor } from "../plan/step.ts";
import { sizeOf } from "../plan/step.ts";
import type { WeightFormat } from "../weights/formats.ts";

/** The cases of runStep in assembly/index.ts. */
const OPCODES: { readonly [O in OpName]: number } = {
  embed: 0,
  rmsNorm: 1,
  rmsNormBackward: 2,
  linear: 3,
  linearBackward: 4,
  weightGrad: 5,
  rope: 6,
  attention: 7,
  attentionDelta: 8,
  attentionBackwardQ: 9,
  attentionBackwardKv: 10,
  kvAppend: 11,
  attentionCached: 12,
  glu: 13,
  gluBackward: 14,
  gatherRows: 15,
  scatterRows: 16,
  logprob: 17,
  tokenLoss: 18,
  logprobBackward: 19,
  sample: 20,
  sumSquares: 21,
  adamW: 22,
  zero: 23,
  copy: 24,
  advance: 25,
  kvCopy: 26,
};

const LOSSES: { readonly [L in LossName]: number } = { crossEntropy: 0, importanceSampling: 1, ppoClip: 2 };

const ACTIVATIONS: { readonly [A in Activation]: number } = { silu: 0, tanhGelu: 1 };

/** Larger than any row number: no window. */
const NO_WINDOW = 0x7fff_ffff;
const windowWord = ({ window = NO_WINDOW }: { readonly window?: number }): number => Math.min(window, NO_WINDOW);

export interface Addresses {
  /** Byte address of a tensor or view. */
  readonly of: (tensor: Tensor) => number;
  /** Address of a weight's scales; 0 where it has none. */
  readonly scalesOf: (weight: Tensor) => number;
}

/** The kinds of assembly/panels.ts. */
const KINDS: { readonly [D in WeightFormat]: number } = { f32: 0, f16: 1, bf16: 2, q8: 3, q4: 4 };
/** Rows of f32, as the adapters lie: they change. */
const LOOSE = -1;

/** The weight that a step reads as a matrix [O, I], if it is frozen: these lie in panels. Parts of weights stay rows. */
export const panelledWeightOf = (step: Step): Tensor | undefined => {
  const weight = "w" in step ? step.w : step.op === "embed" ? step.table : undefined;
  return weight?.home === "weights" && !weight.view ? weight : undefined;
};

export const panelKindOf = ({ dtype }: Tensor): number => KINDS[dtype as WeightFormat];

const bits = new DataView(new ArrayBuffer(4));
/** An f32 as a word. */
const f32 = (value: number): number => {
  bits.setFloat32(0, value);
  return bits.getUint32(0);
};

const rowsWords = ({ count, base, capacity }: Rows): number[] => [count === "rows" ? 0 : 1, base, capacity];

const axis = (tensor: Tensor, index: number): number => tensor.shape[index]!;

/** Groups of a row that are normed by themselves. */
const groupsOf = ({ x, gain }: { readonly x: Tensor; readonly gain: Tensor }): number => axis(x, 1) / sizeOf(gain);

/** C, from the width of the query heads' rows. */
const headWidth = (plan: Plan, step: Step, rowWidth: number, heads: number, kvHeads: number): number => {
  const width = rowWidth / heads;
  if (width % 4 !== 0 || heads % kvHeads !== 0) {
    throw new EngineError(
      "unsupported",
      `plan "${plan.name}", ${step.op}: WASM needs a head width that is a multiple of 4 and heads that are a multiple of kvHeads, got width ${width}, heads ${heads}, kvHeads ${kvHeads}`,
    );
  }
  return width;
};

/** Bytes of the list of scores of one row: the most keys that a row of this step can see, padded to four. */
const scoreListBytes = (step: Step): number => {
  if (step.op === "attentionCached") return Math.ceil(Math.min(axis(step.kCache, 1), windowWord(step)) / 4) * 16;
  if (step.op === "attention" || step.op === "attentionBackwardQ" || step.op === "attentionBackwardKv") {
    return Math.ceil(Math.min(step.rows.capacity, windowWord(step)) / 4) * 16;
  }
  return 0;
};

/** Scratch of one thread: the GEMM's blocks, or two lists of scores. A multiple of 256. */
export const scratchBytes = (plan: Plan, gemmScratch: number): number => {
  const lists = plan.steps.reduce((most, step) => Math.max(most, scoreListBytes(step)), 0);
  return Math.ceil(Math.max(gemmScratch, 2 * lists) / 256) * 256;
};

const operandWords = (plan: Plan, step: Step, { of, scalesOf }: Addresses): number[] => {
  /** Address, kind, scales. */
  const matrix = (weight: Tensor): number[] => [of(weight), panelledWeightOf(step) ? panelKindOf(weight) : LOOSE, scalesOf(weight)];
  switch (step.op) {
    case "embed":
      return [...matrix(step.table), of(step.tokens), of(step.y), axis(step.table, 1), axis(step.table, 0), f32(step.scale)];
    case "gatherRows":
      return [of(step.x), of(step.index), of(step.y), axis(step.x, 1), axis(step.x, 0)];
    case "scatterRows":
      return [of(step.dy), of(step.index), of(step.dx), axis(step.dx, 1), ...rowsWords(step.outRows)];
    case "rmsNorm":
      return [
        ...[step.x, step.gain, step.y, step.rstd].map(of),
        sizeOf(step.gain),
        f32(step.eps),
        groupsOf(step),
        step.residual ? of(step.residual) : 0,
      ];
    case "rmsNormBackward":
      return [...[step.x, step.gain, step.rstd, step.dy, step.dx].map(of), sizeOf(step.gain), groupsOf(step), step.accumulate ? 1 : 0];
    case "linear":
      return [
        of(step.x),
        ...matrix(step.w),
        step.bias ? of(step.bias) : 0,
        step.residual ? of(step.residual) : 0,
        of(step.y),
        f32(step.scale),
        axis(step.w, 1),
        axis(step.w, 0),
      ];
    case "linearBackward":
      return [of(step.dy), ...matrix(step.w), of(step.dx), step.accumulate ? 1 : 0, f32(step.scale), axis(step.w, 1), axis(step.w, 0)];
    case "weightGrad":
      return [of(step.dy), of(step.x), of(step.dw), f32(step.scale), axis(step.dw, 1), axis(step.dw, 0)];
    case "rope":
      return [of(step.x), of(step.table), of(step.positions), step.heads, axis(step.table, 1), f32(step.direction), axis(step.table, 0)];
    case "attention":
      return [
        ...[step.q, step.k, step.v, step.start, step.o, step.lse].map(of),
        step.heads,
        step.kvHeads,
        headWidth(plan, step, axis(step.q, 1), step.heads, step.kvHeads),
        f32(step.scale),
        windowWord(step),
      ];
    case "attentionDelta":
      return [of(step.o), of(step.dO), of(step.delta), step.heads, axis(step.o, 1) / step.heads];
    case "attentionBackwardQ":
      return [
        ...[step.q, step.k, step.v, step.dO, step.lse, step.delta, step.start, step.dq].map(of),
        step.heads,
        step.kvHeads,
        headWidth(plan, step, axis(step.q, 1), step.heads, step.kvHeads),
        f32(step.scale),
        scoreListBytes(step),
        windowWord(step),
      ];
    case "attentionBackwardKv":
      return [
        ...[step.q, step.k, step.v, step.dO, step.lse, step.delta, step.end, step.dk, step.dv].map(of),
        step.heads,
        step.kvHeads,
        headWidth(plan, step, axis(step.q, 1), step.heads, step.kvHeads),
        f32(step.scale),
        scoreListBytes(step),
        windowWord(step),
      ];
    case "kvAppend":
      return [
        ...[step.k, step.v, step.slots, step.positions, step.kCache, step.vCache].map(of),
        axis(step.k, 1),
        axis(step.kCache, 0),
        axis(step.kCache, 1),
      ];
    case "kvCopy":
      return [
        ...[step.from, step.to, step.length, step.kCache, step.vCache].map(of),
        axis(step.kCache, 2),
        axis(step.kCache, 0),
        axis(step.kCache, 1),
      ];
    case "attentionCached":
      return [
        ...[step.q, step.kCache, step.vCache, step.slots, step.positions, step.o].map(of),
        step.heads,
        step.kvHeads,
        headWidth(plan, step, axis(step.q, 1), step.heads, step.kvHeads),
        f32(step.scale),
        axis(step.kCache, 0),
        axis(step.kCache, 1),
        windowWord(step),
      ];
    case "glu":
      return [of(step.gate), of(step.up), of(step.y), axis(step.y, 1), ACTIVATIONS[step.activation]];
    case "gluBackward":
      return [of(step.gate), of(step.up), of(step.dy), axis(step.dy, 1), ACTIVATIONS[step.activation]];
    case "logprob":
      return [
        ...[of(step.x), ...matrix(step.w), step.z ? of(step.z) : 0],
        ...[step.parts, step.target, step.inverseTemperature, step.logprob, step.entropy, step.lse].map(of),
        ...[axis(step.w, 1), axis(step.w, 0)],
      ];
    case "tokenLoss":
      return [...[step.logprob, step.old, step.advantage, step.lossParams, step.tokenLoss, step.dLogprob].map(of), LOSSES[step.loss]];
    case "logprobBackward":
      return [
        ...[of(step.x), ...matrix(step.w)],
        ...[step.z, step.target, step.inverseTemperature, step.lse, step.dLogprob, step.dx].map(of),
        ...[axis(step.w, 1), axis(step.w, 0), axis(step.z, 1)],
      ];
    case "sample":
      return [
        ...[of(step.x), ...matrix(step.w), step.z ? of(step.z) : 0],
        ...[step.parts, step.inverseTemperature, step.uniform, step.token, step.logprob].map(of),
        ...[axis(step.w, 1), axis(step.w, 0)],
      ];
    case "advance":
      return [
        ...[step.token, step.logprob, step.lanes, step.history, step.tokens, step.positions, step.slots, step.uniform].map(of),
        axis(step.lanes, 1),
        axis(step.history, 1),
      ];
    case "sumSquares":
      return [of(step.x), of(step.sum), sizeOf(step.x)];
    case "adamW":
      return [...[step.p, step.g, step.m, step.v, step.sumSquares].map(of), sizeOf(step.p)];
    case "zero":
      return [of(step.x), sizeOf(step.x)];
    case "copy":
      return [of(step.x), of(step.y), sizeOf(step.x)];
  }
};

/** The program's words. Its length depends on the plan alone, so it can be rewritten in place when the arena moves. */
export const encodePlan = (
  plan: Plan,
  addresses: Addresses,
  scratch: { readonly address: number; readonly perThread: number },
): Uint32Array => {
  const words = [scratch.address, scratch.perThread, plan.steps.length];
  for (const step of plan.steps) {
    const own = operandWords(plan, step, addresses);
    words.push(OPCODES[step.op], 5 + own.length, ...("rows" in step ? rowsWords(step.rows) : [-1, 0, 0]), ...own);
  }
  return Uint32Array.from(words);
};

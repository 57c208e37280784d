// Policy losses: value and gradient with respect to the log-prob of each token, before any averaging weight. Pure, f64.
// k = clamp(logprob − old, ±20), r = e^k. Losses are minimised. Where mask is 0, loss and gradient are 0, whatever the arrays hold.
// `clipLow`/`clipHigh` are offsets from 1; `ratioMin`/`ratioMax` are ratios; `divergence` is a difference of probabilities.
// A trainer fuses crossEntropy, importanceSampling and ppoClip; update.ts carries the others to it by their gradient.
// Sources are verl core_algos.py and the papers named below. Not here: critics, preference losses (DPO, KTO), losses marked "later".

import type { Loss } from "@fulgurite/engine";
import { RlError } from "./errors.ts";

/** One datum, every array [targets]. */
export interface LossRow {
  readonly logprobs: ArrayLike<number>;
  readonly oldLogprobs: ArrayLike<number>;
  /** With every homogeneous weight already multiplied in. */
  readonly advantages: ArrayLike<number>;
  /** Absent: all 1. */
  readonly mask?: ArrayLike<number>;
  /** The averaging weight, for terms that the advantage does not scale (DRO's β). Default 1. */
  readonly regularizerWeight?: number;
}

export interface TokenLoss {
  readonly loss: Float64Array;
  readonly gradient: Float64Array;
  /** 1 where the clip (or its like) decided. */
  readonly clipped: Uint8Array;
  readonly dualClipped: Uint8Array;
}

export interface PolicyLoss {
  readonly name: string;
  readonly options: Readonly<Record<string, number>>;
  /** The trainer's own version of it. */
  readonly fused?: Loss;
  evaluate(row: LossRow): TokenLoss;
}

interface OneToken {
  readonly loss: number;
  readonly gradient: number;
  readonly clipped?: boolean;
  readonly dualClipped?: boolean;
}

const LOG_RATIO_LIMIT = 20;
const clamp = (value: number, low: number, high: number): number => Math.min(Math.max(value, low), high);
const logRatio = (row: LossRow, token: number): number =>
  clamp(row.logprobs[token]! - row.oldLogprobs[token]!, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
const isTrained = (row: LossRow, token: number): boolean => row.mask === undefined || row.mask[token]! > 0;

function perToken(row: LossRow, one: (token: number, advantage: number) => OneToken): TokenLoss {
  const length = row.logprobs.length;
  const out = {
    loss: new Float64Array(length),
    gradient: new Float64Array(length),
    clipped: new Uint8Array(length),
    dualClipped: new Uint8Array(length),
  };
  for (let token = 0; token < length; token++) {
    if (!isTrained(row, token)) continue;
    const { loss, gradient, clipped, dualClipped } = one(token, row.advantages[token]!);
    out.loss[token] = loss;
    out.gradient[token] = gradient;
    out.clipped[token] = clipped ? 1 : 0;
    out.dualClipped[token] = dualClipped ? 1 : 0;
  }
  return out;
}

/** −w·logprob, with the advantages as w: supervised fine-tuning, rejection fine-tuning, REINFORCE (verl's gpg). */
export const crossEntropy = (): PolicyLoss => ({
  name: "crossEntropy",
  options: {},
  fused: { name: "crossEntropy" },
  evaluate: (row) => perToken(row, (token, weight) => ({ loss: -weight * row.logprobs[token]!, gradient: -weight })),
});

/** −A·r (Tinker's importance_sampling). */
export const importanceSampling = (): PolicyLoss => ({
  name: "importanceSampling",
  options: {},
  fused: { name: "importanceSampling" },
  evaluate: (row) =>
    perToken(row, (token, advantage) => {
      const loss = -advantage * Math.exp(logRatio(row, token));
      return { loss, gradient: loss };
    }),
});

export interface PpoClipOptions {
  readonly clipLow?: number;
  readonly clipHigh?: number;
  /** Bound of the ratio for negative advantages, > 1; Infinity: off. */
  readonly dualClip?: number;
}

/**
 * PPO with the asymmetric clip of DAPO and verl's dual clip.
 * A > 0: −A·min(r, 1 + clipHigh). A < 0: min(−A·max(r, 1 − clipLow), −A·dualClip).
 */
export function ppoClip({ clipLow = 0.2, clipHigh = 0.28, dualClip = 3 }: PpoClipOptions = {}): PolicyLoss {
  if (!(clipLow >= 0 && clipLow < 1)) throw offsetError("ppoClip", "clipLow", clipLow);
  if (!(clipHigh >= 0)) throw offsetError("ppoClip", "clipHigh", clipHigh);
  if (!(dualClip > 1)) throw new RlError("bad-options", `ppoClip: dualClip is a ratio > 1 (Infinity: off), got ${dualClip}`);
  return {
    name: "ppoClip",
    options: { clipLow, clipHigh, dualClip },
    fused: { name: "ppoClip", clipLow, clipHigh, dualClip },
    evaluate: (row) =>
      perToken(row, (token, advantage) => {
        const ratio = Math.exp(logRatio(row, token));
        const free = -advantage * ratio;
        const worse = Math.max(free, -advantage * clamp(ratio, 1 - clipLow, 1 + clipHigh));
        const clipped = worse > free;
        const dualClipped = advantage < 0 && worse > -advantage * dualClip;
        return {
          loss: dualClipped ? -advantage * dualClip : worse,
          gradient: clipped || dualClipped ? 0 : free,
          clipped,
          dualClipped,
        };
      }),
  };
}

const offsetError = (where: string, name: string, got: number): RlError =>
  new RlError(
    "bad-options",
    `${where}: ${name} is an offset from 1, in [0, 1) below and ≥ 0 above, got ${got}; a ratio of 0.8 is clipLow 0.2`,
  );

/** CISPO (MiniMax-M1): −sg(clamp(r, ratioMin, ratioMax))·A·logprob. No token loses its gradient. */
export function cispo({ ratioMin = 0, ratioMax = 5 }: { ratioMin?: number; ratioMax?: number } = {}): PolicyLoss {
  if (!(ratioMin >= 0 && ratioMin <= 1 && ratioMax >= 1))
    throw new RlError(
      "bad-options",
      `cispo: ratioMin ≤ 1 ≤ ratioMax are ratios, got ${ratioMin} and ${ratioMax}; an offset of 0.2 is 0.8 and 1.2`,
    );
  return {
    name: "cispo",
    options: { ratioMin, ratioMax },
    evaluate: (row) =>
      perToken(row, (token, advantage) => {
        const ratio = Math.exp(logRatio(row, token));
        const bounded = clamp(ratio, ratioMin, ratioMax);
        const gradient = -advantage * bounded;
        return { loss: gradient * row.logprobs[token]!, gradient, clipped: bounded !== ratio };
      }),
  };
}

/**
 * GSPO (arXiv 2507.18071): PPO's clip on the row's ratio s = exp(mean over trained tokens of logprob − old), gradient through
 * logprob/sg(logprob). The offsets are about a thousandth of PPO's. Belongs with rowMeanTokenMean().
 */
export function gspo({ clipLow = 3e-4, clipHigh = 4e-4 }: { clipLow?: number; clipHigh?: number } = {}): PolicyLoss {
  if (!(clipLow >= 0 && clipLow < 1)) throw offsetError("gspo", "clipLow", clipLow);
  if (!(clipHigh >= 0)) throw offsetError("gspo", "clipHigh", clipHigh);
  return {
    name: "gspo",
    options: { clipLow, clipHigh },
    evaluate: (row) => {
      let total = 0;
      let count = 0;
      for (let token = 0; token < row.logprobs.length; token++) {
        if (!isTrained(row, token)) continue;
        total += row.logprobs[token]! - row.oldLogprobs[token]!;
        count++;
      }
      const ratio = Math.exp(Math.min(total / Math.max(count, 1), 10));
      return perToken(row, (_, advantage) => {
        const free = -advantage * ratio;
        const loss = Math.max(free, -advantage * clamp(ratio, 1 - clipLow, 1 + clipHigh));
        return { loss, gradient: loss > free ? 0 : free, clipped: loss > free };
      });
    },
  };
}

/** SAPO (arXiv 2511.20347): −A·σ(τ(r − 1))·4/τ, a soft gate in place of the clip. */
export function sapo({ tauPositive = 1, tauNegative = 1.05 }: { tauPositive?: number; tauNegative?: number } = {}): PolicyLoss {
  if (!(tauPositive > 0 && tauNegative > 0))
    throw new RlError("bad-options", `sapo: tauPositive and tauNegative must be > 0, got ${tauPositive} and ${tauNegative}`);
  return {
    name: "sapo",
    options: { tauPositive, tauNegative },
    evaluate: (row) =>
      perToken(row, (token, advantage) => {
        const tau = advantage > 0 ? tauPositive : tauNegative;
        const ratio = Math.exp(logRatio(row, token));
        const gate = 1 / (1 + Math.exp(-tau * (ratio - 1)));
        return { loss: (-advantage * gate * 4) / tau, gradient: -advantage * 4 * gate * (1 - gate) * ratio };
      }),
  };
}

/**
 * DPPO, total variation (arXiv 2602.04879): −A·sg(min(r, ratioMax)·valid)·logprob. A token is valid while its probability has not
 * moved by more than `divergence` in the advantage's direction.
 */
export function dppoTv({ divergence = 0.2, ratioMax = 20 }: { divergence?: number; ratioMax?: number } = {}): PolicyLoss {
  if (!(divergence > 0 && divergence <= 1))
    throw new RlError("bad-options", `dppoTv: divergence is a difference of probabilities in (0, 1], got ${divergence}`);
  return {
    name: "dppoTv",
    options: { divergence, ratioMax },
    evaluate: (row) =>
      perToken(row, (token, advantage) => {
        const moved = Math.exp(row.logprobs[token]!) - Math.exp(row.oldLogprobs[token]!);
        const valid = advantage > 0 ? moved <= divergence : moved >= -divergence;
        const gradient = valid ? -advantage * Math.min(Math.exp(logRatio(row, token)), ratioMax) : 0;
        return { loss: gradient * row.logprobs[token]!, gradient, clipped: !valid };
      }),
  };
}

/** DRO (Tinker's dro): −(A·logprob − w·β/2·(logprob − old)²). The square takes the averaging weight w by itself. */
export function dro({ beta }: { beta: number }): PolicyLoss {
  if (!(beta > 0)) throw new RlError("bad-options", `dro: beta must be > 0, got ${beta}`);
  return {
    name: "dro",
    options: { beta },
    evaluate: (row) =>
      perToken(row, (token, advantage) => {
        const pull = beta * (row.regularizerWeight ?? 1);
        const moved = row.logprobs[token]! - row.oldLogprobs[token]!;
        return { loss: -(advantage * row.logprobs[token]! - (pull / 2) * moved * moved), gradient: -(advantage - pull * moved) };
      }),
  };
}

/** The name and thresholds that a Tinker server expects: there a clip of 0.2 is written 0.8 and 1.2. Its ppo has no dual clip. */
export function toTinkerLoss(loss: Loss): { loss_fn: string; loss_fn_config?: Record<string, number> } {
  if (loss.name === "crossEntropy") return { loss_fn: "cross_entropy" };
  if (loss.name === "importanceSampling") return { loss_fn: "importance_sampling" };
  if (Number.isFinite(loss.dualClip))
    throw new RlError(
      "bad-options",
      `toTinkerLoss: Tinker's ppo has no dual clip, got ${loss.dualClip}; use ppoClip({ dualClip: Infinity })`,
    );
  return { loss_fn: "ppo", loss_fn_config: { clip_low_threshold: 1 - loss.clipLow, clip_high_threshold: 1 + loss.clipHigh } };
}

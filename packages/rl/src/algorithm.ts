// An algorithm is data: how credit flows, how advantages are made, which loss, which average. Everything that tells two algorithms apart
// is in its names and options, so that a checkpoint can say what it was made with.

import { type Advantages, type GroupNormalizedOptions, groupNormalized, leaveOneOut, type Singleton } from "./advantages.ts";
import { type Aggregate, perRolloutMean } from "./aggregate.ts";
import type { Correction } from "./correction.ts";
import { type Credit, identical } from "./credit.ts";
import { crossEntropy, importanceSampling, type PolicyLoss, type PpoClipOptions, ppoClip } from "./losses.ts";
import type { RowMode } from "./rows.ts";

export interface Algorithm {
  readonly name: string;
  readonly credit: Credit;
  readonly advantages: Advantages;
  readonly loss: PolicyLoss;
  readonly aggregate: Aggregate;
  /** Present: the proximal log-probs come from a forward pass of the trainer, and ω = f(trainer / sampler) is multiplied in. */
  readonly correction?: Correction;
  readonly rows?: RowMode; // "trajectory"
  /** A call sampled more than this many versions ago is left out and counted. */
  readonly maxStaleness?: number; // 4
}

export interface GrpoOptions extends GroupNormalizedOptions, PpoClipOptions {
  readonly credit?: Credit;
  readonly aggregate?: Aggregate;
  readonly correction?: Correction;
  readonly rows?: RowMode;
}

/** Group-relative policy optimisation at rollout level: clip 0.2 below, 0.28 above, dual clip 3, each rollout one vote, no KL. */
export const grpo = (options: GrpoOptions = {}): Algorithm => ({
  name: "grpo",
  credit: options.credit ?? identical(),
  advantages: groupNormalized(options),
  loss: ppoClip(options),
  aggregate: options.aggregate ?? perRolloutMean(),
  rows: options.rows ?? "trajectory",
  ...(options.correction ? { correction: options.correction } : {}),
});

/** REINFORCE with the other rollouts of the group as baseline. */
export const rloo = (options: { singleton?: Singleton } = {}): Algorithm => ({
  name: "rloo",
  credit: identical(),
  advantages: leaveOneOut(options),
  loss: importanceSampling(),
  aggregate: perRolloutMean(),
});

/** The plain policy gradient: the group's mean as baseline, no division, no ratio, no clip. */
export const reinforce = (options: { singleton?: Singleton } = {}): Algorithm => ({
  name: "reinforce",
  credit: identical(),
  advantages: groupNormalized({ ...options, divideByStd: false }),
  loss: crossEntropy(),
  aggregate: perRolloutMean(),
});

/** Every name and option, as text that is equal for equal algorithms. Functions are not part of it. */
export const describeAlgorithm = (algorithm: Algorithm): string =>
  JSON.stringify(algorithm, (_, value) => (value === Number.POSITIVE_INFINITY ? "Infinity" : value));

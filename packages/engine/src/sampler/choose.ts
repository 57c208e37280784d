// The host's choice of a token where the request restricts the distribution: bias, mask, temperature, top-k, top-p, in this order, then one
// uniform number and the inverse of the cumulative distribution over ascending ids, as the device's `sample` does it. Pure, in f64.
// It tells two log-probs: under the whole softmax(logits/τ), which is what a trainer computes again, and under what was drawn from.

import type { GenerateRequest } from "../contract.ts";

export interface Choice {
  readonly token: number;
  /** log softmax(logits/τ)[token] of the logits as the model gave them; τ = 1 where the temperature is 0. */
  readonly logprob: number;
  /** log of the probability that it was drawn with; 0 where the temperature is 0. */
  readonly drawnLogprob: number;
  /** No other token could have come. */
  readonly isForced: boolean;
}

export type Restriction = Pick<GenerateRequest, "temperature" | "topK" | "topP" | "logitBias">;

/** Does the request need its logits on the host? */
export const isRestricted = ({ topK, topP, logitBias, mask }: GenerateRequest): boolean =>
  topK !== undefined || (topP !== undefined && topP < 1) || (logitBias !== undefined && logitBias.length > 0) || mask !== undefined;

/**
 * logits [V]; mask [⌈V/32⌉] or none; uniform in [0, 1). undefined when the mask allows nothing.
 * top-p keeps the fewest of the most likely tokens whose probabilities reach p; of equal ones, those with the lowest ids.
 */
export const chooseToken = (
  logits: Float32Array,
  { temperature, topK = Number.POSITIVE_INFINITY, topP = 1, logitBias = [] }: Restriction,
  uniform: number,
  mask?: Uint32Array,
): Choice | undefined => {
  const inverse = temperature === 0 ? 1 : 1 / temperature;
  let largest = Number.NEGATIVE_INFINITY;
  for (const logit of logits) largest = Math.max(largest, logit);
  let total = 0;
  for (const logit of logits) total += Math.exp((logit - largest) * inverse);
  const logprobOf = (token: number): number => (logits[token]! - largest) * inverse - Math.log(total);

  const biases = new Map(logitBias);
  const scoreOf = (token: number): number => (logits[token]! + (biases.get(token) ?? 0)) * inverse;
  let kept: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    if (!mask || (mask[id >> 5]! >>> (id & 31)) & 1) kept.push(id);
  }
  if (kept.length === 0) return undefined;
  const isForced = kept.length === 1;
  const scores = new Float64Array(logits.length);
  for (const id of kept) scores[id] = scoreOf(id);
  const top = kept.reduce((best, id) => (scores[id]! > scores[best]! ? id : best));
  if (temperature === 0) return { token: top, logprob: logprobOf(top), drawnLogprob: 0, isForced };

  if (topK < kept.length || topP < 1) {
    // A stable sort of ascending ids: ties keep the lower one first.
    kept.sort((a, b) => scores[b]! - scores[a]!);
    kept.length = Math.min(kept.length, topK);
    const weights = kept.map((id) => Math.exp(scores[id]! - scores[top]!));
    const enough = topP * weights.reduce((sum, weight) => sum + weight, 0);
    let count = 0;
    for (let sum = 0; count < kept.length && sum < enough; count++) sum += weights[count]!;
    kept = kept.slice(0, Math.max(count, 1)).sort((a, b) => a - b);
  }
  const weights = kept.map((id) => Math.exp(scores[id]! - scores[top]!));
  const mass = weights.reduce((sum, weight) => sum + weight, 0);
  let left = uniform * mass;
  // Rounding at the end of the walk takes the last token that has any mass.
  let index = weights.findLastIndex((weight) => weight > 0);
  for (const [i, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) {
      index = i;
      break;
    }
  }
  return { token: kept[index]!, logprob: logprobOf(kept[index]!), drawnLogprob: Math.log(weights[index]! / mass), isForced };
};

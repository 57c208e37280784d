// What a step says about itself. Names are ours; toVerlNames gives verl's. Means run over trained tokens unless said otherwise;
// a figure that nothing was measured for is absent, never 0.

import { standardDeviation } from "./advantages.ts";
import type { Example } from "./datums.ts";
import { type Group, isScored } from "./trajectory.ts";

/** One datum after its pass; per-token arrays [targets]. */
export interface ExampleOutput {
  readonly datum: Example["datum"];
  /** The trainer's, before the optimiser step. */
  readonly logprobs: ArrayLike<number>;
  readonly entropies: ArrayLike<number>;
  readonly clipped: ArrayLike<number>;
  readonly dualClipped: ArrayLike<number>;
  readonly omegas?: ArrayLike<number>;
}

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * clipFraction, dualClipFraction; policyKl = mean(old − logprob); samplerKl = mean(sampler − logprob); samplerGap and samplerGapMax =
 * mean and max |logprob − sampler|: on the first on-policy pass both are the same policy, so a gap is a bug or a difference in
 * precision; entropy, in nats; with a correction effectiveSampleFraction = 1/mean((ω/mean ω)²).
 */
export function updateMetrics(outputs: readonly ExampleOutput[]): Record<string, number> {
  const sums = { clipFraction: 0, dualClipFraction: 0, policyKl: 0, samplerKl: 0, samplerGap: 0, entropy: 0 };
  const weights: number[] = [];
  let samplerGapMax = 0;
  let tokens = 0;
  for (const { datum, logprobs, entropies, clipped, dualClipped, omegas } of outputs)
    for (let token = 0; token < datum.mask.length; token++) {
      if (!datum.mask[token]) continue;
      const gap = logprobs[token]! - datum.samplerLogprobs[token]!;
      tokens++;
      sums.clipFraction += clipped[token]!;
      sums.dualClipFraction += dualClipped[token]!;
      sums.policyKl += datum.oldLogprobs[token]! - logprobs[token]!;
      sums.samplerKl -= gap;
      sums.samplerGap += Math.abs(gap);
      sums.entropy += entropies[token]!;
      samplerGapMax = Math.max(samplerGapMax, Math.abs(gap));
      if (omegas) weights.push(omegas[token]!);
    }
  if (tokens === 0) return {};
  return {
    ...Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, sum / tokens])),
    samplerGapMax,
    ...(weights.length > 0 ? { effectiveSampleFraction: effectiveSampleFraction(weights) } : {}),
  };
}

/** 1/mean((ω/mean ω)²): 1 when all weights are equal, 1/n when one of n carries everything; 0 when all are 0. */
export function effectiveSampleFraction(weights: readonly number[]): number {
  const center = mean(weights);
  return center === 0 ? 0 : 1 / mean(weights.map((weight) => (weight / center) ** 2));
}

export interface OffPolicyRow {
  readonly oldLogprobs: ArrayLike<number>;
  readonly samplerLogprobs: ArrayLike<number>;
  readonly mask: ArrayLike<number>;
}

/** How far sampler and trainer are apart, ρ = e^(old − sampler): verl's compute_offpolicy_metrics. Perplexities are means over rows. */
export function offPolicyMetrics(rows: readonly OffPolicyRow[]): Record<string, number> {
  const perRow = rows.map(({ oldLogprobs, samplerLogprobs, mask }) =>
    Array.from(mask).flatMap((trained, token) => (trained ? [{ old: oldLogprobs[token]!, sampler: samplerLogprobs[token]! }] : [])),
  );
  const tokens = perRow.flat();
  if (tokens.length === 0) return {};
  const ratio = (token: { old: number; sampler: number }): number => Math.exp(Math.min(Math.max(token.old - token.sampler, -20), 20));
  const perplexity = (of: "old" | "sampler"): number =>
    mean(perRow.filter((row) => row.length > 0).map((row) => Math.exp(-mean(row.map((token) => token[of])))));
  return {
    samplerKl: mean(tokens.map(({ old, sampler }) => sampler - old)),
    samplerK3: mean(tokens.map((token) => ratio(token) - 1 - (token.old - token.sampler))),
    samplerChi2: mean(tokens.map((token) => ratio(token) ** 2)) - 1,
    trainerPerplexity: perplexity("old"),
    samplerPerplexity: perplexity("sampler"),
    samplerGap: mean(tokens.map(({ old, sampler }) => Math.abs(old - sampler))),
  };
}

/** reward, rewardStd over scored rollouts; zeroVarianceFraction: groups that teach nothing; turns a rollout; tokens a call. */
export function rolloutMetrics(groups: readonly Group[]): Record<string, number> {
  const all = groups.flatMap((group) => group.trajectories);
  const scored = all.filter(isScored);
  const calls = scored.flatMap((trajectory) => trajectory.transitions);
  const counts = { rollouts: all.length, failed: all.length - scored.length };
  if (scored.length === 0) return counts;
  const rewards = scored.map((trajectory) => trajectory.reward);
  const isFlat = (group: Group): boolean => new Set(group.trajectories.filter(isScored).map((trajectory) => trajectory.reward)).size <= 1;
  return {
    reward: mean(rewards),
    rewardStd: standardDeviation(rewards),
    zeroVarianceFraction: groups.filter(isFlat).length / groups.length,
    responseTokens: mean(calls.map((call) => call.responseTokens.length)),
    promptTokens: mean(calls.map((call) => call.promptTokens.length)),
    truncatedFraction: calls.filter((call) => call.finishReason === "length").length / calls.length,
    turns: calls.length / scored.length,
    ...counts,
  };
}

const VERL_NAMES: Readonly<Record<string, string>> = {
  reward: "critic/rewards/mean",
  clipFraction: "actor/pg_clipfrac",
  dualClipFraction: "actor/pg_clipfrac_lower",
  policyKl: "actor/ppo_kl",
  samplerKl: "rollout_corr/kl",
  samplerK3: "rollout_corr/k3_kl",
  samplerChi2: "rollout_corr/chi2_token",
  trainerPerplexity: "rollout_corr/training_ppl",
  samplerPerplexity: "rollout_corr/rollout_ppl",
  effectiveSampleFraction: "rollout_corr/rollout_is_eff_sample_size",
  entropy: "actor/entropy_loss",
  gradNorm: "actor/grad_norm",
  responseTokens: "response_length/mean",
  promptTokens: "prompt_length/mean",
};

/** For dashboards made for verl; names that verl does not have stay ours. */
export const toVerlNames = (metrics: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(Object.entries(metrics).map(([name, value]) => [VERL_NAMES[name] ?? name, value]));

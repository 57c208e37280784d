// Divergence from a reference policy, token by token: estimators with the gradient each has as a loss, and the two other places
// where a penalty can stand, the reward and the advantage. Pure, f64. verl core_algos.py:1124, 2187; Tinker cookbook.

export type KlName = "k1" | "k2" | "k3" | "k3Plus";

interface KlEstimator {
  value(logprob: number, ref: number): number;
  /** With respect to logprob. */
  gradient(logprob: number, ref: number): number;
}

const k3Parts = (logprob: number, ref: number): { back: number; value: number; isClamped: boolean } => {
  const back = Math.min(Math.max(ref - logprob, -20), 20);
  const raw = Math.exp(back) - back - 1;
  return { back, value: Math.min(Math.max(raw, -10), 10), isClamped: Math.abs(logprob - ref) >= 20 || raw >= 10 };
};

/**
 * k1 is unbiased as a value, but its expected gradient is 0. k2 has the gradient of the reverse KL. k3 (GRPO's choice) has that of
 * the forward KL; its exponent is clamped at ±20, its value at ±10. k3Plus has the value of k3 and the gradient of k2: the one for a loss.
 */
export const KL: Readonly<Record<KlName, KlEstimator>> = {
  k1: { value: (logprob, ref) => logprob - ref, gradient: () => 1 },
  k2: { value: (logprob, ref) => 0.5 * (logprob - ref) ** 2, gradient: (logprob, ref) => logprob - ref },
  k3: {
    value: (logprob, ref) => k3Parts(logprob, ref).value,
    gradient: (logprob, ref) => {
      const { back, isClamped } = k3Parts(logprob, ref);
      return isClamped ? 0 : 1 - Math.exp(back);
    },
  },
  k3Plus: { value: (logprob, ref) => k3Parts(logprob, ref).value, gradient: (logprob, ref) => logprob - ref },
};

/** r_t − β·(old − ref), before advantages are made: PPO, RLOO, REINFORCE++. All [tokens]. */
export const penaliseReward = (
  rewards: ArrayLike<number>,
  oldLogprobs: ArrayLike<number>,
  refLogprobs: ArrayLike<number>,
  beta: number,
): Float64Array => Float64Array.from(rewards, (reward, token) => reward - beta * (oldLogprobs[token]! - refLogprobs[token]!));

export interface KlRow {
  readonly advantages: ArrayLike<number>;
  readonly samplerLogprobs: ArrayLike<number>;
  readonly refLogprobs: ArrayLike<number>;
  readonly mask: ArrayLike<number>;
}

/** A_t + β·(mean kl − kl_t) with kl = sampler − ref over the trained tokens of the batch: the mean advantage is unchanged. */
export function penaliseAdvantages(rows: readonly KlRow[], beta: number): Float64Array[] {
  let total = 0;
  let count = 0;
  const kl = (row: KlRow, token: number): number => row.samplerLogprobs[token]! - row.refLogprobs[token]!;
  for (const row of rows)
    for (let token = 0; token < row.mask.length; token++)
      if (row.mask[token]) {
        total += kl(row, token);
        count++;
      }
  const center = total / Math.max(count, 1);
  return rows.map((row) =>
    Float64Array.from(row.advantages, (advantage, token) => (row.mask[token] ? advantage + beta * (center - kl(row, token)) : advantage)),
  );
}

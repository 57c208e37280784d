// Per-token estimators over [rows][tokens]: for trainers with a critic or with rewards on tokens. Pure, f64.
// Tokens with mask 0 (tool output, padding) are stepped over without a discount: the next value is that of the next trained token.

type Matrix = readonly ArrayLike<number>[];

const zerosLike = (matrix: Matrix): Float64Array[] => matrix.map((row) => new Float64Array(row.length));

/** Zero mean, unit variance over the tokens with mask 1; variance unbiased, 1e-8 inside the root. Tokens with mask 0 become 0. */
export function whiten(matrix: Matrix, mask: Matrix): Float64Array[] {
  const trained = matrix.flatMap((row, i) => Array.from(row).filter((_, t) => mask[i]![t]));
  const center = trained.reduce((sum, value) => sum + value, 0) / Math.max(trained.length, 1);
  const variance = trained.reduce((sum, value) => sum + (value - center) ** 2, 0) / Math.max(trained.length - 1, 1);
  const scale = Math.sqrt(variance + 1e-8);
  return matrix.map((row, i) => Float64Array.from(row, (value, t) => (mask[i]![t] ? (value - center) / scale : 0)));
}

/** G_t = r_t + γ·G of the next trained token. */
export function tokenReturns(rewards: Matrix, mask: Matrix, gamma = 1): Float64Array[] {
  const returns = zerosLike(rewards);
  rewards.forEach((row, i) => {
    let running = 0;
    for (let t = row.length - 1; t >= 0; t--) {
      if (!mask[i]![t]) continue;
      running = row[t]! + gamma * running;
      returns[i]![t] = running;
    }
  });
  return returns;
}

/**
 * Generalised advantage estimation: δ_t = r_t + γV′ − V_t, A_t = δ_t + γλA′, where ′ is the next trained token.
 * Returns the advantages before whitening, and returns = A + V.
 */
export function tokenGae(
  rewards: Matrix,
  values: Matrix,
  mask: Matrix,
  { gamma = 1, lambda = 1 }: { gamma?: number; lambda?: number } = {},
): { advantages: Float64Array[]; returns: Float64Array[] } {
  const advantages = zerosLike(rewards);
  const returns = zerosLike(rewards);
  rewards.forEach((row, i) => {
    let running = 0;
    let nextValue = 0;
    for (let t = row.length - 1; t >= 0; t--) {
      if (!mask[i]![t]) continue;
      const value = values[i]![t]!;
      running = row[t]! + gamma * nextValue - value + gamma * lambda * running;
      nextValue = value;
      advantages[i]![t] = running;
      returns[i]![t] = running + value;
    }
  });
  return { advantages, returns };
}

/** ReMax: reward to go, minus the reward of the greedy rollout of the same task (one number a row). */
export function reMax(rewards: Matrix, mask: Matrix, greedyRewards: ArrayLike<number>): Float64Array[] {
  return tokenReturns(rewards, mask).map((row, i) => row.map((value, t) => (mask[i]![t] ? value - greedyRewards[i]! : 0)));
}

// Off-policy correction: when sampler (mu) and trainer (old) disagree, ω says how much a token still counts. ρ = e^(old − mu).
// Detached, and multiplied into the advantage. Choosing one costs a forward pass for `old`; on one machine with shared kernels none is needed.

import type { Json } from "@fulgurite/trace";

export interface CorrectionRow {
  readonly oldLogprobs: ArrayLike<number>;
  readonly samplerLogprobs: ArrayLike<number>;
  readonly mask: ArrayLike<number>;
  readonly advantages: ArrayLike<number>;
}

export interface Correction {
  readonly name: string;
  readonly options: Readonly<Record<string, Json>>;
  /** ω of each token, [targets]; 0 where mask is 0. */
  weights(row: CorrectionRow): Float64Array;
}

const LOG_RATIO_LIMIT = 20;
const limited = (value: number): number => Math.min(Math.max(value, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT);
const logRho = (row: CorrectionRow, token: number): number => row.oldLogprobs[token]! - row.samplerLogprobs[token]!;

const onTokens = (row: CorrectionRow, weight: (token: number) => number): Float64Array =>
  Float64Array.from(row.mask, (trained, token) => (trained ? weight(token) : 0));

/** Sum and count over the trained tokens of f(token). */
function overRow(row: CorrectionRow, f: (token: number) => number): { sum: number; mean: number } {
  let sum = 0;
  let count = 0;
  for (let token = 0; token < row.mask.length; token++)
    if (row.mask[token]) {
      sum += f(token);
      count++;
    }
  return { sum, mean: sum / Math.max(count, 1) };
}

const onRow = (row: CorrectionRow, weight: number): Float64Array => onTokens(row, () => weight);
const keptIf = (isKept: boolean): number => (isKept ? 1 : 0);

/** ω_t = min(ρ_t, cap): truncated importance sampling. */
export const tokenTis = ({ cap = 2 }: { cap?: number } = {}): Correction => ({
  name: "tokenTis",
  options: { cap },
  weights: (row) => onTokens(row, (token) => Math.min(Math.exp(limited(logRho(row, token))), cap)),
});

const rowRatio = (row: CorrectionRow): number => Math.exp(limited(overRow(row, (token) => logRho(row, token)).sum));

/** ω = min(Πρ_t, cap) for the whole row. */
export const rowTis = ({ cap = 2 }: { cap?: number } = {}): Correction => ({
  name: "rowTis",
  options: { cap },
  weights: (row) => onRow(row, Math.min(rowRatio(row), cap)),
});

/** ω = Πρ_t, 0 above the cap: TRL's default. */
export const rowMask = ({ cap = 3 }: { cap?: number } = {}): Correction => ({
  name: "rowMask",
  options: { cap },
  weights: (row) => {
    const ratio = rowRatio(row);
    return onRow(row, ratio > cap ? 0 : ratio);
  },
});

/** ω_t = ρ_t inside [min, max], 0 outside. */
export const icePop = ({ min = 0.5, max = 5 }: { min?: number; max?: number } = {}): Correction => ({
  name: "icePop",
  options: { min, max },
  weights: (row) =>
    onTokens(row, (token) => {
      const ratio = Math.exp(limited(logRho(row, token)));
      return ratio >= min && ratio <= max ? ratio : 0;
    }),
});

/** Keeps the row if exp(mean log ρ) is inside [min, max]. */
export const geometric = ({ min = 0.999, max = 1.001 }: { min?: number; max?: number } = {}): Correction => ({
  name: "geometric",
  options: { min, max },
  weights: (row) => {
    const ratio = Math.exp(limited(overRow(row, (token) => logRho(row, token)).mean));
    return onRow(row, keptIf(ratio >= min && ratio <= max));
  },
});

/** Mean of ρ − 1 − log ρ over the trained tokens of a row. */
export const rowMeanK3 = (row: CorrectionRow): number =>
  overRow(row, (token) => Math.exp(limited(logRho(row, token))) - 1 - logRho(row, token)).mean;

/** Keeps the row if its mean k3 is ≤ max. */
export const rowK3 = ({ max = 0.01 }: { max?: number } = {}): Correction => ({
  name: "rowK3",
  options: { max },
  weights: (row) => onRow(row, keptIf(rowMeanK3(row) <= max)),
});

/** Keeps the token if 1/ρ_t is inside [min, max]. */
export const tokenK1 = ({ min, max }: { min: number; max: number }): Correction => ({
  name: "tokenK1",
  options: { min, max },
  weights: (row) =>
    onTokens(row, (token) => {
      const inverse = -logRho(row, token);
      return keptIf(inverse >= Math.log(min) && inverse <= Math.log(max));
    }),
});

/** Mean of mu − old over the trained tokens of a row. */
export const rowDrift = (row: CorrectionRow): number => overRow(row, (token) => -logRho(row, token)).mean;

/** Drops a row with a negative advantage (that of its first trained token) that drifted by more than delta (DeepSeek-V3.2). */
export const opsm = ({ delta }: { delta: number }): Correction => ({
  name: "opsm",
  options: { delta },
  weights: (row) => {
    const first = Array.from(row.mask).findIndex((trained) => trained > 0);
    return onRow(row, keptIf(first < 0 || row.advantages[first]! >= 0 || rowDrift(row) <= delta));
  },
});

// Aggregation: how token losses become one number. Trainers only add, so every average is a weight on the tokens of a row,
// baked into the advantage. Counted over one whole optimiser step, rows without advantage included.
// Row modes depend on how calls were merged into rows; perRolloutMean does not.

import type { Json } from "@fulgurite/trace";
import { RlError } from "./errors.ts";

export interface CountedRow {
  readonly rolloutId: string;
  readonly trainedTokens: number;
}

export interface Aggregate {
  readonly name: string;
  readonly options: Readonly<Record<string, Json>>;
  /** The weight of each token of each row, [rows]; 0 for rows without trained tokens. */
  weights(rows: readonly CountedRow[]): Float64Array;
}

const mode = (
  name: string,
  options: Readonly<Record<string, Json>>,
  weight: (rows: readonly CountedRow[]) => (row: CountedRow) => number,
): Aggregate => ({
  name,
  options,
  weights: (rows) => {
    const trained = rows.filter((row) => row.trainedTokens > 0);
    const of = weight(trained);
    return Float64Array.from(rows, (row) => (row.trainedTokens > 0 ? of(row) : 0));
  },
});

/**
 * 1/(R·T): the mean over R rollouts of the mean over a rollout's T trained tokens (Agent Lightning 1.0's report, Eq. 16).
 * `countRows` divides by rows in place of rollouts, as its code does, so that a rollout of several rows weighs less.
 */
export const perRolloutMean = ({ countRows = false }: { countRows?: boolean } = {}): Aggregate =>
  mode("perRolloutMean", { countRows }, (rows) => {
    const tokens = new Map<string, number>();
    for (const row of rows) tokens.set(row.rolloutId, (tokens.get(row.rolloutId) ?? 0) + row.trainedTokens);
    const count = countRows ? rows.length : tokens.size;
    return (row) => 1 / (count * tokens.get(row.rolloutId)!);
  });

/** 1/N over all trained tokens: DAPO, verl's default. */
export const tokenMean = (): Aggregate =>
  mode("tokenMean", {}, (rows) => {
    const total = rows.reduce((sum, row) => sum + row.trainedTokens, 0);
    return () => 1 / total;
  });

/** 1: Tinker. */
export const tokenSum = (): Aggregate => mode("tokenSum", {}, () => () => 1);

/** 1/S over rows. */
export const rowMeanTokenSum = (): Aggregate => mode("rowMeanTokenSum", {}, (rows) => () => 1 / rows.length);

/** 1/(S·n): the GRPO paper, GSPO, SAPO. */
export const rowMeanTokenMean = (): Aggregate => mode("rowMeanTokenMean", {}, (rows) => (row) => 1 / (rows.length * row.trainedTokens));

/** 1/(S·L) with a constant L, in tokens: Dr. GRPO. */
export function rowMeanTokenSumNorm(length: number): Aggregate {
  if (!(length > 0)) throw new RlError("bad-options", `rowMeanTokenSumNorm: length must be > 0 tokens, got ${length}`);
  return mode("rowMeanTokenSumNorm", { length }, (rows) => () => 1 / (rows.length * length));
}

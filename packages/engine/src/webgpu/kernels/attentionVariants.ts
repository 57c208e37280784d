// The tiles of attention, and which of them is used. All attention operations of a head width share one choice: the sampler's cache, the
// trainer's forward and its gradient then walk the same tiles of keys and round alike. Tiles of different keys differ in their last bits.

import { chosen, type Problem, type Target, type Variant } from "./target.ts";

/** Queries and keys of one tile: multiples of 32, at most 64. */
export interface AttentionTile {
  readonly queries: number;
  readonly keys: number;
}

export interface AttentionVariant extends Variant {
  readonly tile: AttentionTile;
  /** What q, k, v and the weights are rounded to in workgroup memory. Sums, gradients and softmax are f32. */
  readonly type: "f32" | "f16";
}

const SIZES: readonly AttentionTile[] = [
  { queries: 64, keys: 64 },
  { queries: 64, keys: 32 },
  { queries: 32, keys: 32 },
];

/** Above it a thread of a small tile owns more sums than a GPU has registers for. */
const MAX_SMALL_WIDTH = 128;

/** Everything that can do attention over heads C wide, the default first. A software device computes masked pairs dearly: small tiles. */
export const attentionCandidates = (C: number, isSoftware: boolean): AttentionVariant[] => {
  const tiles = C > MAX_SMALL_WIDTH ? SIZES.slice(0, 1) : isSoftware ? [...SIZES].reverse() : SIZES;
  const exact = tiles.map((tile): AttentionVariant => ({ name: `${tile.queries}x${tile.keys}`, tile, type: "f32" }));
  return exact.flatMap((variant): AttentionVariant[] => [
    { ...variant, name: `${variant.name} f16`, type: "f16", needs: ["shader-f16"], isInexact: true },
    variant,
  ]);
};

export const attentionProblem = (C: number): Problem => ({ op: "attention", rows: 0, sizes: { C }, format: "f32" });

export const attentionVariant = (C: number, target: Target): AttentionVariant =>
  chosen(target, attentionProblem(C), attentionCandidates(C, target.isSoftware));

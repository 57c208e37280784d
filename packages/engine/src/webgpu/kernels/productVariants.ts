// The ways to multiply rows with a weight, and which of them suits a shape: tiles of wgsl/gemm.ts, split depth, wgsl/skinny.ts, f16 tiles.
// The defaults follow from counting workgroups and bytes; a tuner that has timed the candidates on the device knows better.

import { isPacked } from "../../weights/formats.ts";
import type { Tile } from "../../wgsl/gemm.ts";
import { SKINNY } from "../../wgsl/skinny.ts";
import { BLOCK } from "./kernel.ts";
import { type Problem, problemKey, type Variant } from "./target.ts";

export interface TileVariant extends Variant {
  readonly kind: "tile";
  readonly tile: Tile;
  /** f32 operands read as vec4f; without it the text is shorter and compiles faster. */
  readonly isWide: boolean;
  /** Slices of the depth in workgroups of their own, added by a second dispatch. */
  readonly isSplit: boolean;
  readonly isHalf: boolean;
}

export interface SkinnyVariant extends Variant {
  readonly kind: "skinny";
}

export type ProductVariant = TileVariant | SkinnyVariant;

const tile = (BM: number, BN: number, TM = 4, TN = 4): Tile => ({ BM, BN, TM, TN });

/** By name; "64x64 8x8" and the like name the results of a thread where one shape comes in two sizes. */
const TILES: Readonly<Record<string, Tile>> = {
  "16x64": tile(16, 64),
  "64x16": tile(64, 16),
  "32x32": tile(32, 32),
  "8x64 8x8": tile(8, 64, 8, 8),
  "64x8 8x8": tile(64, 8, 8, 8),
  "64x64": tile(64, 64, 4, 8),
  "64x64 8x8": tile(64, 64, 8, 8),
  "64x64 16x8": tile(64, 64, 16, 8),
  "128x64": tile(128, 64, 8, 8),
};

/** Twice the workgroups that a GPU of medium size runs at once: below it, cores stand idle. */
const ENOUGH_GROUPS = 64;
/** Below it a skinny workgroup's 64 lanes are mostly idle. */
const SKINNY_DEPTH = 256;
const SKINNY_ROWS = 2 * SKINNY.rows;
const MAX_SPLIT_BYTES = 32 << 20;

const groupsOf = ({ BM, BN }: Tile, m: number, n: number): number => Math.ceil(m / BM) * Math.ceil(n / BN);

export interface ProductShape {
  readonly problem: Problem;
  readonly isSoftware: boolean;
  /** Columns of the result, and depth. */
  readonly n: number;
  readonly depth: number;
  readonly slices: number;
  /** The weight lies along the depth (forward), so that skinny.ts can read it. */
  readonly isAlongDepth: boolean;
  /** What becomes of the results is more than a sum (head.ts): whole sums of 64 columns, in f32. */
  readonly isHead?: boolean;
}

/** Where nothing asks for a larger one. Narrow results (LoRA ranks) get narrow tiles. */
const smallTile = (m: number, n: number): string => (n <= 16 ? "64x16" : m <= 16 ? "16x64" : "32x32");

/** On a processor every load and barrier is an instruction, and few threads keep it busy: many results each. */
const softwareTile = (m: number, n: number): string => (n <= 16 ? "64x8 8x8" : m <= 16 ? "8x64 8x8" : "64x64 16x8");

const defaultName = (
  { problem: { rows }, isSoftware, n, depth, slices, isAlongDepth, isHead }: ProductShape,
  canBeSkinny: boolean,
): string => {
  if (isSoftware) return softwareTile(rows, isHead ? 64 : n);
  if (canBeSkinny && isAlongDepth && rows <= SKINNY_ROWS && depth >= SKINNY_DEPTH) return "skinny";
  if (isHead) return groupsOf(TILES["64x64"]!, rows, n) >= ENOUGH_GROUPS ? "64x64 wide" : "16x64 wide";
  const small = smallTile(rows, n);
  const [many, few] = [groupsOf(TILES[small]!, rows, n), groupsOf(TILES["64x64"]!, rows, n)];
  if (small === "32x32" && few >= ENOUGH_GROUPS) return "64x64 wide";
  // Slices of the depth fill a GPU as well as smaller tiles do, and load less for each multiply-add.
  if (small === "32x32" && rows > 32 && slices > 1 && few * slices >= ENOUGH_GROUPS) return "64x64 wide split";
  return slices > 1 && many < ENOUGH_GROUPS ? `${small} wide split` : `${small} wide`;
};

/** By shape: the layers of a model ask for the same few. */
const known = new Map<string, readonly ProductVariant[]>();

/** Everything that can do the job, the one that suits the shape first. */
export const productCandidates = (shape: ProductShape): readonly ProductVariant[] => {
  const { problem, isSoftware, n, depth, slices, isHead } = shape;
  const key = `${problemKey(problem)} ${isSoftware} ${n} ${depth} ${slices} ${isHead}`;
  const found = known.get(key) ?? listCandidates(shape);
  known.set(key, found);
  return found;
};

const listCandidates = (shape: ProductShape): readonly ProductVariant[] => {
  const { problem, n, depth, slices, isAlongDepth, isHead } = shape;
  const canBeSkinny = isAlongDepth && depth % BLOCK === 0 && (!isPacked(problem.format) || depth % (2 * BLOCK) === 0);
  const all: ProductVariant[] = canBeSkinny ? [{ name: "skinny", kind: "skinny" }] : [];
  const canSplit = !isHead && slices > 1 && slices * problem.rows * n * 4 <= MAX_SPLIT_BYTES;
  for (const [name, size] of Object.entries(TILES)) {
    if (isHead && (size.BN !== 64 || size.BM > 64)) continue;
    for (const isWide of [false, true]) {
      for (const isSplit of canSplit && isWide ? [false, true] : [false]) {
        const full = `${name}${isWide ? " wide" : ""}${isSplit ? " split" : ""}`;
        all.push({ name: full, kind: "tile", tile: size, isWide, isSplit, isHalf: false });
        if (isWide && !isSplit && !isHead)
          all.push({
            name: `${full} f16`,
            kind: "tile",
            tile: size,
            isWide,
            isSplit,
            isHalf: true,
            needs: ["shader-f16"],
            isInexact: true,
          });
      }
    }
  }
  const wanted = defaultName(shape, canBeSkinny);
  const rank = ({ name }: ProductVariant): number =>
    name === `${wanted} f16` ? 0 : name === wanted ? 1 : name === wanted.replace(" split", "") ? 2 : 3;
  return all.sort((a, b) => rank(a) - rank(b));
};

/** Tiles for dw [O, I]: its rows are the depth, cut into slices by the step itself. The one that suits the shape comes first. */
export const weightGradCandidates = (O: number, I: number, isSoftware: boolean): readonly TileVariant[] => {
  const large = Math.min(O, I) > 16 && groupsOf(TILES["64x64"]!, O, I) >= ENOUGH_GROUPS / 4;
  const wanted = isSoftware ? softwareTile(O, I) : `${large ? "64x64" : smallTile(O, I)} wide`;
  const all = Object.entries(TILES).flatMap(([name, size]) =>
    [false, true].map((isWide): TileVariant => {
      return { name: `${name}${isWide ? " wide" : ""}`, kind: "tile", tile: size, isWide, isSplit: false, isHalf: false };
    }),
  );
  return all.sort((a, b) => Number(b.name === wanted) - Number(a.name === wanted));
};

/** Row counts up to `capacity` in classes that may want different variants: the first and the last of each. A software device has one. */
export const rowClasses = (capacity: number, isSoftware: boolean): { from: number; to: number }[] => {
  if (isSoftware) return [{ from: 1, to: capacity }];
  const classes: { from: number; to: number }[] = [];
  for (let from = 1, to: number = SKINNY.rows; from <= capacity; from = to + 1, to *= 2) classes.push({ from, to });
  return classes;
};

// The head without logits: log-prob and entropy, the token losses, their way back, sampling. Word layouts: encode.ts.
// Threads take tiles: a block of rows × a run of columns, made by the GEMM's own pieces in a thread's buffer, or where the logits are kept;
// what is left of a tile is 32 bytes a row in `parts`. Then they share the rows. Sums over the vocabulary are kept in f64; exponentials are f32.

import { BACKWARD, BY_COLUMN, BY_DEPTH, gemm, GEMM_SCRATCH, gemmPiece } from "./gemm";
import { BF16, F16, Q4, Q8 } from "./panels";
import { address, share, word } from "./table";
import { barrier, nextPiece } from "./threads";
import { exp1, exp4, maxLanes, toF64Sum } from "./vector";

/** Rows and columns of a tile: at most so many numbers, and rows as the GEMM blocks them. */
const TILE_NUMBERS: i32 = 65536;
const TILE_ROWS: i32 = 128;
/** Where a thread's tile begins in its scratch, and where that ends. */
const TILE_AT: usize = (GEMM_SCRATCH + 255) & ~255;
export const HEAD_SCRATCH: i32 = <i32>TILE_AT + TILE_NUMBERS * 4;

/** Columns of a tile. A small vocabulary is one; others have up to 256, the places of a row of `parts`: what is picked from is computed again. */
function tileColumns(vocab: i32): i32 {
  return vocab <= 1024 ? 1024 : 256 * ((vocab + 65535) >> 16);
}

/** Bytes of a row of `parts`: headParts of plan/step.ts. */
function rowOf(vocab: i32): usize {
  return (<usize>min(max((vocab + 63) >> 6, 2), 512)) << 4;
}

/** A tile's place in a row of `parts`: mass, spread (f64), peak, the target's logit (f32). */
const SPREAD: usize = 8, PEAK: usize = 16, CHOSEN: usize = 20, PART_BYTES: usize = 32;

/** Results of `measure` for one row of logits: max i·z, Σ e^(i·z − peak), Σ e^(i·z − peak)·(i·z − peak). One copy a thread: wasm globals are. */
let peak: f32 = 0;
let mass: f64 = 0;
let spread: f64 = 0;

/** Far below any exponent with mass; keeps 0·∞ out of the entropy when a logit is −∞. */
const FLOOR: f32 = -1000;

function measure(z: usize, vocab: i32, inverse: f32): void {
  const bytes = (<usize>vocab) << 2;
  const vectors = (<usize>(vocab & ~3)) << 2;
  let high4 = f32x4.splat(-Infinity);
  let i: usize = 0;
  for (; i < vectors; i += 16) high4 = f32x4.max(high4, v128.load(z + i));
  let high = maxLanes(high4);
  for (; i < bytes; i += 4) high = max(high, load<f32>(z + i));
  peak = inverse * high;
  const inverse4 = f32x4.splat(inverse), peak4 = f32x4.splat(peak), floor4 = f32x4.splat(FLOOR);
  let mass2 = f64x2.splat(0), spread2 = f64x2.splat(0);
  for (i = 0; i < vectors; i += 16) {
    const d = f32x4.max(f32x4.sub(f32x4.mul(inverse4, v128.load(z + i)), peak4), floor4);
    const e = exp4(d);
    mass2 = f64x2.add(mass2, toF64Sum(e));
    spread2 = f64x2.add(spread2, toF64Sum(f32x4.mul(e, d)));
  }
  mass = f64x2.extract_lane(mass2, 0) + f64x2.extract_lane(mass2, 1);
  spread = f64x2.extract_lane(spread2, 0) + f64x2.extract_lane(spread2, 1);
  for (; i < bytes; i += 4) {
    const d = max(inverse * load<f32>(z + i) - peak, FLOOR);
    const e = exp1(d);
    mass += <f64>e;
    spread += <f64>(e * d);
  }
}

// @ts-ignore: decorator
@inline
function logprobOf(logit: f32, inverse: f32): f32 {
  return <f32>(<f64>inverse * <f64>logit - (<f64>peak + Math.log(mass)));
}

/** peak, mass and spread of a row from those of its tiles. */
function fold(parts: usize, tiles: i32): void {
  const end = parts + (<usize>tiles) * PART_BYTES;
  peak = load<f32>(parts, PEAK);
  for (let part = parts + PART_BYTES; part < end; part += PART_BYTES) peak = max(peak, load<f32>(part, PEAK));
  mass = 0;
  spread = 0;
  for (let part = parts; part < end; part += PART_BYTES) {
    const down = <f64>load<f32>(part, PEAK) - <f64>peak, scale = Math.exp(down);
    mass += load<f64>(part) * scale;
    spread += (load<f64>(part, SPREAD) + down * load<f64>(part)) * scale;
  }
}

/** Columns nBegin … nEnd − 1 of the logits of rows mBegin … mEnd − 1, rows cRow bytes apart; the first one goes to `to`. */
function makeTile(s: usize, depth: i32, mBegin: i32, mEnd: i32, nBegin: i32, nEnd: i32, to: usize, cRow: usize, scratch: usize): void {
  const kind = word(s, 2), row = (<usize>depth) << 2;
  gemmPiece(
    scratch, mBegin, mEnd, nBegin, nEnd, depth, address(s, 0), row, 4, address(s, 1), kind < 0 ? BY_COLUMN : kind, row, address(s, 3),
    to - (<usize>mBegin) * cRow - ((<usize>nBegin) << 2), cRow, 0, 0, 0, 1,
  );
}

/**
 * Takes tiles while there are some: `parts` of every row and tile. All steps of a head begin x, w, kind, scales, z (0: not kept), parts.
 * isSample: temperature 0 counts as 1. Where one tile is all, a row ends here: `s` as `logprob` or `sample` has it.
 */
function takeTiles(
  s: usize, n: i32, depth: i32, vocab: i32, targets: usize, inverses: usize, isSample: bool, threads: i32, scratch: usize,
): void {
  const columns = tileColumns(vocab), tiles = (vocab + columns - 1) / columns;
  // About four pieces a thread, if rows are that many.
  const wanted = max((4 * threads) / tiles, 1);
  const rows = min(min(TILE_ROWS, (TILE_NUMBERS / columns) & ~3), ((n + wanted - 1) / wanted + 3) & ~3);
  const blocks = (n + rows - 1) / rows, kept = address(s, 4), parts = address(s, 5);
  const cRow = (<usize>(kept ? vocab : columns)) << 2, partsRow = rowOf(vocab);
  for (let piece = nextPiece(-1, threads); piece < blocks * tiles; piece = nextPiece(piece, threads)) {
    const mBegin = (piece % blocks) * rows, mEnd = min(n, mBegin + rows), tile = piece / blocks;
    const nBegin = tile * columns, nEnd = min(vocab, nBegin + columns);
    const to = kept ? kept + (<usize>mBegin) * cRow + ((<usize>nBegin) << 2) : scratch + TILE_AT;
    makeTile(s, depth, mBegin, mEnd, nBegin, nEnd, to, cRow, scratch);
    for (let t = mBegin; t < mEnd; t++) {
      const z = to + (<usize>(t - mBegin)) * cRow, at = (<usize>t) << 2;
      const asked = load<f32>(inverses + at), part = parts + (<usize>t) * partsRow + (<usize>tile) * PART_BYTES;
      measure(z, nEnd - nBegin, isSample && asked == 0 ? 1 : asked);
      store<f64>(part, mass);
      store<f64>(part, spread, SPREAD);
      store<f32>(part, peak, PEAK);
      if (targets) {
        const chosen = load<i32>(targets + at) - nBegin;
        store<f32>(part, <u32>chosen < <u32>(nEnd - nBegin) ? load<f32>(z + ((<usize>chosen) << 2)) : NaN, CHOSEN);
      }
      if (isSample && tiles == 1) choose(s, t, 0, vocab, z, 0);
    }
  }
}

/** x, w, kind, scales, z, parts, target, inverseTemperature, logprob, entropy, lse, D, V. */
export function logprob(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const depth = word(s, 11), vocab = word(s, 12), columns = tileColumns(vocab);
  takeTiles(s, n, depth, vocab, address(s, 6), address(s, 7), false, threads, scratch);
  barrier(threads);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const target = load<i32>(address(s, 6) + at), inverse = load<f32>(address(s, 7) + at);
    const parts = address(s, 5) + (<usize>t) * rowOf(vocab);
    fold(parts, (vocab + columns - 1) / columns);
    const isInside = <u32>target < <u32>vocab;
    const logit = isInside ? load<f32>(parts + (<usize>(target / columns)) * PART_BYTES, CHOSEN) : NaN;
    store<f32>(address(s, 8) + at, logprobOf(logit, inverse));
    store<f32>(address(s, 9) + at, <f32>(Math.log(mass) - spread / mass));
    store<f32>(address(s, 10) + at, <f32>(<f64>peak + Math.log(mass)));
  }
}

/** dz = g·i·(1[target] − e^(i·z − lse)) in place, over `columns` logits, of which `target` is one or none. */
function toGradient(z: usize, columns: i32, target: i32, inverse: f32, lse: f32, slope: f32): void {
  const bytes = (<usize>columns) << 2;
  const vectors = (<usize>(columns & ~3)) << 2;
  const inverse4 = f32x4.splat(inverse), lse4 = f32x4.splat(lse), slope4 = f32x4.splat(-slope);
  let ofTarget: f32 = 0;
  if (<u32>target < <u32>columns) ofTarget = slope * (1 - exp1(inverse * load<f32>(z + ((<usize>target) << 2)) - lse));
  let i: usize = 0;
  for (; i < vectors; i += 16) {
    v128.store(z + i, f32x4.mul(slope4, exp4(f32x4.sub(f32x4.mul(inverse4, v128.load(z + i)), lse4))));
  }
  for (; i < bytes; i += 4) store<f32>(z + i, -slope * exp1(inverse * load<f32>(z + i) - lse));
  if (<u32>target < <u32>columns) store<f32>(z + ((<usize>target) << 2), ofTarget);
}

/** Bytes of so many values of a weight. */
function bytesOf(kind: i32, values: usize): usize {
  return kind == F16 || kind == BF16 ? values << 1 : kind == Q8 ? values : kind == Q4 ? values >> 1 : values << 2;
}

/** x, w, kind, scales, z, target, inverseTemperature, lse, dLogprob, dx, D, V, S. */
export function logprobBackward(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const kind = word(s, 2), z = address(s, 4), dx = address(s, 9);
  const depth = word(s, 10), vocab = word(s, 11), slice = word(s, 12);
  const row = (<usize>depth) << 2, zRow = (<usize>slice) << 2;
  const begin = share(n, thread, threads), end = share(n, thread + 1, threads);
  for (let first = 0; first < vocab; first += slice) {
    const columns = min(slice, vocab - first);
    // A slice begins with a panel.
    const before = (<usize>first) * (<usize>depth);
    const w = address(s, 1) + bytesOf(kind, before), scales = address(s, 3) + (before >> 4);
    if (slice < vocab) {
      // Nobody still reads the slice before.
      if (first) barrier(threads);
      gemm(
        threads, scratch, n, columns, depth, address(s, 0), row, 4, w, kind < 0 ? BY_COLUMN : kind, row, scales,
        z, zRow, 0, 0, 0, 1,
      );
      barrier(threads);
    }
    for (let t = begin; t < end; t++) {
      const at = (<usize>t) << 2;
      const inverse = load<f32>(address(s, 6) + at);
      toGradient(
        z + (<usize>t) * zRow, columns, load<i32>(address(s, 5) + at) - first, inverse, load<f32>(address(s, 7) + at),
        load<f32>(address(s, 8) + at) * inverse,
      );
    }
    barrier(threads);
    gemm(
      threads, scratch, n, depth, columns, z, zRow, 4, w, kind < 0 ? BY_DEPTH : kind + BACKWARD, kind < 0 ? row : depth, scales,
      dx, row, first ? dx : 0, row, 0, 1,
    );
  }
}

/** First j at which the running sum of exponentials passes `goal`; the last j with mass if rounding leaves none. */
function pick(z: usize, vocab: i32, inverse: f32, goal: f64): i32 {
  const inverse4 = f32x4.splat(inverse), peak4 = f32x4.splat(peak);
  let sum: f64 = 0;
  let last = 0;
  let j = 0;
  for (; j + 4 <= vocab; j += 4) {
    const e = exp4(f32x4.sub(f32x4.mul(inverse4, v128.load(z + ((<usize>j) << 2))), peak4));
    for (let lane = 0; lane < 4; lane++) {
      const mass = lane == 0 ? f32x4.extract_lane(e, 0) : lane == 1 ? f32x4.extract_lane(e, 1) : lane == 2 ? f32x4.extract_lane(e, 2) : f32x4.extract_lane(e, 3);
      if (!(mass > 0)) continue;
      sum += <f64>mass;
      last = j + lane;
      if (sum > goal) return last;
    }
  }
  for (; j < vocab; j++) {
    const mass = exp1(inverse * load<f32>(z + ((<usize>j) << 2)) - peak);
    if (!(mass > 0)) continue;
    sum += <f64>mass;
    last = j;
    if (sum > goal) return last;
  }
  return last;
}

function argmax(z: usize, vocab: i32): i32 {
  let best = 0;
  for (let j = 1; j < vocab; j++) if (load<f32>(z + ((<usize>j) << 2)) > load<f32>(z + ((<usize>best) << 2))) best = j;
  return best;
}

/** Token and log-prob of row t, which lies in columns nBegin … nEnd − 1, their logits at z; `below`: the mass before them. peak and mass are the row's. */
function choose(s: usize, t: i32, nBegin: i32, nEnd: i32, z: usize, below: f64): void {
  const at = (<usize>t) << 2;
  const asked = load<f32>(address(s, 6) + at);
  const inverse: f32 = asked == 0 ? 1 : asked;
  const token = asked == 0 ? argmax(z, nEnd - nBegin) : pick(z, nEnd - nBegin, inverse, <f64>load<f32>(address(s, 7) + at) * mass - below);
  store<i32>(address(s, 8) + at, nBegin + token);
  store<f32>(address(s, 9) + at, logprobOf(load<f32>(z + ((<usize>token) << 2)), inverse));
}

/** x, w, kind, scales, z, parts, inverseTemperature, uniform, token, logprob, D, V. */
export function sample(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const depth = word(s, 10), vocab = word(s, 11);
  takeTiles(s, n, depth, vocab, 0, address(s, 6), true, threads, scratch);
  const columns = tileColumns(vocab), tiles = (vocab + columns - 1) / columns;
  if (tiles == 1) return;
  barrier(threads);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const parts = address(s, 5) + (<usize>t) * rowOf(vocab);
    fold(parts, tiles);
    const goal = <f64>load<f32>(address(s, 7) + at) * mass, isGreedy = load<f32>(address(s, 6) + at) == 0;
    // The first tile at which the sum passes the goal, the last one with mass if rounding leaves none; greedy: the first with the peak.
    let sum: f64 = 0, below: f64 = 0, tile = 0;
    for (let i = 0; i < tiles; i++) {
      const part = parts + (<usize>i) * PART_BYTES, top = load<f32>(part, PEAK);
      const own = load<f64>(part) * Math.exp(<f64>top - <f64>peak);
      if (isGreedy ? top == peak : own > 0) {
        tile = i;
        below = sum;
        if (isGreedy) break;
      }
      sum += own;
      if (sum > goal && !isGreedy) break;
    }
    const nBegin = tile * columns, nEnd = min(vocab, nBegin + columns);
    const z = scratch + TILE_AT;
    makeTile(s, depth, t, t + 1, nBegin, nEnd, z, (<usize>columns) << 2, scratch);
    choose(s, t, nBegin, nEnd, z, below);
  }
}

const CROSS_ENTROPY: i32 = 0;
const IMPORTANCE_SAMPLING: i32 = 1;
/** |logprob − old| beyond this is clamped, and the gradient is 0 there. */
const RATIO_LIMIT: f64 = 20;

/** logprob, old, advantage, lossParams, tokenLoss, dLogprob, loss: the formulas of step.ts, in f64. */
export function tokenLoss(s: usize, n: i32, thread: i32, threads: i32): void {
  const params = address(s, 3), loss = word(s, 6);
  const low = 1 - <f64>load<f32>(params), high = 1 + <f64>load<f32>(params, 4), dual = <f64>load<f32>(params, 8);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const logprob = <f64>load<f32>(address(s, 0) + at), advantage = <f64>load<f32>(address(s, 2) + at);
    let value: f64, slope: f64;
    if (loss == CROSS_ENTROPY) {
      value = -advantage * logprob;
      slope = -advantage;
    } else {
      const difference = logprob - <f64>load<f32>(address(s, 1) + at);
      const r = Math.exp(min(max(difference, -RATIO_LIMIT), RATIO_LIMIT));
      slope = abs(difference) > RATIO_LIMIT ? 0 : -advantage * r;
      if (loss == IMPORTANCE_SAMPLING) {
        value = -advantage * r;
      } else if (advantage >= 0) {
        value = -advantage * min(r, high);
        if (!(r <= high)) slope = 0;
      } else {
        value = min(-advantage * max(r, low), -advantage * dual);
        if (r < low || r > dual) slope = 0;
      }
    }
    store<f32>(address(s, 4) + at, <f32>value);
    store<f32>(address(s, 5) + at, <f32>slope);
  }
}

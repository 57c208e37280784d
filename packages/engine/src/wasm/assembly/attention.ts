// Attention over packed sequences and over the cache, forward and backward. Threads share the (row, head) pairs in turn, which balances
// the causal triangle. Scores of one row lie in scratch as a list padded to four with −∞; the cached and the packed form call the same
// two functions (dots, weightedSum), so a token gets the same bits from the sampler and from the trainer.
// C is a multiple of 4 (checked when the plan is encoded). Word layouts: encode.ts.

import { address, number, word } from "./table";
import { dot, dots, exp4, fillNaN, maxLanes, sumLanes, weightedSum } from "./vector";

/** scores → exp(score − max) in place; returns their sum. The list is padded to four. */
function exponentiate(scores: usize, count: i32, peak: f32): f32 {
  const end = scores + (((<usize>count + 3) & ~3) << 2);
  const peak4 = f32x4.splat(peak);
  let sum = f32x4.splat(0);
  while (scores < end) {
    const e = exp4(f32x4.sub(v128.load(scores), peak4));
    v128.store(scores, e);
    sum = f32x4.add(sum, e);
    scores += 16;
  }
  return sumLanes(sum);
}

function maxOf(scores: usize, count: i32): f32 {
  const end = scores + (((<usize>count + 3) & ~3) << 2);
  let peak = v128.load(scores);
  for (let at = scores + 16; at < end; at += 16) peak = f32x4.max(peak, v128.load(at));
  return maxLanes(peak);
}

/** One query head against `count` keys: o, and the log of the sum of exponentials. */
function attend(
  q: usize, k: usize, v: usize, stride: usize, count: i32, width: i32, scale: f32, scores: usize, o: usize,
): f32 {
  dots(q, k, stride, count, width, scale, scores, -Infinity);
  const peak = maxOf(scores, count);
  const sum = exponentiate(scores, count, peak);
  weightedSum(scores, v, stride, count, width, 1 / sum, o, false);
  return <f32>(<f64>peak + Math.log(<f64>sum));
}

/** First row that row t sees: its sequence's first or the window's; a start outside 0 … t is brought back into it. window ≥ 1; none is 2³¹ − 1. */
// @ts-ignore: decorator
@inline
function firstRow(start: usize, t: i32, window: i32): i32 {
  return max(min(max(load<i32>(start + ((<usize>t) << 2)), 0), t), t - window + 1);
}

/** q, k, v, start, o, lse, heads, kvHeads, C, scale, window. */
export function attention(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const q = address(s, 0), k = address(s, 1), v = address(s, 2), start = address(s, 3), o = address(s, 4), lse = address(s, 5);
  const heads = word(s, 6), kvHeads = word(s, 7), width = word(s, 8), window = word(s, 10);
  const scale = number(s, 9);
  const bytes = (<usize>width) << 2;
  const stride = (<usize>kvHeads) * bytes;
  for (let item = thread; item < n * heads; item += threads) {
    const t = item / heads, h = item % heads;
    const first = firstRow(start, t, window);
    const from = (<usize>first) * stride + (<usize>(h * kvHeads / heads)) * bytes;
    const at = (<usize>item) * bytes;
    store<f32>(lse + ((<usize>item) << 2), attend(q + at, k + from, v + from, stride, t - first + 1, width, scale, scratch, o + at));
  }
}

/** q, kCache, vCache, slots, positions, o, heads, kvHeads, C, scale, S, P, window. */
export function attentionCached(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const q = address(s, 0), kCache = address(s, 1), vCache = address(s, 2), slots = address(s, 3), positions = address(s, 4), o = address(s, 5);
  const heads = word(s, 6), kvHeads = word(s, 7), width = word(s, 8), slotCount = word(s, 10), perSlot = word(s, 11), window = word(s, 12);
  const scale = number(s, 9);
  const bytes = (<usize>width) << 2;
  const stride = (<usize>kvHeads) * bytes;
  for (let item = thread; item < n * heads; item += threads) {
    const t = item / heads, h = item % heads;
    const slot = load<u32>(slots + ((<usize>t) << 2)), position = load<u32>(positions + ((<usize>t) << 2));
    const at = (<usize>item) * bytes;
    if (slot >= <u32>slotCount || position >= <u32>perSlot) {
      fillNaN(o + at, width);
      continue;
    }
    const first = max(<i32>position - window + 1, 0);
    const from = ((<usize>slot) * (<usize>perSlot) + <usize>first) * stride + (<usize>(h * kvHeads / heads)) * bytes;
    attend(q + at, kCache + from, vCache + from, stride, <i32>position - first + 1, width, scale, scratch, o + at);
  }
}

/** o, dO, delta, heads, C. */
export function attentionDelta(s: usize, n: i32, thread: i32, threads: i32): void {
  const o = address(s, 0), dO = address(s, 1), delta = address(s, 2);
  const heads = word(s, 3), width = word(s, 4);
  const bytes = (<usize>width) << 2;
  for (let item = thread; item < n * heads; item += threads) {
    const at = (<usize>item) * bytes;
    store<f32>(delta + ((<usize>item) << 2), dot(dO + at, o + at, width));
  }
}

/** q, k, v, dO, lse, delta, start, dq, heads, kvHeads, C, scale, bytes of one scratch list, window. */
export function attentionBackwardQ(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const q = address(s, 0), k = address(s, 1), v = address(s, 2), dO = address(s, 3);
  const lse = address(s, 4), delta = address(s, 5), start = address(s, 6), dq = address(s, 7);
  const heads = word(s, 8), kvHeads = word(s, 9), width = word(s, 10), window = word(s, 13);
  const scale = number(s, 11);
  const slopes = scratch + <usize>word(s, 12);
  const bytes = (<usize>width) << 2;
  const stride = (<usize>kvHeads) * bytes;
  for (let item = thread; item < n * heads; item += threads) {
    const t = item / heads, h = item % heads;
    const first = firstRow(start, t, window);
    const count = t - first + 1;
    const from = (<usize>first) * stride + (<usize>(h * kvHeads / heads)) * bytes;
    const at = (<usize>item) * bytes;
    dots(q + at, k + from, stride, count, width, scale, scratch, -Infinity);
    dots(dO + at, v + from, stride, count, width, 1, slopes, 0);
    const lse4 = v128.load32_splat(lse + ((<usize>item) << 2)), delta4 = v128.load32_splat(delta + ((<usize>item) << 2));
    const end = scratch + ((<usize>count) << 2);
    let slope = slopes;
    for (let score = scratch; score < end; score += 16) {
      const p = exp4(f32x4.sub(v128.load(score), lse4));
      v128.store(slope, f32x4.mul(p, f32x4.sub(v128.load(slope), delta4)));
      slope += 16;
    }
    weightedSum(slopes, k + from, stride, count, width, scale, dq + at, false);
  }
}

/** q, k, v, dO, lse, delta, end, dk, dv, heads, kvHeads, C, scale, bytes of one scratch list, window. */
export function attentionBackwardKv(s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  const q = address(s, 0), k = address(s, 1), v = address(s, 2), dO = address(s, 3);
  const lse = address(s, 4), delta = address(s, 5), ends = address(s, 6), dk = address(s, 7), dv = address(s, 8);
  const heads = word(s, 9), kvHeads = word(s, 10), width = word(s, 11), window = word(s, 14);
  const scale = number(s, 12);
  const slopes = scratch + <usize>word(s, 13);
  const bytes = (<usize>width) << 2;
  const stride = (<usize>heads) * bytes;
  const group = heads / kvHeads;
  for (let item = thread; item < n * kvHeads; item += threads) {
    const t = item / kvHeads, g = item % kvHeads;
    const count = min(min(load<i32>(ends + ((<usize>t) << 2)), n) - t, window);
    const at = (<usize>item) * bytes;
    if (count <= 0) {
      memory.fill(dk + at, 0, bytes);
      memory.fill(dv + at, 0, bytes);
      continue;
    }
    for (let i = 0; i < group; i++) {
      const h = g * group + i;
      const from = (<usize>t) * stride + (<usize>h) * bytes;
      dots(k + at, q + from, stride, count, width, scale, scratch, -Infinity);
      dots(v + at, dO + from, stride, count, width, 1, slopes, 0);
      // lse and delta of the queries are `heads` apart
      let row = ((<usize>t) * (<usize>heads) + (<usize>h)) << 2;
      for (let j = 0; j < count; j++) {
        const score = scratch + ((<usize>j) << 2), slope = slopes + ((<usize>j) << 2);
        store<f32>(score, load<f32>(score) - load<f32>(lse + row));
        store<f32>(slope, load<f32>(slope) - load<f32>(delta + row));
        row += (<usize>heads) << 2;
      }
      const bytesOfList = (<usize>count) << 2;
      for (let j: usize = 0; j < bytesOfList; j += 16) {
        const p = exp4(v128.load(scratch + j));
        v128.store(scratch + j, p);
        v128.store(slopes + j, f32x4.mul(p, v128.load(slopes + j)));
      }
      weightedSum(slopes, q + from, stride, count, width, scale, dk + at, i > 0);
      weightedSum(scratch, dO + from, stride, count, width, 1, dv + at, i > 0);
    }
  }
}

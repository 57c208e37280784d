// Whole-tensor ops: zero, copy, the gradient's square sum, AdamW. Threads share the elements; the square sum, which has to have one
// order whatever the number of threads, is thread 0's alone (a LoRA has few enough). Word layouts: encode.ts.

import { address, share, word } from "./table";
import { toF64Sum } from "./vector";

/** x, element count. */
export function zero(s: usize, thread: i32, threads: i32): void {
  const begin = share(word(s, 1), thread, threads), end = share(word(s, 1), thread + 1, threads);
  memory.fill(address(s, 0) + ((<usize>begin) << 2), 0, (<usize>(end - begin)) << 2);
}

/** x, y, element count. */
export function copy(s: usize, thread: i32, threads: i32): void {
  const begin = share(word(s, 2), thread, threads), end = share(word(s, 2), thread + 1, threads);
  const at = (<usize>begin) << 2;
  memory.copy(address(s, 1) + at, address(s, 0) + at, (<usize>(end - begin)) << 2);
}

/** x, sum, element count. f64 sums of f32 squares. */
export function sumSquares(s: usize, thread: i32): void {
  if (thread != 0) return;
  let x = address(s, 0);
  const count = word(s, 2);
  const end = x + ((<usize>count) << 2), vectors = x + ((<usize>(count & ~3)) << 2);
  let sum2 = f64x2.splat(0);
  for (; x < vectors; x += 16) {
    const v = v128.load(x);
    const lo = f64x2.promote_low_f32x4(v), hi = f64x2.promote_low_f32x4(i64x2.shuffle(v, v, 1, 0));
    sum2 = f64x2.add(sum2, f64x2.add(f64x2.mul(lo, lo), f64x2.mul(hi, hi)));
  }
  let sum = f64x2.extract_lane(sum2, 0) + f64x2.extract_lane(sum2, 1);
  for (; x < end; x += 4) sum += <f64>load<f32>(x) * <f64>load<f32>(x);
  store<f32>(address(s, 1), <f32>sum);
}

/**
 * p, g, m, v, sumSquares, element count; `adam` points at the host's numbers:
 * learningRate, 1 − learningRate·weightDecay, β₁, 1 − β₁, β₂, 1 − β₂, eps, gradClipNorm, 1/(1 − β₁ᵗ), 1/(1 − β₂ᵗ).
 */
export function adamW(s: usize, thread: i32, threads: i32, adam: usize): void {
  const norm = sqrt(load<f32>(address(s, 4)));
  if (!isFinite<f32>(norm)) return;
  const limit = load<f32>(adam, 28);
  const clip: f32 = limit > 0 ? min<f32>(1, limit / (norm + 1e-6)) : 1;
  const rate = load<f32>(adam), keep = load<f32>(adam, 4);
  const beta1 = load<f32>(adam, 8), rest1 = load<f32>(adam, 12), beta2 = load<f32>(adam, 16), rest2 = load<f32>(adam, 20);
  const eps = load<f32>(adam, 24), correct1 = load<f32>(adam, 32), correct2 = load<f32>(adam, 36);
  const count = word(s, 5);
  const begin = share(count, thread, threads), end = share(count, thread + 1, threads);
  const first = (<usize>begin) << 2;
  let p = address(s, 0) + first, g = address(s, 1) + first, m = address(s, 2) + first, v = address(s, 3) + first;
  let left = end - begin;
  for (; left >= 4; left -= 4) {
    const gradient = f32x4.mul(v128.load(g), f32x4.splat(clip));
    const m4 = f32x4.add(f32x4.mul(f32x4.splat(beta1), v128.load(m)), f32x4.mul(f32x4.splat(rest1), gradient));
    const v4 = f32x4.add(f32x4.mul(f32x4.splat(beta2), v128.load(v)), f32x4.mul(f32x4.mul(f32x4.splat(rest2), gradient), gradient));
    v128.store(m, m4);
    v128.store(v, v4);
    const root = f32x4.add(f32x4.sqrt(f32x4.mul(v4, f32x4.splat(correct2))), f32x4.splat(eps));
    const update = f32x4.div(f32x4.mul(m4, f32x4.splat(correct1)), root);
    v128.store(p, f32x4.sub(f32x4.mul(v128.load(p), f32x4.splat(keep)), f32x4.mul(f32x4.splat(rate), update)));
    p += 16;
    g += 16;
    m += 16;
    v += 16;
  }
  for (; left > 0; left--) {
    const gradient = load<f32>(g) * clip;
    const m1 = beta1 * load<f32>(m) + rest1 * gradient;
    const v1 = beta2 * load<f32>(v) + rest2 * gradient * gradient;
    store<f32>(m, m1);
    store<f32>(v, v1);
    store<f32>(p, load<f32>(p) * keep - rate * ((m1 * correct1) / (sqrt(v1 * correct2) + eps)));
    p += 4;
    g += 4;
    m += 4;
    v += 4;
  }
}

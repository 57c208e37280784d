// Vector pieces that rows, attention and head share: exp, sums of lanes, dots of one vector with many rows, weighted sums of rows.
// Widths are counted in elements. Scratch lists are padded to a multiple of four so that no loop here has a scalar exp.

/** Lane sum in the order (0 + 1) + (2 + 3), the order in which `dots` adds. */
// @ts-ignore: decorator
@inline
export function sumLanes(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}

// @ts-ignore: decorator
@inline
export function maxLanes(v: v128): f32 {
  return max(max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)), max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)));
}

/** f64 sum of four f32 lanes. */
// @ts-ignore: decorator
@inline
export function toF64Sum(v: v128): v128 {
  return f64x2.add(f64x2.promote_low_f32x4(v), f64x2.promote_low_f32x4(i64x2.shuffle(v, v, 1, 0)));
}

/**
 * e^x, relative error below 1.5e-7; 0 below −87.33 (no subnormals), +∞ above 88.72, NaN stays NaN.
 * x = n·ln2 + r, |r| ≤ ln2/2: Cephes' expf polynomial for e^r, then n added to the exponent in two halves so that n = 128 works.
 */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const low = f32x4.splat(-87.33654);
  const bounded = f32x4.max(f32x4.min(x, f32x4.splat(89)), low);
  const n = f32x4.nearest(f32x4.mul(bounded, f32x4.splat(1.44269504088896341)));
  let r = f32x4.sub(bounded, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let y = f32x4.splat(1.9875691500e-4);
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.3981999507e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(8.3334519073e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(4.1665795894e-2));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.6666665459e-1));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(5.0000001201e-1));
  y = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(y, r), r), r), f32x4.splat(1));
  const power = i32x4.trunc_sat_f32x4_s(n);
  const half = i32x4.shr_s(power, 1);
  const bias = i32x4.splat(127);
  y = f32x4.mul(y, i32x4.shl(i32x4.add(half, bias), 23));
  y = f32x4.mul(y, i32x4.shl(i32x4.add(i32x4.sub(power, half), bias), 23));
  return v128.andnot(y, f32x4.lt(x, low));
}

// @ts-ignore: decorator
@inline
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

/** σ(x) = 1/(1 + e^−x). */
// @ts-ignore: decorator
@inline
export function sigmoid4(x: v128): v128 {
  return f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.neg(x))));
}

/** Σ x∘y over `width` elements; the tail is added after the lanes. */
export function dot(x: usize, y: usize, width: i32): f32 {
  let sum = f32x4.splat(0);
  const end = x + ((<usize>(width & ~3)) << 2);
  while (x < end) {
    sum = f32x4.add(sum, f32x4.mul(v128.load(x), v128.load(y)));
    x += 16;
    y += 16;
  }
  let total = sumLanes(sum);
  for (let i = width & 3; i > 0; i--) {
    total += load<f32>(x) * load<f32>(y);
    x += 4;
    y += 4;
  }
  return total;
}

/**
 * out[j] = scale·(x · row j), j < count, rows `stride` bytes apart; width is a multiple of 4. Up to three more places of `out` are set to `pad`.
 * Four rows at a time; a row's result is the same in a group and in the tail.
 */
export function dots(x: usize, rows: usize, stride: usize, count: i32, width: i32, scale: f32, out: usize, pad: f32): void {
  const bytes = (<usize>width) << 2;
  const s4 = f32x4.splat(scale);
  let j = 0;
  for (; j + 4 <= count; j += 4) {
    const r1 = rows + stride, r2 = r1 + stride, r3 = r2 + stride;
    let s0 = f32x4.splat(0), s1 = f32x4.splat(0), s2 = f32x4.splat(0), s3 = f32x4.splat(0);
    for (let i: usize = 0; i < bytes; i += 16) {
      const v = v128.load(x + i);
      s0 = f32x4.add(s0, f32x4.mul(v, v128.load(rows + i)));
      s1 = f32x4.add(s1, f32x4.mul(v, v128.load(r1 + i)));
      s2 = f32x4.add(s2, f32x4.mul(v, v128.load(r2 + i)));
      s3 = f32x4.add(s3, f32x4.mul(v, v128.load(r3 + i)));
    }
    const lo01 = i32x4.shuffle(s0, s1, 0, 4, 1, 5), hi01 = i32x4.shuffle(s0, s1, 2, 6, 3, 7);
    const lo23 = i32x4.shuffle(s2, s3, 0, 4, 1, 5), hi23 = i32x4.shuffle(s2, s3, 2, 6, 3, 7);
    const first = f32x4.add(i64x2.shuffle(lo01, lo23, 0, 2), i64x2.shuffle(lo01, lo23, 1, 3));
    const second = f32x4.add(i64x2.shuffle(hi01, hi23, 0, 2), i64x2.shuffle(hi01, hi23, 1, 3));
    v128.store(out, f32x4.mul(s4, f32x4.add(first, second)));
    out += 16;
    rows = r3 + stride;
  }
  if (j == count) return;
  for (; j < count; j++) {
    store<f32>(out, scale * dot(x, rows, width));
    out += 4;
    rows += stride;
  }
  for (; j & 3; j++) {
    store<f32>(out, pad);
    out += 4;
  }
}

/** out = (accumulate ? out : 0) + scale·Σ_j weights[j]·row j, j ascending; width is a multiple of 4. */
export function weightedSum(weights: usize, rows: usize, stride: usize, count: i32, width: i32, scale: f32, out: usize, accumulate: bool): void {
  const s4 = f32x4.splat(scale);
  const end = weights + ((<usize>count) << 2);
  let c = 0;
  for (; c + 16 <= width; c += 16) {
    let s0 = f32x4.splat(0), s1 = f32x4.splat(0), s2 = f32x4.splat(0), s3 = f32x4.splat(0);
    let row = rows;
    for (let w = weights; w < end; w += 4) {
      const p = v128.load32_splat(w);
      s0 = f32x4.add(s0, f32x4.mul(p, v128.load(row)));
      s1 = f32x4.add(s1, f32x4.mul(p, v128.load(row, 16)));
      s2 = f32x4.add(s2, f32x4.mul(p, v128.load(row, 32)));
      s3 = f32x4.add(s3, f32x4.mul(p, v128.load(row, 48)));
      row += stride;
    }
    s0 = f32x4.mul(s4, s0);
    s1 = f32x4.mul(s4, s1);
    s2 = f32x4.mul(s4, s2);
    s3 = f32x4.mul(s4, s3);
    if (accumulate) {
      s0 = f32x4.add(v128.load(out), s0);
      s1 = f32x4.add(v128.load(out, 16), s1);
      s2 = f32x4.add(v128.load(out, 32), s2);
      s3 = f32x4.add(v128.load(out, 48), s3);
    }
    v128.store(out, s0);
    v128.store(out, s1, 16);
    v128.store(out, s2, 32);
    v128.store(out, s3, 48);
    out += 64;
    rows += 64;
  }
  for (; c < width; c += 4) {
    let s0 = f32x4.splat(0);
    let row = rows;
    for (let w = weights; w < end; w += 4) {
      s0 = f32x4.add(s0, f32x4.mul(v128.load32_splat(w), v128.load(row)));
      row += stride;
    }
    s0 = f32x4.mul(s4, s0);
    if (accumulate) s0 = f32x4.add(v128.load(out), s0);
    v128.store(out, s0);
    out += 16;
    rows += 16;
  }
}

/** x = NaN: the visible result of an index outside its table. */
export function fillNaN(x: usize, width: i32): void {
  for (let i = 0; i < width; i++) store<f32>(x + ((<usize>i) << 2), NaN);
}

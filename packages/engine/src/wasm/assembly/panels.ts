// Frozen weights [O, I] where they lie: one copy, in panels of 8 outputs, that forward, backward and embedding all read. The 8 outputs of
// one input are neighbours, so a panel streams through the product, and eight values become two vectors without a shuffle.
//
//   f32        [⌈O/8⌉][I][8]
//   f16, bf16  [⌈O/8⌉][I][8], 2 bytes a value
//   q8         [⌈O/8⌉][I][8], 1 byte a value
//   q4         [⌈O/8⌉][I/4][16 bytes]: byte b holds output b mod 8 of input ⌊b/8⌋ (low half) and of input 2 + ⌊b/8⌋ (high half)
//   scales     [⌈O/8⌉][I/32][8] halves, elsewhere (q8, q4)
//
// A panel takes the place of its 8 rows in weights/formats.ts, so the change is made in place. All values are exact in f32: a half times a
// small integer has 18 bits. That is why a product does not depend on where its weights were decoded.

/** Kinds of a weight; encode.ts writes them. The first five lie in panels. */
export const F32: i32 = 0;
export const F16: i32 = 1;
export const BF16: i32 = 2;
export const Q8: i32 = 3;
export const Q4: i32 = 4;

/*
 * Inside, a kind is a type, so that each has a loop of its own: f32, u16 (f16), i16 (bf16), i8 (q8), u8 (q4). As a number it would be one
 * loop that asks at every value: the optimiser folds alike tails before it knows that a kind is constant.
 */

/** Inputs that share a scale. */
const GROUP: i32 = 32;

/** Bytes of 4 inputs × 8 outputs. */
// @ts-ignore: decorator
@inline
function stepOf<T>(): usize {
  return isFloat<T>() ? 128 : sizeof<T>() == 2 ? 64 : isSigned<T>() ? 32 : 16;
}

// @ts-ignore: decorator
@inline
function panelBytes<T>(inputs: i32): usize {
  if (isFloat<T>()) return (<usize>inputs) << 5;
  return ((<usize>inputs) >> 2) * stepOf<T>();
}

/**
 * Halves in the low 16 bits of each lane, sign-extended, → f32. As f32 bits with 13 zeros behind, a half is 2^112 too small, subnormals
 * included; the product is exact. There are no infinities in weights.
 */
// @ts-ignore: decorator
@inline
function fromHalves(lanes: v128): v128 {
  return f32x4.mul(v128.and(i32x4.shl(lanes, 13), i32x4.splat(<i32>0x8fffe000)), f32x4.splat(5.192296858534828e33));
}

/** Eight 16-bit lanes → the first four values, unscaled. */
// @ts-ignore: decorator
@inline
function low4<T>(lanes: v128): v128 {
  if (sizeof<T>() == 2 && !isSigned<T>()) return fromHalves(i32x4.extend_low_i16x8_s(lanes));
  if (sizeof<T>() == 2) return i32x4.shl(i32x4.extend_low_i16x8_u(lanes), 16);
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(lanes));
}

/** Eight 16-bit lanes → the last four values, unscaled. */
// @ts-ignore: decorator
@inline
function high4<T>(lanes: v128): v128 {
  if (sizeof<T>() == 2 && !isSigned<T>()) return fromHalves(i32x4.extend_high_i16x8_s(lanes));
  if (sizeof<T>() == 2) return i32x4.shl(i32x4.extend_high_i16x8_u(lanes), 16);
  return f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(lanes));
}

// @ts-ignore: decorator
@inline
function scaled<T>(values: v128, scale: v128): v128 {
  if (sizeof<T>() == 1) return f32x4.mul(values, scale);
  return values;
}

/** Sixteen nibbles of two inputs → signed bytes: those of the first two inputs, of the last two. */
// @ts-ignore: decorator
@inline
function firstNibbles(bytes: v128): v128 {
  return i8x16.sub(v128.and(bytes, i8x16.splat(15)), i8x16.splat(8));
}

// @ts-ignore: decorator
@inline
function lastNibbles(bytes: v128): v128 {
  return i8x16.sub(i8x16.shr_u(bytes, 4), i8x16.splat(8));
}

/** 16-bit lanes of input j of the four at `b`. */
// @ts-ignore: decorator
@inline
function lanesOf<T>(b: usize, j: i32): v128 {
  if (sizeof<T>() == 1 && isSigned<T>()) return v128.load8x8_s(b + ((<usize>j) << 3));
  if (sizeof<T>() == 1) {
    const nibbles = j < 2 ? firstNibbles(v128.load(b)) : lastNibbles(v128.load(b));
    return (j & 1) == 0 ? i16x8.extend_low_i8x16_s(nibbles) : i16x8.extend_high_i8x16_s(nibbles);
  }
  return v128.load(b + ((<usize>j) << 4));
}

// @ts-ignore: decorator
@inline
function decodeInput<T>(b: usize, j: i32, sLo: v128, sHi: v128, to: usize): void {
  const lanes = lanesOf<T>(b, j);
  v128.store(to, scaled<T>(low4<T>(lanes), sLo));
  v128.store(to, scaled<T>(high4<T>(lanes), sHi), 16);
}

/** `depth` inputs (a multiple of 32) from `b` on → [depth][8] f32. */
// @ts-ignore: decorator
@inline
function decodeRun<T>(b: usize, scales: usize, depth: i32, to: usize): void {
  let sLo = f32x4.splat(0), sHi = f32x4.splat(0);
  for (let d = 0; d < depth; d += GROUP) {
    if (sizeof<T>() == 1) {
      const halves = v128.load(scales);
      sLo = low4<u16>(halves);
      sHi = high4<u16>(halves);
      scales += 16;
    }
    for (let end = to + ((<usize>GROUP) << 5); to < end; to += 128) {
      decodeInput<T>(b, 0, sLo, sHi, to);
      decodeInput<T>(b, 1, sLo, sHi, to + 32);
      decodeInput<T>(b, 2, sLo, sHi, to + 64);
      decodeInput<T>(b, 3, sLo, sHi, to + 96);
      b += stepOf<T>();
    }
  }
}

/** First byte of input `i` (a multiple of 4; of 1 in f32) of panel p. */
// @ts-ignore: decorator
@inline
function inputAt<T>(w: usize, inputs: i32, p: i32, i: i32): usize {
  if (isFloat<T>()) return w + (((<usize>p) * (<usize>inputs) + (<usize>i)) << 5);
  return w + (<usize>p) * panelBytes<T>(inputs) + ((<usize>i) >> 2) * stepOf<T>();
}

// @ts-ignore: decorator
@inline
function scalesAt(scales: usize, inputs: i32, p: i32, i: i32): usize {
  return scales + (((<usize>p) * ((<usize>inputs) >> 5) + ((<usize>i) >> 5)) << 4);
}

function decodePanel<T>(w: usize, scales: usize, inputs: i32, p: i32, d0: i32, depth: i32, to: usize): void {
  decodeRun<T>(inputAt<T>(w, inputs, p, d0), scalesAt(scales, inputs, p, d0), depth, to);
}

/** Inputs d0 … d0 + depth − 1 of panel p as [depth][8] f32: where they lie (f32), or decoded into `scratch`. */
export function panelFor(kind: i32, w: usize, scales: usize, inputs: i32, p: i32, d0: i32, depth: i32, scratch: usize): usize {
  switch (kind) {
    case F32: return inputAt<f32>(w, inputs, p, d0);
    case F16: decodePanel<u16>(w, scales, inputs, p, d0, depth, scratch); break;
    case BF16: decodePanel<i16>(w, scales, inputs, p, d0, depth, scratch); break;
    case Q8: decodePanel<i8>(w, scales, inputs, p, d0, depth, scratch); break;
    case Q4: decodePanel<u8>(w, scales, inputs, p, d0, depth, scratch); break;
    default: unreachable();
  }
  return scratch;
}

/** Four vectors become their columns, stored 32 bytes apart, the first `rows` of them. */
// @ts-ignore: decorator
@inline
function storeColumns(to: usize, rows: i32, r0: v128, r1: v128, r2: v128, r3: v128): void {
  const lo01 = i32x4.shuffle(r0, r1, 0, 4, 1, 5), hi01 = i32x4.shuffle(r0, r1, 2, 6, 3, 7);
  const lo23 = i32x4.shuffle(r2, r3, 0, 4, 1, 5), hi23 = i32x4.shuffle(r2, r3, 2, 6, 3, 7);
  if (rows > 0) v128.store(to, i64x2.shuffle(lo01, lo23, 0, 2));
  if (rows > 1) v128.store(to, i64x2.shuffle(lo01, lo23, 1, 3), 32);
  if (rows > 2) v128.store(to, i64x2.shuffle(hi01, hi23, 0, 2), 64);
  if (rows > 3) v128.store(to, i64x2.shuffle(hi01, hi23, 1, 3), 96);
}

/** Four inputs of one panel → 8 outputs (at most `rows`) × 4 inputs, outputs 32 bytes apart. */
// @ts-ignore: decorator
@inline
function transposeFour<T>(b: usize, sLo: v128, sHi: v128, to: usize, rows: i32): void {
  if (isFloat<T>()) {
    storeColumns(to, rows, v128.load(b), v128.load(b, 32), v128.load(b, 64), v128.load(b, 96));
    storeColumns(to + 128, rows - 4, v128.load(b, 16), v128.load(b, 48), v128.load(b, 80), v128.load(b, 112));
    return;
  }
  const w0 = lanesOf<T>(b, 0), w1 = lanesOf<T>(b, 1), w2 = lanesOf<T>(b, 2), w3 = lanesOf<T>(b, 3);
  storeColumns(
    to, rows,
    scaled<T>(low4<T>(w0), sLo), scaled<T>(low4<T>(w1), sLo), scaled<T>(low4<T>(w2), sLo), scaled<T>(low4<T>(w3), sLo),
  );
  storeColumns(
    to + 128, rows - 4,
    scaled<T>(high4<T>(w0), sHi), scaled<T>(high4<T>(w1), sHi), scaled<T>(high4<T>(w2), sHi), scaled<T>(high4<T>(w3), sHi),
  );
}

function transposeRun<T>(w: usize, scales: usize, inputs: i32, d0: i32, depth: i32, n0: i32, to: usize): void {
  let b = inputAt<T>(w, inputs, d0 >> 3, n0), s = scalesAt(scales, inputs, d0 >> 3, n0);
  const nextScales = ((<usize>inputs) >> 5) << 4;
  let sLo = f32x4.splat(0), sHi = f32x4.splat(0);
  for (let left = depth; left > 0; left -= 8) {
    if (sizeof<T>() == 1) {
      const halves = v128.load(s);
      sLo = low4<u16>(halves);
      sHi = high4<u16>(halves);
    }
    transposeFour<T>(b, sLo, sHi, to, left);
    transposeFour<T>(b + stepOf<T>(), sLo, sHi, to + 16, left);
    b += panelBytes<T>(inputs);
    s += nextScales;
    to += 256;
  }
}

/**
 * Outputs d0 (a multiple of 8) … d0 + depth − 1 of inputs n0 (a multiple of 8) … n0 + columns − 1, at most 8, as [depth][8] f32: what
 * the backward multiplies with. Inputs beyond `columns` (f32 alone) are zeros.
 */
export function transposePanels(
  kind: i32, w: usize, scales: usize, inputs: i32, d0: i32, depth: i32, n0: i32, columns: i32, to: usize,
): void {
  if (columns < 8) {
    for (let d = 0; d < depth; d++) {
      const row = inputAt<f32>(w, inputs, (d0 + d) >> 3, n0) + ((<usize>((d0 + d) & 7)) << 2);
      for (let n = 0; n < 8; n++) {
        store<f32>(to + ((<usize>n) << 2), n < columns ? load<f32>(row + ((<usize>n) << 5)) : 0);
      }
      to += 32;
    }
    return;
  }
  switch (kind) {
    case F32: transposeRun<f32>(w, scales, inputs, d0, depth, n0, to); break;
    case F16: transposeRun<u16>(w, scales, inputs, d0, depth, n0, to); break;
    case BF16: transposeRun<i16>(w, scales, inputs, d0, depth, n0, to); break;
    case Q8: transposeRun<i8>(w, scales, inputs, d0, depth, n0, to); break;
    case Q4: transposeRun<u8>(w, scales, inputs, d0, depth, n0, to); break;
    default: unreachable();
  }
}

/** Sums of one row with two panels, 16 outputs; stored 8 at a time. */
function dotRun<T>(a: usize, w: usize, scales: usize, inputs: i32, p: i32, d0: i32, depth: i32, sums: usize): void {
  let b = inputAt<T>(w, inputs, p, d0), b1 = b + panelBytes<T>(inputs);
  scales = scalesAt(scales, inputs, p, d0);
  const nextScales = ((<usize>inputs) >> 5) << 4;
  let c0 = f32x4.splat(0), c1 = f32x4.splat(0), c2 = f32x4.splat(0), c3 = f32x4.splat(0);
  let s0 = f32x4.splat(0), s1 = f32x4.splat(0), s2 = f32x4.splat(0), s3 = f32x4.splat(0);
  for (let d = 0; d < depth; d += GROUP) {
    if (sizeof<T>() == 1) {
      const first = v128.load(scales), second = v128.load(scales + nextScales);
      s0 = low4<u16>(first);
      s1 = high4<u16>(first);
      s2 = low4<u16>(second);
      s3 = high4<u16>(second);
      scales += 16;
    }
    for (let end = a + ((<usize>GROUP) << 2); a < end; a += 16) {
      let x = v128.load32_splat(a), u = lanesOf<T>(b, 0), v = lanesOf<T>(b1, 0);
      c0 = f32x4.add(c0, f32x4.mul(x, scaled<T>(low4<T>(u), s0)));
      c1 = f32x4.add(c1, f32x4.mul(x, scaled<T>(high4<T>(u), s1)));
      c2 = f32x4.add(c2, f32x4.mul(x, scaled<T>(low4<T>(v), s2)));
      c3 = f32x4.add(c3, f32x4.mul(x, scaled<T>(high4<T>(v), s3)));
      x = v128.load32_splat(a, 4);
      u = lanesOf<T>(b, 1);
      v = lanesOf<T>(b1, 1);
      c0 = f32x4.add(c0, f32x4.mul(x, scaled<T>(low4<T>(u), s0)));
      c1 = f32x4.add(c1, f32x4.mul(x, scaled<T>(high4<T>(u), s1)));
      c2 = f32x4.add(c2, f32x4.mul(x, scaled<T>(low4<T>(v), s2)));
      c3 = f32x4.add(c3, f32x4.mul(x, scaled<T>(high4<T>(v), s3)));
      x = v128.load32_splat(a, 8);
      u = lanesOf<T>(b, 2);
      v = lanesOf<T>(b1, 2);
      c0 = f32x4.add(c0, f32x4.mul(x, scaled<T>(low4<T>(u), s0)));
      c1 = f32x4.add(c1, f32x4.mul(x, scaled<T>(high4<T>(u), s1)));
      c2 = f32x4.add(c2, f32x4.mul(x, scaled<T>(low4<T>(v), s2)));
      c3 = f32x4.add(c3, f32x4.mul(x, scaled<T>(high4<T>(v), s3)));
      x = v128.load32_splat(a, 12);
      u = lanesOf<T>(b, 3);
      v = lanesOf<T>(b1, 3);
      c0 = f32x4.add(c0, f32x4.mul(x, scaled<T>(low4<T>(u), s0)));
      c1 = f32x4.add(c1, f32x4.mul(x, scaled<T>(high4<T>(u), s1)));
      c2 = f32x4.add(c2, f32x4.mul(x, scaled<T>(low4<T>(v), s2)));
      c3 = f32x4.add(c3, f32x4.mul(x, scaled<T>(high4<T>(v), s3)));
      b += stepOf<T>();
      b1 += stepOf<T>();
    }
  }
  v128.store(sums, c0);
  v128.store(sums, c1, 16);
  v128.store(sums, c2, 32);
  v128.store(sums, c3, 48);
}

/**
 * One row's sums with panels p and p + 1, inputs d0 … d0 + depth − 1, into 16 f32 at `sums`: decoded in registers, each value used once.
 * The bits are those of panelFor and a tile. Not for f32.
 */
export function dotPanels(kind: i32, a: usize, w: usize, scales: usize, inputs: i32, p: i32, d0: i32, depth: i32, sums: usize): void {
  switch (kind) {
    case F16: dotRun<u16>(a, w, scales, inputs, p, d0, depth, sums); break;
    case BF16: dotRun<i16>(a, w, scales, inputs, p, d0, depth, sums); break;
    case Q8: dotRun<i8>(a, w, scales, inputs, p, d0, depth, sums); break;
    case Q4: dotRun<u8>(a, w, scales, inputs, p, d0, depth, sums); break;
    default: unreachable();
  }
}

// @ts-ignore: decorator
@inline
function half(at: usize): f32 {
  return f32x4.extract_lane(fromHalves(i32x4.splat(<i32>load<i16>(at))), 0);
}

function decodeRowOf<T>(w: usize, scales: usize, inputs: i32, row: i32, scale: f32, y: usize): void {
  const p = row >> 3, o = <usize>(row & 7);
  const panel = inputAt<T>(w, inputs, p, 0);
  for (let i = 0; i < inputs; i++) {
    const at = ((<usize>i) << 3) + o;
    let value: f32;
    if (isFloat<T>()) value = load<f32>(panel + (at << 2));
    else if (sizeof<T>() == 2 && isSigned<T>()) value = reinterpret<f32>((<u32>load<u16>(panel + (at << 1))) << 16);
    else if (sizeof<T>() == 2) value = half(panel + (at << 1));
    else {
      const s = half(scalesAt(scales, inputs, p, i) + (o << 1));
      if (isSigned<T>()) value = s * <f32>load<i8>(panel + at);
      else {
        const byte = <i32>load<u8>(panel + (((<usize>i) >> 2) << 4) + ((<usize>(i & 1)) << 3) + o);
        value = s * <f32>(((i & 2) == 0 ? byte & 15 : byte >> 4) - 8);
      }
    }
    store<f32>(y + ((<usize>i) << 2), scale * value);
  }
}

/** y[i] = scale·w[row, i] for all inputs; kind −1: w lies in rows of f32. */
export function decodeRow(kind: i32, w: usize, scales: usize, inputs: i32, row: i32, scale: f32, y: usize): void {
  switch (kind) {
    case -1: {
      w += ((<usize>row) * (<usize>inputs)) << 2;
      for (let i = 0; i < inputs; i++) store<f32>(y + ((<usize>i) << 2), scale * load<f32>(w + ((<usize>i) << 2)));
      break;
    }
    case F32: decodeRowOf<f32>(w, scales, inputs, row, scale, y); break;
    case F16: decodeRowOf<u16>(w, scales, inputs, row, scale, y); break;
    case BF16: decodeRowOf<i16>(w, scales, inputs, row, scale, y); break;
    case Q8: decodeRowOf<i8>(w, scales, inputs, row, scale, y); break;
    case Q4: decodeRowOf<u8>(w, scales, inputs, row, scale, y); break;
    default: unreachable();
  }
}

/** 8 rows of `count` elements, at `from`, → [count][8] at `to`. */
// @ts-ignore: decorator
@inline
function interleave<T>(from: usize, to: usize, count: i32): void {
  const row = (<usize>count) * sizeof<T>();
  for (let i = 0; i < count; i++) {
    for (let o = 0; o < 8; o++) {
      store<T>(to, load<T>(from + (<usize>o) * row));
      to += sizeof<T>();
    }
    from += sizeof<T>();
  }
}

/** 8 rows of nibbles, lowest half first, → q4's panel. */
function interleaveNibbles(from: usize, to: usize, inputs: i32): void {
  const row = (<usize>inputs) >> 1;
  for (let i = 0; i < inputs; i += 4) {
    for (let pair = 0; pair < 2; pair++) {
      for (let o = 0; o < 8; o++) {
        // inputs i, i + 1 lie in the first byte, i + 2, i + 3 in the second
        const first = load<u8>(from + (<usize>o) * row), last = load<u8>(from + (<usize>o) * row, 1);
        store<u8>(to, pair == 0 ? (first & 15) | ((last & 15) << 4) : (first >> 4) | (last & 0xf0));
        to++;
      }
    }
    from += 2;
  }
}

/** A panel's 8 rows at a time, in place; rows that are missing in the last one become zeros. T is the element, u8 with isNibbles a pair. */
function panelRows<T>(w: usize, outputs: i32, elements: i32, isNibbles: bool, scratch: usize): void {
  const row = (<usize>elements) * sizeof<T>();
  for (let o = 0; o < outputs; o += 8) {
    const rows = <usize>min(8, outputs - o);
    memory.copy(scratch, w, row * rows);
    memory.fill(scratch + row * rows, 0, row * (8 - rows));
    if (isNibbles) interleaveNibbles(scratch, w, elements << 1);
    else interleave<T>(scratch, w, elements);
    w += row << 3;
  }
}

/**
 * Rows, as weights/formats.ts has them, → panels, in place. `w` has room for ⌈O/8⌉·8 rows, `scales` too; `scratch` for 8 rows.
 */
export function toPanels(kind: i32, w: usize, scales: usize, outputs: i32, inputs: i32, scratch: usize): void {
  switch (kind) {
    case F32: panelRows<u32>(w, outputs, inputs, false, scratch); break;
    case Q8: panelRows<u8>(w, outputs, inputs, false, scratch); break;
    case Q4: panelRows<u8>(w, outputs, inputs >> 1, true, scratch); break;
    default: panelRows<u16>(w, outputs, inputs, false, scratch); break;
  }
  if (kind >= Q8) panelRows<u16>(scales, outputs, inputs >> 5, false, scratch);
}

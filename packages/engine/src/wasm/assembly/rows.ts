// Ops in which each row stands alone: embed, norms, rope, glu, gather, scatter, append to the cache. Threads share the rows.
// Word layouts: encode.ts. An index outside its table gives a row of NaN where a row is read, and no write where one is written.

import { decodeRow } from "./panels";
import { address, number, share, word } from "./table";
import { dot, fillNaN, sigmoid4, sumLanes } from "./vector";

/** from [rows of a table], index, y, width, table rows: y[n] = from[index[n]]. */
export function gatherRows(s: usize, n: i32, thread: i32, threads: i32): void {
  const from = address(s, 0), index = address(s, 1), y = address(s, 2);
  const width = word(s, 3), tableRows = word(s, 4);
  const bytes = (<usize>width) << 2;
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const i = load<u32>(index + ((<usize>t) << 2));
    const to = y + (<usize>t) * bytes;
    if (i < <u32>tableRows) memory.copy(to, from + (<usize>i) * bytes, bytes);
    else fillNaN(to, width);
  }
}

/** table, kind of panels.ts, scales, tokens, y, width, table rows, scale. */
export function embed(s: usize, n: i32, thread: i32, threads: i32): void {
  const tokens = address(s, 3), width = word(s, 5), tableRows = word(s, 6);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const token = load<u32>(tokens + ((<usize>t) << 2));
    const y = address(s, 4) + (<usize>t) * ((<usize>width) << 2);
    if (token < <u32>tableRows) decodeRow(word(s, 1), address(s, 0), address(s, 2), width, token, number(s, 7), y);
    else fillNaN(y, width);
  }
}

/** dy, index, dx, width, then the count of dy's rows. A thread zeroes its share of dx and copies the rows that fall into it. */
export function scatterRows(s: usize, n: i32, outRows: i32, thread: i32, threads: i32): void {
  const dy = address(s, 0), index = address(s, 1), dx = address(s, 2);
  const bytes = (<usize>word(s, 3)) << 2;
  const begin = share(n, thread, threads), end = share(n, thread + 1, threads);
  memory.fill(dx + (<usize>begin) * bytes, 0, (<usize>(end - begin)) * bytes);
  for (let r = 0; r < outRows; r++) {
    const i = load<i32>(index + ((<usize>r) << 2));
    if (i >= begin && i < end) memory.copy(dx + (<usize>i) * bytes, dy + (<usize>r) * bytes, bytes);
  }
}

/** x, gain, y, rstd, width, eps, groups, residual (0: none). A group of a row is normed like a row: n · groups of them, one behind another. */
export function rmsNorm(s: usize, n: i32, thread: i32, threads: i32): void {
  const gain = address(s, 1), rstds = address(s, 3), residuals = address(s, 7);
  const width = word(s, 4), all = n * word(s, 6);
  const eps = number(s, 5);
  const bytes = (<usize>width) << 2;
  const vectors = (<usize>(width & ~3)) << 2;
  const end = share(all, thread + 1, threads);
  for (let t = share(all, thread, threads); t < end; t++) {
    const row = (<usize>t) * bytes;
    const x = address(s, 0) + row, y = address(s, 2) + row;
    const rstd: f32 = 1 / sqrt(dot(x, x, width) / <f32>width + eps);
    store<f32>(rstds + ((<usize>t) << 2), rstd);
    const r4 = f32x4.splat(rstd);
    let i: usize = 0;
    for (; i < vectors; i += 16) v128.store(y + i, f32x4.mul(f32x4.mul(v128.load(x + i), r4), v128.load(gain + i)));
    for (; i < bytes; i += 4) store<f32>(y + i, load<f32>(x + i) * rstd * load<f32>(gain + i));
    if (residuals == 0) continue;
    const residual = residuals + row;
    for (i = 0; i < vectors; i += 16) v128.store(y + i, f32x4.add(v128.load(residual + i), v128.load(y + i)));
    for (; i < bytes; i += 4) store<f32>(y + i, load<f32>(residual + i) + load<f32>(y + i));
  }
}

/** x, gain, rstd, dy, dx, width, groups, accumulate. */
export function rmsNormBackward(s: usize, n: i32, thread: i32, threads: i32): void {
  const gain = address(s, 1), rstds = address(s, 2);
  const width = word(s, 5), all = n * word(s, 6), accumulate = word(s, 7) != 0;
  const bytes = (<usize>width) << 2;
  const vectors = (<usize>(width & ~3)) << 2;
  const zero = f32x4.splat(0);
  const end = share(all, thread + 1, threads);
  for (let t = share(all, thread, threads); t < end; t++) {
    const row = (<usize>t) * bytes;
    const x = address(s, 0) + row, dy = address(s, 3) + row, dx = address(s, 4) + row;
    const rstd = load<f32>(rstds + ((<usize>t) << 2));
    let sum4 = f32x4.splat(0);
    let i: usize = 0;
    for (; i < vectors; i += 16) sum4 = f32x4.add(sum4, f32x4.mul(f32x4.mul(v128.load(gain + i), v128.load(dy + i)), v128.load(x + i)));
    let sum = sumLanes(sum4);
    for (; i < bytes; i += 4) sum += load<f32>(gain + i) * load<f32>(dy + i) * load<f32>(x + i);
    // x̂·mean(gain∘dy∘x̂) = x·rstd²·sum/D
    const back = rstd * rstd * (sum / <f32>width);
    const r4 = f32x4.splat(rstd), back4 = f32x4.splat(back);
    for (i = 0; i < vectors; i += 16) {
      const inner = f32x4.sub(f32x4.mul(v128.load(gain + i), v128.load(dy + i)), f32x4.mul(v128.load(x + i), back4));
      v128.store(dx + i, f32x4.add(accumulate ? v128.load(dx + i) : zero, f32x4.mul(r4, inner)));
    }
    for (; i < bytes; i += 4) {
      const change = rstd * (load<f32>(gain + i) * load<f32>(dy + i) - load<f32>(x + i) * back);
      store<f32>(dx + i, accumulate ? load<f32>(dx + i) + change : change);
    }
  }
}

/** x, table, positions, heads, C, direction (f32), table rows. */
export function rope(s: usize, n: i32, thread: i32, threads: i32): void {
  const table = address(s, 1), positions = address(s, 2);
  const heads = word(s, 3), headWidth = word(s, 4), tableRows = word(s, 6);
  const direction = number(s, 5);
  const half = headWidth >> 1;
  const halfBytes = (<usize>half) << 2;
  const vectors = (<usize>(half & ~3)) << 2;
  const headBytes = (<usize>headWidth) << 2;
  const d4 = f32x4.splat(direction);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    let x = address(s, 0) + (<usize>t) * (<usize>heads) * headBytes;
    const position = load<u32>(positions + ((<usize>t) << 2));
    if (position >= <u32>tableRows) {
      fillNaN(x, heads * headWidth);
      continue;
    }
    const cos = table + (<usize>position) * headBytes;
    const sin = cos + halfBytes;
    for (let h = 0; h < heads; h++) {
      const x1 = x + halfBytes;
      let i: usize = 0;
      for (; i < vectors; i += 16) {
        const a = v128.load(x + i), b = v128.load(x1 + i), c = v128.load(cos + i), d = f32x4.mul(d4, v128.load(sin + i));
        v128.store(x + i, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, d)));
        v128.store(x1 + i, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, d)));
      }
      for (; i < halfBytes; i += 4) {
        const a = load<f32>(x + i), b = load<f32>(x1 + i), c = load<f32>(cos + i), d = direction * load<f32>(sin + i);
        store<f32>(x + i, a * c - b * d);
        store<f32>(x1 + i, b * c + a * d);
      }
      x += headBytes;
    }
  }
}

/** The widest vector at `x` of the `left` elements that remain; what is missing is zero. */
// @ts-ignore: decorator
@inline
function loadUpTo4(x: usize, left: i32): v128 {
  if (left >= 4) return v128.load(x);
  let v = v128.load32_zero(x);
  if (left > 1) v = f32x4.replace_lane(v, 1, load<f32>(x, 4));
  if (left > 2) v = f32x4.replace_lane(v, 2, load<f32>(x, 8));
  return v;
}

// @ts-ignore: decorator
@inline
function storeUpTo4(x: usize, v: v128, left: i32): void {
  if (left >= 4) {
    v128.store(x, v);
    return;
  }
  store<f32>(x, f32x4.extract_lane(v, 0));
  if (left > 1) store<f32>(x, f32x4.extract_lane(v, 1), 4);
  if (left > 2) store<f32>(x, f32x4.extract_lane(v, 2), 8);
}

// act(g) = g·σ(u): u = g for silu; for tanh-GELU u = √(8/π)·(g + 0.044715·g³) = g·(GELU_A + GELU_B·g²).
const GELU_A: f32 = 1.5957691216057308;
const GELU_B: f32 = 0.07135481627260025;

// @ts-ignore: decorator
@inline
function argument4(g: v128, isGelu: bool): v128 {
  if (!isGelu) return g;
  return f32x4.mul(g, f32x4.add(f32x4.splat(GELU_A), f32x4.mul(f32x4.splat(GELU_B), f32x4.mul(g, g))));
}

/** du/dg. */
// @ts-ignore: decorator
@inline
function argumentSlope4(g: v128, isGelu: bool): v128 {
  if (!isGelu) return f32x4.splat(1);
  return f32x4.add(f32x4.splat(GELU_A), f32x4.mul(f32x4.splat(3 * GELU_B), f32x4.mul(g, g)));
}

/** gate, up, y, width, activation (0 silu, 1 tanh-GELU). */
export function glu(s: usize, n: i32, thread: i32, threads: i32): void {
  const width = word(s, 3), isGelu = word(s, 4) == 1;
  const begin = share(n, thread, threads) * width, end = share(n, thread + 1, threads) * width;
  const first = (<usize>begin) << 2;
  let gate = address(s, 0) + first, up = address(s, 1) + first, y = address(s, 2) + first;
  for (let left = end - begin; left > 0; left -= 4) {
    const g = loadUpTo4(gate, left);
    storeUpTo4(y, f32x4.mul(f32x4.mul(g, sigmoid4(argument4(g, isGelu))), loadUpTo4(up, left)), left);
    gate += 16;
    up += 16;
    y += 16;
  }
}

/** gate, up, dy, width, activation. d(g·σ(u))/dg = σ(u)·(1 + g·u'·(1 − σ(u))). */
export function gluBackward(s: usize, n: i32, thread: i32, threads: i32): void {
  const width = word(s, 3), isGelu = word(s, 4) == 1;
  const begin = share(n, thread, threads) * width, end = share(n, thread + 1, threads) * width;
  const first = (<usize>begin) << 2;
  let gate = address(s, 0) + first, up = address(s, 1) + first, dy = address(s, 2) + first;
  const one = f32x4.splat(1);
  for (let left = end - begin; left > 0; left -= 4) {
    const g = loadUpTo4(gate, left), u = loadUpTo4(up, left), d = loadUpTo4(dy, left);
    const sigma = sigmoid4(argument4(g, isGelu));
    const inner = f32x4.mul(f32x4.mul(g, argumentSlope4(g, isGelu)), f32x4.sub(one, sigma));
    const slope = f32x4.mul(sigma, f32x4.add(one, inner));
    storeUpTo4(gate, f32x4.mul(f32x4.mul(d, u), slope), left);
    storeUpTo4(up, f32x4.mul(d, f32x4.mul(g, sigma)), left);
    gate += 16;
    up += 16;
    dy += 16;
  }
}

/** k, v, slots, positions, kCache, vCache, width, slot count S, positions a slot P. */
export function kvAppend(s: usize, n: i32, thread: i32, threads: i32): void {
  const slots = address(s, 2), positions = address(s, 3), slotCount = word(s, 7), perSlot = word(s, 8);
  const bytes = (<usize>word(s, 6)) << 2;
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const slot = load<u32>(slots + ((<usize>t) << 2)), position = load<u32>(positions + ((<usize>t) << 2));
    if (slot >= <u32>slotCount || position >= <u32>perSlot) continue;
    const to = ((<usize>slot) * (<usize>perSlot) + (<usize>position)) * bytes;
    memory.copy(address(s, 4) + to, address(s, 0) + (<usize>t) * bytes, bytes);
    memory.copy(address(s, 5) + to, address(s, 1) + (<usize>t) * bytes, bytes);
  }
}

/** from, to, length, kCache, vCache, width, slot count S, positions a slot P. */
export function kvCopy(s: usize, n: i32, thread: i32, threads: i32): void {
  const slotCount = word(s, 6), perSlot = word(s, 7);
  const bytes = (<usize>word(s, 5)) << 2;
  const slotBytes = (<usize>perSlot) * bytes;
  const end = share(n, thread + 1, threads);
  for (let r = share(n, thread, threads); r < end; r++) {
    const at = (<usize>r) << 2;
    const from = load<u32>(address(s, 0) + at), to = load<u32>(address(s, 1) + at), length = load<u32>(address(s, 2) + at);
    if (from >= <u32>slotCount || to >= <u32>slotCount || length > <u32>perSlot) continue;
    const count = (<usize>length) * bytes, a = (<usize>from) * slotBytes, b = (<usize>to) * slotBytes;
    memory.copy(address(s, 3) + b, address(s, 3) + a, count);
    memory.copy(address(s, 4) + b, address(s, 4) + a, count);
  }
}

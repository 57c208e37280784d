// One GEMM for all three matrix ops: C[m,n] = base[m,n] + scale·Σ_d A[m,d]·B[d,n] + bias[n].
// A and B are described by strides, so linear (x·wᵀ), linearBackward (dy·w) and weightGrad (dyᵀ·x) are one code path. Frozen weights lie
// in panels (panels.ts), which are read, decoded or transposed one block at a time.
//
// Blocks as in BLIS: depth in runs of DEPTH_BLOCK, rows in runs of ROW_BLOCK. Within a block A lies in strips [depth][4 rows] and B in
// panels [depth][8 columns], both contiguous, so that the inner loop is 2 loads + 4 splats for 16 multiply-adds in 8 registers.
// A block of A stays in L2, a panel of B in L1.
//
// Every element is the sum over d in ascending order, restarted at each DEPTH_BLOCK and added into C: the order depends on the depth
// alone, not on the tile shape, the number of rows or the thread. Nothing is fused, so all tiles and all machines round alike.

import { dotPanels, F32, panelFor, Q4, transposePanels } from "./panels";
import { nextPiece } from "./threads";

/** How B lies, beside the kinds of panels.ts (B[d,n] = w[n,d]), each of which also means B[d,n] = w[d,n] with BACKWARD added. */
export const BACKWARD: i32 = 8;
/** B[d,n] at b + d·stride + n·4. */
export const BY_DEPTH: i32 = 16;
/** B[d,n] at b + n·stride + d·4 (a weight O × I read as its transpose). */
export const BY_COLUMN: i32 = 17;

const DEPTH_BLOCK: i32 = 256;
const ROW_BLOCK: i32 = 128;

/** Bytes of scratch that one thread needs: a block of A, a panel of B, a tile of C. */
export const GEMM_SCRATCH: i32 = DEPTH_BLOCK * ROW_BLOCK * 4 + DEPTH_BLOCK * 32 + 128;

// @ts-ignore: decorator
@inline
function store8(c: usize, base: usize, bias: usize, scale: v128, lo: v128, hi: v128): void {
  lo = f32x4.mul(scale, lo);
  hi = f32x4.mul(scale, hi);
  if (base) {
    lo = f32x4.add(v128.load(base), lo);
    hi = f32x4.add(v128.load(base, 16), hi);
  }
  if (bias) {
    lo = f32x4.add(lo, v128.load(bias));
    hi = f32x4.add(hi, v128.load(bias, 16));
  }
  v128.store(c, lo);
  v128.store(c, hi, 16);
}

/** The tile at the right or lower edge: the same arithmetic as store8, one element at a time. `tile` holds the sums, 8 a row. */
function storeEdge(tile: usize, c: usize, cRow: usize, base: usize, baseRow: usize, bias: usize, scale: f32, rows: i32, columns: i32): void {
  for (let m = 0; m < rows; m++) {
    for (let n = 0; n < columns; n++) {
      const at = (<usize>n) << 2;
      let y = scale * load<f32>(tile + at);
      if (base) y = load<f32>(base + at) + y;
      if (bias) y = y + load<f32>(bias + at);
      store<f32>(c + at, y);
    }
    tile += 32;
    c += cRow;
    if (base) base += baseRow;
  }
}

/**
 * 4 rows × 8 columns from a strip and a panel. One depth a turn: unrolled by two, registers spill and a quarter of the speed is lost.
 * Relaxed SIMD's fused multiply-add would be a third faster, but rounds differently on machines that lack it.
 */
function tile4x8(
  a: usize, b: usize, depth: i32, tile: usize,
  c: usize, cRow: usize, base: usize, baseRow: usize, bias: usize, scale: f32, rows: i32, columns: i32,
): void {
  let c00 = f32x4.splat(0), c01 = f32x4.splat(0), c10 = f32x4.splat(0), c11 = f32x4.splat(0);
  let c20 = f32x4.splat(0), c21 = f32x4.splat(0), c30 = f32x4.splat(0), c31 = f32x4.splat(0);
  const end = a + ((<usize>depth) << 4);
  while (a < end) {
    const lo = v128.load(b), hi = v128.load(b, 16);
    let s = v128.load32_splat(a);
    c00 = f32x4.add(c00, f32x4.mul(s, lo));
    c01 = f32x4.add(c01, f32x4.mul(s, hi));
    s = v128.load32_splat(a, 4);
    c10 = f32x4.add(c10, f32x4.mul(s, lo));
    c11 = f32x4.add(c11, f32x4.mul(s, hi));
    s = v128.load32_splat(a, 8);
    c20 = f32x4.add(c20, f32x4.mul(s, lo));
    c21 = f32x4.add(c21, f32x4.mul(s, hi));
    s = v128.load32_splat(a, 12);
    c30 = f32x4.add(c30, f32x4.mul(s, lo));
    c31 = f32x4.add(c31, f32x4.mul(s, hi));
    a += 16;
    b += 32;
  }
  if (rows == 4 && columns == 8) {
    const s = f32x4.splat(scale);
    store8(c, base, bias, s, c00, c01);
    if (base) base += baseRow;
    store8(c + cRow, base, bias, s, c10, c11);
    if (base) base += baseRow;
    store8(c + 2 * cRow, base, bias, s, c20, c21);
    if (base) base += baseRow;
    store8(c + 3 * cRow, base, bias, s, c30, c31);
  } else {
    v128.store(tile, c00);
    v128.store(tile, c01, 16);
    v128.store(tile, c10, 32);
    v128.store(tile, c11, 48);
    v128.store(tile, c20, 64);
    v128.store(tile, c21, 80);
    v128.store(tile, c30, 96);
    v128.store(tile, c31, 112);
    storeEdge(tile, c, cRow, base, baseRow, bias, scale, rows, columns);
  }
}

/** 1 row × 8 columns; the row's depth is contiguous. */
function tile1x8(a: usize, b: usize, depth: i32, tile: usize, c: usize, base: usize, bias: usize, scale: f32, columns: i32): void {
  let lo = f32x4.splat(0), hi = f32x4.splat(0);
  const end = a + ((<usize>depth) << 2);
  while (a < end) {
    const s = v128.load32_splat(a);
    lo = f32x4.add(lo, f32x4.mul(s, v128.load(b)));
    hi = f32x4.add(hi, f32x4.mul(s, v128.load(b, 16)));
    a += 4;
    b += 32;
  }
  if (columns == 8) {
    store8(c, base, bias, f32x4.splat(scale), lo, hi);
  } else {
    v128.store(tile, lo);
    v128.store(tile, hi, 16);
    storeEdge(tile, c, 0, base, 0, bias, scale, 1, columns);
  }
}

/** 1 row × 4 whole panels: eight independent sums, which a single panel's two could not keep the adders busy with. */
function tile1x32(a: usize, b: usize, panel: usize, depth: i32, c: usize, base: usize, bias: usize, scale: f32): void {
  let c0 = f32x4.splat(0), c1 = f32x4.splat(0), c2 = f32x4.splat(0), c3 = f32x4.splat(0);
  let c4 = f32x4.splat(0), c5 = f32x4.splat(0), c6 = f32x4.splat(0), c7 = f32x4.splat(0);
  let b1 = b + panel, b2 = b1 + panel, b3 = b2 + panel;
  const end = a + ((<usize>depth) << 2);
  while (a < end) {
    const s = v128.load32_splat(a);
    c0 = f32x4.add(c0, f32x4.mul(s, v128.load(b)));
    c1 = f32x4.add(c1, f32x4.mul(s, v128.load(b, 16)));
    c2 = f32x4.add(c2, f32x4.mul(s, v128.load(b1)));
    c3 = f32x4.add(c3, f32x4.mul(s, v128.load(b1, 16)));
    c4 = f32x4.add(c4, f32x4.mul(s, v128.load(b2)));
    c5 = f32x4.add(c5, f32x4.mul(s, v128.load(b2, 16)));
    c6 = f32x4.add(c6, f32x4.mul(s, v128.load(b3)));
    c7 = f32x4.add(c7, f32x4.mul(s, v128.load(b3, 16)));
    a += 4;
    b += 32;
    b1 += 32;
    b2 += 32;
    b3 += 32;
  }
  const s = f32x4.splat(scale);
  store8(c, base, bias, s, c0, c1);
  store8(c + 32, base ? base + 32 : 0, bias ? bias + 32 : 0, s, c2, c3);
  store8(c + 64, base ? base + 64 : 0, bias ? bias + 64 : 0, s, c4, c5);
  store8(c + 96, base ? base + 96 : 0, bias ? bias + 96 : 0, s, c6, c7);
}

/** Four vectors, one from each row, become four vectors, one from each column; stored `step` bytes apart. */
// @ts-ignore: decorator
@inline
function storeTransposed(to: usize, step: usize, r0: v128, r1: v128, r2: v128, r3: v128): void {
  const lo01 = i32x4.shuffle(r0, r1, 0, 4, 1, 5), hi01 = i32x4.shuffle(r0, r1, 2, 6, 3, 7);
  const lo23 = i32x4.shuffle(r2, r3, 0, 4, 1, 5), hi23 = i32x4.shuffle(r2, r3, 2, 6, 3, 7);
  v128.store(to, i64x2.shuffle(lo01, lo23, 0, 2));
  v128.store(to + step, i64x2.shuffle(lo01, lo23, 1, 3));
  v128.store(to + 2 * step, i64x2.shuffle(hi01, hi23, 0, 2));
  v128.store(to + 3 * step, i64x2.shuffle(hi01, hi23, 1, 3));
}

/**
 * Four lines of `depth` contiguous elements, `line` bytes apart, become [depth][4], each group of four `step` bytes after the last.
 * Lines beyond `count` are zeros.
 */
function pack4(from: usize, line: usize, count: i32, depth: i32, to: usize, step: usize): void {
  let d = 0;
  if (count == 4) {
    for (; d + 4 <= depth; d += 4) {
      storeTransposed(
        to, step,
        v128.load(from), v128.load(from + line), v128.load(from + 2 * line), v128.load(from + 3 * line),
      );
      from += 16;
      to += 4 * step;
    }
  }
  for (; d < depth; d++) {
    for (let m = 0; m < 4; m++) store<f32>(to + ((<usize>m) << 2), m < count ? load<f32>(from + (<usize>m) * line) : 0);
    from += 4;
    to += step;
  }
}

/** [depth][width contiguous, `line` bytes apart] → [depth][size], size 4 or 8; elements beyond `count` are zeros. */
function copyRuns(from: usize, line: usize, count: i32, depth: i32, to: usize, size: i32): void {
  const step = (<usize>size) << 2;
  if (count >= size) {
    for (let d = 0; d < depth; d++) {
      v128.store(to, v128.load(from));
      if (size == 8) v128.store(to, v128.load(from, 16), 16);
      from += line;
      to += step;
    }
  } else {
    for (let d = 0; d < depth; d++) {
      for (let n = 0; n < size; n++) store<f32>(to + ((<usize>n) << 2), n < count ? load<f32>(from + ((<usize>n) << 2)) : 0);
      from += line;
      to += step;
    }
  }
}

/** 8 columns of B, `depth` deep from d0 on, as a panel. */
// @ts-ignore: decorator
@inline
function packPanel(b: usize, kind: i32, stride: usize, d0: i32, depth: i32, n0: i32, columns: i32, to: usize): void {
  if (kind == BY_DEPTH) {
    copyRuns(b + (<usize>d0) * stride + ((<usize>n0) << 2), stride, columns, depth, to, 8);
  } else {
    const from = b + (<usize>n0) * stride + ((<usize>d0) << 2);
    pack4(from, stride, min(columns, 4), depth, to, 32);
    pack4(from + 4 * stride, stride, max(min(columns - 4, 4), 0), depth, to + 16, 32);
  }
}

/**
 * A[m,d] at a + m·aRow + d·aDepth, one of the two strides being 4 · B by kind, with a stride, or with the weight's I and the
 * address of its scales · C rows cRow bytes apart · base 0: none (rows baseRow bytes apart; may be C) · bias 0: none. Strides in bytes.
 * Threads take pieces of the rows, or of the columns when rows are few or a panel of B has to be made: each piece makes its own.
 */
export function gemm(
  threads: i32, scratch: usize,
  M: i32, N: i32, depth: i32,
  a: usize, aRow: usize, aDepth: usize,
  b: usize, bKind: i32, bStride: usize, bScales: usize,
  c: usize, cRow: usize, base: usize, baseRow: usize, bias: usize, scale: f32,
): void {
  const strips = (M + 3) >> 2;
  const panels = (N + 7) >> 3;
  let rows = M, columns = N;
  if (threads > 1) {
    // About four pieces a thread; columns by four panels, which is what tile1x32 takes at once.
    const isMade = bKind != F32 && bKind < BY_DEPTH && panels >= 16 * threads;
    if ((strips >= 4 * threads && !isMade) || panels < threads) rows = 4 * min(ROW_BLOCK >> 2, (strips + 4 * threads - 1) / (4 * threads));
    else columns = 32 * ((panels + 16 * threads - 1) / (16 * threads));
  }
  const acrossRows = (M + rows - 1) / rows;
  const pieces = acrossRows * ((N + columns - 1) / columns);
  for (let piece = nextPiece(-1, threads); piece < pieces; piece = nextPiece(piece, threads)) {
    const m = (piece % acrossRows) * rows, n = (piece / acrossRows) * columns;
    gemmPiece(
      scratch, m, min(M, m + rows), n, min(N, n + columns), depth, a, aRow, aDepth, b, bKind, bStride, bScales,
      c, cRow, base, baseRow, bias, scale,
    );
  }
}

/** Rows mBegin … mEnd − 1, columns nBegin (a multiple of 8) … nEnd − 1. */
export function gemmPiece(
  scratch: usize,
  mBegin: i32, mEnd: i32, nBegin: i32, nEnd: i32, depth: i32,
  a: usize, aRow: usize, aDepth: usize,
  b: usize, bKind: i32, bStride: usize, bScales: usize,
  c: usize, cRow: usize, base: usize, baseRow: usize, bias: usize, scale: f32,
): void {
  const aBlock = scratch;
  const bPanel = scratch + DEPTH_BLOCK * ROW_BLOCK * 4;
  const tile = bPanel + DEPTH_BLOCK * 32;

  for (let d0 = 0; d0 < depth; d0 += DEPTH_BLOCK) {
    const dc = min(DEPTH_BLOCK, depth - d0);
    const first = d0 == 0;
    const from = first ? base : c;
    const fromRow = first ? baseRow : cRow;
    const add = first ? bias : 0;
    for (let m0 = mBegin; m0 < mEnd; m0 += ROW_BLOCK) {
      const mc = min(ROW_BLOCK, mEnd - m0);
      // A lone last row with contiguous depth is read where it lies; two or three are padded to a strip.
      const lone = (mc & 3) == 1 && aDepth == 4;
      const packed = lone ? mc - 1 : mc;
      const aFirst = a + (<usize>m0) * aRow + (<usize>d0) * aDepth;
      const stripBytes = (<usize>dc) << 4;
      for (let m = 0; m < packed; m += 4) {
        const to = aBlock + (<usize>(m >> 2)) * stripBytes;
        if (aDepth == 4) pack4(aFirst + (<usize>m) * aRow, aRow, min(4, packed - m), dc, to, 16);
        else copyRuns(aFirst + (<usize>m) * aRow, aDepth, min(4, packed - m), dc, to, 4);
      }
      const loneRow = aFirst + (<usize>(mc - 1)) * aRow;
      let p = nBegin >> 3;
      const wholePanels = lone && mc == 1 ? nEnd >> 3 : 0;
      if (bKind == F32) {
        const panelBytes = (<usize>depth) << 5;
        for (; p + 4 <= wholePanels; p += 4) {
          const at = (<usize>p) << 5;
          const row = from ? from + (<usize>m0) * fromRow + at : 0;
          tile1x32(loneRow, b + (<usize>p) * panelBytes + ((<usize>d0) << 5), panelBytes, dc, c + (<usize>m0) * cRow + at, row, add ? add + at : 0, scale);
        }
      } else if (bKind <= Q4) {
        const s = f32x4.splat(scale);
        for (; p + 2 <= wholePanels; p += 2) {
          const at = (<usize>p) << 5;
          const to = c + (<usize>m0) * cRow + at;
          const row = from ? from + (<usize>m0) * fromRow + at : 0;
          const biasAt = add ? add + at : 0;
          dotPanels(bKind, loneRow, b, bScales, depth, p, d0, dc, tile);
          store8(to, row, biasAt, s, v128.load(tile), v128.load(tile, 16));
          store8(to + 32, row ? row + 32 : 0, biasAt ? biasAt + 32 : 0, s, v128.load(tile, 32), v128.load(tile, 48));
        }
      }
      for (; p < (nEnd + 7) >> 3; p++) {
        const n = p << 3;
        const columns = min(8, nEnd - n);
        const at = (<usize>n) << 2;
        let panel = bPanel;
        if (bKind <= Q4) panel = panelFor(bKind, b, bScales, depth, p, d0, dc, bPanel);
        else if (bKind < BY_DEPTH) transposePanels(bKind - BACKWARD, b, bScales, <i32>bStride, d0, dc, n, columns, bPanel);
        else packPanel(b, bKind, bStride, d0, dc, n, columns, bPanel);
        const biasAt = add ? add + at : 0;
        for (let m = 0; m < packed; m += 4) {
          tile4x8(
            aBlock + (<usize>(m >> 2)) * stripBytes, panel, dc, tile,
            c + (<usize>(m0 + m)) * cRow + at, cRow, from ? from + (<usize>(m0 + m)) * fromRow + at : 0, fromRow, biasAt, scale,
            min(4, packed - m), columns,
          );
        }
        if (lone) {
          const m = m0 + mc - 1;
          tile1x8(loneRow, panel, dc, tile, c + (<usize>m) * cRow + at, from ? from + (<usize>m) * fromRow + at : 0, biasAt, scale, columns);
        }
      }
    }
  }
}

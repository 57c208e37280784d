// One generator for every matrix product: C[m, n] = Σ_r A(m, r)·B(r, n), f32.
// Tiles of A and B lie depth-major in workgroup memory, so that two vec4 loads feed the 16 multiply-adds of a thread's 4 × 4 results.
// An operand that is contiguous along the depth is transposed in registers, 4 × 4 at a time, on its way there; the other kind is
// stored as it comes. The sum over r is made of blocks of 16, each summed upwards and then added upwards, whatever the tile: tiles
// differ in speed, not in order, and the error grows with depth/16 + 16 instead of depth.
// Widths are parameters: the text depends on the tile, on the kinds of the operands and on whether widths are multiples of four.
// Loops have bounds that a compiler does not see through where unrolling would cost seconds on a software device.
// Left out until a physical GPU has timed them: larger thread tiles, split depth, 16-bit tiles, subgroups.

import { MAIN_ARGUMENTS, times } from "../webgpu/kernels/kernel.ts";

/** A stored matrix [rows, columns], row-major, bound under `name`. */
export interface Matrix {
  readonly name: string;
  /** WGSL u32 expressions, uniform; rows beyond the count read as 0. */
  readonly rows: string;
  readonly columns: string;
  /** Which of its axes is summed over. */
  readonly depth: "rows" | "columns";
}

/** BM × BN results a workgroup of 64 threads, 4 × 4 a thread; both operands' tiles are 16 deep: (BM + BN)·64 bytes of workgroup memory. */
export interface Tile {
  readonly BM: number;
  readonly BN: number;
}

/** Rows of a block of the sum. Kernels get it as params.block, too: a compiler that knows it unrolls, which costs seconds on a software device. */
export const BK = 16;
const THREADS = 64;

/** m and n: the largest row count (capacity) and the width of C. Narrow ones (LoRA ranks) get narrow tiles. */
export const tileFor = (m: number, n: number): Tile => {
  if (n <= 16) return { BM: 64, BN: 16 };
  return m <= 16 ? { BM: 16, BN: 64 } : { BM: 32, BN: 32 };
};

const fetch = ({ name, rows, columns }: Matrix, fours: boolean): string => `fn fetch_${name}(row: u32, column: u32) -> vec4f {
  if (row >= ${rows} || column >= ${columns}) { return vec4f(); }
  let e = row * ${columns} + column;
  ${
    fours
      ? `return ${name}[e / 4u];`
      : `var v = vec4f(${name}[e], 0, 0, 0);
  if (column + 1u < ${columns}) { v.y = ${name}[e + 1u]; }
  if (column + 2u < ${columns}) { v.z = ${name}[e + 2u]; }
  if (column + 3u < ${columns}) { v.w = ${name}[e + 3u]; }
  return v;`
  }
}
`;

/** Fills `shared` (BK × width, depth-major) from the operand, starting at `first` of its other axis and r0 of the depth. */
const load = ({ name, depth }: Matrix, shared: string, first: string, width: number): string =>
  depth === "columns"
    ? `for (var i = lane; i < ${(width * BK) / 16}u; i += ${THREADS}u) {
      let across = i % ${width / 4}u;
      let down = (i / ${width / 4}u) * 4u;
      ${times(4, (q) => `let v${q} = fetch_${name}(${first} + across * 4u + ${q}u, r0 + down);`)}
      let turned = transpose(mat4x4f(v0, v1, v2, v3));
      ${times(4, (q) => `${shared}[(down + ${q}u) * ${width / 4}u + across] = turned[${q}];`)}
    }`
    : `for (var i = lane; i < ${(width * BK) / 4}u; i += ${THREADS}u) {
      let across = i % ${width / 4}u;
      let down = i / ${width / 4}u;
      ${shared}[i] = fetch_${name}(r0 + down, ${first} + across * 4u);
    }`;

export interface Gemm {
  readonly tile: Tile;
  readonly a: Matrix;
  readonly b: Matrix;
  /** Every width is a multiple of four, and the operands are bound as vec4f. */
  readonly fours: boolean;
  /** WGSL u32 expressions, uniform over the workgroup; group.z may be used. */
  readonly depthFrom: string;
  readonly depthTo: string;
  /** Body of `fn store(m: u32, n: u32, slice: u32, v: vec4f)`: v holds C[m, n … n + 3]; m and n may lie outside. */
  readonly store: string;
}

/** The WGSL of the product. Workgroups: x over n, y over m, z free (`slice`). The slot has a member `block`, which is 16. */
export const gemm = ({ tile: { BM, BN }, a, b, fours, depthFrom, depthTo, store }: Gemm): string => {
  const across = BN / 4;
  return `${fetch(a, fours)}${fetch(b, fours)}fn store(m: u32, n: u32, slice: u32, v: vec4f) {
${store}
}
var<workgroup> tileA: array<vec4f, ${(BM * BK) / 4}>;
var<workgroup> tileB: array<vec4f, ${(BN * BK) / 4}>;
@compute @workgroup_size(${THREADS})
fn main(${MAIN_ARGUMENTS}) {
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  let m0 = group.y * ${BM}u;
  let n0 = group.x * ${BN}u;
  var c = mat4x4f();
  let depthTo = ${depthTo};
  for (var r0 = ${depthFrom}; r0 < depthTo; r0 += params.block) {
    ${load(a, "tileA", "m0", BM)}
    ${load(b, "tileB", "n0", BN)}
    workgroupBarrier();
    ${times(4, (i) => `var block${i} = vec4f();`)}
    for (var r = 0u; r < params.block; r++) {
      let x = tileA[r * ${BM / 4}u + ty];
      let y = tileB[r * ${across}u + tx];
      ${times(4, (i) => `block${i} += x[${i}] * y;`)}
    }
    ${times(4, (i) => `c[${i}] += block${i};`)}
    workgroupBarrier();
  }
  for (var i = 0u; i < params.block / 4u; i++) { store(m0 + ty * 4u + i, n0 + tx * 4u, group.z, c[i]); }
}
`;
};

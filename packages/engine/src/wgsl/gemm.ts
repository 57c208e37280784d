// One generator for every matrix product: C[m, n] = Σ_r A(m, r)·B(r, n), f32.
// Tiles of A and B lie depth-major in workgroup memory, so that two vec4 loads feed the 16 multiply-adds of a thread's 4 × 4 results.
// An operand that is contiguous along the depth is transposed in registers, 4 × 4 at a time, on its way there; the other kind is
// stored as it comes. The sum over r is made of blocks of 16, each summed upwards and then added upwards, whatever the tile: tiles
// differ in speed, not in order, and the error grows with depth/16 + 16 instead of depth.
// Left out until a physical GPU has timed them: larger thread tiles, split depth, 16-bit tiles, subgroups.

import { MAIN_ARGUMENTS, times } from "../webgpu/kernels/kernel.ts";

/** A stored matrix [rows, columns], row-major, bound under `name` as vec4f if columns % 4 = 0, else as f32. */
export interface Matrix {
  readonly name: string;
  /** WGSL u32 expression; rows beyond it read as 0. */
  readonly rows: string;
  readonly columns: number;
  /** Which of its axes is summed over. */
  readonly depth: "rows" | "columns";
}

/** BM × BN results a workgroup, 4 × 4 a thread; both operands' tiles are 16 deep: (BM + BN)·64 bytes of workgroup memory. */
export interface Tile {
  readonly BM: number;
  readonly BN: number;
}

const BK = 16;

/** m and n: the largest row count (capacity) and the width of C. Narrow ones (LoRA ranks, decode batches) get narrow tiles. */
export const tileFor = (m: number, n: number): Tile => ({ BM: m <= 16 ? 16 : 64, BN: n <= 16 ? 16 : 64 });

const fetch = ({ name, rows, columns }: Matrix): string => `fn fetch_${name}(row: u32, column: u32) -> vec4f {
  if (row >= ${rows} || column >= ${columns}u) { return vec4f(); }
  let e = row * ${columns}u + column;
  ${
    columns % 4 === 0
      ? `return ${name}[e / 4u];`
      : `var v = vec4f(${name}[e], 0, 0, 0);
  if (column + 1u < ${columns}u) { v.y = ${name}[e + 1u]; }
  if (column + 2u < ${columns}u) { v.z = ${name}[e + 2u]; }
  if (column + 3u < ${columns}u) { v.w = ${name}[e + 3u]; }
  return v;`
  }
}
`;

/** Fills `shared` (BK × width, depth-major) from the operand, starting at `first` of its other axis and r0 of the depth. */
const load = ({ name, depth }: Matrix, shared: string, first: string, width: number, threads: number): string =>
  depth === "columns"
    ? `for (var i = lane; i < ${(width * BK) / 16}u; i += ${threads}u) {
      let across = i % ${width / 4}u;
      let down = (i / ${width / 4}u) * 4u;
      ${times(4, (q) => `let v${q} = fetch_${name}(${first} + across * 4u + ${q}u, r0 + down);`)}
      let turned = transpose(mat4x4f(v0, v1, v2, v3));
      ${times(4, (q) => `${shared}[(down + ${q}u) * ${width / 4}u + across] = turned[${q}];`)}
    }`
    : `for (var i = lane; i < ${(width * BK) / 4}u; i += ${threads}u) {
      let across = i % ${width / 4}u;
      let down = i / ${width / 4}u;
      ${shared}[i] = fetch_${name}(r0 + down, ${first} + across * 4u);
    }`;

export interface Gemm {
  readonly tile: Tile;
  readonly a: Matrix;
  readonly b: Matrix;
  /** WGSL u32 expressions, uniform over the workgroup; group.z may be used. */
  readonly depthFrom: string;
  readonly depthTo: string;
  /** Body of `fn store(m: u32, n: u32, slice: u32, v: vec4f)`: v holds C[m, n … n + 3]; m and n may lie outside. */
  readonly store: string;
}

/** The WGSL of the product. Workgroups: x over n, y over m, z free (`slice`). */
export const gemm = ({ tile: { BM, BN }, a, b, depthFrom, depthTo, store }: Gemm): string => {
  const across = BN / 4;
  const threads = (BM / 4) * across;
  return `${fetch(a)}${fetch(b)}fn store(m: u32, n: u32, slice: u32, v: vec4f) {
${store}
}
var<workgroup> tileA: array<vec4f, ${(BM * BK) / 4}>;
var<workgroup> tileB: array<vec4f, ${(BN * BK) / 4}>;
@compute @workgroup_size(${threads})
fn main(${MAIN_ARGUMENTS}) {
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  let m0 = group.y * ${BM}u;
  let n0 = group.x * ${BN}u;
  ${times(4, (i) => `var c${i} = vec4f();`)}
  let depthTo = ${depthTo};
  for (var r0 = ${depthFrom}; r0 < depthTo; r0 += ${BK}u) {
    ${load(a, "tileA", "m0", BM, threads)}
    ${load(b, "tileB", "n0", BN, threads)}
    workgroupBarrier();
    ${times(4, (i) => `var block${i} = vec4f();`)}
    for (var r = 0u; r < ${BK}u; r++) {
      let x = tileA[r * ${BM / 4}u + ty];
      let y = tileB[r * ${across}u + tx];
      ${times(4, (i) => `block${i} += x[${i}] * y;`)}
    }
    ${times(4, (i) => `c${i} += block${i};`)}
    workgroupBarrier();
  }
  ${times(4, (i) => `store(m0 + ty * 4u + ${i}u, n0 + tx * 4u, group.z, c${i});`)}
}
`;
};

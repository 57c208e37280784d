// One generator for every matrix product: C[m, n] = Σ_r A(m, r)·B(r, n), f32.
// Tiles of A and B lie depth-major in workgroup memory, so that two vec4 loads feed the 16 multiply-adds of a thread's 4 × 4 results;
// an operand that is contiguous along the depth is turned on its way there. The sum over r is made of blocks of 16, each summed
// upwards and then added upwards, whatever the tile: tiles differ in speed, not in order, and the error grows with depth/16 + 16
// instead of depth.
// The text is short on purpose: widths are parameters, elements are read and written one by one whatever the width, and loops are
// bounded by params.block, so that no compiler unrolls them. A software device compiles a product in half a second this way; with
// widths in the text, vec4 operands and unrolled loops it took up to ten, for each width.
// Left out until a physical GPU has timed them: larger tiles, vec4 operands, split depth, 16-bit tiles, subgroups.

import { BLOCK, MAIN_ARGUMENTS, times } from "../webgpu/kernels/kernel.ts";

/** A stored matrix [rows, columns], row-major, bound under `name` as f32. */
export interface Matrix {
  readonly name: string;
  /** WGSL u32 expressions, uniform; what lies beyond reads as 0. */
  readonly rows: string;
  readonly columns: string;
  /** Which of its axes is summed over. */
  readonly depth: "rows" | "columns";
}

/** BM × BN results a workgroup of 64 threads, 4 × 4 a thread; both operands' tiles are 16 deep. */
export interface Tile {
  readonly BM: number;
  readonly BN: number;
}

const THREADS = 64;

/** m and n: the largest row count (capacity) and the width of C. Narrow ones (LoRA ranks) get narrow tiles. */
export const tileFor = (m: number, n: number): Tile => {
  if (n <= 16) return { BM: 64, BN: 16 };
  return m <= 16 ? { BM: 16, BN: 64 } : { BM: 32, BN: 32 };
};

const fetch = ({ name, rows, columns }: Matrix): string => `fn fetch_${name}(row: u32, column: u32) -> f32 {
  if (row >= ${rows} || column >= ${columns}) { return 0.0; }
  return ${name}[row * ${columns} + column];
}
`;

/** vec4 to a depth of a tile; one more than needed, so that turned columns fall into different banks. */
const pitch = (width: number): number => width / 4 + 1;

/** Fills `shared` from the operand, from `first` of its other axis and r0 of the depth on; neighbouring lanes read neighbouring elements. */
const load = ({ name, depth }: Matrix, shared: string, first: string, width: number): string => {
  const quads = width / 4;
  const [r, across] = depth === "columns" ? [`i % ${BLOCK}u`, `i / ${BLOCK}u`] : [`i / ${quads}u`, `i % ${quads}u`];
  const element = (q: number): string =>
    depth === "columns" ? `fetch_${name}(${first} + across * 4u + ${q}u, r0 + r)` : `fetch_${name}(r0 + r, ${first} + across * 4u + ${q}u)`;
  return `for (var i = lane; i < params.block * ${quads}u; i += ${THREADS}u) {
      let r = ${r};
      let across = ${across};
      ${shared}[r * ${pitch(width)}u + across] = vec4f(${[0, 1, 2, 3].map(element).join(", ")});
    }`;
};

export interface Gemm {
  readonly tile: Tile;
  readonly a: Matrix;
  readonly b: Matrix;
  /** WGSL u32 expressions, uniform over the workgroup; group.z may be used. */
  readonly depthFrom: string;
  readonly depthTo: string;
  /** Body of `fn store(m: u32, n: u32, slice: u32, v: f32)`: v is C[m, n]; m and n may lie outside. */
  readonly store: string;
}

/** The WGSL of the product. Workgroups: x over n, y over m, z free (`slice`). */
export const gemm = ({ tile: { BM, BN }, a, b, depthFrom, depthTo, store }: Gemm): string => {
  const across = BN / 4;
  return `${fetch(a)}${fetch(b)}fn store(m: u32, n: u32, slice: u32, v: f32) {
  ${store}
}
var<workgroup> tileA: array<vec4f, ${BLOCK * pitch(BM)}>;
var<workgroup> tileB: array<vec4f, ${BLOCK * pitch(BN)}>;
@compute @workgroup_size(${THREADS})
fn main(${MAIN_ARGUMENTS}) {
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  let m0 = group.y * ${BM}u;
  let n0 = group.x * ${BN}u;
  ${times(4, (i) => `var c${i} = vec4f();`)}
  let depthTo = ${depthTo};
  for (var r0 = ${depthFrom}; r0 < depthTo; r0 += params.block) {
    ${load(a, "tileA", "m0", BM)}
    ${load(b, "tileB", "n0", BN)}
    workgroupBarrier();
    ${times(4, (i) => `var block${i} = vec4f();`)}
    for (var r = 0u; r < params.block; r++) {
      let x = tileA[r * ${pitch(BM)}u + ty];
      let y = tileB[r * ${pitch(BN)}u + tx];
      ${times(4, (i) => `block${i} += x[${i}] * y;`)}
    }
    ${times(4, (i) => `c${i} += block${i};`)}
    workgroupBarrier();
  }
  // 16 results, as many as a block is deep.
  var results = array<vec4f, 4>(c0, c1, c2, c3);
  for (var i = 0u; i < params.block; i++) {
    store(m0 + ty * 4u + i / 4u, n0 + tx * 4u + i % 4u, group.z, results[i / 4u][i % 4u]);
  }
}
`;
};

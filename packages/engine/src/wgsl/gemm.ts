// One generator for every matrix product: C[m, n] = Σ_r A(m, r)·B(r, n), f32 accumulators.
// Tiles of A and B lie depth-major in workgroup memory, so that TM/4 + TN/4 vec4 loads feed the TM·TN multiply-adds of a thread; an operand
// that is contiguous along the depth is turned on its way there, 4 × 4 at a time.
// One order of summation for all tiles, for skinny.ts and for split depth: r runs upwards through blocks of 16, block sums are added upwards
// through slices, slice sums upwards into C; products are added by fma, so that no compiler chooses. Variants differ in speed, not in
// bits, and the error grows with the number of blocks instead of the depth.
// The text is short on purpose: widths are parameters, and loops are bounded by params.block, so that no compiler unrolls them. A software
// device compiles a product in half a second this way; with widths in the text and unrolled loops it took up to ten, for each width.

import { BLOCK, MAIN_ARGUMENTS, times } from "../webgpu/kernels/kernel.ts";
import { type Matrix, reader, readsQuads } from "./matrix.ts";

/** BM × BN results a workgroup, TM × TN a thread (multiples of 4); both operands' tiles are 16 deep. */
export interface Tile {
  readonly BM: number;
  readonly BN: number;
  readonly TM: number;
  readonly TN: number;
}

export const threadsOf = ({ BM, BN, TM, TN }: Tile): number => (BM / TM) * (BN / TN);

/** vec4 to a depth of a tile; one more than needed, so that turned columns fall into different banks. */
const pitch = (width: number): number => width / 4 + 1;

/** Bytes of workgroup memory; every device has 16384. */
export const tileBytes = ({ BM, BN }: Tile, isHalf = false): number => BLOCK * (pitch(BM) + pitch(BN)) * (isHalf ? 8 : 16);

interface Load {
  readonly shared: string;
  /** Where the tile begins on the operand's other axis, and how wide it is. */
  readonly first: string;
  readonly width: number;
  readonly threads: number;
  readonly four: string;
}

/** Fills `shared` from the operand, from `first` of its other axis and r0 of the depth on; neighbouring lanes read neighbouring elements. */
const load = (matrix: Matrix, { shared, first, width, threads, four }: Load): string => {
  const { name, depth } = matrix;
  const [quads, row] = [width / 4, pitch(width)];
  if (depth === "columns" && readsQuads(matrix)) {
    // Four quads of four rows, turned: a lane stores four depths.
    return `for (var i = lane; i < params.block / 4u * ${quads}u; i += ${threads}u) {
      let r = i % 4u * 4u;
      let across = i / 4u;
      let turned = transpose(mat4x4f(${times(4, (q) => `quad_${name}(${first} + across * 4u + ${q}u, r0 + r)`, ", ")}));
      ${times(4, (q) => `${shared}[(r + ${q}u) * ${row}u + across] = ${four}(turned[${q}]);`)}
    }`;
  }
  const [r, across] = depth === "columns" ? [`i % ${BLOCK}u`, `i / ${BLOCK}u`] : [`i / ${quads}u`, `i % ${quads}u`];
  const value =
    depth === "columns"
      ? `vec4f(${times(4, (q) => `fetch_${name}(${first} + across * 4u + ${q}u, r0 + r)`, ", ")})`
      : `quad_${name}(r0 + r, ${first} + across * 4u)`;
  return `for (var i = lane; i < params.block * ${quads}u; i += ${threads}u) {
      let r = ${r};
      let across = ${across};
      ${shared}[r * ${row}u + across] = ${four}(${value});
    }`;
};

export interface Gemm {
  readonly tile: Tile;
  readonly a: Matrix;
  readonly b: Matrix;
  /** WGSL u32 expressions, uniform over the workgroup; group.z may be used. */
  readonly depthFrom: string;
  readonly depthTo: string;
  /** WGSL u32 expression: depth after which the sum is handed to `store`, a multiple of 16. */
  readonly slice: string;
  /** Body of `fn store(m: u32, n: u32, z: u32, isFirst: bool, v: f32)`: v is a slice's part of C[m, n]; m and n may lie outside. */
  readonly store: string;
  /** Tiles of C that a workgroup makes one after the other: `from` ≤ n0 < `to`, WGSL u32 expressions, uniform. Default: the one of group.x. */
  readonly columns?: { readonly from: string; readonly to: string };
  /** After a tile, for each 16 rows of it: WGSL in uniform control flow, which may read m16, the first of them, and n0, a column of it. `store` saw them before it. */
  readonly after?: string;
  /** Tiles in f16 (needs shader-f16): half the workgroup memory, products of rounded factors. */
  readonly isHalf?: boolean;
}

/** What the text of a gemm with isHalf begins with. */
export const HALF_PRELUDE = "enable f16;\n";

/** The WGSL of the product. Workgroups: x over n, y over m, z free. The results are an array, so that the loop over them stays one. */
export const gemm = ({ tile, a, b, depthFrom, depthTo, slice, store, columns, after, isHalf = false }: Gemm): string => {
  const { BM, BN, TM, TN } = tile;
  const [across, threads, TQ] = [BN / TN, threadsOf(tile), TN / 4];
  const four = isHalf ? "vec4h" : "vec4f";
  const each = (line: (i: number, j: number) => string): string => times(TM, (i) => times(TQ, (j) => line(i, j)));
  return `${reader(a)}${reader(b)}fn store(m: u32, n: u32, z: u32, isFirst: bool, v: f32) {
  ${store}
}
var<workgroup> tileA: array<${four}, ${BLOCK * pitch(BM)}>;
var<workgroup> tileB: array<${four}, ${BLOCK * pitch(BN)}>;
@compute @workgroup_size(${threads})
fn main(${MAIN_ARGUMENTS}) {
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  let m0 = group.y * ${BM}u;
  let depthFrom = ${depthFrom};
  let depthTo = ${depthTo};
  ${columns ? `for (var n0 = ${columns.from}; n0 < ${columns.to}; n0 += ${BN}u) {` : `let n0 = group.x * ${BN}u;`}
  for (var start = depthFrom; start < depthTo; start += ${slice}) {
    let end = min(start + ${slice}, depthTo);
    ${each((i, j) => `var c${i}_${j} = vec4f();`)}
    for (var r0 = start; r0 < end; r0 += params.block) {
      ${load(a, { shared: "tileA", first: "m0", width: BM, threads, four })}
      ${load(b, { shared: "tileB", first: "n0", width: BN, threads, four })}
      workgroupBarrier();
      ${each((i, j) => `var block${i}_${j} = vec4f();`)}
      let deep = min(params.block, end - r0);
      for (var r = 0u; r < deep; r++) {
        ${times(TM / 4, (i) => `let x${i} = vec4f(tileA[r * ${pitch(BM)}u + ty * ${TM / 4}u + ${i}u]);`)}
        ${times(TQ, (j) => `let y${j} = vec4f(tileB[r * ${pitch(BN)}u + tx * ${TQ}u + ${j}u]);`)}
        ${each((i, j) => `block${i}_${j} = fma(vec4f(x${i >> 2}[${i & 3}]), y${j}, block${i}_${j});`)}
      }
      ${each((i, j) => `c${i}_${j} += block${i}_${j};`)}
      workgroupBarrier();
    }
    var results = array<vec4f, ${TM * TQ}>(${times(TM, (i) => times(TQ, (j) => `c${i}_${j}`, ", "), ", ")});
    ${after ? `for (var m16 = m0; m16 < min(m0 + ${BM}u, params.rows); m16 += params.block) {` : ""}
    for (var i = 0u; i < params.block * ${(TM * TN) / BLOCK}u; i++) {
      let m = m0 + ty * ${TM}u + i / ${TN}u;
      ${after ? "if (m - m16 >= params.block) { continue; }" : ""}
      store(m, n0 + tx * ${TN}u + i % ${TN}u, group.z, start == depthFrom, results[i / 4u][i % 4u]);
    }
    ${after ? `${after}\n    }` : ""}
  }
  ${columns ? "}" : ""}
}
`;
};

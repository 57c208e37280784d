// The product of a few rows with a weight, y[m, n] = Σ_r a(m, r)·w(n, r), for batched decoding: every weight is read once, 16 neighbours of a
// row by one lane, and dequantised in registers for all rows. A lane sums one block of the depth for four columns; the block sums go through
// workgroup memory and are added in the order of gemm.ts, so the bits are those of every tile.
// A subgroup's sum would save that walk through workgroup memory (64 additions beside 64·16·rows multiply-adds), but its order is the
// device's own: a row's bits would then depend on how many rows there are.

import { BLOCK, MAIN_ARGUMENTS, times } from "../webgpu/kernels/kernel.ts";
import { type Matrix, sixteenReader } from "./matrix.ts";

/** Rows of a that one workgroup takes; columns of y, and lanes along the depth. */
export const SKINNY = { rows: 8, columns: 4, lanes: 64 } as const;

export interface Skinny {
  /** Bound as vec4f and as wideElementOf(format); summed over columns, whose number is a multiple of 16. */
  readonly a: Matrix;
  readonly w: Matrix;
  /** WGSL u32 expression, a multiple of 16, and `store`: as in gemm.ts. */
  readonly slice: string;
  readonly store: string;
  /** As in gemm.ts; `after` comes after 64 columns, for the rows from m16 on. Default: the columns of one workgroup. */
  readonly columns?: { readonly from: string; readonly to: string };
  readonly after?: string;
}

const PITCH = SKINNY.lanes + 1;

/** Workgroups: x and y over columns (folded), z over rows. */
export const skinny = ({ a, w, slice, store, columns, after }: Skinny): string => `${sixteenReader(a)}${sixteenReader(w)}
fn store(m: u32, n: u32, z: u32, isFirst: bool, v: f32) {
  ${store}
}
var<workgroup> sums: array<f32, ${SKINNY.rows * SKINNY.columns * PITCH}>;
@compute @workgroup_size(${SKINNY.lanes})
fn main(${MAIN_ARGUMENTS}) {
  let m0 = group.z * ${SKINNY.rows}u;
  let rows = min(${SKINNY.rows}u, ${a.rows} - m0);
  let depth = ${a.columns};
  ${columns ? `for (var n0 = ${columns.from}; n0 < ${columns.to}; n0 += ${SKINNY.columns}u) {` : `let n0 = (group.y * groups.x + group.x) * ${SKINNY.columns}u;\n  if (n0 >= ${w.rows}) { return; }`}
  for (var start = 0u; start < depth; start += ${slice}) {
    let end = min(start + ${slice}, depth);
    var total = 0.0;
    for (var chunk = start; chunk < end; chunk += ${SKINNY.lanes}u * params.block) {
      let column = chunk + lane * params.block;
      if (column < end) {
        ${times(SKINNY.columns, (n) => `let w${n} = sixteen_w(min(n0 + ${n}u, ${w.rows} - 1u), column);`)}
        ${times(4, (q) => `let t${q} = transpose(mat4x4f(${times(4, (n) => `w${n}[${q}]`, ", ")}));`)}
        for (var m = 0u; m < rows; m++) {
          let v = sixteen_a(m0 + m, column);
          var block = vec4f();
          ${times(BLOCK, (r) => `block = fma(vec4f(v[${r >> 2}][${r & 3}]), t${r >> 2}[${r & 3}], block);`)}
          ${times(SKINNY.columns, (n) => `sums[(m * ${SKINNY.columns}u + ${n}u) * ${PITCH}u + lane] = block[${n}];`)}
        }
      }
      workgroupBarrier();
      if (lane < rows * ${SKINNY.columns}u) {
        let blocks = min(${SKINNY.lanes}u, (end - chunk) / params.block);
        for (var i = 0u; i < blocks; i++) { total += sums[lane * ${PITCH}u + i]; }
      }
      workgroupBarrier();
    }
    if (lane < rows * ${SKINNY.columns}u) { store(m0 + lane / ${SKINNY.columns}u, n0 + lane % ${SKINNY.columns}u, 0u, start == 0u, total); }
  }
  ${columns ? `if (n0 % 64u != ${64 - SKINNY.columns}u) { continue; }\n  let m16 = m0;\n  ${after}\n  }` : ""}
}
`;

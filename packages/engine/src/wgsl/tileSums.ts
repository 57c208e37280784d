// What is left of a tile of logits, 64 columns, row by row: vec4(largest x, Σ e^d, Σ d·e^d, the wanted column's x), x = i·z, d = x − largest.
// One lane sums 16 columns, upwards; the four sums, and tiles after each other, are folded upwards. So the order is that of the columns,
// whichever product made the logits, and the shift to the row's own maximum loses nothing when they are large.

import type { Element } from "../webgpu/kernels/kernel.ts";

/** Columns of a tile. */
export const TILE = 64;

/** Below every logit, and its difference to any of them is finite. */
export const LOWEST = "-1.0e38";

/** fold(a, b): the sums of two sets of columns, as those of both. */
export const FOLD: string = `const NOTHING = vec4f(${LOWEST}, 0.0, 0.0, 0.0);
fn fold(a: vec4f, b: vec4f) -> vec4f {
  let top = max(a.x, b.x);
  let down = vec2f(a.x, b.x) - top;
  let e = exp(down);
  return vec4f(top, fma(a.y, e.x, b.y * e.y), fma(fma(down.x, a.y, a.z), e.x, fma(down.y, b.y, b.z) * e.y), a.w + b.w);
}
`;

/** As what the sums of a row are bound. */
export const PARTS: Element = "vec4f";

/** Body of `store` (gemm.ts): where a result waits for its sum. */
export const KEEP: string = `zs[(m % 16u * 4u + n % ${TILE}u / 16u) * 17u + n % 16u] = v;`;

/**
 * sumTile(m16, n0, run, lane), in uniform control flow: the 16 rows from m16 on, or as many as a workgroup has, columns n0 … n0 + 63 of the
 * product, whose results KEEP has left, go into the sums `run` of the rows. A run's first tile begins it; a row's sums are read again by the
 * lane that wrote them. The product has params.N columns, the first is column params.column of the vocabulary; a run has params.runTiles
 * tiles, a row params.runPitch sums. inverse and wanted: WGSL, of `row`.
 */
export const tileSums = (
  threads: number,
  rows: number,
  { inverse, wanted }: { readonly inverse: string; readonly wanted: string },
): string => `${FOLD}
var<workgroup> zs: array<f32, ${16 * 4 * 17}>;
var<workgroup> quarters: array<vec4f, 64>;
fn sumTile(m16: u32, n0: u32, run: u32, lane: u32) {
  workgroupBarrier();
  for (var unit = lane; unit < 4u * min(${Math.min(rows, 16)}u, params.rows - m16); unit += ${threads}u) {
    let row = m16 + unit / 4u;
    let first = n0 + unit % 4u * 16u;
    let inverse = ${inverse};
    let wanted = ${wanted} - params.column;
    var sum = NOTHING;
    for (var n = first; n < min(first + params.block, params.N); n++) {
      let x = inverse * zs[(4u * m16 + unit) % 64u * 17u + n - first];
      let d = x - sum.x;
      let e = exp(-abs(d));
      if (d > 0.0) {
        sum = vec4f(x, fma(sum.y, e, 1.0), fma(-d, sum.y, sum.z) * e, sum.w);
      } else {
        sum.y += e;
        sum.z = fma(d, e, sum.z);
      }
      if (n == wanted) { sum.w = x; }
    }
    quarters[unit] = sum;
  }
  workgroupBarrier();
  for (var unit = lane; unit < min(${Math.min(rows, 16)}u, params.rows - m16); unit += ${threads}u) {
    let place = (m16 + unit) * params.runPitch + run;
    var sum = parts[place];
    if ((params.column + n0) / ${TILE}u % params.runTiles == 0u) { sum = NOTHING; }
    for (var q = 0u; q < 4u; q++) { sum = fold(sum, quarters[unit * 4u + q]); }
    parts[place] = sum;
  }
}
`;

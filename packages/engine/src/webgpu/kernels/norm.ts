// rmsNorm and its gradient, one workgroup a row. The gain is frozen, so it has none.
//   y = x·rstd·gain, rstd = (mean x² + eps)^−½        dx += rstd·(gain∘dy − x̂·mean(gain∘dy∘x̂)), x̂ = x·rstd

import type { Step } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { byRow, columnsOf, type Dispatch, foldedGroups, kernel } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** One size for all widths: a second one would be a second pipeline. */
const THREADS = 64;

export const rmsNorm = ({ rows, x, gain, y, rstd, eps }: Of<"rmsNorm">): Dispatch[] => {
  const D = columnsOf(x);
  return [
    kernel({
      label: "rmsNorm",
      bindings: {
        x: { tensor: x, as: "f32" },
        gain: { tensor: gain, as: "f32" },
        y: { tensor: y, as: "f32" },
        rstd: { tensor: rstd, as: "f32" },
      },
      body:
        reductions(THREADS) +
        byRow(
          THREADS,
          `var squares = 0.0;
  for (var d = lane; d < params.D; d += ${THREADS}u) {
    let v = x[row * params.D + d];
    squares += v * v;
  }
  let r = inverseSqrt(sumOf(squares, lane) / f32(params.D) + params.normEps);
  if (lane == 0u) { rstd[row] = r; }
  for (var d = lane; d < params.D; d += ${THREADS}u) { y[row * params.D + d] = x[row * params.D + d] * r * gain[d]; }`,
        ),
      sizes: { D },
      numbers: { normEps: eps },
      rows,
      groups: (n) => foldedGroups(n),
      work: 3 * D,
    }),
  ];
};

export const rmsNormBackward = ({ rows, x, gain, rstd, dy, dx }: Of<"rmsNormBackward">): Dispatch[] => {
  const D = columnsOf(x);
  return [
    kernel({
      label: "rmsNormBackward",
      bindings: {
        x: { tensor: x, as: "f32" },
        gain: { tensor: gain, as: "f32" },
        rstd: { tensor: rstd, as: "f32" },
        dy: { tensor: dy, as: "f32" },
        dx: { tensor: dx, as: "f32" },
      },
      body:
        reductions(THREADS) +
        byRow(
          THREADS,
          `let r = rstd[row];
  var products = 0.0;
  for (var d = lane; d < params.D; d += ${THREADS}u) {
    let e = row * params.D + d;
    products += gain[d] * dy[e] * (x[e] * r);
  }
  let mean = sumOf(products, lane) / f32(params.D);
  for (var d = lane; d < params.D; d += ${THREADS}u) {
    let e = row * params.D + d;
    dx[e] += r * (gain[d] * dy[e] - x[e] * r * mean);
  }`,
        ),
      sizes: { D },
      rows,
      groups: (n) => foldedGroups(n),
      work: 6 * D,
    }),
  ];
};

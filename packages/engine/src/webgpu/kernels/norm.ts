// rmsNorm and its gradient, one workgroup a row. The gain is frozen, so it has none.
//   y = x·rstd·gain, rstd = (mean x² + eps)^−½        dx += rstd·(gain∘dy − x̂·mean(gain∘dy∘x̂)), x̂ = x·rstd

import type { Step } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { byRow, columnsOf, type Dispatch, float, foldedGroups, kernel } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const threadsFor = (D: number): number => (D <= 256 ? 64 : 256);

export const rmsNorm = ({ rows, x, gain, y, rstd, eps }: Of<"rmsNorm">): Dispatch[] => {
  const D = columnsOf(x);
  const threads = threadsFor(D);
  return [
    kernel({
      label: `rmsNorm ${D}`,
      bindings: {
        x: { tensor: x, as: "f32" },
        gain: { tensor: gain, as: "f32" },
        y: { tensor: y, as: "f32" },
        rstd: { tensor: rstd, as: "f32" },
      },
      body:
        reductions(threads) +
        byRow(
          threads,
          `var squares = 0.0;
  for (var d = lane; d < ${D}u; d += ${threads}u) {
    let v = x[row * ${D}u + d];
    squares += v * v;
  }
  let r = inverseSqrt(sumOf(squares, lane) / ${float(D)} + ${float(eps)});
  if (lane == 0u) { rstd[row] = r; }
  for (var d = lane; d < ${D}u; d += ${threads}u) { y[row * ${D}u + d] = x[row * ${D}u + d] * r * gain[d]; }`,
        ),
      rows,
      groups: (n) => foldedGroups(n),
      work: 3 * D,
    }),
  ];
};

export const rmsNormBackward = ({ rows, x, gain, rstd, dy, dx }: Of<"rmsNormBackward">): Dispatch[] => {
  const D = columnsOf(x);
  const threads = threadsFor(D);
  return [
    kernel({
      label: `rmsNormBackward ${D}`,
      bindings: {
        x: { tensor: x, as: "f32" },
        gain: { tensor: gain, as: "f32" },
        rstd: { tensor: rstd, as: "f32" },
        dy: { tensor: dy, as: "f32" },
        dx: { tensor: dx, as: "f32" },
      },
      body:
        reductions(threads) +
        byRow(
          threads,
          `let r = rstd[row];
  var products = 0.0;
  for (var d = lane; d < ${D}u; d += ${threads}u) {
    let e = row * ${D}u + d;
    products += gain[d] * dy[e] * (x[e] * r);
  }
  let mean = sumOf(products, lane) / ${float(D)};
  for (var d = lane; d < ${D}u; d += ${threads}u) {
    let e = row * ${D}u + d;
    dx[e] += r * (gain[d] * dy[e] - x[e] * r * mean);
  }`,
        ),
      rows,
      groups: (n) => foldedGroups(n),
      work: 6 * D,
    }),
  ];
};

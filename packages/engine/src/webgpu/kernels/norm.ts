// rmsNorm and its gradient, one workgroup a row and group of it (along z). The gain is frozen, so it has none.
//   y = residual? + x·rstd·gain, rstd = (mean x² + eps)^−½        dx (+)= rstd·(gain∘dy − x̂·mean(gain∘dy∘x̂)), x̂ = x·rstd

import { type Step, sizeOf } from "../../plan/step.ts";
import { reductions, reductionsFor } from "../../wgsl/reduce.ts";
import { type Bindings, byRow, columnsOf, type Dispatch, foldedGroups, kernel } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** One size for all widths: a second one would be a second pipeline. */
export const NORM_THREADS = 64;

/** Where the group's numbers and its rstd begin. */
const PLACE = `let unit = row * params.groups + group.z;
  let first = unit * params.D;
  `;

interface Ending {
  readonly label: string;
  readonly bindings?: Bindings;
  readonly numbers?: Readonly<Record<string, number>>;
  /** WGSL: y from x, with r, first and lane. */
  readonly text: string;
}

/** rstd, and what `ending` makes of the row. */
export const normed = ({ rows, x, gain, y, rstd, eps }: Of<"rmsNorm">, target: Target, ending: Ending): Dispatch => {
  const { how, prelude, suffix } = reductionsFor("rmsNorm", target);
  const D = sizeOf(gain);
  const groups = columnsOf(x) / D;
  return kernel({
    label: ending.label + suffix,
    prelude,
    bindings: { x, gain, ...ending.bindings, y, rstd },
    body:
      reductions(NORM_THREADS, how) +
      byRow(
        NORM_THREADS,
        `${PLACE}var squares = 0.0;
  for (var d = lane; d < params.D; d += ${NORM_THREADS}u) {
    let v = x[first + d];
    squares += v * v;
  }
  let r = inverseSqrt(sumOf(squares, lane) / f32(params.D) + params.normEps);
  if (lane == 0u) { rstd[unit] = r; }
  ${ending.text}`,
        how,
      ),
    sizes: { D, groups },
    numbers: { normEps: eps, ...ending.numbers },
    rows,
    groups: (n) => foldedGroups(n, groups),
    work: 4 * D * groups,
  });
};

export const rmsNorm = (step: Of<"rmsNorm">, target: Target): Dispatch[] => {
  const { residual } = step;
  return [
    normed(step, target, {
      label: `rmsNorm${residual ? " residual" : ""}`,
      ...(residual && { bindings: { residual } }),
      text: `for (var d = lane; d < params.D; d += ${NORM_THREADS}u) { y[first + d] = ${residual ? "residual[first + d] + " : ""}x[first + d] * r * gain[d]; }`,
    }),
  ];
};

export const rmsNormBackward = ({ rows, x, gain, rstd, dy, dx, accumulate }: Of<"rmsNormBackward">, target: Target): Dispatch[] => {
  const { how, prelude, suffix } = reductionsFor("rmsNormBackward", target);
  const D = sizeOf(gain);
  const groups = columnsOf(x) / D;
  return [
    kernel({
      label: `rmsNormBackward${suffix}`,
      prelude,
      bindings: {
        x,
        gain,
        rstd,
        dy,
        dx,
      },
      body:
        reductions(NORM_THREADS, how) +
        byRow(
          NORM_THREADS,
          `${PLACE}let r = rstd[unit];
  var products = 0.0;
  for (var d = lane; d < params.D; d += ${NORM_THREADS}u) {
    let e = first + d;
    products += gain[d] * dy[e] * (x[e] * r);
  }
  let mean = sumOf(products, lane) / f32(params.D);
  for (var d = lane; d < params.D; d += ${NORM_THREADS}u) {
    let e = first + d;
    dx[e] = select(0.0, dx[e], params.accumulate != 0u) + r * (gain[d] * dy[e] - x[e] * r * mean);
  }`,
          how,
        ),
      sizes: { D, groups, accumulate: accumulate ? 1 : 0 },
      rows,
      groups: (n) => foldedGroups(n, groups),
      work: 6 * D * groups,
    }),
  ];
};

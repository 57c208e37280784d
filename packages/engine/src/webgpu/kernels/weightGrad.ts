// weightGrad: dw[o, i] += scale · Σ_t dy[t, o]·x[t, i], by the tiles of wgsl/gemm.ts.
// The gradient of a narrow matrix (LoRA) has few results and many rows: it is cut into slices of 64 rows whose partial sums a second
// dispatch adds up in order. The slice length depends on the matrix alone, so the same rows give the same bits in every plan.

import type { Step } from "../../plan/step.ts";
import { gemm } from "../../wgsl/gemm.ts";
import { elementOf, type Matrix } from "../../wgsl/matrix.ts";
import { bodyOf, columnsOf, type Dispatch, flat, flatGroups, kernel, SCRATCH } from "./kernel.ts";
import { weightGradCandidates } from "./productVariants.ts";
import { chosen, type Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const SLICE_ROWS = 64;
/** Above this many results the product has enough workgroups by itself: one slice takes all rows. */
const MAX_SLICED = 1 << 18;

export const weightGrad = ({ rows, dy, x, dw, scale }: Of<"weightGrad">, target: Target): Dispatch[] => {
  const [O, I] = [columnsOf(dy), columnsOf(x)];
  const size = O * I;
  const problem = { op: "weightGrad", rows: 0, sizes: { O, I }, format: "f32" } as const;
  const variant = chosen(target, problem, weightGradCandidates(O, I, target.isSoftware));
  const { tile } = variant;
  const sliceRows = size <= MAX_SLICED ? SLICE_ROWS : 2 ** 31;
  const slices = (n: number): number => Math.ceil(n / sliceRows);
  const [wideA, wideB] = [variant.isWide && O % 4 === 0, variant.isWide && I % 4 === 0];
  const operand = (name: string, width: string, isWide: boolean): Matrix => ({
    name,
    rows: "params.rows",
    columns: width,
    depth: "rows",
    format: "f32",
    isWide,
  });
  const narrow = variant.isWide ? `${wideA ? "" : " narrow a"}${wideB ? "" : " narrow b"}` : "";
  const label = `weightGrad ${variant.name}${narrow}`;
  const product = kernel({
    label,
    bindings: {
      dy: { tensor: dy, as: elementOf("f32", wideA) },
      x: { tensor: x, as: elementOf("f32", wideB) },
      scratch: SCRATCH,
    },
    body: bodyOf(label, () =>
      gemm({
        tile,
        a: operand("dy", "params.O", wideA),
        b: operand("x", "params.I", wideB),
        depthFrom: "group.z * params.sliceRows",
        depthTo: "min(params.rows, (group.z + 1u) * params.sliceRows)",
        slice: "params.sliceRows",
        store: `if (m >= params.O || n >= params.I) { return; }
  scratch[(z * params.O + m) * params.I + n] = v;`,
      }),
    ),
    sizes: { O, I, sliceRows },
    rows,
    groups: (n) => [Math.ceil(I / tile.BN), Math.ceil(O / tile.BM), slices(n)],
    work: size,
    scratchBytes: Math.max(1, slices(rows.capacity)) * size * 4,
  });
  const sum = kernel({
    label: "weightGrad sum",
    bindings: { scratch: SCRATCH, dw },
    body: flat(
      "params.size",
      `let slices = (params.rows - 1u) / params.sliceRows + 1u;
  var sum = 0.0;
  for (var slice = 0u; slice < slices; slice++) { sum += scratch[slice * params.size + i]; }
  dw[i] += params.scale * sum;`,
    ),
    sizes: { size, sliceRows },
    numbers: { scale },
    rows,
    groups: (n) => (n ? flatGroups(size) : [0, 0, 0]),
    work: size / SLICE_ROWS,
  });
  return [product, sum];
};

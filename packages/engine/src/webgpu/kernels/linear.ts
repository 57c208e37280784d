// linear, linearBackward, weightGrad: the three products of a linear layer, from one generator (wgsl/gemm.ts).
//   y[t, o]  = residual + bias + scale · Σ_i x[t, i]·w[o, i]
//   dx[t, i] = (dx) + scale · Σ_o dy[t, o]·w[o, i]
//   dw[o, i] += scale · Σ_t dy[t, o]·x[t, i]
// weightGrad of a narrow matrix (LoRA) has few results and many rows: it is cut into slices of 64 rows whose partial sums a second
// dispatch adds up in order. The slice length depends on the matrix alone, so the same rows give the same bits in every plan.

import type { Step, Tensor } from "../../plan/step.ts";
import { gemm, tileFor } from "../../wgsl/gemm.ts";
import { type Bindings, columnsOf, type Dispatch, flat, flatGroups, kernel, SCRATCH } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Sets target[m, n] to `value` where m and n lie inside; e is its element. */
const storeAt = (target: string, columns: string, value: string): string =>
  `if (m >= params.rows || n >= ${columns}) { return; }
  let e = m * ${columns} + n;
  ${target}[e] = ${value};`;

/** What was there before counts only when asked for: it may be NaN. */
const added = (target: string): string => `select(0.0, ${target}[e], params.accumulate == 1u)`;

const isSame = (a: Tensor, b: Tensor): boolean =>
  a === b || ((a.view?.of ?? a) === (b.view?.of ?? b) && (a.view?.offset ?? 0) === (b.view?.offset ?? 0));

export const linear = ({ rows, x, w, bias, residual, y, scale }: Of<"linear">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const tile = tileFor(rows.capacity, O);
  const inPlace = residual !== undefined && isSame(residual, y);
  const other = inPlace ? undefined : residual;
  const bindings: Bindings = {
    x: { tensor: x, as: "f32" },
    w: { tensor: w, as: "f32", isFrozen: true },
    ...(bias && { bias: { tensor: bias, as: "f32" } }),
    ...(other && { residual: { tensor: other, as: "f32" } }),
    y: { tensor: y, as: "f32" },
  };
  return [
    kernel({
      label: `linear ${tile.BM}x${tile.BN}${other ? " residual" : ""}${bias ? " bias" : ""}`,
      bindings,
      body: gemm({
        tile,
        a: { name: "x", rows: "params.rows", columns: "params.I", depth: "columns" },
        b: { name: "w", rows: "params.O", columns: "params.I", depth: "columns" },
        depthFrom: "0u",
        depthTo: "params.I",
        store: storeAt("y", "params.O", `${other ? "residual[e]" : added("y")} + params.scale * v${bias ? " + bias[n]" : ""}`),
      }),
      sizes: { O, I, accumulate: inPlace ? 1 : 0 },
      numbers: { scale },
      rows,
      groups: (n) => [Math.ceil(O / tile.BN), Math.ceil(n / tile.BM), 1],
      work: O * I,
    }),
  ];
};

export const linearBackward = ({ rows, dy, w, dx, scale, accumulate }: Of<"linearBackward">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const tile = tileFor(rows.capacity, I);
  return [
    kernel({
      label: `linearBackward ${tile.BM}x${tile.BN}`,
      bindings: { dy: { tensor: dy, as: "f32" }, w: { tensor: w, as: "f32", isFrozen: true }, dx: { tensor: dx, as: "f32" } },
      body: gemm({
        tile,
        a: { name: "dy", rows: "params.rows", columns: "params.O", depth: "columns" },
        b: { name: "w", rows: "params.O", columns: "params.I", depth: "rows" },
        depthFrom: "0u",
        depthTo: "params.O",
        store: storeAt("dx", "params.I", `${added("dx")} + params.scale * v`),
      }),
      sizes: { O, I, accumulate: accumulate ? 1 : 0 },
      numbers: { scale },
      rows,
      groups: (n) => [Math.ceil(I / tile.BN), Math.ceil(n / tile.BM), 1],
      work: O * I,
    }),
  ];
};

const SLICE_ROWS = 64;
/** Above this many results the product has enough workgroups by itself: one slice takes all rows. */
const MAX_SLICED = 1 << 18;

export const weightGrad = ({ rows, dy, x, dw, scale }: Of<"weightGrad">): Dispatch[] => {
  const [O, I] = [columnsOf(dy), columnsOf(x)];
  const size = O * I;
  const tile = tileFor(O, I);
  const sliceRows = size <= MAX_SLICED ? SLICE_ROWS : 2 ** 31;
  const slices = (n: number): number => Math.ceil(n / sliceRows);
  const product = kernel({
    label: `weightGrad ${tile.BM}x${tile.BN}`,
    bindings: { dy: { tensor: dy, as: "f32" }, x: { tensor: x, as: "f32" }, scratch: { tensor: SCRATCH, as: "f32" } },
    body: gemm({
      tile,
      a: { name: "dy", rows: "params.rows", columns: "params.O", depth: "rows" },
      b: { name: "x", rows: "params.rows", columns: "params.I", depth: "rows" },
      depthFrom: "group.z * params.sliceRows",
      depthTo: "min(params.rows, (group.z + 1u) * params.sliceRows)",
      store: `if (m >= params.O || n >= params.I) { return; }
  scratch[(slice * params.O + m) * params.I + n] = v;`,
    }),
    sizes: { O, I, sliceRows },
    rows,
    groups: (n) => [Math.ceil(I / tile.BN), Math.ceil(O / tile.BM), slices(n)],
    work: size,
    scratchBytes: Math.max(1, slices(rows.capacity)) * size * 4,
  });
  const sum = kernel({
    label: "weightGrad sum",
    bindings: { scratch: { tensor: SCRATCH, as: "f32" }, dw: { tensor: dw, as: "f32" } },
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

// linear, linearBackward, weightGrad: the three products of a linear layer, from one generator (wgsl/gemm.ts).
//   y[t, o]  = residual + bias + scale · Σ_i x[t, i]·w[o, i]
//   dx[t, i] = (dx) + scale · Σ_o dy[t, o]·w[o, i]
//   dw[o, i] += scale · Σ_t dy[t, o]·x[t, i]
// weightGrad of a narrow matrix (LoRA) has few results and many rows: it is cut into slices of 64 rows whose partial sums a second
// dispatch adds up in order. The slice length depends on the matrix alone, so the same rows give the same bits in every plan.

import type { Step, Tensor } from "../../plan/step.ts";
import { BK, gemm, type Matrix, tileFor } from "../../wgsl/gemm.ts";
import { type Bindings, columnsOf, type Dispatch, type Element, flat, flatGroups, kernel, SCRATCH } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Both widths in fours: operands are bound and moved as vec4f. */
const areFours = (O: number, I: number): boolean => O % 4 === 0 && I % 4 === 0;
const elementFor = (fours: boolean): Element => (fours ? "vec4f" : "f32");

/** Statements that set target[m, n … n + 3] to `value` of v, at element e and column c, where m and n lie inside. */
const storeRow = (target: string, columns: string, fours: boolean, value: (v: string) => string): string =>
  fours
    ? `  if (m >= params.rows || n >= ${columns}) { return; }
  let e = (m * ${columns} + n) / 4u;
  let c = n / 4u;
  ${target}[e] = ${value("v")};`
    : `  if (m >= params.rows) { return; }
  for (var q = 0u; q < 4u && n + q < ${columns}; q++) {
    let c = n + q;
    let e = m * ${columns} + c;
    ${target}[e] = ${value("v[q]")};
  }`;

/** What was there before counts only when asked for: it may be NaN. */
const added = (target: string, fours: boolean): string => `select(${fours ? "vec4f()" : "0.0"}, ${target}[e], params.accumulate == 1u) + `;

const isSame = (a: Tensor, b: Tensor): boolean =>
  a === b || ((a.view?.of ?? a) === (b.view?.of ?? b) && (a.view?.offset ?? 0) === (b.view?.offset ?? 0));

export const linear = ({ rows, x, w, bias, residual, y, scale }: Of<"linear">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const [tile, fours] = [tileFor(rows.capacity, O), areFours(O, I)];
  const inPlace = residual !== undefined && isSame(residual, y);
  const before = residual && !inPlace ? "residual[e] + " : added("y", fours);
  const a: Matrix = { name: "x", rows: "params.rows", columns: "params.I", depth: "columns" };
  const b: Matrix = { name: "w", rows: "params.O", columns: "params.I", depth: "columns" };
  const store = storeRow("y", "params.O", fours, (v) => `${before}params.scale * ${v}${bias ? " + bias[c]" : ""}`);
  const as = elementFor(fours);
  const bindings: Bindings = {
    x: { tensor: x, as },
    w: { tensor: w, as },
    ...(bias && { bias: { tensor: bias, as } }),
    ...(residual && !inPlace && { residual: { tensor: residual, as } }),
    y: { tensor: y, as },
  };
  return [
    kernel({
      label: `linear ${tile.BM}x${tile.BN}`,
      bindings,
      body: gemm({ tile, a, b, fours, depthFrom: "0u", depthTo: "params.I", store }),
      sizes: { block: BK, O, I, accumulate: inPlace ? 1 : 0 },
      numbers: { scale },
      rows,
      groups: (n) => [Math.ceil(O / tile.BN), Math.ceil(n / tile.BM), 1],
      work: O * I,
    }),
  ];
};

export const linearBackward = ({ rows, dy, w, dx, scale, accumulate }: Of<"linearBackward">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const [tile, fours] = [tileFor(rows.capacity, I), areFours(O, I)];
  const a: Matrix = { name: "dy", rows: "params.rows", columns: "params.O", depth: "columns" };
  const b: Matrix = { name: "w", rows: "params.O", columns: "params.I", depth: "rows" };
  const store = storeRow("dx", "params.I", fours, (v) => `${added("dx", fours)}params.scale * ${v}`);
  const as = elementFor(fours);
  return [
    kernel({
      label: `linearBackward ${tile.BM}x${tile.BN}`,
      bindings: { dy: { tensor: dy, as }, w: { tensor: w, as }, dx: { tensor: dx, as } },
      body: gemm({ tile, a, b, fours, depthFrom: "0u", depthTo: "params.O", store }),
      sizes: { block: BK, O, I, accumulate: accumulate ? 1 : 0 },
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
  const [tile, fours] = [tileFor(O, I), areFours(O, I)];
  const sliceRows = size <= MAX_SLICED ? SLICE_ROWS : 2 ** 31;
  const slices = (n: number): number => Math.ceil(n / sliceRows);
  const as = elementFor(fours);
  const product = kernel({
    label: `weightGrad ${tile.BM}x${tile.BN}`,
    bindings: { dy: { tensor: dy, as }, x: { tensor: x, as }, scratch: { tensor: SCRATCH, as: "f32" } },
    body: gemm({
      tile,
      a: { name: "dy", rows: "params.rows", columns: "params.O", depth: "rows" },
      b: { name: "x", rows: "params.rows", columns: "params.I", depth: "rows" },
      fours,
      depthFrom: "group.z * params.sliceRows",
      depthTo: "min(params.rows, (group.z + 1u) * params.sliceRows)",
      store: `  if (m >= params.O) { return; }
  for (var q = 0u; q < 4u && n + q < params.I; q++) { scratch[(slice * params.O + m) * params.I + n + q] = v[q]; }`,
    }),
    sizes: { block: BK, O, I, sliceRows },
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

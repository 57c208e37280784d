// linear, linearBackward, weightGrad: the three products of a linear layer, from one generator (wgsl/gemm.ts).
//   y[t, o]  = residual + bias + scale · Σ_i x[t, i]·w[o, i]
//   dx[t, i] = (dx) + scale · Σ_o dy[t, o]·w[o, i]
//   dw[o, i] += scale · Σ_t dy[t, o]·x[t, i]
// weightGrad of a narrow matrix (LoRA) has few results and many rows: it is cut into slices of 64 rows whose partial sums a second
// dispatch adds up in order. The slice length never changes, so the same rows give the same bits in every plan.

import type { Step, Tensor } from "../../plan/step.ts";
import { gemm, type Matrix, tileFor } from "../../wgsl/gemm.ts";
import { type Bindings, columnsOf, type Dispatch, type Element, flat, flatGroups, float, kernel, SCRATCH } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const elementFor = (columns: number): Element => (columns % 4 === 0 ? "vec4f" : "f32");

/** Statements that set target[m, n … n + 3] from `value(component suffix, element index, column)` where m and n lie inside. */
const storeRow = (
  target: string,
  rows: string,
  columns: number,
  value: (v: string, index: string, column: string) => string,
): string => `  if (m >= ${rows} || n >= ${columns}u) { return; }
  ${
    columns % 4 === 0
      ? `let e = (m * ${columns}u + n) / 4u;
  ${target}[e] = ${value("v", "e", "n / 4u")};`
      : `for (var q = 0u; q < min(4u, ${columns}u - n); q++) {
    let e = m * ${columns}u + n + q;
    ${target}[e] = ${value("v[q]", "e", "n + q")};
  }`
  }`;

const isSame = (a: Tensor, b: Tensor): boolean =>
  a === b || ((a.view?.of ?? a) === (b.view?.of ?? b) && (a.view?.offset ?? 0) === (b.view?.offset ?? 0));

export const linear = ({ rows, x, w, bias, residual, y, scale }: Of<"linear">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const tile = tileFor(rows.capacity, O);
  const inPlace = residual !== undefined && isSame(residual, y);
  const a: Matrix = { name: "x", rows: "params.rows", columns: I, depth: "columns" };
  const b: Matrix = { name: "w", rows: `${O}u`, columns: I, depth: "columns" };
  const before = residual ? `${inPlace ? "y" : "residual"}[INDEX] + ` : "";
  const after = bias ? " + bias[COLUMN]" : "";
  const body = gemm({
    tile,
    a,
    b,
    depthFrom: "0u",
    depthTo: `${I}u`,
    store: storeRow("y", "params.rows", O, (v, index, column) =>
      `${before}${float(scale)} * ${v}${after}`.replace("INDEX", index).replace("COLUMN", column),
    ),
  });
  const bindings: Bindings = {
    x: { tensor: x, as: elementFor(I) },
    w: { tensor: w, as: elementFor(I) },
    ...(bias && { bias: { tensor: bias, as: elementFor(O) } }),
    ...(residual && !inPlace && { residual: { tensor: residual, as: elementFor(O) } }),
    y: { tensor: y, as: elementFor(O) },
  };
  return [
    kernel({
      label: `linear ${O}x${I}`,
      bindings,
      body,
      rows,
      groups: (n) => [Math.ceil(O / tile.BN), Math.ceil(n / tile.BM), 1],
      work: O * I,
    }),
  ];
};

export const linearBackward = ({ rows, dy, w, dx, scale, accumulate }: Of<"linearBackward">): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const tile = tileFor(rows.capacity, I);
  const body = gemm({
    tile,
    a: { name: "dy", rows: "params.rows", columns: O, depth: "columns" },
    b: { name: "w", rows: `${O}u`, columns: I, depth: "rows" },
    depthFrom: "0u",
    depthTo: `${O}u`,
    store: storeRow("dx", "params.rows", I, (v, index) => `${accumulate ? `dx[${index}] + ` : ""}${float(scale)} * ${v}`),
  });
  return [
    kernel({
      label: `linearBackward ${O}x${I}`,
      bindings: {
        dy: { tensor: dy, as: elementFor(O) },
        w: { tensor: w, as: elementFor(I) },
        dx: { tensor: dx, as: elementFor(I) },
      },
      body,
      rows,
      groups: (n) => [Math.ceil(I / tile.BN), Math.ceil(n / tile.BM), 1],
      work: O * I,
    }),
  ];
};

const SLICE_ROWS = 64;
/** Above this many results the product has enough workgroups by itself. */
const MAX_SLICED = 1 << 18;

export const weightGrad = ({ rows, dy, x, dw, scale }: Of<"weightGrad">): Dispatch[] => {
  const [O, I] = [columnsOf(dy), columnsOf(x)];
  const size = O * I;
  const tile = tileFor(O, I);
  const isSliced = size <= MAX_SLICED;
  const slices = (n: number): number => (isSliced ? Math.ceil(n / SLICE_ROWS) : 1);
  const store = isSliced
    ? `  if (m >= ${O}u) { return; }
  for (var q = 0u; n + q < ${I}u && q < 4u; q++) { scratch[slice * ${size}u + m * ${I}u + n + q] = v[q]; }`
    : storeRow("dw", `${O}u`, I, (v, index) => `dw[${index}] + ${float(scale)} * ${v}`);
  const product = kernel({
    label: `weightGrad ${O}x${I}`,
    bindings: {
      dy: { tensor: dy, as: elementFor(O) },
      x: { tensor: x, as: elementFor(I) },
      ...(isSliced ? { scratch: { tensor: SCRATCH, as: "f32" } } : { dw: { tensor: dw, as: elementFor(I) } }),
    },
    body: gemm({
      tile,
      a: { name: "dy", rows: "params.rows", columns: O, depth: "rows" },
      b: { name: "x", rows: "params.rows", columns: I, depth: "rows" },
      depthFrom: isSliced ? `group.z * ${SLICE_ROWS}u` : "0u",
      depthTo: isSliced ? `min(params.rows, group.z * ${SLICE_ROWS}u + ${SLICE_ROWS}u)` : "params.rows",
      store,
    }),
    rows,
    groups: (n) => [Math.ceil(I / tile.BN), Math.ceil(O / tile.BM), n ? slices(n) : 0],
    work: size,
    scratchBytes: isSliced ? slices(rows.capacity) * size * 4 : 0,
  });
  if (!isSliced) return [product];
  const sum = kernel({
    label: `weightGrad sum ${O}x${I}`,
    bindings: { scratch: { tensor: SCRATCH, as: "f32" }, dw: { tensor: dw, as: "f32" } },
    body: flat(
      `${size}u`,
      `let slices = (params.rows + ${SLICE_ROWS - 1}u) / ${SLICE_ROWS}u;
  var sum = 0.0;
  for (var slice = 0u; slice < slices; slice++) { sum += scratch[slice * ${size}u + i]; }
  dw[i] += ${float(scale)} * sum;`,
    ),
    rows,
    groups: (n) => (n ? flatGroups(size) : [0, 0, 0]),
    work: size / SLICE_ROWS,
  });
  return [product, sum];
};

// Moves and element-wise maps: embed, gatherRows, scatterRows, kvAppend, kvCopy, zero, copy, rope, glu and its gradient. One thread an element.

import { type Activation, type Step, sizeOf } from "../../plan/step.ts";
import { isPacked, packedLayout } from "../../weights/formats.ts";
import { elementOf, type Matrix, reader } from "../../wgsl/matrix.ts";
import { shardsOf } from "../shards.ts";
import { columnsOf, type Dispatch, flat, flatGroups, kernel } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** A table in shards: each dispatch makes the rows whose tokens lie in its shard. */
export const embed = ({ rows, table, tokens, y, scale }: Of<"embed">, target: Target): Dispatch[] => {
  const D = columnsOf(table);
  const format = isPacked(table.dtype) ? table.dtype : "f32";
  const read = isPacked(table.dtype) ? "quad_table(token, column - column % 4u)[column % 4u]" : "fetch_table(token, column)";
  const matrix: Matrix = { name: "table", rows: "params.V", columns: "params.D", depth: "columns", format, scaleWord: "params.scaleWord" };
  return shardsOf(table, target.bindingBytes).map(({ tensor, first }) =>
    kernel({
      label: `embed ${format}`,
      bindings: {
        table: { tensor, as: elementOf(format) },
        tokens,
        y,
      },
      body:
        reader(matrix) +
        flat(
          "params.rows * params.D",
          `let token = u32(tokens[i / params.D]) - params.first;
  let column = i % params.D;
  if (token < params.V) { y[i] = params.scale * ${read}; }`,
        ),
      rows,
      sizes: {
        V: tensor.shape[0]!,
        D,
        first,
        scaleWord: isPacked(tensor.dtype) ? packedLayout(tensor.dtype, sizeOf(tensor)).scaleWord : 0,
      },
      numbers: { scale },
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
  );
};

export const gatherRows = ({ rows, x, index, y }: Of<"gatherRows">): Dispatch[] => {
  const D = columnsOf(x);
  return [
    kernel({
      label: "gatherRows",
      bindings: { x, index, y },
      body: flat("params.rows * params.D", "y[i] = x[u32(index[i / params.D]) * params.D + i % params.D];"),
      rows,
      sizes: { D },
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
  ];
};

/** Two dispatches: the rows that no index names must become zero, and dispatches of one pass are ordered. */
export const scatterRows = ({ rows, outRows, dy, index, dx }: Of<"scatterRows">): Dispatch[] => {
  const D = columnsOf(dx);
  return [
    kernel({
      label: "scatterRows zero",
      bindings: { dx },
      body: flat("params.rows * params.D", "dx[i] = 0.0;"),
      rows,
      sizes: { D },
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
    kernel({
      label: "scatterRows",
      bindings: { dy, index, dx },
      body: flat("params.rows * params.D", "dx[u32(index[i / params.D]) * params.D + i % params.D] = dy[i];"),
      rows: outRows,
      sizes: { D },
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
  ];
};

export const kvAppend = ({ rows, k, v, slots, positions, kCache, vCache }: Of<"kvAppend">): Dispatch[] => {
  const [, P, W] = kCache.shape as [number, number, number];
  return [
    kernel({
      label: "kvAppend",
      bindings: {
        k,
        v,
        slots,
        positions,
        kCache,
        vCache,
      },
      body: flat(
        "params.rows * params.W",
        `let row = i / params.W;
  let e = (u32(slots[row]) * params.P + u32(positions[row])) * params.W + i % params.W;
  kCache[e] = k[i];
  vCache[e] = v[i];`,
      ),
      sizes: { P, W },
      rows,
      groups: (n) => flatGroups(n * W),
      work: 2 * W,
    }),
  ];
};

/** Pairs of slots; a thread for each element that a slot has, and those beyond the length return. */
export const kvCopy = ({ rows, from, to, length, kCache, vCache }: Of<"kvCopy">): Dispatch[] => {
  const [, P, W] = kCache.shape as [number, number, number];
  return [
    kernel({
      label: "kvCopy",
      bindings: {
        source: from,
        goal: to,
        length,
        kCache: { tensor: kCache, as: "u32" },
        vCache: { tensor: vCache, as: "u32" },
      },
      body: flat(
        "params.rows * params.P * params.W",
        `let perSlot = params.P * params.W;
  let pair = i / perSlot;
  let e = i % perSlot;
  if (e >= u32(length[pair]) * params.W) { return; }
  let a = u32(source[pair]) * perSlot + e;
  let b = u32(goal[pair]) * perSlot + e;
  kCache[b] = kCache[a];
  vCache[b] = vCache[a];`,
      ),
      sizes: { P, W },
      rows,
      groups: (n) => flatGroups(n * P * W),
      work: 2 * P * W,
    }),
  ];
};

export const zero = ({ x }: Of<"zero">): Dispatch[] => {
  const size = sizeOf(x);
  return [
    kernel({
      label: "zero",
      bindings: { x: { tensor: x, as: "u32" } },
      body: flat("params.size", "x[i] = 0u;"),
      sizes: { size },
      groups: () => flatGroups(size),
      work: size,
    }),
  ];
};

export const copy = ({ x, y }: Of<"copy">): Dispatch[] => {
  const size = sizeOf(x);
  return [
    kernel({
      label: "copy",
      bindings: { x: { tensor: x, as: "u32" }, y: { tensor: y, as: "u32" } },
      body: flat("params.size", "y[i] = x[i];"),
      sizes: { size },
      groups: () => flatGroups(size),
      work: size,
    }),
  ];
};

/** One thread a pair (i, i + C/2): x0' = x0·cos − d·x1·sin, x1' = x1·cos + d·x0·sin. */
export const rope = ({ rows, x, table, positions, heads, direction }: Of<"rope">): Dispatch[] => {
  const half = columnsOf(table) / 2;
  const pairs = heads * half;
  return [
    kernel({
      label: "rope",
      bindings: {
        x,
        table,
        positions,
      },
      body: flat(
        "params.rows * params.pairs",
        `let row = i / params.pairs;
  let pair = i % params.pairs;
  let low = 2u * (i - pair % params.half) + pair % params.half;
  let angle = u32(positions[row]) * 2u * params.half + pair % params.half;
  let cosine = table[angle];
  let sine = params.direction * table[angle + params.half];
  let x0 = x[low];
  let x1 = x[low + params.half];
  x[low] = x0 * cosine - x1 * sine;
  x[low + params.half] = x1 * cosine + x0 * sine;`,
      ),
      sizes: { half, pairs },
      numbers: { direction },
      rows,
      groups: (n) => flatGroups(n * pairs),
      work: 4 * pairs,
    }),
  ];
};

// The clamp keeps exp finite (WGSL leaves infinities undefined); beyond it σ(g) equals its limit to within e⁻⁸⁰.
const sigmoid = "fn sigmoid(g: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(g, -80.0, 80.0))); }\n";

/** act(g) = g·σ(u), u = g·(p + q·g²), u' = p + 3·q·g²: tanh-GELU's u = √(8/π)·(g + 0.044715·g³). Numbers, so that both are one pipeline. */
const ARGUMENTS: { readonly [A in Activation]: { readonly p: number; readonly q: number } } = {
  silu: { p: 1, q: 0 },
  tanhGelu: { p: Math.sqrt(8 / Math.PI), q: Math.sqrt(8 / Math.PI) * 0.044715 },
};

/** y = act(gate)∘up. */
export const glu = ({ rows, gate, up, y, activation }: Of<"glu">): Dispatch[] => {
  const F = columnsOf(gate);
  return [
    kernel({
      label: "glu",
      bindings: { gate, up, y },
      body:
        sigmoid +
        flat(
          "params.rows * params.F",
          `let g = gate[i];
  y[i] = g * sigmoid(g * (params.p + params.q * g * g)) * up[i];`,
        ),
      rows,
      sizes: { F },
      numbers: ARGUMENTS[activation],
      groups: (n) => flatGroups(n * F),
      work: 4 * F,
    }),
  ];
};

/** gate ← dy·up·s·(1 + g·u'·(1 − s)), s = σ(u); up ← dy·act(g). */
export const gluBackward = ({ rows, gate, up, dy, activation }: Of<"gluBackward">): Dispatch[] => {
  const F = columnsOf(gate);
  return [
    kernel({
      label: "gluBackward",
      bindings: { gate, up, dy },
      body:
        sigmoid +
        flat(
          "params.rows * params.F",
          `let g = gate[i];
  let s = sigmoid(g * (params.p + params.q * g * g));
  let slope = params.p + 3.0 * params.q * g * g;
  let d = dy[i];
  gate[i] = d * up[i] * s * (1.0 + g * slope * (1.0 - s));
  up[i] = d * g * s;`,
        ),
      rows,
      sizes: { F },
      numbers: ARGUMENTS[activation],
      groups: (n) => flatGroups(n * F),
      work: 8 * F,
    }),
  ];
};

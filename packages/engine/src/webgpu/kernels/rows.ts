// Moves and element-wise maps: embed, gatherRows, scatterRows, kvAppend, zero, copy, rope, glu and its gradient. One thread an element.

import { type Step, sizeOf } from "../../plan/step.ts";
import { columnsOf, type Dispatch, flat, flatGroups, kernel } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

export const embed = ({ rows, table, tokens, y }: Of<"embed">): Dispatch[] => {
  const D = columnsOf(table);
  return [
    kernel({
      label: `embed ${D}`,
      bindings: { table: { tensor: table, as: "f32" }, tokens: { tensor: tokens, as: "i32" }, y: { tensor: y, as: "f32" } },
      body: flat(`params.rows * ${D}u`, `y[i] = table[u32(tokens[i / ${D}u]) * ${D}u + i % ${D}u];`),
      rows,
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
  ];
};

export const gatherRows = ({ rows, x, index, y }: Of<"gatherRows">): Dispatch[] => {
  const D = columnsOf(x);
  return [
    kernel({
      label: `gatherRows ${D}`,
      bindings: { x: { tensor: x, as: "f32" }, index: { tensor: index, as: "i32" }, y: { tensor: y, as: "f32" } },
      body: flat(`params.rows * ${D}u`, `y[i] = x[u32(index[i / ${D}u]) * ${D}u + i % ${D}u];`),
      rows,
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
      label: `scatterRows zero ${D}`,
      bindings: { dx: { tensor: dx, as: "f32" } },
      body: flat(`params.rows * ${D}u`, "dx[i] = 0.0;"),
      rows,
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
    kernel({
      label: `scatterRows ${D}`,
      bindings: { dy: { tensor: dy, as: "f32" }, index: { tensor: index, as: "i32" }, dx: { tensor: dx, as: "f32" } },
      body: flat(`params.rows * ${D}u`, `dx[u32(index[i / ${D}u]) * ${D}u + i % ${D}u] = dy[i];`),
      rows: outRows,
      groups: (n) => flatGroups(n * D),
      work: D,
    }),
  ];
};

export const kvAppend = ({ rows, k, v, slots, positions, kCache, vCache }: Of<"kvAppend">): Dispatch[] => {
  const [, P, W] = kCache.shape as [number, number, number];
  return [
    kernel({
      label: `kvAppend ${W}`,
      bindings: {
        k: { tensor: k, as: "f32" },
        v: { tensor: v, as: "f32" },
        slots: { tensor: slots, as: "i32" },
        positions: { tensor: positions, as: "i32" },
        kCache: { tensor: kCache, as: "f32" },
        vCache: { tensor: vCache, as: "f32" },
      },
      body: flat(
        `params.rows * ${W}u`,
        `let row = i / ${W}u;
  let e = (u32(slots[row]) * ${P}u + u32(positions[row])) * ${W}u + i % ${W}u;
  kCache[e] = k[i];
  vCache[e] = v[i];`,
      ),
      rows,
      groups: (n) => flatGroups(n * W),
      work: 2 * W,
    }),
  ];
};

export const zero = ({ x }: Of<"zero">): Dispatch[] => {
  const size = sizeOf(x);
  return [
    kernel({
      label: "zero",
      bindings: { x: { tensor: x, as: "u32" } },
      body: flat(`${size}u`, "x[i] = 0u;"),
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
      body: flat(`${size}u`, "y[i] = x[i];"),
      groups: () => flatGroups(size),
      work: size,
    }),
  ];
};

/** One thread a pair (i, i + C/2): x0' = x0·cos − d·x1·sin, x1' = x1·cos + d·x0·sin. */
export const rope = ({ rows, x, table, positions, heads, direction }: Of<"rope">): Dispatch[] => {
  const C = columnsOf(table);
  const half = C / 2;
  const pairs = heads * half;
  const sign = direction === 1 ? "" : "-";
  return [
    kernel({
      label: `rope ${heads}x${C}`,
      bindings: {
        x: { tensor: x, as: "f32" },
        table: { tensor: table, as: "f32" },
        positions: { tensor: positions, as: "i32" },
      },
      body: flat(
        `params.rows * ${pairs}u`,
        `let row = i / ${pairs}u;
  let pair = i % ${pairs}u;
  let low = row * ${heads * C}u + (pair / ${half}u) * ${C}u + pair % ${half}u;
  let angle = u32(positions[row]) * ${C}u + pair % ${half}u;
  let cosine = table[angle];
  let sine = ${sign}table[angle + ${half}u];
  let x0 = x[low];
  let x1 = x[low + ${half}u];
  x[low] = x0 * cosine - x1 * sine;
  x[low + ${half}u] = x1 * cosine + x0 * sine;`,
      ),
      rows,
      groups: (n) => flatGroups(n * pairs),
      work: 4 * pairs,
    }),
  ];
};

// The clamp keeps exp finite (WGSL leaves infinities undefined); beyond it σ(g) equals its limit to within e⁻⁸⁰.
const sigmoid = "fn sigmoid(g: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(g, -80.0, 80.0))); }\n";

/** y = silu(gate)∘up, silu(g) = g·σ(g). */
export const glu = ({ rows, gate, up, y }: Of<"glu">): Dispatch[] => {
  const F = columnsOf(gate);
  return [
    kernel({
      label: `glu ${F}`,
      bindings: { gate: { tensor: gate, as: "f32" }, up: { tensor: up, as: "f32" }, y: { tensor: y, as: "f32" } },
      body: sigmoid + flat(`params.rows * ${F}u`, "y[i] = gate[i] * sigmoid(gate[i]) * up[i];"),
      rows,
      groups: (n) => flatGroups(n * F),
      work: 4 * F,
    }),
  ];
};

/** gate ← dy·up·σ(g)(1 + g(1 − σ(g))), up ← dy·silu(g). */
export const gluBackward = ({ rows, gate, up, dy }: Of<"gluBackward">): Dispatch[] => {
  const F = columnsOf(gate);
  return [
    kernel({
      label: `gluBackward ${F}`,
      bindings: { gate: { tensor: gate, as: "f32" }, up: { tensor: up, as: "f32" }, dy: { tensor: dy, as: "f32" } },
      body:
        sigmoid +
        flat(
          `params.rows * ${F}u`,
          `let g = gate[i];
  let s = sigmoid(g);
  let d = dy[i];
  gate[i] = d * up[i] * s * (1.0 + g * (1.0 - s));
  up[i] = d * g * s;`,
        ),
      rows,
      groups: (n) => flatGroups(n * F),
      work: 8 * F,
    }),
  ];
};

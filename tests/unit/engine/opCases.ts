// Named cases for every operation of plan/step.ts: what goes in, which tensors come out, how close a backend must be.
// Nothing is expected here: the reference executor gives the numbers. Everything is made by a seeded generator.
// Rows beyond the row count hold NaN (inputs), a wild index (i32) or SENTINEL (outputs): a backend that touches them shows it.

import type { Backend, HostArray, TensorData } from "../../../packages/engine/src/plan/backend.ts";
import {
  headParts,
  LANE,
  LANE_WIDTH,
  type OpName,
  operandsOf,
  type PackedDtype,
  type Rows,
  type Step,
  sizeOf,
  type Tensor,
  type Vars,
} from "../../../packages/engine/src/plan/step.ts";
import { runStep } from "../../../packages/engine/src/reference/backend.ts";
import { byteLengthOf, packInto, unpack } from "../../../packages/engine/src/weights/formats.ts";

export interface OpCase {
  readonly name: string;
  readonly step: Step;
  /** First contents of tensors that are not views; a tensor that is absent starts at zero. */
  readonly inputs: ReadonlyMap<Tensor, TensorData>;
  /** The packed dtype that its weight has; a backend that does not read it yet skips the case. */
  readonly packed?: PackedDtype;
  readonly vars: Vars;
  /** What is compared, whole tensors (no views). */
  readonly outputs: readonly Tensor[];
  /** |got − want| ≤ tolerance·(1 + |want|). */
  readonly tolerance: number;
}

export const SENTINEL = -7.25;
const WILD_INDEX = 0x7fff_fff0;

/** Uniform numbers in [0, 1) (mulberry32). */
export const createRandom = (seed: number): (() => number) => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
};

/** Standard normal numbers (Box and Muller). */
export const createNormal =
  (random: () => number): (() => number) =>
  () =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

/** How a step's rows lie: n live rows out of `capacity`, from row `base` of the run on. */
interface Layout {
  readonly rows: Rows;
  readonly n: number;
  readonly vars: Vars;
}

const layout = (
  n: number,
  { count = "rows", base = 0, spare = 3 }: { count?: Rows["count"]; base?: number; spare?: number } = {},
): Layout => ({
  rows: { count, base, capacity: n + spare },
  n,
  // With n = 0 the run ends well before this chunk.
  vars: { [count]: n === 0 ? Math.max(0, base - 24) : base + n },
});

const createBuilder = (seed: number) => {
  const random = createRandom(seed);
  const normal = createNormal(random);
  const inputs = new Map<Tensor, TensorData>();
  const outputs: Tensor[] = [];

  /** An io tensor with `at.n` live rows of `width` numbers (0: a vector of one number a row); a view of a longer one when base > 0. */
  const rowTensor = (
    name: string,
    width: number,
    at: Layout,
    dtype: Tensor["dtype"],
    fill: (i: number) => number,
    rest: number,
  ): Tensor => {
    const unit = Math.max(width, 1);
    const shapeOf = (rows: number): number[] => (width === 0 ? [rows] : [rows, width]);
    const { base, capacity } = at.rows;
    const whole: Tensor = { name, shape: shapeOf(base + capacity), dtype, home: "io" };
    const data = dtype === "i32" ? new Int32Array(sizeOf(whole)) : new Float32Array(sizeOf(whole));
    data.fill(rest);
    for (let i = 0; i < at.n * unit; i++) data[base * unit + i] = fill(i);
    inputs.set(whole, data);
    return base === 0 ? whole : { ...whole, name: `${name}[${base}]`, shape: shapeOf(capacity), view: { of: whole, offset: base * unit } };
  };
  const output = (tensor: Tensor): Tensor => {
    outputs.push(tensor.view?.of ?? tensor);
    return tensor;
  };
  return {
    random,
    normal,
    inputs,
    outputs,
    output,
    rowsIn: (name: string, width: number, at: Layout, fill: (i: number) => number = normal) =>
      rowTensor(name, width, at, "f32", fill, Number.NaN),
    rowsOut: (name: string, width: number, at: Layout, dtype: Tensor["dtype"] = "f32") =>
      output(rowTensor(name, width, at, dtype, () => SENTINEL, SENTINEL)),
    rowsInOut: (name: string, width: number, at: Layout, fill: (i: number) => number = normal) =>
      output(rowTensor(name, width, at, "f32", fill, Number.NaN)),
    indices: (name: string, at: Layout, pick: (row: number) => number) => rowTensor(name, 0, at, "i32", pick, WILD_INDEX),
    whole: (name: string, shape: readonly number[], home: Tensor["home"] = "weights", fill: (i: number) => number = normal): Tensor => {
      const tensor: Tensor = { name, shape, dtype: "f32", home };
      inputs.set(
        tensor,
        Float32Array.from({ length: sizeOf(tensor) }, (_, i) => fill(i)),
      );
      return tensor;
    },
    /** A weight [O, I] in a packed dtype. */
    packed: (name: string, shape: readonly [number, number], dtype: PackedDtype, fill: (i: number) => number = normal): Tensor => {
      const tensor: Tensor = { name, shape, dtype, home: "weights" };
      const words = new Uint32Array(byteLengthOf(tensor) / 4);
      packInto(
        tensor,
        words,
        Float32Array.from({ length: sizeOf(tensor) }, (_, i) => fill(i)),
      );
      inputs.set(tensor, words);
      return tensor;
    },
    /** A [rows, columns] view into a longer state buffer, the way LoRA parameters lie. */
    stateView: (name: string, shape: readonly [number, number], offset = 128): { whole: Tensor; view: Tensor } => {
      const length = offset + Math.ceil((shape[0] * shape[1]) / 64) * 64 + 64;
      const whole: Tensor = { name: `${name}.flat`, shape: [length], dtype: "f32", home: "state" };
      inputs.set(whole, Float32Array.from({ length }, normal));
      return { whole, view: { name, shape, dtype: "f32", home: "state", view: { of: whole, offset } } };
    },
  };
};
type Builder = ReturnType<typeof createBuilder>;

/** Steps without rows have no vars of their own. */
type Made = { step: Step; vars: Vars; tolerance?: number };
const cases: { name: string; packed?: PackedDtype; make: (b: Builder) => Made }[] = [];
const add = (name: string, make: (b: Builder) => Made): void => {
  cases.push({ name, make });
};

/* ---- rows ---- */

for (const [n, width, options] of [
  [1, 32, {}],
  [5, 64, {}],
  [37, 20, {}],
  [6, 32, { base: 64 }],
] as const) {
  const at = layout(n, options);
  add(`embed, ${n} rows of ${width}, base ${at.rows.base}`, (b) => ({
    step: {
      op: "embed",
      rows: at.rows,
      table: b.whole("table", [50, width]),
      tokens: b.indices("tokens", at, (row) => (row === 0 ? 49 : Math.floor(b.random() * 50))),
      y: b.rowsOut("y", width, at),
      scale: 1,
    },
    vars: at.vars,
    tolerance: 0,
  }));
  add(`rmsNorm, ${n} rows of ${width}, base ${at.rows.base}`, (b) => ({
    step: {
      op: "rmsNorm",
      rows: at.rows,
      x: b.rowsIn("x", width, at),
      gain: b.whole("gain", [width]),
      y: b.rowsOut("y", width, at),
      rstd: b.rowsOut("rstd", 0, at),
      eps: 1e-5,
    },
    vars: at.vars,
  }));
  add(`rmsNormBackward, ${n} rows of ${width}, base ${at.rows.base}`, (b) => ({
    step: {
      op: "rmsNormBackward",
      rows: at.rows,
      x: b.rowsIn("x", width, at),
      gain: b.whole("gain", [width]),
      rstd: b.rowsIn("rstd", 0, at, () => 0.5 + b.random()),
      dy: b.rowsIn("dy", width, at),
      dx: b.rowsInOut("dx", width, at),
      accumulate: true,
    },
    vars: at.vars,
  }));
  for (const activation of ["silu", "tanhGelu"] as const) {
    add(`glu, ${activation}, ${n} rows of ${width}, base ${at.rows.base}`, (b) => ({
      step: {
        op: "glu",
        rows: at.rows,
        gate: b.rowsIn("gate", width, at, () => 4 * b.normal()),
        up: b.rowsIn("up", width, at),
        y: b.rowsOut("y", width, at),
        activation,
      },
      vars: at.vars,
    }));
    add(`gluBackward, ${activation}, ${n} rows of ${width}, base ${at.rows.base}`, (b) => ({
      step: {
        op: "gluBackward",
        rows: at.rows,
        gate: b.rowsInOut("gate", width, at, () => 4 * b.normal()),
        up: b.rowsInOut("up", width, at),
        dy: b.rowsIn("dy", width, at),
        activation,
      },
      vars: at.vars,
    }));
  }
}
add("embed, scaled", (b) => {
  const at = layout(5);
  return {
    step: {
      op: "embed",
      rows: at.rows,
      table: b.whole("table", [50, 37]),
      tokens: b.indices("tokens", at, (row) => 49 - row),
      y: b.rowsOut("y", 37, at),
      scale: Math.sqrt(640),
    },
    vars: at.vars,
    tolerance: 1e-6,
  };
});
for (const [n, groups, width] of [
  [1, 1, 32],
  [5, 3, 16],
  [37, 4, 20],
  [6, 2, 256],
] as const) {
  const at = layout(n);
  add(`rmsNorm, ${n} rows of ${groups} groups of ${width}`, (b) => ({
    step: {
      op: "rmsNorm",
      rows: at.rows,
      x: b.rowsIn("x", groups * width, at),
      gain: b.whole("gain", [width]),
      y: b.rowsOut("y", groups * width, at),
      rstd: b.rowsOut("rstd", groups, at),
      eps: 1e-6,
    },
    vars: at.vars,
  }));
  add(`rmsNorm, ${n} rows of ${groups} groups of ${width}, added to a residual`, (b) => ({
    step: {
      op: "rmsNorm",
      rows: at.rows,
      x: b.rowsIn("x", groups * width, at),
      gain: b.whole("gain", [width]),
      residual: b.rowsIn("residual", groups * width, at),
      y: b.rowsOut("y", groups * width, at),
      rstd: b.rowsOut("rstd", groups, at),
      eps: 1e-6,
    },
    vars: at.vars,
  }));
  add(`rmsNormBackward, ${n} rows of ${groups} groups of ${width}, overwrites`, (b) => ({
    step: {
      op: "rmsNormBackward",
      rows: at.rows,
      x: b.rowsIn("x", groups * width, at),
      gain: b.whole("gain", [width]),
      rstd: b.rowsIn("rstd", groups, at, () => 0.5 + b.random()),
      dy: b.rowsIn("dy", groups * width, at),
      // What lies in dx before is NaN: it must not be read.
      dx: b.rowsInOut("dx", groups * width, at, () => Number.NaN),
      accumulate: false,
    },
    vars: at.vars,
  }));
}
add("rmsNorm, a row of zeros and a wide row of large numbers", (b) => {
  const at = layout(2);
  return {
    step: {
      op: "rmsNorm",
      rows: at.rows,
      x: b.rowsIn("x", 576, at, (i) => (i < 576 ? 0 : 1e3 * b.normal())),
      gain: b.whole("gain", [576]),
      y: b.rowsOut("y", 576, at),
      rstd: b.rowsOut("rstd", 0, at),
      eps: 1e-6,
    },
    vars: at.vars,
  };
});
for (const activation of ["silu", "tanhGelu"] as const) {
  const gates = [-120, -88, 88, 120];
  add(`glu, ${activation}, gates far from zero`, (b) => {
    const at = layout(4);
    return {
      step: {
        op: "glu",
        rows: at.rows,
        gate: b.rowsIn("gate", 4, at, (i) => gates[i % 4]!),
        up: b.rowsIn("up", 4, at),
        y: b.rowsOut("y", 4, at),
        activation,
      },
      vars: at.vars,
    };
  });
  add(`gluBackward, ${activation}, gates far from zero`, (b) => {
    const at = layout(4);
    return {
      step: {
        op: "gluBackward",
        rows: at.rows,
        gate: b.rowsInOut("gate", 4, at, (i) => gates[i % 4]!),
        up: b.rowsInOut("up", 4, at),
        dy: b.rowsIn("dy", 4, at),
        activation,
      },
      vars: at.vars,
    };
  });
}

for (const [tokenRows, outRows, width] of [
  [1, 1, 32],
  [37, 5, 32],
  [37, 37, 20],
  [9, 0, 32],
] as const) {
  const tokensAt = layout(tokenRows);
  const at = layout(outRows, { count: "outRows" });
  const vars = { rows: tokenRows, outRows };
  // Every second row from the end, then the others: distinct, not sorted.
  const index = [
    ...Array.from({ length: tokenRows }, (_, i) => tokenRows - 1 - i).filter((i) => i % 2 === 0),
    ...Array.from({ length: tokenRows }, (_, i) => i).filter((i) => i % 2 === 1),
  ];
  add(`gatherRows, ${outRows} of ${tokenRows} rows of ${width}`, (b) => ({
    step: {
      op: "gatherRows",
      rows: at.rows,
      x: b.rowsIn("x", width, tokensAt),
      index: b.indices("index", at, (row) => index[row]!),
      y: b.rowsOut("y", width, at),
    },
    vars,
    tolerance: 0,
  }));
  add(`scatterRows, ${outRows} into ${tokenRows} rows of ${width}`, (b) => ({
    step: {
      op: "scatterRows",
      rows: tokensAt.rows,
      outRows: at.rows,
      dy: b.rowsIn("dy", width, at),
      index: b.indices("index", at, (row) => index[row]!),
      dx: b.rowsInOut("dx", width, tokensAt),
    },
    vars,
    tolerance: 0,
  }));
}

/* ---- linear ---- */

const LINEAR_SHAPES = [
  // rows, I, O
  [1, 32, 64],
  [5, 64, 50],
  [37, 96, 32],
  [70, 64, 130],
  [5, 20, 7],
  [37, 4, 96],
  [37, 96, 4],
  [5, 1, 33],
  [5, 33, 1],
  [2, 576, 48],
] as const;

for (const [n, inner, outer] of LINEAR_SHAPES) {
  const at = layout(n);
  add(`linear, ${n} rows, ${inner} to ${outer}`, (b) => ({
    step: {
      op: "linear",
      rows: at.rows,
      x: b.rowsIn("x", inner, at),
      w: b.whole("w", [outer, inner]),
      y: b.rowsOut("y", outer, at),
      scale: 1,
    },
    vars: at.vars,
  }));
  add(`linearBackward, ${n} rows, ${outer} to ${inner}, overwrites`, (b) => ({
    step: {
      op: "linearBackward",
      rows: at.rows,
      dy: b.rowsIn("dy", outer, at),
      w: b.whole("w", [outer, inner]),
      // What lies in dx before is NaN: it must not be read.
      dx: b.rowsInOut("dx", inner, at, () => Number.NaN),
      scale: 1,
      accumulate: false,
    },
    vars: at.vars,
  }));
  add(`linearBackward, ${n} rows, ${outer} to ${inner}, accumulates, scale 0.5`, (b) => ({
    step: {
      op: "linearBackward",
      rows: at.rows,
      dy: b.rowsIn("dy", outer, at),
      w: b.whole("w", [outer, inner]),
      dx: b.rowsInOut("dx", inner, at),
      scale: 0.5,
      accumulate: true,
    },
    vars: at.vars,
  }));
  add(`weightGrad, ${n} rows, ${outer} by ${inner}, scale 2`, (b) => {
    const dw = b.stateView("dw", [outer, inner]);
    b.output(dw.whole);
    return {
      step: {
        op: "weightGrad",
        rows: at.rows,
        dy: b.rowsIn("dy", outer, at),
        x: b.rowsIn("x", inner, at),
        dw: dw.view,
        scale: 2,
      },
      vars: at.vars,
    };
  });
}
add("weightGrad, 300 rows", (b) => {
  const at = layout(300);
  const dw = b.stateView("dw", [32, 8], 0);
  b.output(dw.whole);
  return {
    step: { op: "weightGrad", rows: at.rows, dy: b.rowsIn("dy", 32, at), x: b.rowsIn("x", 8, at), dw: dw.view, scale: 1 },
    vars: at.vars,
    tolerance: 3e-5,
  };
});
add("linear, bias and another residual, scale 0.25", (b) => {
  const at = layout(37);
  return {
    step: {
      op: "linear",
      rows: at.rows,
      x: b.rowsIn("x", 64, at),
      w: b.whole("w", [50, 64]),
      bias: b.whole("bias", [50]),
      residual: b.rowsIn("residual", 50, at),
      y: b.rowsOut("y", 50, at),
      scale: 0.25,
    },
    vars: at.vars,
  };
});
add("linear, residual is y, weight is a view of a state buffer, scale 2", (b) => {
  const at = layout(37);
  const y = b.rowsInOut("y", 96, at);
  return {
    step: { op: "linear", rows: at.rows, x: b.rowsIn("x", 8, at), w: b.stateView("w", [96, 8]).view, residual: y, y, scale: 2 },
    vars: at.vars,
  };
});
add("linear, residual is y, one row, narrow to wide", (b) => {
  const at = layout(1);
  const y = b.rowsInOut("y", 130, at);
  return {
    step: { op: "linear", rows: at.rows, x: b.rowsIn("x", 64, at), w: b.whole("w", [130, 64]), residual: y, y, scale: 1 },
    vars: at.vars,
  };
});
add("linear, a chunk from row 64 on", (b) => {
  const at = layout(6, { count: "outRows", base: 64 });
  return {
    step: {
      op: "linear",
      rows: at.rows,
      x: b.rowsIn("x", 32, at),
      w: b.whole("w", [50, 32]),
      y: b.rowsOut("y", 50, at),
      scale: 1,
    },
    vars: at.vars,
  };
});
add("linear, no rows left for this chunk", (b) => {
  const at = layout(0, { base: 64 });
  return {
    step: { op: "linear", rows: at.rows, x: b.rowsIn("x", 32, at), w: b.whole("w", [50, 32]), y: b.rowsOut("y", 50, at), scale: 1 },
    vars: at.vars,
  };
});
add("linear, the run has more rows than this chunk holds", (b) => {
  const at = layout(9, { spare: 0 });
  return {
    step: { op: "linear", rows: at.rows, x: b.rowsIn("x", 32, at), w: b.whole("w", [64, 32]), y: b.rowsOut("y", 64, at), scale: 1 },
    vars: { rows: 200 },
  };
});
add("linearBackward, a chunk from row 128 on", (b) => {
  const at = layout(5, { count: "outRows", base: 128 });
  return {
    step: {
      op: "linearBackward",
      rows: at.rows,
      dy: b.rowsIn("dy", 50, at),
      w: b.whole("w", [50, 32]),
      dx: b.rowsInOut("dx", 32, at, () => Number.NaN),
      scale: 1,
      accumulate: false,
    },
    vars: at.vars,
  };
});
add("weightGrad, no rows: unchanged", (b) => {
  const at = layout(0, { base: 64 });
  const dw = b.stateView("dw", [32, 8]);
  b.output(dw.whole);
  return {
    step: { op: "weightGrad", rows: at.rows, dy: b.rowsIn("dy", 32, at), x: b.rowsIn("x", 8, at), dw: dw.view, scale: 1 },
    vars: at.vars,
    tolerance: 0,
  };
});

/* ---- rope and attention ---- */

/** [P, C]: cos in the first half of a row, sin in the second. */
export const ropeTable =
  (headWidth: number, theta: number = 10_000): ((i: number) => number) =>
  (i) => {
    const [position, column] = [Math.floor(i / headWidth), i % headWidth];
    const pair = column % (headWidth / 2);
    const angle = position * theta ** ((-2 * pair) / headWidth);
    return column < headWidth / 2 ? Math.cos(angle) : Math.sin(angle);
  };

for (const [n, heads, headWidth, direction] of [
  [1, 1, 16, 1],
  [5, 3, 6, 1],
  [37, 4, 32, 1],
  [37, 2, 16, -1],
  [5, 2, 64, -1],
] as const) {
  const at = layout(n);
  add(`rope, ${n} rows, ${heads} heads of ${headWidth}, direction ${direction}`, (b) => ({
    step: {
      op: "rope",
      rows: at.rows,
      x: b.rowsInOut("x", heads * headWidth, at),
      table: b.whole("rope", [48, headWidth], "weights", ropeTable(headWidth)),
      positions: b.indices("positions", at, (row) => (row === 0 ? 47 : Math.floor(b.random() * 48))),
      heads,
      direction,
    },
    vars: at.vars,
  }));
}

interface AttentionShape {
  readonly lengths: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly headWidth: number;
  /** Spread of q: larger gives sharper attention. */
  readonly spread?: number;
  readonly window?: number;
}

const ATTENTION_SHAPES: readonly AttentionShape[] = [
  { lengths: [1], heads: 1, kvHeads: 1, headWidth: 16 },
  { lengths: [5], heads: 4, kvHeads: 2, headWidth: 16 },
  { lengths: [5, 1, 9, 22], heads: 4, kvHeads: 2, headWidth: 16 },
  { lengths: [3, 34], heads: 3, kvHeads: 1, headWidth: 32 },
  { lengths: [7, 6], heads: 2, kvHeads: 2, headWidth: 20 },
  { lengths: [40, 100], heads: 6, kvHeads: 2, headWidth: 8 },
  { lengths: [17, 20], heads: 2, kvHeads: 1, headWidth: 64 },
  { lengths: [11], heads: 2, kvHeads: 1, headWidth: 128 },
  { lengths: [30], heads: 2, kvHeads: 1, headWidth: 16, spread: 25 },
  { lengths: [5, 1, 9, 22], heads: 4, kvHeads: 2, headWidth: 16, window: 1 },
  { lengths: [5, 1, 9, 22], heads: 4, kvHeads: 2, headWidth: 16, window: 6 },
  { lengths: [40, 100], heads: 2, kvHeads: 1, headWidth: 8, window: 66 },
  { lengths: [7, 6], heads: 2, kvHeads: 2, headWidth: 20, window: 500 },
];

/** Per row: first row of its sequence and the row after its last one. */
const bounds = (lengths: readonly number[]): { start: number[]; end: number[] } => {
  const [start, end]: [number[], number[]] = [[], []];
  let first = 0;
  for (const length of lengths) {
    for (let i = 0; i < length; i++) {
      start.push(first);
      end.push(first + length);
    }
    first += length;
  }
  return { start, end };
};

/** Inputs of the attention backward ops that fit together: lse, o and delta come from the reference's forward. */
const attentionOperands = (b: Builder, shape: AttentionShape, at: Layout) => {
  const { heads, kvHeads, headWidth, lengths, spread = 1, window } = shape;
  const scale = 1 / Math.sqrt(headWidth);
  const { start, end } = bounds(lengths);
  const q = b.rowsIn("q", heads * headWidth, at, () => spread * b.normal());
  const k = b.rowsIn("k", kvHeads * headWidth, at);
  const v = b.rowsIn("v", kvHeads * headWidth, at);
  const dO = b.rowsIn("dO", heads * headWidth, at);
  const starts = b.indices("start", at, (row) => start[row]!);
  const ends = b.indices("end", at, (row) => end[row]!);
  const o = b.rowsIn("o", heads * headWidth, at, () => 0);
  const lse = b.rowsIn("lse", heads, at, () => 0);
  const delta = b.rowsIn("delta", heads, at, () => 0);
  const valuesOf = (tensor: Tensor): HostArray => b.inputs.get(tensor) as HostArray;
  const shared = { rows: at.rows, heads, kvHeads, scale, ...(window !== undefined && { window }) };
  runStep({ op: "attention", ...shared, q, k, v, start: starts, o, lse }, valuesOf, at.vars);
  runStep({ op: "attentionDelta", rows: at.rows, o, dO, delta, heads }, valuesOf, at.vars);
  return { shared, q, k, v, dO, o, lse, delta, start: starts, end: ends };
};

for (const shape of ATTENTION_SHAPES) {
  const { lengths, heads, kvHeads, headWidth, window } = shape;
  const windowed = window !== undefined && { window };
  const n = lengths.reduce((a, c) => a + c, 0);
  const at = layout(n);
  const label = `sequences of ${lengths.join("+")}, ${heads}/${kvHeads} heads of ${headWidth}${shape.spread ? ", sharp" : ""}${window ? `, window ${window}` : ""}`;
  const tolerance = shape.spread ? 1e-4 : 2e-5;
  add(`attention, ${label}`, (b) => {
    const { start } = bounds(lengths);
    return {
      step: {
        op: "attention",
        rows: at.rows,
        q: b.rowsIn("q", heads * headWidth, at, () => (shape.spread ?? 1) * b.normal()),
        k: b.rowsIn("k", kvHeads * headWidth, at),
        v: b.rowsIn("v", kvHeads * headWidth, at),
        start: b.indices("start", at, (row) => start[row]!),
        o: b.rowsOut("o", heads * headWidth, at),
        lse: b.rowsOut("lse", heads, at),
        heads,
        kvHeads,
        scale: 1 / Math.sqrt(headWidth),
        ...windowed,
      },
      vars: at.vars,
      tolerance,
    };
  });
  add(`attentionDelta, ${label}`, (b) => {
    const { o, dO } = attentionOperands(b, shape, at);
    return { step: { op: "attentionDelta", rows: at.rows, o, dO, delta: b.rowsOut("out", heads, at), heads }, vars: at.vars, tolerance };
  });
  add(`attentionBackwardQ, ${label}`, (b) => {
    const { shared, q, k, v, dO, lse, delta, start } = attentionOperands(b, shape, at);
    const dq = b.rowsOut("dq", heads * headWidth, at);
    return { step: { op: "attentionBackwardQ", ...shared, q, k, v, dO, lse, delta, start, dq }, vars: at.vars, tolerance };
  });
  add(`attentionBackwardKv, ${label}`, (b) => {
    const { shared, q, k, v, dO, lse, delta, end } = attentionOperands(b, shape, at);
    const [dk, dv] = [b.rowsOut("dk", kvHeads * headWidth, at), b.rowsOut("dv", kvHeads * headWidth, at)];
    return { step: { op: "attentionBackwardKv", ...shared, q, k, v, dO, lse, delta, end, dk, dv }, vars: at.vars, tolerance };
  });
  add(`attentionCached, ${label}`, (b) => {
    // Rows of several slots, mixed: a whole sequence prefilled in one run, single rows of others.
    const [slots, positions] = [4, Math.max(...lengths) + 3];
    const slotOf = (row: number): number => (3 * row + 1) % slots;
    const positionOf = (row: number): number => (5 * row + 2) % (positions - 2);
    const last = Array.from({ length: slots }, (_, slot) =>
      Math.max(-1, ...Array.from({ length: n }, (_, row) => row).flatMap((row) => (slotOf(row) === slot ? [positionOf(row)] : []))),
    );
    const width = kvHeads * headWidth;
    const live = (i: number): number => {
      const [slot, position] = [Math.floor(i / (positions * width)), Math.floor(i / width) % positions];
      return position <= last[slot]! ? b.normal() : Number.NaN;
    };
    return {
      step: {
        op: "attentionCached",
        rows: at.rows,
        q: b.rowsIn("q", heads * headWidth, at, () => (shape.spread ?? 1) * b.normal()),
        kCache: b.whole("kCache", [slots, positions, width], "kv", live),
        vCache: b.whole("vCache", [slots, positions, width], "kv", live),
        slots: b.indices("slots", at, slotOf),
        positions: b.indices("positions", at, positionOf),
        o: b.rowsOut("o", heads * headWidth, at),
        heads,
        kvHeads,
        scale: 1 / Math.sqrt(headWidth),
        ...windowed,
      },
      vars: at.vars,
      tolerance,
    };
  });
}

for (const [n, width] of [
  [1, 32],
  [5, 16],
  [37, 20],
] as const) {
  const at = layout(n);
  add(`kvAppend, ${n} rows of ${width}`, (b) => {
    const [kCache, vCache] = [b.whole("kCache", [4, 11, width], "kv"), b.whole("vCache", [4, 11, width], "kv")];
    b.output(kCache);
    b.output(vCache);
    return {
      step: {
        op: "kvAppend",
        rows: at.rows,
        k: b.rowsIn("k", width, at),
        v: b.rowsIn("v", width, at),
        slots: b.indices("slots", at, (row) => 3 - Math.floor(row / 11)),
        positions: b.indices("positions", at, (row) => 10 - (row % 11)),
        kCache,
        vCache,
      },
      vars: at.vars,
      tolerance: 0,
    };
  });
}

for (const [n, width] of [
  [1, 32],
  [3, 20],
] as const) {
  const at = layout(n, { spare: 2 });
  add(`kvCopy, ${n} pairs of slots, rows of ${width}`, (b) => {
    // Slots 0 … 2 give (slot 2 twice), 3 … 5 get; lengths 11 (all), 4, 0.
    const [kCache, vCache] = [b.whole("kCache", [6, 11, width], "kv"), b.whole("vCache", [6, 11, width], "kv")];
    b.output(kCache);
    b.output(vCache);
    return {
      step: {
        op: "kvCopy",
        rows: at.rows,
        from: b.indices("from", at, (row) => [2, 0, 2][row]!),
        to: b.indices("to", at, (row) => [4, 5, 3][row]!),
        length: b.indices("length", at, (row) => [11, 4, 0][row]!),
        kCache,
        vCache,
      },
      vars: at.vars,
      tolerance: 0,
    };
  });
}

/* ---- head ---- */

const TEMPERATURES = [1, 0.7, 2, 1.5];
const inverseOf = (row: number): number => 1 / TEMPERATURES[row % TEMPERATURES.length]!;

/** What a head is given, and its logits row by row. Row r of an exact one is the r-th unit vector, so that its logits are what they are said to be. */
const drawHead = (
  b: Builder,
  at: Layout,
  [V, D]: readonly [number, number],
  dtype?: PackedDtype,
  exact?: (row: number, j: number) => number,
) => {
  const x = b.rowsIn("x", D, at, (i) => (exact ? Number(i % D === Math.floor(i / D)) : (2.5 * b.normal()) / Math.sqrt(D)));
  const w = dtype
    ? b.packed("w", [V, D], dtype)
    : b.whole("w", [V, D], "weights", exact ? (i) => exact(i % D, Math.floor(i / D)) : b.normal);
  const [given, words] = [b.inputs.get(x.view?.of ?? x)!, b.inputs.get(w)!];
  const values = dtype ? unpack(w, words as Uint32Array) : words;
  const logitsOf = (row: number): Float64Array =>
    Float64Array.from({ length: V }, (_, j) => {
      let sum = 0;
      for (let d = 0; d < D; d++) sum += given[(at.rows.base + row) * D + d]! * values[j * D + d]!;
      return sum;
    });
  const work = (name: string, width: number): Tensor => ({ name, shape: [at.rows.capacity, width], dtype: "f32", home: "arena" });
  const target = (): Tensor => b.indices("target", at, (row) => (row === 0 ? V - 1 : Math.floor(b.random() * V)));
  return { head: { rows: at.rows, x, w }, logitsOf, work, parts: work("parts", headParts(V)), target };
};

/** Rows, V and D, columns of a slice of the gradient. */
const HEADS: readonly (readonly [number, readonly [number, number], number, { base?: number; dtype?: PackedDtype }])[] = [
  [1, [50, 8], 50, {}],
  [5, [83, 30], 83, {}],
  [37, [64, 64], 64, {}],
  [6, [50, 12], 50, { base: 64 }],
  [70, [2100, 40], 2048, {}],
  [3, [4099, 20], 2048, {}],
  [3, [4099, 20], 4096, { base: 64 }],
  [2, [33000, 16], 4096, {}],
  [2100, [70, 4], 70, {}],
  ...(["f16", "bf16", "q8", "q4"] as const).flatMap((dtype) => [
    [5, [2090, 64], 2048, { dtype }] as const,
    [37, [130, 96], 130, { dtype }] as const,
    [3, [97, 288], 97, { dtype }] as const,
  ]),
];
for (const [n, shape, S, { dtype, ...options }] of HEADS) {
  const [V, D] = shape;
  const at = layout(n, { count: "outRows", ...options });
  const label = `${n} rows, vocabulary ${V} of ${D}, base ${at.rows.base}${dtype ? `, ${dtype} weights` : ""}`;
  const addHead = (name: string, make: (b: Builder) => Made): void => {
    cases.push({ name: `${name}, ${label}`, ...(dtype && { packed: dtype }), make });
  };
  for (const isKept of S === V ? [false, true] : [false]) {
    addHead(`logprob${isKept ? ", logits kept" : ""}`, (b) => {
      const { head, parts, target } = drawHead(b, at, shape, dtype);
      return {
        step: {
          op: "logprob",
          ...head,
          parts,
          ...(isKept && { z: b.rowsOut("z", V, at) }),
          target: target(),
          inverseTemperature: b.rowsIn("inverseTemperature", 0, at, inverseOf),
          logprob: b.rowsOut("logprob", 0, at),
          entropy: b.rowsOut("entropy", 0, at),
          lse: b.rowsOut("lse", 0, at),
        },
        vars: at.vars,
      };
    });
  }
  addHead(`logprobBackward, slices of ${S}`, (b) => {
    const { head, logitsOf, work, target } = drawHead(b, at, shape, dtype);
    const all = Array.from({ length: n }, (_, row) => logitsOf(row));
    const z = S === V ? b.rowsIn("z", V, at, (i) => all[Math.floor(i / V)]![i % V]!) : work("z", S);
    const lse = b.rowsIn("lse", 0, at, (row) => Math.log(all[row]!.reduce((sum, value) => sum + Math.exp(value * inverseOf(row)), 0)));
    // Row 1 has a gradient of exactly zero: so has what lies below it.
    const dLogprob = b.rowsIn("dLogprob", 0, at, (row) => (row === 1 ? 0 : b.normal()));
    const inverseTemperature = b.rowsIn("inverseTemperature", 0, at, inverseOf);
    const dx = b.rowsOut("dx", D, at);
    return { step: { op: "logprobBackward", ...head, z, target: target(), inverseTemperature, lse, dLogprob, dx }, vars: at.vars };
  });
  addHead("sample", (b) => {
    const { head, parts, logitsOf } = drawHead(b, at, shape, dtype);
    const isGreedy = (row: number): boolean => row % 5 === 4;
    // The middle of the interval of a likely token: rounding cannot move the pick.
    const uniform = b.rowsIn("uniform", 0, at, (row) => {
      const p = Array.from(logitsOf(row), (value) => Math.exp(value * inverseOf(row)));
      const total = p.reduce((sum, value) => sum + value, 0);
      const likely = p.map((_, j) => j).sort((i, j) => p[j]! - p[i]!);
      const picked = likely[Math.floor(b.random() * 5)]!;
      return (p.slice(0, picked).reduce((sum, value) => sum + value, 0) + p[picked]! / 2) / total;
    });
    return {
      step: {
        op: "sample",
        ...head,
        parts,
        ...(n === 5 && { z: b.rowsOut("z", V, at) }),
        inverseTemperature: b.rowsIn("inverseTemperature", 0, at, (row) => (isGreedy(row) ? 0 : inverseOf(row))),
        uniform,
        token: b.rowsOut("token", 0, at, "i32"),
        logprob: b.rowsOut("logprob", 0, at),
      },
      vars: at.vars,
    };
  });
}
add("logprob, large logits and one token with all the mass", (b) => {
  const at = layout(3, { count: "outRows" });
  const { head, parts } = drawHead(b, at, [150, 4], undefined, (row, j) =>
    row === 0 ? 300 + b.normal() : row === 1 ? (j === 107 ? 500 : -500) : -1e30 * Number(j > 1),
  );
  return {
    step: {
      op: "logprob",
      ...head,
      parts,
      target: b.indices("target", at, (row) => [3, 107, 1][row]!),
      inverseTemperature: b.rowsIn("inverseTemperature", 0, at, () => 1),
      logprob: b.rowsOut("logprob", 0, at),
      entropy: b.rowsOut("entropy", 0, at),
      lse: b.rowsOut("lse", 0, at),
    },
    vars: at.vars,
    tolerance: 5e-5,
  };
});
for (const V of [83, 40_000]) {
  add(`sample, greedy ties take the lowest of ${V} tokens`, (b) => {
    const at = layout(2, { count: "outRows" });
    const ties = [17, 64, 82, V - 1];
    const { head, parts } = drawHead(b, at, [V, 4], undefined, (row, j) => (row > 0 ? -2 : ties.includes(j) ? 5 : j % 3));
    return {
      step: {
        op: "sample",
        ...head,
        parts,
        inverseTemperature: b.rowsIn("inverseTemperature", 0, at, () => 0),
        uniform: b.rowsIn("uniform", 0, at, () => 0.9),
        token: b.rowsOut("token", 0, at, "i32"),
        logprob: b.rowsOut("logprob", 0, at),
      },
      vars: at.vars,
    };
  });
  add(`sample, a uniform at either end never picks one of ${V} tokens without mass`, (b) => {
    // Mass on tokens 20 … 29 from the middle on; the largest f32 below 1 and 0 itself.
    const at = layout(4, { count: "outRows" });
    const first = 20 + 64 * Math.floor(V / 128);
    const { head, parts } = drawHead(b, at, [V, 4], undefined, (_, j) => (j >= first && j < first + 10 ? 1 : -1e30));
    return {
      step: {
        op: "sample",
        ...head,
        parts,
        inverseTemperature: b.rowsIn("inverseTemperature", 0, at, (row) => (row < 2 ? 1 : 0.5)),
        uniform: b.rowsIn("uniform", 0, at, (row) => (row % 2 === 0 ? 0 : 1 - 2 ** -24)),
        token: b.rowsOut("token", 0, at, "i32"),
        logprob: b.rowsOut("logprob", 0, at),
      },
      vars: at.vars,
    };
  });
}

for (const [n, stops] of [
  [1, 0],
  [9, 3],
] as const) {
  // At rest; the last token; a stop token; a seed above 2³¹; the others have tokens left.
  const at = layout(n, { count: "outRows" });
  const width = LANE_WIDTH + stops;
  const wide = (b: Builder, name: string, fill: (row: number, column: number) => number): Tensor => {
    const tensor: Tensor = { name, shape: [at.rows.capacity, width], dtype: "i32", home: "io" };
    b.inputs.set(
      tensor,
      Int32Array.from({ length: sizeOf(tensor) }, (_, i) => (i < n * width ? fill(Math.floor(i / width), i % width) : WILD_INDEX)),
    );
    return b.output(tensor);
  };
  add(`advance, ${n} lanes with ${stops} stop tokens`, (b) => {
    const lane = (row: number): Record<keyof typeof LANE, number> => ({
      slot: 20 - row,
      position: 100 + row,
      left: n === 1 ? 7 : [0, 1, 5, 6, 7][row % 5]!,
      count: row % 4,
      seed: row % 2 === 0 ? 3 + row : -1 - row,
      drawn: 1000 * row,
    });
    const names = Object.keys(LANE) as (keyof typeof LANE)[];
    return {
      step: {
        op: "advance",
        rows: at.rows,
        token: b.indices("token", at, (row) => 40_000 + row),
        logprob: b.rowsIn("logprob", 0, at),
        lanes: wide(b, "lanes", (row, column) => {
          const name = names.find((key) => LANE[key] === column);
          // Row 2 stops at the middle one of its stop tokens, row 3 has another's.
          return name ? lane(row)[name] : [-1, 40_002, -1][column - LANE_WIDTH]!;
        }),
        history: b.output(b.whole("history", [at.rows.capacity, 4, 2], "io", () => SENTINEL)),
        tokens: b.rowsOut("tokens", 0, at, "i32"),
        positions: b.rowsOut("positions", 0, at, "i32"),
        slots: b.rowsOut("slots", 0, at, "i32"),
        uniform: b.rowsOut("uniform", 0, at),
      },
      vars: at.vars,
      tolerance: 0,
    };
  });
}

/** [logprob, old, advantage], one row for every branch; none lies on a kink. clipLow .2, clipHigh .28, dualClip 3. */
export const LOSS_ROWS: readonly (readonly [number, number, number])[] = [
  [-1, -1, 0.7], // A > 0, r = 1
  [-1, -0.9, 0.7], // r inside
  [-1, -1.5, 0.7], // r above 1 + clipHigh
  [-1, -0.2, 0.7], // r far below: not clipped for A > 0
  [-1, -1, -0.7],
  [-1, -1.1, -0.7],
  [-1, -0.5, -0.7], // r below 1 − clipLow
  [-1, -1.9, -0.7], // r between 1 and dualClip
  [-1, -2.5, -0.7], // r above dualClip
  [-1, -26, 0.7], // the clamp at +20
  [-1, -26, -0.7],
  [-30, -1, 0.7], // the clamp at −20
  [-30, -1, -0.7],
  [-1, -1.2, 0], // no advantage
];

for (const loss of ["crossEntropy", "importanceSampling", "ppoClip"] as const) {
  for (const [label, params] of [
    ["dual clip 3", [0.2, 0.28, 3, 0]],
    ["dual clip off", [0.2, 0.28, 1e30, 0]],
  ] as const) {
    if (loss !== "ppoClip" && label !== "dual clip 3") continue;
    for (const base of [0, 64]) {
      add(`tokenLoss, ${loss}, ${label}, base ${base}`, (b) => {
        const at = layout(LOSS_ROWS.length, { count: "outRows", base });
        return {
          step: {
            op: "tokenLoss",
            rows: at.rows,
            loss,
            logprob: b.rowsIn("logprob", 0, at, (row) => LOSS_ROWS[row]![0]),
            old: b.rowsIn("old", 0, at, (row) => LOSS_ROWS[row]![1]),
            advantage: b.rowsIn("advantage", 0, at, (row) => LOSS_ROWS[row]![2]),
            lossParams: b.whole("lossParams", [4], "io", (i) => params[i]!),
            tokenLoss: b.rowsOut("tokenLoss", 0, at),
            dLogprob: b.rowsOut("dLogprob", 0, at),
          },
          vars: at.vars,
        };
      });
    }
  }
}

/* ---- optimiser ---- */

for (const length of [64, 1000, 5000]) {
  add(`sumSquares, ${length} elements`, (b) => ({
    step: { op: "sumSquares", x: b.whole("x", [length], "state"), sum: b.output(b.whole("sum", [1], "io", () => SENTINEL)) },
    vars: {},
    tolerance: 3e-5,
  }));
  add(`zero, ${length} elements`, (b) => ({
    step: { op: "zero", x: b.output(b.whole("x", [length], "state")) },
    vars: {},
    tolerance: 0,
  }));
  add(`copy, ${length} elements`, (b) => ({
    step: { op: "copy", x: b.whole("x", [length], "state"), y: b.output(b.whole("y", [length], "state")) },
    vars: {},
    tolerance: 0,
  }));
}
const ADAM: Vars = { learningRate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0, gradClipNorm: 0, adamStep: 1 };
for (const [name, length, vars, moments, sum] of [
  ["first step", 1000, {}, false, undefined],
  ["later step, decay and clipping", 1000, { adamStep: 7, weightDecay: 0.1, gradClipNorm: 1 }, true, undefined],
  ["clip norm larger than the norm", 300, { adamStep: 3, gradClipNorm: 1e6 }, true, undefined],
  ["a norm that is infinite changes nothing", 300, {}, true, Number.POSITIVE_INFINITY],
  ["a norm that is NaN changes nothing", 300, {}, true, Number.NaN],
] as const) {
  add(`adamW, ${name}`, (b) => {
    const g = b.whole("g", [length], "state", (i) => (i % 10 === 0 ? 0 : b.normal()));
    const squares = Array.from(b.inputs.get(g)!).reduce((total, value) => total + value ** 2, 0);
    return {
      step: {
        op: "adamW",
        p: b.output(b.whole("p", [length], "state")),
        g: b.output(g),
        m: b.output(b.whole("m", [length], "state", () => (moments ? b.normal() : 0))),
        v: b.output(b.whole("v", [length], "state", () => (moments ? 0.1 + b.normal() ** 2 : 0))),
        sumSquares: b.whole("sum", [1], "io", () => sum ?? squares),
      },
      vars: { ...ADAM, ...vars },
    };
  });
}

/* ---- packed weights: every operation that reads a weights tensor [O, I], in every packed dtype ---- */

/** Rows, I, O: edges of panels (8), of words and of groups (32), and more groups than one depth block of any executor holds. */
const PACKED_SHAPES = [
  [1, 32, 64],
  [1, 288, 137],
  [5, 64, 50],
  [37, 96, 33],
  [70, 64, 130],
  [3, 576, 7],
  [2, 64, 1],
] as const;

for (const dtype of ["f16", "bf16", "q8", "q4"] as const) {
  const addPacked = (name: string, make: (b: Builder) => Made): void => {
    cases.push({ name: `${name}, ${dtype} weights`, packed: dtype, make });
  };
  for (const [n, inner, outer] of PACKED_SHAPES) {
    const at = layout(n);
    addPacked(`linear, ${n} rows, ${inner} to ${outer}`, (b) => ({
      step: {
        op: "linear",
        rows: at.rows,
        x: b.rowsIn("x", inner, at),
        w: b.packed("w", [outer, inner], dtype),
        y: b.rowsOut("y", outer, at),
        scale: 1,
      },
      vars: at.vars,
    }));
    addPacked(`linearBackward, ${n} rows, ${outer} to ${inner}, overwrites`, (b) => ({
      step: {
        op: "linearBackward",
        rows: at.rows,
        dy: b.rowsIn("dy", outer, at),
        w: b.packed("w", [outer, inner], dtype),
        // What lies in dx before is NaN: it must not be read.
        dx: b.rowsInOut("dx", inner, at, () => Number.NaN),
        scale: 1,
        accumulate: false,
      },
      vars: at.vars,
    }));
    addPacked(`embed, ${n} rows of ${inner} out of ${outer}`, (b) => ({
      step: {
        op: "embed",
        rows: at.rows,
        table: b.packed("table", [outer, inner], dtype),
        tokens: b.indices("tokens", at, (row) => (row === 0 ? outer - 1 : Math.floor(b.random() * outer))),
        y: b.rowsOut("y", inner, at),
        scale: 1,
      },
      vars: at.vars,
      // A half times a small integer is exact in f32.
      tolerance: 0,
    }));
  }
  addPacked("linear, bias and another residual, scale 0.25", (b) => {
    const at = layout(13);
    return {
      step: {
        op: "linear",
        rows: at.rows,
        x: b.rowsIn("x", 96, at),
        w: b.packed("w", [70, 96], dtype),
        bias: b.whole("bias", [70]),
        residual: b.rowsIn("residual", 70, at),
        y: b.rowsOut("y", 70, at),
        scale: 0.25,
      },
      vars: at.vars,
    };
  });
  addPacked("linear, a chunk from row 64 on", (b) => {
    const at = layout(9, { count: "outRows", base: 64 });
    return {
      step: {
        op: "linear",
        rows: at.rows,
        x: b.rowsIn("x", 64, at),
        w: b.packed("w", [90, 64], dtype),
        y: b.rowsOut("y", 90, at),
        scale: 1,
      },
      vars: at.vars,
    };
  });
  addPacked("linearBackward, a chunk from row 128 on, accumulates, scale 0.5", (b) => {
    const at = layout(7, { base: 128 });
    return {
      step: {
        op: "linearBackward",
        rows: at.rows,
        dy: b.rowsIn("dy", 90, at),
        w: b.packed("w", [90, 96], dtype),
        dx: b.rowsInOut("dx", 96, at),
        scale: 0.5,
        accumulate: true,
      },
      vars: at.vars,
    };
  });
  addPacked("embed, scaled", (b) => {
    const at = layout(5);
    return {
      step: {
        op: "embed",
        rows: at.rows,
        table: b.packed("table", [50, 64], dtype),
        tokens: b.indices("tokens", at, (row) => 49 - row),
        y: b.rowsOut("y", 64, at),
        scale: Math.sqrt(640),
      },
      vars: at.vars,
      tolerance: 1e-6,
    };
  });
  // Weights of 10⁻³ have scales below the smallest normal half, 6·10⁻⁵, which an executor must not flush to zero. One group is zeros.
  addPacked("linear, weights so small that their scales are subnormal halves", (b) => {
    const at = layout(4);
    return {
      step: {
        op: "linear",
        rows: at.rows,
        x: b.rowsIn("x", 64, at, () => 1000 * b.normal()),
        w: b.packed("w", [40, 64], dtype, (i) => (i % 128 < 32 ? 0 : 1e-4 * b.normal())),
        y: b.rowsOut("y", 40, at),
        scale: 1,
      },
      vars: at.vars,
    };
  });
}

const build = (index: number): OpCase => {
  const builder = createBuilder(1000 + index);
  const { name, packed, make } = cases[index]!;
  const { step, vars, tolerance = 1e-5 } = make(builder);
  return { name, ...(packed && { packed }), step, inputs: builder.inputs, vars, outputs: builder.outputs, tolerance };
};

/** All cases, with tensors of their own: a backend allocates a tensor once. */
export const opCases = (): OpCase[] => cases.map((_, index) => build(index));

/** One case by name, with tensors of its own. */
export const opCase = (name: string): OpCase => build(cases.findIndex((entry) => entry.name === name));

/** Allocates, compiles, writes, runs and reads one case. */
export const runCase = async (backend: Backend, { name, step, inputs, vars, outputs }: OpCase): Promise<Map<Tensor, HostArray>> => {
  const { reads, writes } = operandsOf(step);
  const operands = new Set([...reads, ...writes].map((tensor) => tensor.view?.of ?? tensor));
  for (const tensor of operands) if (tensor.home !== "io" && tensor.home !== "arena") await backend.allocate(tensor, inputs.get(tensor));
  const executable = await backend.compile({ name, steps: [step] });
  for (const tensor of operands) {
    const data = inputs.get(tensor);
    if (tensor.home === "io" && data) backend.write(tensor, data as HostArray);
  }
  await executable.run(vars);
  const results = new Map<Tensor, HostArray>();
  for (const tensor of outputs) results.set(tensor, await backend.read(tensor));
  executable.dispose();
  return results;
};

/** Ops whose result for a row depends on nothing but that row (and earlier rows of its sequence). */
export const ROWWISE: ReadonlySet<OpName> = new Set<OpName>([
  "embed",
  "rmsNorm",
  "rmsNormBackward",
  "linear",
  "linearBackward",
  "rope",
  "attention",
  "attentionDelta",
  "attentionBackwardQ",
  "attentionCached",
  "glu",
  "gluBackward",
  "gatherRows",
  "logprob",
  "tokenLoss",
  "logprobBackward",
  "sample",
  "advance",
]);

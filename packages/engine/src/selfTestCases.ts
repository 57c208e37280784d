// Small cases of every operation for the self-test of a device: steps, contents, row counts. Nothing is expected here, the reference
// executor gives the numbers. Rows are ragged on purpose: they end inside a tile, and sequences begin inside one.

import type { TensorData } from "./plan/backend.ts";
import { HEAD_SLICE, headParts, LANE_WIDTH, type Plan, type Rows, type Step, sizeOf, type Tensor, type Vars } from "./plan/step.ts";
import { uniform } from "./random.ts";
import { isPacked, packedLayout, packInto, WEIGHT_FORMATS } from "./weights/formats.ts";

export interface DeviceCase {
  readonly name: string;
  readonly plan: Plan;
  /** What every tensor that is not zero holds before the run. */
  readonly data: ReadonlyMap<Tensor, TensorData>;
  readonly vars: Vars;
}

interface Made {
  readonly steps: readonly Step[];
  readonly vars?: Vars;
}

/** Tensors with contents, each numbers of its own. */
const createDraft = (seed: number) => {
  const data = new Map<Tensor, TensorData>();
  let index = 0;
  const random = (): number => uniform(seed, index++);
  /** Bell-shaped, variance 1. */
  const bell = (): number => 2 * (random() + random() + random() - 1.5);
  const floats = (name: string, shape: readonly number[], fill: (i: number) => number = bell, home: Tensor["home"] = "io"): Tensor => {
    const tensor: Tensor = { name, shape, dtype: "f32", home };
    data.set(
      tensor,
      Float32Array.from({ length: sizeOf(tensor) }, (_, i) => fill(i)),
    );
    return tensor;
  };
  return {
    data,
    random,
    floats,
    /** Room that nobody looks at. */
    work: (name: string, shape: readonly number[]): Tensor => ({ name, shape, dtype: "f32", home: "arena" }),
    ints: (name: string, length: number, fill: (i: number) => number): Tensor => {
      const tensor: Tensor = { name, shape: [length], dtype: "i32", home: "io" };
      data.set(
        tensor,
        Int32Array.from({ length }, (_, i) => fill(i)),
      );
      return tensor;
    },
    weight: (name: string, shape: readonly [number, number], dtype: Tensor["dtype"] = "f32"): Tensor => {
      const tensor: Tensor = { name, shape, dtype, home: "weights" };
      const values = Float32Array.from({ length: sizeOf(tensor) }, bell);
      if (!isPacked(dtype)) data.set(tensor, values);
      else {
        const words = new Uint32Array(packedLayout(dtype, sizeOf(tensor)).words);
        packInto(tensor, words, values);
        data.set(tensor, words);
      }
      return tensor;
    },
  };
};
type Draft = ReturnType<typeof createDraft>;

const rowsOf = (capacity: number, count: Rows["count"] = "rows"): Rows => ({ count, base: 0, capacity });

const T = 75;

const startOf = (row: number): number => (row < 20 ? 0 : row < 57 ? 20 : 57);
const endOf = (row: number): number => (row < 20 ? 20 : row < 57 ? 57 : T);

/** Attention and its gradient over three packed sequences, the second with two tiles of keys. */
const attention =
  (C: number, window?: number) =>
  (d: Draft): Made => {
    const [rows, H, K] = [rowsOf(T), 4, 2];
    const [q, k, v] = [d.floats("q", [T, H * C]), d.floats("k", [T, K * C]), d.floats("v", [T, K * C])];
    const [o, dO, lse, delta] = [d.floats("o", [T, H * C]), d.floats("dO", [T, H * C]), d.floats("lse", [T, H]), d.floats("delta", [T, H])];
    const [dq, dk, dv] = [d.floats("dq", [T, H * C]), d.floats("dk", [T, K * C]), d.floats("dv", [T, K * C])];
    const [start, end] = [d.ints("start", T, startOf), d.ints("end", T, endOf)];
    const shared = { rows, heads: H, kvHeads: K, scale: 1 / Math.sqrt(C), ...(window !== undefined && { window }) };
    return {
      steps: [
        { op: "attention", ...shared, q, k, v, start, o, lse },
        { op: "attentionDelta", rows, o, dO, delta, heads: H },
        { op: "attentionBackwardQ", ...shared, q, k, v, dO, lse, delta, start, dq },
        { op: "attentionBackwardKv", ...shared, q, k, v, dO, lse, delta, end, dk, dv },
      ],
    };
  };

/** A slot of 300 positions is cut into spans. */
const cached =
  (positions: number) =>
  (d: Draft): Made => {
    const [rows, H, K, C] = [rowsOf(6), 4, 2, 32];
    const cache = (name: string): Tensor => d.floats(name, [2, positions, K * C], undefined, "kv");
    const [kCache, vCache] = [cache("kCache"), cache("vCache")];
    const [q, o] = [d.floats("q", [6, H * C]), d.floats("o", [6, H * C])];
    const [slots, places] = [d.ints("slots", 6, (i) => i % 2), d.ints("positions", 6, (i) => ((i * positions) / 6) | 0)];
    return { steps: [{ op: "attentionCached", rows, q, kCache, vCache, slots, positions: places, o, heads: H, kvHeads: K, scale: 0.2 }] };
  };

/** A linear layer or its gradient: enough rows and columns for two tiles of 64, or few rows. */
const linear =
  (isForward: boolean, n: number, dtype: Tensor["dtype"]) =>
  (d: Draft): Made => {
    const [rows, O, I] = [rowsOf(n), 160, 288];
    const w = d.weight("w", [O, I], dtype);
    const [x, y] = [d.floats("x", [n, I]), d.floats("y", [n, O])];
    const step: Step = isForward
      ? { op: "linear", rows, x, w, residual: y, y, scale: 0.1 }
      : { op: "linearBackward", rows, dy: y, w, dx: x, scale: 0.1, accumulate: true };
    return { steps: [step] };
  };

/** A rope table of 12 positions and heads of 32. */
const turns = (d: Draft): Tensor => d.floats("table", [12, 32], (i) => (i % 32 < 16 ? Math.cos(i / 9) : Math.sin((i - 16) / 9)), "weights");

const CASES: Readonly<Record<string, (d: Draft) => Made>> = {
  ...Object.fromEntries(
    WEIGHT_FORMATS.map((dtype) => [
      `embed ${dtype}`,
      (d: Draft): Made => ({
        steps: [
          {
            op: "embed",
            rows: rowsOf(9),
            table: d.weight("table", [40, 64], dtype),
            tokens: d.ints("tokens", 9, (i) => 39 - 4 * i),
            y: d.floats("y", [9, 64]),
            scale: 2,
          },
        ],
      }),
    ]),
  ),
  ...Object.fromEntries(
    [5, 150].flatMap((n) =>
      WEIGHT_FORMATS.flatMap((dtype) => [
        [`linear, ${n} rows, ${dtype}`, linear(true, n, dtype)],
        [`linearBackward, ${n} rows, ${dtype}`, linear(false, n, dtype)],
      ]),
    ),
  ),
  "linear with a bias and another residual": (d) => ({
    steps: [
      {
        op: "linear",
        rows: rowsOf(9),
        x: d.floats("x", [9, 64]),
        w: d.weight("w", [50, 64]),
        bias: d.floats("bias", [50], undefined, "weights"),
        residual: d.floats("residual", [9, 50]),
        y: d.floats("y", [9, 50]),
        scale: 1,
      },
    ],
  }),
  weightGrad: (d) => ({
    steps: [
      {
        op: "weightGrad",
        rows: rowsOf(T),
        dy: d.floats("dy", [T, 64]),
        x: d.floats("x", [T, 8]),
        dw: d.floats("dw", [64, 8], undefined, "state"),
        scale: 2,
      },
    ],
  }),
  rmsNorm: (d) => {
    const [x, residual, gain] = [d.floats("x", [9, 144]), d.floats("residual", [9, 144]), d.floats("gain", [48], undefined, "weights")];
    return {
      steps: [{ op: "rmsNorm", rows: rowsOf(9), x, gain, residual, y: d.floats("y", [9, 144]), rstd: d.floats("rstd", [9, 3]), eps: 1e-5 }],
    };
  },
  rmsNormBackward: (d) => {
    const [x, dy, dx] = [d.floats("x", [9, 144]), d.floats("dy", [9, 144]), d.floats("dx", [9, 144])];
    const [gain, rstd] = [d.floats("gain", [48], undefined, "weights"), d.floats("rstd", [9, 3], () => 0.5 + d.random())];
    return { steps: [{ op: "rmsNormBackward", rows: rowsOf(9), x, gain, rstd, dy, dx, accumulate: true }] };
  },
  rope: (d) => ({
    steps: [
      {
        op: "rope",
        rows: rowsOf(9),
        x: d.floats("x", [9, 64]),
        table: d.floats("table", [12, 32], (i) => (i % 32 < 16 ? Math.cos(i) : Math.sin(i - 16)), "weights"),
        positions: d.ints("positions", 9, (i) => 11 - i),
        heads: 2,
        direction: 1,
      },
    ],
  }),
  "rope of queries and keys, kvAppend": (d) => {
    const cache = (name: string): Tensor => d.floats(name, [2, 12, 32], undefined, "kv");
    const [q, k, v] = [d.floats("q", [9, 64]), d.floats("k", [9, 32]), d.floats("v", [9, 32])];
    const [table, positions] = [turns(d), d.ints("positions", 9, (i) => 11 - i)];
    const shared = { rows: rowsOf(9), table, positions } as const;
    const slots = d.ints("slots", 9, (i) => i % 2);
    return {
      steps: [
        { op: "rope", ...shared, x: q, heads: 2, direction: 1 },
        { op: "rope", ...shared, x: k, heads: 1, direction: 1 },
        { op: "kvAppend", rows: rowsOf(9), k, v, slots, positions, kCache: cache("kCache"), vCache: cache("vCache") },
      ],
    };
  },
  "rope of two gradients": (d) => {
    const shared = { rows: rowsOf(9), table: turns(d), positions: d.ints("positions", 9, (i) => i), direction: -1 } as const;
    return {
      steps: [
        { op: "rope", ...shared, x: d.floats("dq", [9, 64]), heads: 2 },
        { op: "rope", ...shared, x: d.floats("dk", [9, 32]), heads: 1 },
      ],
    };
  },
  "rmsNorm and rope of queries and keys": (d) => {
    const [rows, table, positions] = [rowsOf(9), turns(d), d.ints("positions", 9, (i) => 11 - i)];
    const norm = (name: string, heads: number): Extract<Step, { op: "rmsNorm" }> => ({
      op: "rmsNorm",
      rows,
      x: d.floats(name, [9, heads * 32]),
      gain: d.floats(`${name}.gain`, [32], undefined, "weights"),
      y: d.floats(`${name}.y`, [9, heads * 32]),
      rstd: d.floats(`${name}.rstd`, [9, heads]),
      eps: 1e-6,
    });
    const [q, k] = [norm("q", 4), norm("k", 2)];
    return {
      steps: [
        q,
        k,
        { op: "rope", rows, x: q.y, table, positions, heads: 4, direction: 1 },
        { op: "rope", rows, x: k.y, table, positions, heads: 2, direction: 1 },
      ],
    };
  },
  "attention, heads of 32": attention(32),
  "attention, heads of 64, window": attention(64, 30),
  "attention, heads of 128": attention(128),
  attentionCached: cached(60),
  "attentionCached, spans": cached(300),
  "kvAppend and kvCopy": (d) => {
    const cache = (name: string): Tensor => d.floats(name, [3, 8, 32], undefined, "kv");
    const [kCache, vCache] = [cache("kCache"), cache("vCache")];
    return {
      steps: [
        {
          op: "kvAppend",
          rows: rowsOf(9),
          k: d.floats("k", [9, 32]),
          v: d.floats("v", [9, 32]),
          slots: d.ints("slots", 9, (i) => i % 2),
          positions: d.ints("positions", 9, (i) => i >> 1),
          kCache,
          vCache,
        },
        {
          op: "kvCopy",
          rows: rowsOf(1, "outRows"),
          from: d.ints("from", 1, () => 0),
          to: d.ints("to", 1, () => 2),
          length: d.ints("length", 1, () => 4),
          kCache,
          vCache,
        },
      ],
    };
  },
  ...Object.fromEntries(
    (["silu", "tanhGelu"] as const).map((activation) => [
      `glu and its gradient, ${activation}`,
      (d: Draft): Made => {
        const [rows, gate, up, y] = [rowsOf(9), d.floats("gate", [9, 40]), d.floats("up", [9, 40]), d.floats("y", [9, 40])];
        return {
          steps: [
            { op: "glu", rows, gate, up, y, activation },
            { op: "gluBackward", rows, gate, up, dy: y, activation },
          ],
        };
      },
    ]),
  ),
  "gatherRows and scatterRows": (d) => {
    const [few, index] = [d.floats("few", [4, 20]), d.ints("index", 4, (i) => 7 - 2 * i)];
    return {
      steps: [
        { op: "gatherRows", rows: rowsOf(4, "outRows"), x: d.floats("x", [9, 20]), index, y: few },
        { op: "scatterRows", rows: rowsOf(9), outRows: rowsOf(4, "outRows"), dy: few, index, dx: d.floats("dx", [9, 20]) },
      ],
    };
  },
  ...Object.fromEntries(
    (["crossEntropy", "importanceSampling", "ppoClip"] as const).map((loss) => [
      `logprob, ${loss} and their gradient`,
      (d: Draft): Made => {
        // With cross-entropy backward finds the forward's logits, with the others it makes them again: two slices.
        const [rows, V, D] = [rowsOf(5, "outRows"), 2200, 288];
        const isKept = loss === "crossEntropy";
        const z = d.work("z", [5, isKept ? V : HEAD_SLICE]);
        const vector = (name: string, fill?: (i: number) => number): Tensor => d.floats(name, [5], fill);
        const head = { rows, x: d.floats("x", [5, D], () => d.random() / 8), w: d.weight("w", [V, D], isKept ? "f32" : "q8") };
        const [target, inverseTemperature] = [d.ints("target", 5, (i) => 531 * i), vector("inverseTemperature", (i) => 1 / (1 + i / 4))];
        const [logprob, lse, dLogprob] = [vector("logprob"), vector("lse"), vector("dLogprob")];
        const lossParams = d.floats("lossParams", [4], (i) => [0.2, 0.28, 3, 0][i]!);
        return {
          steps: [
            {
              op: "logprob",
              ...head,
              parts: d.work("parts", [5, headParts(V)]),
              ...(isKept && { z }),
              ...{ target, inverseTemperature, logprob, entropy: vector("entropy"), lse },
            },
            {
              op: "tokenLoss",
              rows,
              loss,
              logprob,
              old: vector("old", (i) => -6.5 - i / 3),
              advantage: vector("advantage"),
              lossParams,
              tokenLoss: vector("tokenLoss"),
              dLogprob,
            },
            { op: "logprobBackward", ...head, z, target, inverseTemperature, lse, dLogprob, dx: d.floats("dx", [5, D]) },
          ],
        };
      },
    ]),
  ),
  "sample and advance": (d) => {
    const [rows, S] = [rowsOf(3, "outRows"), 1];
    // One token has nearly all the mass: rounding cannot move the pick.
    const x = d.floats("x", [3, 32], (i) => Number(i % 33 === 0));
    const w = d.floats("w", [700, 32], (i) => (((i / 32) | 0) === 233 * ((i % 32) + 1) - 5 ? 30 : d.random()), "weights");
    const [token, logprob, uniformNumbers] = [d.ints("token", 3, () => 0), d.floats("logprob", [3]), d.floats("uniform", [3], () => 0.5)];
    const lane = [2, 4, 3, 1, 99, 5, -1];
    const lanes: Tensor = { name: "lanes", shape: [3, LANE_WIDTH + S], dtype: "i32", home: "io" };
    d.data.set(
      lanes,
      Int32Array.from({ length: sizeOf(lanes) }, (_, i) => lane[i % lane.length]!),
    );
    const out = (name: string): Tensor => d.ints(name, 3, () => 0);
    return {
      steps: [
        {
          op: "sample",
          ...{ rows, x, w, parts: d.work("parts", [3, headParts(700)]) },
          inverseTemperature: d.floats("inverseTemperature", [3], (i) => (i === 2 ? 0 : 1)),
          uniform: uniformNumbers,
          token,
          logprob,
        },
        {
          op: "advance",
          rows,
          token,
          logprob,
          lanes,
          history: d.floats("history", [3, 4, 2]),
          tokens: out("tokens"),
          positions: out("positions"),
          slots: out("slots"),
          uniform: uniformNumbers,
        },
      ],
    };
  },
  "sumSquares, adamW, zero and copy": (d) => {
    const state = (name: string): Tensor => d.floats(name, [5000], undefined, "state");
    const [p, g, m, copyOfP] = [state("p"), state("g"), state("m"), state("copy")];
    const v = d.floats("v", [5000], () => d.random(), "state");
    const sum = d.floats("sum", [1]);
    return {
      steps: [
        { op: "sumSquares", x: g, sum },
        { op: "adamW", p, g, m, v, sumSquares: sum },
        { op: "copy", x: p, y: copyOfP },
        { op: "zero", x: g },
      ],
      vars: { learningRate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, gradClipNorm: 1, adamStep: 3 },
    };
  },
};

export const CASE_NAMES: readonly string[] = Object.keys(CASES);

/** New tensors every time: a backend allocates each of them once. */
export const deviceCase = (name: string): DeviceCase => {
  const draft = createDraft(CASE_NAMES.indexOf(name) + 1);
  const { steps, vars } = CASES[name]!(draft);
  const rows = Math.max(0, ...steps.map((step) => ("rows" in step && step.rows.count === "rows" ? step.rows.capacity : 0)));
  const outRows = Math.max(0, ...steps.map((step) => ("rows" in step && step.rows.count === "outRows" ? step.rows.capacity : 0)));
  return { name, plan: { name, steps }, data: draft.data, vars: { rows, outRows, ...vars } };
};

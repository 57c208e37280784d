// Every operation: gradients of the reference against central differences, known numbers, and every other backend
// against the reference on the cases of opCases.ts. To add a backend, add a line to backends.ts.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend, HostArray } from "../../../packages/engine/src/plan/backend.ts";
import { OPERANDS, type PackedDtype, type Rows, type Step, type Tensor, type Vars } from "../../../packages/engine/src/plan/step.ts";
import { createReferenceBackend, runStep } from "../../../packages/engine/src/reference/backend.ts";
import { BACKENDS, GPU_KERNELS } from "./backends.ts";
import { createNormal, createRandom, LOSS_ROWS, opCase, opCases, ROWWISE, runCase } from "./opCases.ts";

/** The first element that differs by more than the tolerance, said in words; undefined when all agree. NaN agrees with NaN. */
const difference = (got: HostArray, want: HostArray, tolerance: number): string | undefined => {
  if (got.length !== want.length || got.constructor !== want.constructor) {
    return `got ${got.constructor.name}(${got.length}), want ${want.constructor.name}(${want.length})`;
  }
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i]!, want[i]!];
    if (Object.is(a, b) || a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
    if (!(Math.abs(a - b) <= tolerance * (1 + Math.abs(b)))) return `element ${i}: got ${a}, want ${b}`;
  }
  return undefined;
};

/** For names and row counts; a test makes its own tensors with opCase(name). */
const CASES = opCases();

test("the cases cover every operation, and their names are distinct", () => {
  expect(new Set(CASES.map(({ step }) => step.op))).toEqual(new Set(Object.keys(OPERANDS)));
  expect(new Set(CASES.map(({ name }) => name)).size).toBe(CASES.length);
});

for (const { name, create, skip, refusals } of [...BACKENDS, GPU_KERNELS]) {
  /** Runs, or is skipped with the backend's own words. */
  const testOf = (packed: PackedDtype | undefined, title: string, run: () => Promise<void>): void => {
    const refusal = packed && refusals.get(packed);
    test.skipIf(refusal !== undefined)(refusal === undefined ? title : `${title} (skipped: ${refusal})`, run);
  };

  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await create();
    });
    afterAll(async () => {
      await backend?.dispose();
    });

    for (const { name: title, packed } of CASES) {
      testOf(packed, `${title}: agrees with the reference`, async () => {
        const made = opCase(title);
        const want = await runCase(createReferenceBackend(), made);
        const got = await runCase(backend, made);
        expect(made.outputs.length).toBeGreaterThan(0);
        for (const tensor of made.outputs) {
          expect(difference(got.get(tensor)!, want.get(tensor)!, made.tolerance), tensor.name).toBeUndefined();
        }
      });
    }

    const rowwise = CASES.filter(({ step, vars }) => ROWWISE.has(step.op) && liveRows(step, vars) > 1);
    for (const { name: title, packed } of rowwise) {
      testOf(packed, `${title}: a row's bits do not depend on how many rows follow`, async () => {
        const [all, some] = [opCase(title), opCase(title)];
        const rows = (all.step as { rows: Rows }).rows;
        const kept = Math.ceil(liveRows(all.step, all.vars) / 2);
        const full = await runCase(backend, all);
        const part = await runCase(backend, { ...some, vars: { ...some.vars, [rows.count]: rows.base + kept } });
        for (const [i, tensor] of all.outputs.entries()) {
          const width = tensor.shape.length > 1 ? tensor.shape[1]! : 1;
          const last = (rows.base + kept) * width;
          const bits = (data: HostArray): Uint8Array => new Uint8Array(data.slice(0, last).buffer);
          expect(bits(part.get(some.outputs[i]!)!)).toEqual(bits(full.get(tensor)!));
        }
      });
    }
  });
}

function liveRows(step: Step, vars: Vars): number {
  const rows = (step as { rows?: Rows }).rows;
  return rows ? Math.min(Math.max(vars[rows.count]! - rows.base, 0), rows.capacity) : 0;
}

/* ---- gradients of the reference ---- */

type Numbers = Map<string, Float64Array | Int32Array>;
const tensorOf = (name: string, ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home: "io" });
const run = (steps: readonly Step[], numbers: Numbers, vars: Vars): void => {
  for (const step of steps) runStep(step, (tensor) => numbers.get(tensor.name)!, vars);
};

/**
 * Central differences of Σ seed∘y with respect to every element of `name`, against the analytic gradient in `gradient`.
 * Returns the largest |analytic − numeric| / (1 + |numeric|).
 */
const worstGradient = (
  forward: readonly Step[],
  numbers: Numbers,
  vars: Vars,
  { name, y, seed, gradient }: { name: string; y: string; seed: string; gradient: Float64Array },
): number => {
  const values = numbers.get(name)!;
  const unmoved: Numbers = new Map([...numbers].map(([key, value]) => [key, value.slice()]));
  run(forward, unmoved, vars);
  const base = unmoved.get(y)!;
  const objective = (): number => {
    const copy: Numbers = new Map([...numbers].map(([key, value]) => [key, value.slice()]));
    run(forward, copy, vars);
    const [out, weights] = [copy.get(y)!, copy.get(seed)!];
    let sum = 0;
    // Changes are summed, not values: a loss of e²⁰ in one row must not drown the others.
    for (let i = 0; i < out.length; i++) sum += (out[i]! - base[i]!) * weights[i]!;
    return sum;
  };
  let worst = 0;
  for (let i = 0; i < values.length; i++) {
    const [value, h] = [values[i]!, 1e-5];
    values[i] = value + h;
    const above = objective();
    values[i] = value - h;
    const below = objective();
    values[i] = value;
    const numeric = (above - below) / (2 * h);
    worst = Math.max(worst, Math.abs(gradient[i]! - numeric) / (1 + Math.abs(numeric)));
  }
  return worst;
};

describe("gradients of the reference equal central differences", () => {
  const rows: Rows = { count: "rows", base: 0, capacity: 6 };
  const vars: Vars = { rows: 6, outRows: 6 };
  const normal = createNormal(createRandom(7));
  const random = (length: number): Float64Array => Float64Array.from({ length }, normal);
  const limit = 1e-8;

  for (const [groups, accumulate] of [
    [1, true],
    [1, false],
    [3, false],
  ] as const) {
    test(`rmsNorm with respect to x, ${groups} groups a row, ${accumulate ? "added to what dx held" : "dx overwritten"}`, () => {
      const width = 8 * groups;
      const numbers: Numbers = new Map([
        ["x", random(6 * width)],
        ["gain", random(8)],
        ["residual", random(6 * width)],
        ["y", random(6 * width)],
        ["rstd", random(6 * groups)],
        ["dy", random(6 * width)],
        ["dx", new Float64Array(6 * width).fill(accumulate ? 3 : Number.NaN)],
      ]);
      const [x, gain, rstd] = [tensorOf("x", 6, width), tensorOf("gain", 8), tensorOf("rstd", 6, groups)];
      const residual = tensorOf("residual", 6, width);
      const forward: Step[] = [{ op: "rmsNorm", rows, x, gain, residual, y: tensorOf("y", 6, width), rstd, eps: 1e-2 }];
      run(forward, numbers, vars);
      const [dy, dx] = [tensorOf("dy", 6, width), tensorOf("dx", 6, width)];
      run([{ op: "rmsNormBackward", rows, x, gain, rstd, dy, dx, accumulate }], numbers, vars);
      const gradient = Float64Array.from(numbers.get("dx")!, (value) => value - (accumulate ? 3 : 0));
      expect(worstGradient(forward, numbers, vars, { name: "x", y: "y", seed: "dy", gradient })).toBeLessThan(limit);
    });
  }

  test("linear with respect to x and w", () => {
    const numbers: Numbers = new Map([
      ["x", random(6 * 5)],
      ["w", random(7 * 5)],
      ["y", random(6 * 7)],
      ["dy", random(6 * 7)],
      ["dx", random(6 * 5)],
      ["dw", new Float64Array(7 * 5)],
    ]);
    const [x, w, y, dy] = [tensorOf("x", 6, 5), tensorOf("w", 7, 5), tensorOf("y", 6, 7), tensorOf("dy", 6, 7)];
    const forward: Step[] = [{ op: "linear", rows, x, w, y, scale: 1.7 }];
    run(
      [
        { op: "linearBackward", rows, dy, w, dx: tensorOf("dx", 6, 5), scale: 1.7, accumulate: false },
        { op: "weightGrad", rows, dy, x, dw: tensorOf("dw", 7, 5), scale: 1.7 },
      ],
      numbers,
      vars,
    );
    for (const name of ["x", "w"]) {
      const gradient = numbers.get(`d${name}`) as Float64Array;
      expect(worstGradient(forward, numbers, vars, { name, y: "y", seed: "dy", gradient }), name).toBeLessThan(limit);
    }
  });

  test("a LoRA pair on a linear layer, with respect to x, A and B", () => {
    const s = 2;
    const numbers: Numbers = new Map([
      ["x", random(6 * 5)],
      ["w", random(7 * 5)],
      ["a", random(3 * 5)],
      ["b", random(7 * 3)],
      ["h", random(6 * 3)],
      ["y", random(6 * 7)],
      ["dy", random(6 * 7)],
      ["dh", random(6 * 3)],
      ["dx", random(6 * 5)],
      ["da", new Float64Array(3 * 5)],
      ["db", new Float64Array(7 * 3)],
    ]);
    const [x, w, a, b] = [tensorOf("x", 6, 5), tensorOf("w", 7, 5), tensorOf("a", 3, 5), tensorOf("b", 7, 3)];
    const [h, y, dy, dh, dx] = [tensorOf("h", 6, 3), tensorOf("y", 6, 7), tensorOf("dy", 6, 7), tensorOf("dh", 6, 3), tensorOf("dx", 6, 5)];
    const forward: Step[] = [
      { op: "linear", rows, x, w, y, scale: 1 },
      { op: "linear", rows, x, w: a, y: h, scale: 1 },
      { op: "linear", rows, x: h, w: b, residual: y, y, scale: s },
    ];
    run(forward, numbers, vars);
    run(
      [
        { op: "weightGrad", rows, dy, x: h, dw: tensorOf("db", 7, 3), scale: s },
        { op: "linearBackward", rows, dy, w: b, dx: dh, scale: s, accumulate: false },
        { op: "weightGrad", rows, dy: dh, x, dw: tensorOf("da", 3, 5), scale: 1 },
        { op: "linearBackward", rows, dy, w, dx, scale: 1, accumulate: false },
        { op: "linearBackward", rows, dy: dh, w: a, dx, scale: 1, accumulate: true },
      ],
      numbers,
      vars,
    );
    for (const name of ["x", "a", "b"]) {
      const gradient = numbers.get(`d${name}`) as Float64Array;
      expect(worstGradient(forward, numbers, vars, { name, y: "y", seed: "dy", gradient }), name).toBeLessThan(limit);
    }
  });

  test("rope: direction −1 on the gradient", () => {
    const numbers: Numbers = new Map<string, Float64Array | Int32Array>([
      ["x", random(6 * 8)],
      ["table", Float64Array.from({ length: 9 * 4 }, (_, i) => (i % 4 < 2 ? Math.cos(i) : Math.sin(i - 2)))],
      ["positions", Int32Array.of(0, 3, 8, 8, 1, 2)],
      ["dy", random(6 * 8)],
    ]);
    const rope = (name: string, direction: 1 | -1): Step => ({
      op: "rope",
      rows,
      x: tensorOf(name, 6, 8),
      table: tensorOf("table", 9, 4),
      positions: tensorOf("positions", 6),
      heads: 2,
      direction,
    });
    const backward: Numbers = new Map([...numbers].map(([key, value]) => [key, value.slice()]));
    run([rope("dy", -1)], backward, vars);
    const gradient = backward.get("dy") as Float64Array;
    expect(worstGradient([rope("x", 1)], numbers, vars, { name: "x", y: "x", seed: "dy", gradient })).toBeLessThan(limit);
  });

  test.each([undefined, 1, 2, 3, 9])(
    "attention with respect to q, k and v, two packed sequences, 4 query heads on 2 KV heads, window %s",
    (window) => {
      const [heads, kvHeads, width, scale] = [4, 2, 3, 0.6];
      const numbers: Numbers = new Map<string, Float64Array | Int32Array>([
        ["q", random(6 * 12)],
        ["k", random(6 * 6)],
        ["v", random(6 * 6)],
        ["start", Int32Array.of(0, 0, 2, 2, 2, 2)],
        ["end", Int32Array.of(2, 2, 6, 6, 6, 6)],
        ["o", random(6 * 12)],
        ["lse", random(6 * 4)],
        ["delta", random(6 * 4)],
        ["dO", random(6 * 12)],
        ["dq", random(6 * 12)],
        ["dk", random(6 * 6)],
        ["dv", random(6 * 6)],
      ]);
      const [q, o, dO] = [tensorOf("q", 6, heads * width), tensorOf("o", 6, heads * width), tensorOf("dO", 6, heads * width)];
      const [k, v] = [tensorOf("k", 6, kvHeads * width), tensorOf("v", 6, kvHeads * width)];
      const [lse, delta, start, end] = [tensorOf("lse", 6, heads), tensorOf("delta", 6, heads), tensorOf("start", 6), tensorOf("end", 6)];
      const shared = { rows, heads, kvHeads, scale, ...(window !== undefined && { window }) };
      const forward: Step[] = [{ op: "attention", ...shared, q, k, v, start, o, lse }];
      run(forward, numbers, vars);
      const [dq, dk, dv] = [tensorOf("dq", 6, heads * width), tensorOf("dk", 6, kvHeads * width), tensorOf("dv", 6, kvHeads * width)];
      run(
        [
          { op: "attentionDelta", rows, o, dO, delta, heads },
          { op: "attentionBackwardQ", ...shared, q, k, v, dO, lse, delta, start, dq },
          { op: "attentionBackwardKv", ...shared, q, k, v, dO, lse, delta, end, dk, dv },
        ],
        numbers,
        vars,
      );
      for (const name of ["q", "k", "v"]) {
        const gradient = numbers.get(`d${name}`) as Float64Array;
        expect(worstGradient(forward, numbers, vars, { name, y: "o", seed: "dO", gradient }), name).toBeLessThan(limit);
      }
    },
  );

  test.each(["silu", "tanhGelu"] as const)("glu with %s with respect to gate and up", (activation) => {
    const numbers: Numbers = new Map([
      ["gate", random(6 * 4)],
      ["up", random(6 * 4)],
      ["y", random(6 * 4)],
      ["dy", random(6 * 4)],
    ]);
    const [gate, up, y, dy] = [tensorOf("gate", 6, 4), tensorOf("up", 6, 4), tensorOf("y", 6, 4), tensorOf("dy", 6, 4)];
    const backward: Numbers = new Map([...numbers].map(([key, value]) => [key, value.slice()]));
    run([{ op: "gluBackward", rows, gate, up, dy, activation }], backward, vars);
    for (const name of ["gate", "up"]) {
      const gradient = backward.get(name) as Float64Array;
      expect(
        worstGradient([{ op: "glu", rows, gate, up, y, activation }], numbers, vars, { name, y: "y", seed: "dy", gradient }),
        name,
      ).toBeLessThan(limit);
    }
  });

  test("gatherRows: scatterRows is its transpose", () => {
    const numbers: Numbers = new Map<string, Float64Array | Int32Array>([
      ["x", random(6 * 4)],
      ["index", Int32Array.of(4, 0, 3)],
      ["y", random(3 * 4)],
      ["dy", random(3 * 4)],
      ["dx", random(6 * 4)],
    ]);
    const outRows: Rows = { count: "outRows", base: 0, capacity: 3 };
    const [x, index, y] = [tensorOf("x", 6, 4), tensorOf("index", 3), tensorOf("y", 3, 4)];
    const forward: Step[] = [{ op: "gatherRows", rows: outRows, x, index, y }];
    run([{ op: "scatterRows", rows, outRows, dy: tensorOf("dy", 3, 4), index, dx: tensorOf("dx", 6, 4) }], numbers, vars);
    const gradient = numbers.get("dx") as Float64Array;
    expect(worstGradient(forward, numbers, vars, { name: "x", y: "y", seed: "dy", gradient })).toBeLessThan(limit);
  });

  test.each(["kept", "made again"])("logprob with respect to what the head is given, at several temperatures, logits %s", (how) => {
    const outRows: Rows = { count: "outRows", base: 0, capacity: 6 };
    const numbers: Numbers = new Map<string, Float64Array | Int32Array>([
      ["x", random(6 * 5)],
      ["w", random(9 * 5)],
      ["z", new Float64Array(6 * 9).fill(Number.NaN)],
      ["parts", new Float64Array()],
      ["target", Int32Array.of(0, 8, 3, 3, 1, 7)],
      ["inverseTemperature", Float64Array.of(1, 0.5, 2, 1, 0.1, 3)],
      ["logprob", random(6)],
      ["entropy", random(6)],
      ["lse", random(6)],
      ["dLogprob", random(6)],
      ["dx", random(6 * 5)],
    ]);
    const [target, inverseTemperature, lse] = [tensorOf("target", 6), tensorOf("inverseTemperature", 6), tensorOf("lse", 6)];
    const z = tensorOf("z", 6, how === "kept" ? 9 : 4);
    const head = { rows: outRows, x: tensorOf("x", 6, 5), w: tensorOf("w", 9, 5), target, inverseTemperature, lse };
    const [logprob, entropy, dLogprob] = [tensorOf("logprob", 6), tensorOf("entropy", 6), tensorOf("dLogprob", 6)];
    const forward: Step[] = [{ op: "logprob", ...head, ...(how === "kept" && { z }), parts: tensorOf("parts"), logprob, entropy }];
    run(forward, numbers, vars);
    const backward: Numbers = new Map([...numbers].map(([key, value]) => [key, value.slice()]));
    run([{ op: "logprobBackward", ...head, z, dLogprob, dx: tensorOf("dx", 6, 5) }], backward, vars);
    const gradient = backward.get("dx") as Float64Array;
    expect(worstGradient(forward, numbers, vars, { name: "x", y: "logprob", seed: "dLogprob", gradient })).toBeLessThan(limit);
  });

  for (const loss of ["crossEntropy", "importanceSampling", "ppoClip"] as const) {
    test(`${loss} with respect to logprob, every branch`, () => {
      const n = LOSS_ROWS.length;
      const outRows: Rows = { count: "outRows", base: 0, capacity: n };
      const numbers: Numbers = new Map([
        ["logprob", Float64Array.from(LOSS_ROWS, ([value]) => value)],
        ["old", Float64Array.from(LOSS_ROWS, ([, value]) => value)],
        ["advantage", Float64Array.from(LOSS_ROWS, ([, , value]) => value)],
        ["lossParams", Float64Array.of(0.2, 0.28, 3, 0)],
        ["tokenLoss", random(n)],
        ["dLogprob", random(n)],
        ["ones", new Float64Array(n).fill(1)],
      ]);
      const forward: Step[] = [
        {
          op: "tokenLoss",
          rows: outRows,
          loss,
          logprob: tensorOf("logprob", n),
          old: tensorOf("old", n),
          advantage: tensorOf("advantage", n),
          lossParams: tensorOf("lossParams", 4),
          tokenLoss: tensorOf("tokenLoss", n),
          dLogprob: tensorOf("dLogprob", n),
        },
      ];
      run(forward, numbers, { outRows: n });
      const gradient = (numbers.get("dLogprob") as Float64Array).slice();
      expect(worstGradient(forward, numbers, { outRows: n }, { name: "logprob", y: "tokenLoss", seed: "ones", gradient })).toBeLessThan(
        1e-6,
      );
      if (loss === "ppoClip")
        expect(Array.from(gradient, (g) => g === 0)).toEqual(
          [false, false, true, false, false, false, true, false, true, true, true, true, true, true], // by row of LOSS_ROWS
        );
    });
  }
});

describe("known numbers of the reference", () => {
  const adam = (vars: Vars, sum: number, g: number[]): Numbers => {
    const numbers: Numbers = new Map([
      ["p", Float64Array.from(g, () => 1)],
      ["g", Float64Array.from(g)],
      ["m", new Float64Array(g.length)],
      ["v", new Float64Array(g.length)],
      ["sum", Float64Array.of(sum)],
    ]);
    const of = (name: string): Tensor => tensorOf(name, g.length);
    run([{ op: "adamW", p: of("p"), g: of("g"), m: of("m"), v: of("v"), sumSquares: tensorOf("sum", 1) }], numbers, {
      learningRate: 0.1,
      beta1: 0.9,
      beta2: 0.95,
      eps: 0.5,
      weightDecay: 0,
      gradClipNorm: 0,
      adamStep: 1,
      ...vars,
    });
    return numbers;
  };

  test("the first AdamW step moves every weight by lr·g/(|g| + eps)", () => {
    // 1 − 0.1·2/2.5, 1 + 0.1·0.5/1, a gradient of zero.
    const { p } = Object.fromEntries(adam({}, 4.25, [2, -0.5, 0]));
    expect(Array.from(p!, (value) => Number(value.toFixed(6)))).toEqual([0.92, 1.05, 1]);
  });

  test("clipping scales the gradient by clip/norm before the moments", () => {
    // g = (3, 4), norm 5, clip 1: g becomes (0.6, 0.8).
    const { m, v } = Object.fromEntries(adam({ gradClipNorm: 1 }, 25, [3, 4]));
    expect(m![0]).toBeCloseTo(0.06, 6);
    expect(v![1]).toBeCloseTo(0.05 * 0.64, 6);
  });

  test("weight decay shrinks the weight before the step", () => {
    const { p } = Object.fromEntries(adam({ weightDecay: 0.5 }, 0, [0]));
    expect(p![0]).toBeCloseTo(0.95, 6);
  });

  test("a norm that is not finite changes nothing", () => {
    for (const sum of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const { p, m, v } = Object.fromEntries(adam({}, sum, [Number.NaN, 1]));
      expect([...p!, ...m!, ...v!]).toEqual([1, 1, 0, 0, 0, 0]);
    }
  });

  test("tanh-GELU is ½·g·(1 + tanh(√(2/π)·(g + 0.044715·g³)))", () => {
    const gates = [-9, -1.5, 0, 0.3, 2, 40];
    const n = gates.length;
    const numbers: Numbers = new Map([
      ["gate", Float64Array.from(gates)],
      ["up", new Float64Array(n).fill(1)],
      ["y", new Float64Array(n)],
    ]);
    const of = (name: string): Tensor => tensorOf(name, 1, n);
    const rows: Rows = { count: "rows", base: 0, capacity: 1 };
    run([{ op: "glu", rows, gate: of("gate"), up: of("up"), y: of("y"), activation: "tanhGelu" }], numbers, { rows: 1 });
    for (const [i, g] of gates.entries()) {
      expect(numbers.get("y")![i]).toBeCloseTo(0.5 * g * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3))), 14);
    }
  });

  test("attention over one row returns its value, and lse is the score", () => {
    const rows: Rows = { count: "rows", base: 0, capacity: 1 };
    const numbers: Numbers = new Map<string, Float64Array | Int32Array>([
      ["q", Float64Array.of(1, 2)],
      ["k", Float64Array.of(3, 4)],
      ["v", Float64Array.of(5, 6)],
      ["start", Int32Array.of(0)],
      ["o", new Float64Array(2)],
      ["lse", new Float64Array(1)],
    ]);
    const of = (name: string): Tensor => tensorOf(name, 1, 2);
    const attention: Step = {
      op: "attention",
      rows,
      q: of("q"),
      k: of("k"),
      v: of("v"),
      start: tensorOf("start", 1),
      o: of("o"),
      lse: tensorOf("lse", 1, 1),
      heads: 1,
      kvHeads: 1,
      scale: 0.5,
    };
    run([attention], numbers, { rows: 1 });
    expect([...numbers.get("o")!]).toEqual([5, 6]);
    expect(numbers.get("lse")![0]).toBeCloseTo(5.5, 12);
  });
});

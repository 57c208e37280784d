// Tiled attention in every variant: random shapes against the f64 reference, and the promise that a sequence gives the same bits
// wherever it is packed. The sequences' lengths, heads, windows and widths are fast-check's; a width stays within one kernel text,
// since a software device compiles for seconds. What a device lacks is skipped with its reason.

import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { Rows, Step, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { BASELINE, needsOf, type Variant } from "../../../packages/engine/src/webgpu/kernels/variant.ts";
import { createNormal, createRandom } from "./opCases.ts";
import { createTestBackend, featuresOfTestGpu } from "./webgpuDevice.ts";

interface Shape {
  readonly lengths: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  readonly window?: number;
}

type Numbers = Readonly<Record<"q" | "k" | "v" | "dO", Float32Array>>;
type Result = Readonly<Record<"o" | "lse" | "dq" | "dk" | "dv", Float32Array>>;

const numbersOf = ({ lengths, heads, kvHeads, width }: Shape, seed: number): Numbers => {
  const normal = createNormal(createRandom(seed));
  const n = lengths.reduce((a, b) => a + b, 0);
  const random = (size: number): Float32Array => Float32Array.from({ length: n * size }, normal);
  return { q: random(heads * width), k: random(kvHeads * width), v: random(kvHeads * width), dO: random(heads * width) };
};

/** Forward and all three gradients of packed sequences. */
const run = async (backend: Backend, shape: Shape, numbers: Numbers): Promise<Result> => {
  const { lengths, heads, kvHeads, width, window } = shape;
  const n = lengths.reduce((a, b) => a + b, 0);
  const rows: Rows = { count: "rows", base: 0, capacity: n };
  const io = (name: string, columns: number, dtype: Tensor["dtype"] = "f32"): Tensor => ({
    name,
    shape: columns === 0 ? [n] : [n, columns],
    dtype,
    home: "io",
  });
  const [q, k, v, dO] = [io("q", heads * width), io("k", kvHeads * width), io("v", kvHeads * width), io("dO", heads * width)];
  const [start, end] = [io("start", 0, "i32"), io("end", 0, "i32")];
  const [o, lse, delta] = [io("o", heads * width), io("lse", heads), io("delta", heads)];
  const [dq, dk, dv] = [io("dq", heads * width), io("dk", kvHeads * width), io("dv", kvHeads * width)];
  const shared = { rows, heads, kvHeads, scale: 1 / Math.sqrt(width), ...(window !== undefined && { window }) };
  const steps: Step[] = [
    { op: "attention", ...shared, q, k, v, start, o, lse },
    { op: "attentionDelta", rows, o, dO, delta, heads },
    { op: "attentionBackwardQ", ...shared, q, k, v, dO, lse, delta, start, dq },
    { op: "attentionBackwardKv", ...shared, q, k, v, dO, lse, delta, end, dk, dv },
  ];
  const executable = await backend.compile({ name: "attention", steps });
  const firsts = lengths.map((_, i) => lengths.slice(0, i).reduce((a, b) => a + b, 0));
  const each = (pick: (i: number) => number): Int32Array => Int32Array.from(lengths.flatMap((length, i) => Array(length).fill(pick(i))));
  for (const [tensor, data] of [
    [q, numbers.q],
    [k, numbers.k],
    [v, numbers.v],
    [dO, numbers.dO],
    [start, each((i) => firsts[i]!)],
    [end, each((i) => firsts[i]! + lengths[i]!)],
  ] as const) {
    backend.write(tensor, data);
  }
  await executable.run({ rows: n });
  const read = async (tensor: Tensor): Promise<Float32Array> => (await backend.read(tensor)) as Float32Array;
  const result = { o: await read(o), lse: await read(lse), dq: await read(dq), dk: await read(dk), dv: await read(dv) };
  executable.dispose();
  return result;
};

/** Largest |got − want| / (1 + |want|). */
const worst = (got: Float32Array, want: Float32Array): number =>
  got.reduce((most, value, i) => {
    const error = Math.abs(value - want[i]!) / (1 + Math.abs(want[i]!));
    return Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(most, error);
  }, 0);

interface Subject {
  readonly name: string;
  readonly variant: Variant;
  readonly widths: readonly [min: number, max: number];
  readonly tolerance: number;
  readonly runs: number;
}

const half = { ...BASELINE, attentionTiles: "f16" } as const;
const SUBJECTS: readonly Subject[] = [
  { name: "32 x 32", variant: BASELINE, widths: [1, 32], tolerance: 2e-5, runs: 12 },
  { name: "64 x 64", variant: { ...BASELINE, attention: { queries: 64, keys: 64 } }, widths: [8, 64], tolerance: 2e-5, runs: 6 },
  { name: "64 x 64, wide", variant: { ...BASELINE, attention: { queries: 64, keys: 64 } }, widths: [193, 256], tolerance: 4e-5, runs: 1 },
  { name: "64 x 32", variant: { ...BASELINE, attention: { queries: 64, keys: 32 } }, widths: [33, 64], tolerance: 2e-5, runs: 4 },
  // Tiles hold 11 bits of each number, and so does what they are compared with nowhere else: scores of size 3 are off by 10⁻³ each.
  { name: "32 x 32 f16", variant: half, widths: [1, 32], tolerance: 1e-2, runs: 6 },
  {
    name: "64 x 64 f16, 128 wide",
    variant: { ...half, attention: { queries: 64, keys: 64 } },
    widths: [65, 128],
    tolerance: 1e-2,
    runs: 1,
  },
];

const { features, reason } = await featuresOfTestGpu();

for (const { name, variant, widths, tolerance, runs } of SUBJECTS) {
  const missing = reason ?? needsOf(variant).find((need) => !features.has(need));
  describe.skipIf(missing !== undefined)(`attention in tiles of ${name}${missing ? ` (skipped: no ${missing})` : ""}`, () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await createTestBackend({ variant });
    });
    afterAll(async () => {
      await backend?.dispose();
    });

    const shapes = fc.record({
      lengths: fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 4 }),
      kvHeads: fc.integer({ min: 1, max: 2 }),
      group: fc.integer({ min: 1, max: 3 }),
      width: fc.integer({ min: widths[0], max: widths[1] }),
      window: fc.option(fc.integer({ min: 1, max: 100 }), { nil: undefined }),
      seed: fc.nat(),
    });

    test("o, lse and the gradients agree with the reference, whatever the shape", async () => {
      await fc.assert(
        fc.asyncProperty(shapes, async ({ lengths, kvHeads, group, width, window, seed }) => {
          const shape: Shape = { lengths, heads: kvHeads * group, kvHeads, width, ...(window !== undefined && { window }) };
          const numbers = numbersOf(shape, seed);
          const [got, want] = [await run(backend, shape, numbers), await run(createReferenceBackend(), shape, numbers)];
          for (const key of ["o", "lse", "dq", "dk", "dv"] as const) expect(worst(got[key], want[key]), key).toBeLessThan(tolerance);
        }),
        { numRuns: runs, seed: 7, endOnFailure: true },
      );
    });

    test("a sequence gives the same bits alone and packed among others, which may hold NaN", async () => {
      const [before, own, after] = [37, 75, 40];
      const base = { heads: 2, kvHeads: 1, width: widths[1] };
      for (const window of [undefined, 50]) {
        const shape = (lengths: readonly number[]): Shape => ({ ...base, lengths, ...(window !== undefined && { window }) });
        const packed = shape([before, own, after]);
        const numbers = numbersOf(packed, 3);
        const units = { q: 2, k: 1, v: 1, dO: 2, o: 2, lse: 2, dq: 2, dk: 1, dv: 1 } as const;
        const columns = (key: keyof typeof units): number => units[key] * (key === "lse" ? 1 : base.width);
        const part = (key: keyof typeof units, data: Float32Array): Float32Array =>
          data.slice(before * columns(key), (before + own) * columns(key));
        const alone = { q: part("q", numbers.q), k: part("k", numbers.k), v: part("v", numbers.v), dO: part("dO", numbers.dO) };
        for (const key of ["q", "k", "v", "dO"] as const) {
          numbers[key].fill(Number.NaN, 0, columns(key));
          numbers[key].fill(Number.NaN, (before + own) * columns(key), (before + own + 1) * columns(key));
        }
        const [among, single] = [await run(backend, packed, numbers), await run(backend, shape([own]), alone)];
        for (const key of ["o", "lse", "dq", "dk", "dv"] as const) {
          const [a, b] = [new Uint32Array(part(key, among[key]).buffer), new Uint32Array(single[key].buffer)];
          expect(
            a.findIndex((bits, i) => bits !== b[i]),
            `${key}, window ${window}`,
          ).toBe(-1);
        }
      }
    });
  });
}

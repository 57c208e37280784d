// Tiled attention in every variant: random shapes against the f64 reference, and the promise that a sequence gives the same bits
// wherever it is packed. The sequences' lengths, heads, windows and widths are fast-check's; a width stays within one kernel text,
// since a software device compiles for seconds. What a device lacks is skipped with its reason.

import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { Rows, Step, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { attentionCandidates } from "../../../packages/engine/src/webgpu/kernels/attentionVariants.ts";
import { createNormal, createRandom, opCase, opCases, runCase } from "./opCases.ts";
import { tinyLlama } from "./tinyLlama.ts";
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
  /** Of a candidate. */
  readonly name: string;
  readonly widths: readonly [min: number, max: number];
  readonly tolerance: number;
  readonly runs: number;
}

/** f16 tiles hold 11 bits of each number: scores of size 3 are off by 10⁻³ each. */
const SUBJECTS: readonly Subject[] = [
  { name: "32x32", widths: [1, 32], tolerance: 2e-5, runs: 12 },
  { name: "64x64", widths: [8, 64], tolerance: 2e-5, runs: 6 },
  { name: "64x64", widths: [193, 256], tolerance: 4e-5, runs: 1 },
  { name: "64x32", widths: [33, 64], tolerance: 2e-5, runs: 4 },
  { name: "32x32 f16", widths: [1, 32], tolerance: 1e-2, runs: 6 },
  { name: "64x64 f16", widths: [65, 128], tolerance: 1e-2, runs: 1 },
];

/** A backend that uses the candidate of this name wherever there is one. */
const createWith = (name: string): Promise<Backend> =>
  createTestBackend({
    allowsInexact: name.endsWith("f16"),
    choose: (_, candidates) => candidates.find((candidate) => candidate.name === name),
  });

const { features, reason } = await featuresOfTestGpu();

const missingFor = (needs: readonly string[] = []): string | undefined => reason ?? needs.find((need) => !features.has(need));
const skipped = (missing: string | undefined): string => (missing === undefined ? "" : ` (skipped: no ${missing})`);

for (const { name, widths, tolerance, runs } of SUBJECTS) {
  const missing = missingFor(attentionCandidates(widths[1], true).find((candidate) => candidate.name === name)!.needs);
  describe.skipIf(missing !== undefined)(`attention in tiles of ${name}, up to ${widths[1]} wide${skipped(missing)}`, () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await createWith(name);
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

const subgroupsMissing = missingFor(["subgroups"]);
describe.skipIf(subgroupsMissing !== undefined)(`reductions by subgroups${skipped(subgroupsMissing)}`, () => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await createWith("subgroups");
  });
  afterAll(async () => {
    await backend?.dispose();
  });
  const reduced = /^(rmsNorm|rmsNormBackward|attentionCached),/;
  for (const { name } of opCases().filter((made) => reduced.test(made.name))) {
    test(`${name}: agrees with the reference`, async () => {
      const [made, spec] = [opCase(name), opCase(name)];
      const [got, want] = [await runCase(backend, made), await runCase(createReferenceBackend(), spec)];
      for (const [i, tensor] of made.outputs.entries()) {
        const [a, b] = [got.get(tensor)! as Float32Array, want.get(spec.outputs[i]!)! as Float32Array];
        const live = a.map((value, j) => (Number.isNaN(b[j]!) && Number.isNaN(value) ? 0 : value));
        expect(
          worst(
            live,
            b.map((value) => (Number.isNaN(value) ? 0 : value)),
          ),
          tensor.name,
        ).toBeLessThanOrEqual(made.tolerance);
      }
    });
  }
});

describe.skipIf(reason !== undefined)(`attention over a long cache${skipped(reason)}`, () => {
  const [P, heads, kvHeads, width] = [600, 4, 2, 16];
  const rows: Rows = { count: "rows", base: 0, capacity: 8 };
  const positions = Int32Array.of(0, 255, 256, 599, 300, 31, 511, 512);
  /** o of rows at these positions, each in one of two slots. */
  const attend = async (backend: Backend, at: Int32Array, window?: number): Promise<Float32Array> => {
    const normal = createNormal(createRandom(11));
    const tensor = (name: string, shape: readonly number[], home: Tensor["home"], dtype: Tensor["dtype"] = "f32"): Tensor => ({
      name,
      shape,
      dtype,
      home,
    });
    const [q, o] = [tensor("q", [8, heads * width], "io"), tensor("o", [8, heads * width], "io")];
    const [slots, places] = [tensor("slots", [8], "io", "i32"), tensor("positions", [8], "io", "i32")];
    const [kCache, vCache] = [tensor("kCache", [2, P, kvHeads * width], "kv"), tensor("vCache", [2, P, kvHeads * width], "kv")];
    for (const cache of [kCache, vCache]) await backend.allocate(cache, Float32Array.from({ length: 2 * P * kvHeads * width }, normal));
    const step = { op: "attentionCached", rows, q, kCache, vCache, slots, positions: places, o, heads, kvHeads, scale: 0.25 } as const;
    const executable = await backend.compile({ name: "cached", steps: [{ ...step, ...(window !== undefined && { window }) }] });
    const queries = Float32Array.from({ length: 8 * heads * width }, normal);
    backend.write(q, queries);
    backend.write(
      slots,
      Int32Array.from(at, (_, i) => i % 2),
    );
    backend.write(places, at);
    await executable.run({ rows: at.length });
    const result = (await backend.read(o, at.length * heads * width)) as Float32Array;
    executable.dispose();
    return result;
  };

  test.each([undefined, 1, 100, 400])(
    "cut into spans it agrees with the reference, window %s; rows alone have the same bits",
    async (window) => {
      const backend = await createTestBackend();
      const got = await attend(backend, positions, window);
      expect(worst(got, await attend(createReferenceBackend(), positions, window))).toBeLessThan(2e-5);
      const few = await attend(backend, positions.slice(0, 3), window);
      expect(new Uint8Array(few.buffer)).toEqual(new Uint8Array(got.slice(0, few.length).buffer));
      await backend.dispose();
    },
  );
});

describe.skipIf(reason !== undefined)(`sampler and trainer agree whatever the variant${skipped(reason)}`, () => {
  for (const [name, gate, needs] of [
    ["64x64", 1e-3, []],
    ["64x32 f16", 2e-2, ["shader-f16"]],
    ["subgroups", 1e-3, ["subgroups"]],
  ] as const) {
    const missing = missingFor(needs);
    test.skipIf(missing !== undefined)(`${name}: log-probs within ${gate}${skipped(missing)}`, async () => {
      const policy = await createPolicy({ backend: await createWith(name), model: tinyLlama({ num_hidden_layers: 1 }), slots: 2 });
      const prompt = Int32Array.from({ length: 40 }, (_, i) => 1 + ((7 * i) % 40));
      const { tokens, logprobs } = await policy.sampler.generate({ prompt, maxTokens: 6, temperature: 1, stopTokens: [], seed: 3 });
      const datum = { tokens: Int32Array.of(...prompt, ...tokens), targetStart: prompt.length };
      const scored = (await policy.trainer.forward([datum])).logprobs[0]!;
      for (const [i, logprob] of logprobs.entries()) expect(Math.abs(scored[i]! - logprob)).toBeLessThan(gate);
      await policy.dispose();
    });
  }
});

// Every way in which the WebGPU backend multiplies rows with a weight: each against f64, and all of them against each other, bit by bit.
// Which one a plan takes depends on the row count and on the device; a row's log-prob must not.

import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openNodeGpu } from "../../../packages/engine/src/node/webgpu.ts";
import type { Backend, TensorData } from "../../../packages/engine/src/plan/backend.ts";
import type { Rows, Step, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import type { WebGpuOptions } from "../../../packages/engine/src/webgpu/backend.ts";
import { type OpenDevice, openDevice } from "../../../packages/engine/src/webgpu/device.ts";
import type { Dispatch } from "../../../packages/engine/src/webgpu/kernels/kernel.ts";
import { lower } from "../../../packages/engine/src/webgpu/kernels/lower.ts";
import {
  type ProductVariant,
  productCandidates,
  weightGradCandidates,
} from "../../../packages/engine/src/webgpu/kernels/productVariants.ts";
import { type Feature, PORTABLE, type Target } from "../../../packages/engine/src/webgpu/kernels/target.ts";
import { createPipelines } from "../../../packages/engine/src/webgpu/pipelines.ts";
import { piecesOf, shardsOf, sliceOf } from "../../../packages/engine/src/webgpu/shards.ts";
import {
  byteLengthOf,
  isPacked,
  packedLayout,
  packInto,
  unpack,
  WEIGHT_FORMATS,
  type WeightFormat,
} from "../../../packages/engine/src/weights/formats.ts";
import { probe } from "./backends.ts";
import { createNormal, createRandom, opCases } from "./opCases.ts";
import { tinyLlama } from "./tinyLlama.ts";
import { createTestBackend, openTestGpu } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());
const why = skip ? ` (skipped: ${skip})` : "";
const hasF16 = await (async () => {
  if (skip) return false;
  const { gpu, release } = await openTestGpu();
  const found = (await gpu.requestAdapter())?.features.has("shader-f16") ?? false;
  release();
  return found;
})();

type Op = "linear" | "linearBackward";

interface Shape {
  readonly rows: number;
  readonly O: number;
  readonly I: number;
  readonly seed: number;
}

interface Case {
  readonly w: Tensor;
  readonly data: TensorData;
  /** Row-major f32: [rows, I] forward, [rows, O] backward; what y holds before; scale. */
  readonly a: Float32Array;
  readonly before: Float32Array;
  readonly scale: number;
  /** y in f64. */
  readonly want: Float64Array;
}

const makeCase = (op: Op, format: WeightFormat, { rows, O, I, seed }: Shape): Case => {
  const normal = createNormal(createRandom(seed));
  const fill = (length: number): Float32Array => Float32Array.from({ length }, normal);
  const w: Tensor = { name: "w", shape: [O, I], dtype: format, home: "weights" };
  let values: Float32Array = fill(O * I);
  let data: TensorData = values;
  if (isPacked(format)) {
    const words = new Uint32Array(byteLengthOf(w) / 4);
    packInto(w, words, values);
    [data, values] = [words, unpack(w, words)];
  }
  const [K, N] = op === "linear" ? [I, O] : [O, I];
  const [a, before, scale] = [fill(rows * K), fill(rows * N), 0.75];
  const want = new Float64Array(rows * N);
  for (let m = 0; m < rows; m++) {
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) sum += a[m * K + k]! * (op === "linear" ? values[n * I + k]! : values[k * I + n]!);
      want[m * N + n] = before[m * N + n]! + scale * sum;
    }
  }
  return { w, data, a, before, scale, want };
};

/** y += scale·a·w on the first `count` rows. */
const run = async (
  backend: Backend,
  op: Op,
  shape: Shape,
  made: Case,
  count = shape.rows,
  capacity = shape.rows,
): Promise<Float32Array> => {
  const { O, I } = shape;
  const [K, N] = op === "linear" ? [I, O] : [O, I];
  const w: Tensor = { ...made.w };
  await backend.allocate(w, made.data);
  const rows: Rows = { count: "rows", base: 0, capacity };
  const io = (name: string, width: number): Tensor => ({ name, shape: [capacity, width], dtype: "f32", home: "io" });
  const [a, y] = [io("a", K), io("y", N)];
  const step: Step =
    op === "linear"
      ? { op, rows, x: a, w, residual: y, y, scale: made.scale }
      : { op, rows, dy: a, w, dx: y, scale: made.scale, accumulate: true };
  const executable = await backend.compile({ name: op, steps: [step] });
  backend.write(a, made.a.subarray(0, count * K));
  backend.write(y, made.before.subarray(0, count * N));
  await executable.run({ rows: count });
  const result = (await backend.read(y, count * N)) as Float32Array;
  executable.dispose();
  return result;
};

const CLOSE = 1.5e-6;

/** Largest |got − want| in units of √K, the size of a sum of K products of normal numbers. */
const worst = (got: Float32Array, want: Float64Array, K: number): number => {
  let most = 0;
  for (let i = 0; i < got.length; i++) {
    const error = Math.abs(got[i]! - want[i]!) / Math.sqrt(K);
    most = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(most, error);
  }
  return most;
};

const bits = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer, values.byteOffset, values.length);

/** Rows of every class with a ragged rest, widths that are multiples of 32 and, where the format allows it, others; several slices of depth. */
const shapes = (op: Op, format: WeightFormat): fc.Arbitrary<Shape> => {
  const width = fc.integer({ min: 1, max: 5 }).map((n) => 32 * n);
  const other = fc.integer({ min: 1, max: 150 });
  const deep = fc.constantFrom(1056, 2080);
  const ragged = op === "linear" ? other : fc.oneof(other, deep);
  return fc.record({
    rows: fc.constantFrom(1, 3, 8, 9, 17, 37, 67),
    O: fc.oneof(width, ragged),
    I: format === "f32" ? fc.oneof(width, op === "linear" ? deep : width, other) : op === "linear" ? fc.oneof(width, deep) : width,
    seed: fc.nat(1e6),
  });
};

/** A shape for which every candidate exists. */
const FULL: Readonly<Record<Op, Shape>> = {
  linear: { rows: 37, O: 70, I: 2080, seed: 1 },
  linearBackward: { rows: 37, O: 2090, I: 96, seed: 2 },
};

const candidatesOf = (op: Op, format: WeightFormat, { rows, O, I }: Shape): readonly ProductVariant[] => {
  const [N, K] = op === "linear" ? [O, I] : [I, O];
  const problem = { op, rows, sizes: { O, I }, format };
  const slices = Math.ceil(K / sliceOf(K));
  return productCandidates({ problem, isSoftware: false, n: N, depth: K, slices, isAlongDepth: op === "linear" });
};

/** The f32 formats in every variant; the packed ones differ in how they read, so a few tiles show it. */
const isTested = (format: WeightFormat, { name }: ProductVariant): boolean =>
  format === "f32" || /skinny|^(32x32|64x64 16x8|64x8 8x8|8x64 8x8|128x64 wide|64x16 wide|16x64 wide split|64x64 wide f16)$/.test(name);

describe.skipIf(skip !== undefined)(`products on WebGPU${why}`, () => {
  let backend: Backend;
  let wanted = "";
  const taken = new Set<string>();
  beforeAll(async () => {
    backend = await createTestBackend({
      allowsInexact: true,
      choose: (_, candidates) => {
        const found = candidates.find(({ name }) => name === wanted);
        if (found) taken.add(found.name);
        return found;
      },
    });
  });
  afterAll(async () => {
    await backend?.dispose();
  });

  for (const format of WEIGHT_FORMATS) {
    for (const op of ["linear", "linearBackward"] as const) {
      test(`${op}, ${format} weights: every variant gives the same bits, within 1.5e-6 of f64`, async () => {
        const check = async (shape: Shape): Promise<void> => {
          const made = makeCase(op, format, shape);
          const K = op === "linear" ? shape.I : shape.O;
          let first: Float32Array | undefined;
          for (const variant of candidatesOf(op, format, shape)) {
            if (variant.isInexact || !isTested(format, variant)) continue;
            wanted = variant.name;
            const got = await run(backend, op, shape, made);
            expect(taken.has(wanted), `${wanted} is taken`).toBe(true);
            expect(worst(got, made.want, K), wanted).toBeLessThan(CLOSE);
            first ??= got;
            expect(bits(got), `${wanted} for ${JSON.stringify(shape)}`).toEqual(bits(first));
          }
        };
        await check(FULL[op]);
        await fc.assert(fc.asyncProperty(shapes(op, format), check), { numRuns: 2, seed: 11 });
      }, 240_000);
    }
  }

  test("weightGrad: every tile gives the same bits, within 1.5e-6 of f64", async () => {
    const [n, O, I] = [150, 70, 96];
    const normal = createNormal(createRandom(31));
    const fill = (length: number): Float32Array => Float32Array.from({ length }, normal);
    const [a, b, before] = [fill(n * O), fill(n * I), fill(O * I)];
    const want = new Float64Array(O * I);
    for (let o = 0; o < O; o++) {
      for (let i = 0; i < I; i++) {
        let sum = 0;
        for (let t = 0; t < n; t++) sum += a[t * O + o]! * b[t * I + i]!;
        want[o * I + i] = before[o * I + i]! + 0.5 * sum;
      }
    }
    let first: Float32Array | undefined;
    for (const { name } of weightGradCandidates(O, I, false)) {
      wanted = name;
      const rows: Rows = { count: "rows", base: 0, capacity: n };
      const io = (label: string, width: number): Tensor => ({ name: label, shape: [n, width], dtype: "f32", home: "io" });
      const [dy, x] = [io("dy", O), io("x", I)];
      const dw: Tensor = { name: "dw", shape: [O, I], dtype: "f32", home: "state" };
      await backend.allocate(dw, before);
      const executable = await backend.compile({ name, steps: [{ op: "weightGrad", rows, dy, x, dw, scale: 0.5 }] });
      backend.write(dy, a);
      backend.write(x, b);
      await executable.run({ rows: n });
      const got = (await backend.read(dw)) as Float32Array;
      executable.dispose();
      expect(taken.has(wanted), `${wanted} is taken`).toBe(true);
      expect(worst(got, want, n), wanted).toBeLessThan(CLOSE);
      first ??= got;
      expect(bits(got), wanted).toEqual(bits(first));
    }
  }, 120_000);

  test.skipIf(!hasF16)(
    `f16 tiles round the factors, never the sums: within 2e-3 of f64${hasF16 ? "" : " (skipped: no shader-f16)"}`,
    async () => {
      for (const [op, format] of [
        ["linear", "f32"],
        ["linear", "q4"],
        ["linearBackward", "f16"],
      ] as const) {
        const shape = FULL[op];
        const made = makeCase(op, format, shape);
        const K = op === "linear" ? shape.I : shape.O;
        for (const variant of candidatesOf(op, format, shape).filter(
          ({ name }) => name === "64x64 wide f16" || name === "16x64 wide f16",
        )) {
          wanted = variant.name;
          const error = worst(await run(backend, op, shape, made), made.want, K);
          expect(error, wanted).toBeLessThan(2e-3);
          // Else it was not f16 that ran.
          expect(error, wanted).toBeGreaterThan(2e-6);
        }
      }
    },
  );

  test("f16 tiles are no candidate unless they are allowed", async () => {
    const seen: string[] = [];
    const strict = await createTestBackend({
      isSoftware: false,
      choose: (_, candidates) => {
        seen.push(...candidates.map(({ name }) => name));
        return candidates.find(({ isInexact }) => isInexact);
      },
    });
    const shape: Shape = { rows: 3, O: 32, I: 64, seed: 3 };
    const made = makeCase("linear", "f32", shape);
    expect(worst(await run(strict, "linear", shape, made), made.want, 64)).toBeLessThan(CLOSE);
    expect(seen).toContain("32x32 wide");
    expect(seen.filter((name) => name.includes("f16"))).toEqual([]);
    await strict.dispose();
  });

  test("as on a GPU: the variant follows the row count of each run, the bits do not", async () => {
    const gpu = await createTestBackend({ isSoftware: false });
    for (const [op, format] of [
      ["linear", "q8"],
      ["linearBackward", "f32"],
    ] as const) {
      const shape: Shape = { rows: 70, O: op === "linear" ? 72 : 1100, I: op === "linear" ? 1056 : 64, seed: 5 };
      const made = makeCase(op, format, shape);
      const all = await run(gpu, op, shape, made);
      expect(worst(all, made.want, 1056)).toBeLessThan(CLOSE);
      const N = op === "linear" ? shape.O : shape.I;
      for (const count of [1, 8, 9, 16, 17, 33, 65])
        expect(bits(await run(gpu, op, shape, made, count, 70)), `${count} rows`).toEqual(bits(all.subarray(0, count * N)));
    }
    await gpu.dispose();
  });
});

describe("weights in shards", () => {
  const weight = (dtype: WeightFormat, O: number, I: number): Tensor => ({ name: "w", shape: [O, I], dtype, home: "weights" });

  test.each(WEIGHT_FORMATS)("%s: shards fit, follow each other, begin at blocks, and at slices where they can", (dtype) => {
    for (const [O, I, limit] of [
      [151936, 896, 128 << 20],
      [262144, 640, 128 << 20],
      [1000, 64, 64 << 10],
      [5000, 96, 64 << 10],
    ] as const) {
      const whole = weight(dtype, O, I);
      const shards = shardsOf(whole, limit);
      if (shards.length > 1) expect(shardsOf(whole, limit)).toBe(shards);
      let next = 0;
      for (const { tensor, first } of shards) {
        expect(first).toBe(next);
        expect(byteLengthOf(tensor)).toBeLessThanOrEqual(limit);
        expect(first % (limit > 1 << 20 ? sliceOf(O) : 64)).toBe(0);
        next += tensor.shape[0]!;
      }
      expect(next).toBe(O);
      expect(shards.length === 1).toBe(byteLengthOf(whole) <= limit);
    }
  });

  test("a vector and a part of a state buffer are never cut; rows that do not fit are named with both numbers", () => {
    const gain: Tensor = { name: "gain", shape: [4096], dtype: "f32", home: "weights" };
    const state: Tensor = { name: "p", shape: [64, 64], dtype: "f32", home: "state" };
    expect(shardsOf(gain, 1024)).toEqual([{ tensor: gain, first: 0 }]);
    expect(shardsOf(state, 1024)).toEqual([{ tensor: state, first: 0 }]);
    expect(() => shardsOf(weight("f32", 64, 4096), 65536)).toThrow(/binding limit of 65536 bytes, got 1048576/);
  });

  test.each(WEIGHT_FORMATS)("%s: a tensor that comes in pieces of any size fills its shards as the whole would", (dtype) => {
    const whole = weight(dtype, 400, 32);
    const words = Uint32Array.from({ length: byteLengthOf(whole) / 4 }, (_, i) => i + 1);
    const shards = shardsOf(whole, Math.floor(byteLengthOf(whole) / 3));
    expect(shards.length).toBeGreaterThan(1);
    const fill = (size: number): number[][] => {
      const found = new Map(shards.map(({ tensor }) => [tensor, new Array<number>(byteLengthOf(tensor) / 4).fill(0)]));
      for (let from = 0; from < words.length; from += size)
        for (const { shard, part, offset } of piecesOf(whole, shards, words.subarray(from, from + size), from))
          for (const [i, word] of part.entries()) found.get(shard)![offset + i] = word;
      return [...found.values()];
    };
    const expected = fill(words.length);
    for (const size of [1, 7, 64, 400]) expect(fill(size)).toEqual(expected);
    // Nothing is lost or doubled, but the padding before the scales.
    const placed = expected.flat().filter((word) => word !== 0);
    expect(new Set(placed).size).toBe(placed.length);
    const values = isPacked(dtype) ? (400 * 32 * { f16: 16, bf16: 16, q8: 8, q4: 4 }[dtype]) / 32 : 12_800;
    expect(placed.length).toBe(values + (dtype === "q8" || dtype === "q4" ? 200 : 0));
  });

  describe.skipIf(skip !== undefined)(`on a device with small bindings${why}`, () => {
    for (const dtype of WEIGHT_FORMATS) {
      test(`${dtype}: linear, linearBackward and embed are those of the whole, bit by bit`, async () => {
        const [whole, cut] = [await createTestBackend(), await createTestBackend({ bindingBytes: 64 << 10 })];
        // Shards of at least one slice of the depth: 1024 rows of 32 f32 would be 128 KiB, so f32 has fewer rows than a slice holds.
        const shape: Shape = { rows: 9, O: 4000, I: 32, seed: 21 };
        for (const op of ["linear", "linearBackward"] as const) {
          const made = makeCase(op, dtype, shape);
          expect(shardsOf({ ...made.w }, 64 << 10).length).toBeGreaterThan(1);
          const [one, many] = [await run(whole, op, shape, made), await run(cut, op, shape, made)];
          expect(worst(many, made.want, op === "linear" ? 32 : 4000)).toBeLessThan(CLOSE);
          if (op === "linear" || dtype !== "f32") expect(bits(many)).toEqual(bits(one));
        }
        const { w, data } = makeCase("linear", dtype, shape);
        const rows: Rows = { count: "rows", base: 0, capacity: 6 };
        const outcome = async (backend: Backend): Promise<Float32Array> => {
          const table = { ...w };
          const [tokens, y]: [Tensor, Tensor] = [
            { name: "tokens", shape: [6], dtype: "i32", home: "io" },
            { name: "y", shape: [6, 32], dtype: "f32", home: "io" },
          ];
          // In pieces, as a checkpoint comes.
          await backend.allocate(table);
          const words = new Uint32Array(data.buffer, data.byteOffset, data.length);
          for (let from = 0; from < words.length; from += 5000) await backend.fill(table, words.subarray(from, from + 5000), from);
          const plan = await backend.compile({ name: "embed", steps: [{ op: "embed", rows, table, tokens, y, scale: 2 }] });
          backend.write(tokens, Int32Array.of(0, 511, 512, 3999, 1024, 2047));
          await plan.run({ rows: 6 });
          return (await backend.read(y)) as Float32Array;
        };
        const [one, many] = [await outcome(whole), await outcome(cut)];
        expect(many.some((value) => value !== 0)).toBe(true);
        expect(bits(many)).toEqual(bits(one));
        await whole.dispose();
        await cut.dispose();
      });
    }

    test("the largest embedding of a supported family, 262144 × 640 in q8, under the promised 128 MiB: embed, logits, and the way back", async () => {
      const [V, D] = [262144, 640];
      const backend = await createTestBackend({ bindingBytes: 128 << 20 });
      const w = weight("q8", V, D);
      expect(shardsOf(w, 128 << 20).length).toBe(2);
      const valueAt = (row: number, column: number): number => ((row * 7 + column * 13) % 255) - 127;
      const { scaleWord, words } = packedLayout("q8", V * D);
      await backend.allocate(w);
      const piece = 8192;
      for (let row = 0; row < V; row += piece) {
        const bytes = new Int8Array(piece * D);
        for (let i = 0; i < bytes.length; i++) bytes[i] = valueAt(row + Math.floor(i / D), i % D);
        await backend.fill(w, new Uint32Array(bytes.buffer), (row * D) / 4);
      }
      // All scales are 2⁻⁷, two in a word.
      await backend.fill(w, new Uint32Array(words - scaleWord).fill(0x20002000), scaleWord);

      const last = shardsOf(w, 128 << 20)[1]!.first;
      const tokenRows = [0, last - 1, last, V - 1];
      const [rows, one]: [Rows, Rows] = [
        { count: "rows", base: 0, capacity: 4 },
        { count: "outRows", base: 0, capacity: 1 },
      ];
      const io = (name: string, shape: number[], dtype: "f32" | "i32" = "f32"): Tensor => ({ name, shape, dtype, home: "io" });
      const [tokens, y, x, z, dx] = [io("tokens", [4], "i32"), io("y", [4, D]), io("x", [1, D]), io("z", [1, V]), io("dx", [1, D])];
      const plan = await backend.compile({
        name: "large",
        steps: [
          { op: "embed", rows, table: w, tokens, y, scale: 1 },
          { op: "linear", rows: one, x, w, y: z, scale: 1 },
          { op: "linearBackward", rows: one, dy: z, w, dx, scale: 2 ** -20, accumulate: false },
        ],
      });
      const normal = createNormal(createRandom(8));
      const input = Float32Array.from({ length: D }, normal);
      backend.write(tokens, Int32Array.from(tokenRows));
      backend.write(x, input);
      await plan.run({ rows: 4, outRows: 1 });
      const embedded = await backend.read(y);
      for (const [i, row] of tokenRows.entries()) for (let d = 0; d < D; d++) expect(embedded[i * D + d]).toBe(valueAt(row, d) / 128);
      const [logits, back] = [(await backend.read(z)) as Float32Array, await backend.read(dx)];
      // Rows repeat after 255, so the logits do.
      for (let row = 0; row < 255; row++) {
        let sum = 0;
        for (let d = 0; d < D; d++) sum += (input[d]! * valueAt(row, d)) / 128;
        expect(Math.abs(logits[row]! - sum) / Math.sqrt(D)).toBeLessThan(CLOSE);
      }
      for (let row = 255; row < V; row++) if (logits[row] !== logits[row - 255]) expect(logits[row]).toBe(logits[row - 255]);
      for (let d = 0; d < D; d += 37) {
        let sum = 0;
        for (let row = 0; row < V; row++) sum += (logits[row]! * valueAt(row, d)) / 128;
        expect(Math.abs(back[d]! - sum * 2 ** -20) / (1 + Math.abs(sum * 2 ** -20))).toBeLessThan(1e-5);
      }
      await backend.dispose();
    }, 120_000);

    test("a policy whose embedding and head lie in shards samples the same tokens, and learns the same", async () => {
      const outcome = async (options: WebGpuOptions) => {
        const policy = await createPolicy({
          backend: await createTestBackend(options),
          model: tinyLlama({ num_hidden_layers: 1, hidden_size: 128, vocab_size: 1200 }),
          lora: { rank: 4, alpha: 8 },
          slots: 2,
          microBatchTokens: 64,
        });
        const prompt = Int32Array.of(5, 900, 2, 1199);
        const generate = () => policy.sampler.generate({ prompt, maxTokens: 6, temperature: 1, stopTokens: [], seed: 7 });
        const before = await generate();
        const tokens = Int32Array.of(...prompt, ...before.tokens);
        const datum = { tokens, targetStart: 4, weights: new Float32Array(before.tokens.length).fill(1) };
        const { logprobs } = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
        for (const [i, logprob] of before.logprobs.entries()) expect(Math.abs(logprobs[0]![i]! - logprob)).toBeLessThan(1e-3);
        const { gradNorm } = await policy.trainer.optimStep({ learningRate: 0.02 });
        const after = await policy.trainer.forward([datum]);
        await policy.dispose();
        return { before, gradNorm, logprobs: logprobs[0]!, after: after.logprobs[0]! };
      };
      // The embedding has 600 KiB, the logits of 64 rows, which cannot be cut, 300.
      const [whole, cut] = [await outcome({}), await outcome({ bindingBytes: 400 << 10 })];
      expect(cut.before).toEqual(whole.before);
      expect(bits(cut.logprobs)).toEqual(bits(whole.logprobs));
      // 800 rows a shard are less than a slice of the head's gradient: its sums have another order.
      expect(Math.abs(cut.gradNorm / whole.gradNorm - 1)).toBeLessThan(1e-5);
      for (const [i, logprob] of whole.after.entries()) expect(Math.abs(cut.after[i]! - logprob)).toBeLessThan(1e-4);
      expect(bits(cut.after)).not.toEqual(bits(whole.logprobs));
    });

    test("a weight in shards counts in byteLength, is allocated once, and is refused where only whole tensors are read", async () => {
      const backend = await createTestBackend({ bindingBytes: 64 << 10 });
      const table = weight("f32", 1000, 32);
      await backend.allocate(table);
      expect(backend.byteLength).toBe(128000);
      await expect(backend.allocate(table)).rejects.toMatchObject({ code: "bad-request" });
      const [x, positions]: [Tensor, Tensor] = [
        { name: "x", shape: [2, 32], dtype: "f32", home: "io" },
        { name: "positions", shape: [2], dtype: "i32", home: "io" },
      ];
      const rows: Rows = { count: "rows", base: 0, capacity: 2 };
      const steps: Step[] = [{ op: "rope", rows, x, table, positions, heads: 1, direction: 1 }];
      await expect(backend.compile({ name: "rope", steps })).rejects.toMatchObject({
        code: "device",
        message: expect.stringMatching(/limit of 65536 bytes.*got 128000/),
      });
      await backend.dispose();
    });
  });
});

/** Dawn without a device: the whole validation of a pipeline, and nothing runs. */
const nullDevice = async (): Promise<{ open: OpenDevice; release: () => void } | string> => {
  try {
    const { gpu, release } = await openNodeGpu({ flags: ["backend=null"] });
    return { open: await openDevice(gpu), release };
  } catch (cause) {
    return cause instanceof Error ? cause.message : String(cause);
  }
};

test("every variant of every operation compiles, on Dawn's null backend", async ({ skip: skipTest }) => {
  const found = await nullDevice();
  if (typeof found === "string") return skipTest(found);
  const { open, release } = found;
  expect([...open.target.features].sort()).toEqual(["shader-f16", "subgroups"]);
  const texts = new Map<string, Dispatch>();
  const steps = opCases().map(({ step }) => step);
  const collect = (target: Target): void => {
    for (const step of steps) for (const dispatch of lower(step, target)) texts.set(dispatch.source, dispatch);
  };
  for (const isSoftware of [true, false]) {
    for (const features of [new Set<Feature>(), open.target.features]) collect({ ...PORTABLE, isSoftware, features });
  }
  const plain = texts.size;
  const names = new Set<string>();
  const all: Target = { ...PORTABLE, features: open.target.features, allowsInexact: true };
  collect({
    ...all,
    choose: (_, candidates) => {
      for (const { name } of candidates) names.add(name);
      return undefined;
    },
  });
  for (const name of names) collect({ ...all, choose: (_, candidates) => candidates.find((candidate) => candidate.name === name) });
  expect(names.size).toBeGreaterThan(20);
  expect(texts.size).toBeGreaterThan(plain + 100);
  const { pipelineFor } = createPipelines(open);
  await Promise.all([...texts.values()].map(pipelineFor));
  open.check("compiling");
  await open.close();
  release();
}, 120_000);

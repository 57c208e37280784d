// The head without logits on WebGPU: every kernel variant, every cut of the weight and every width of a slice gives a row the same bits, and
// what is sampled has the log-prob that scoring finds. Against the reference it stands in ops.test.ts.

import { describe, expect, test } from "vitest";
import type { Backend, HostArray, TensorData } from "../../../packages/engine/src/plan/backend.ts";
import { headParts, type Rows, type Step, type Tensor } from "../../../packages/engine/src/plan/step.ts";
import type { WebGpuOptions } from "../../../packages/engine/src/webgpu/backend.ts";
import { shardsOf } from "../../../packages/engine/src/webgpu/shards.ts";
import { byteLengthOf, isPacked, packInto, type WeightFormat } from "../../../packages/engine/src/weights/formats.ts";
import { probe } from "./backends.ts";
import { createNormal, createRandom } from "./opCases.ts";
import { createTestBackend } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());
const why = skip ? ` (skipped: ${skip})` : "";

interface Shape {
  readonly rows: number;
  readonly V: number;
  readonly D: number;
  /** Columns of a slice of the gradient; V: the forward's logits are kept. */
  readonly S: number;
  readonly format?: WeightFormat;
}

/** Scores targets, goes back, and samples; the numbers of all rows. */
const outcome = async (backend: Backend, { rows: n, V, D, S, format = "f32" }: Shape) => {
  const normal = createNormal(createRandom(V + D));
  const floats = (length: number): Float32Array => Float32Array.from({ length }, normal);
  const w: Tensor = { name: "w", shape: [V, D], dtype: format, home: "weights" };
  let data: TensorData = floats(V * D);
  if (isPacked(format)) {
    const words = new Uint32Array(byteLengthOf(w) / 4);
    packInto(w, words, data);
    data = words;
  }
  await backend.allocate(w, data);
  const rows: Rows = { count: "outRows", base: 0, capacity: n };
  const tensor = (name: string, width: number, home: Tensor["home"] = "io", dtype: Tensor["dtype"] = "f32"): Tensor => ({
    ...{ name, shape: width === 0 ? [n] : [n, width], dtype, home },
  });
  const [x, dx, z, parts] = [tensor("x", D), tensor("dx", D), tensor("z", S, "arena"), tensor("parts", headParts(V), "arena")];
  const [target, token] = [tensor("target", 0, "io", "i32"), tensor("token", 0, "io", "i32")];
  const [inverseTemperature, uniform, dLogprob] = [tensor("inverseTemperature", 0), tensor("uniform", 0), tensor("dLogprob", 0)];
  const [logprob, entropy, lse, sampled] = [tensor("logprob", 0), tensor("entropy", 0), tensor("lse", 0), tensor("sampled", 0)];
  const head = { rows, x, w, inverseTemperature };
  const steps: Step[] = [
    { op: "logprob", ...head, target, parts, logprob, entropy, lse, ...(S === V && { z }) },
    { op: "logprobBackward", ...head, target, z, lse, dLogprob, dx },
    { op: "sample", ...head, parts, uniform, token, logprob: sampled },
  ];
  const executable = await backend.compile({ name: "head", steps });
  const random = createRandom(3);
  backend.write(
    x,
    floats(n * D).map((value) => (2 * value) / Math.sqrt(D)),
  );
  backend.write(
    target,
    Int32Array.from({ length: n }, () => Math.floor(random() * V)),
  );
  backend.write(
    inverseTemperature,
    Float32Array.from({ length: n }, (_, i) => 1 / (1 + (i % 3) / 4)),
  );
  backend.write(uniform, Float32Array.from({ length: n }, random));
  backend.write(dLogprob, floats(n));
  await executable.run({ outRows: n });
  const results: Record<string, HostArray> = {};
  for (const one of [logprob, entropy, lse, dx, token, sampled]) results[one.name] = await backend.read(one);
  // What was sampled, scored.
  backend.write(target, results.token as Int32Array);
  await executable.run({ outRows: n });
  expect([...(await backend.read(logprob))]).toEqual([...results.sampled!]);
  executable.dispose();
  return results;
};

const on = async (options: WebGpuOptions, shape: Shape) => {
  const backend = await createTestBackend(options);
  try {
    return await outcome(backend, shape);
  } finally {
    await backend.dispose();
  }
};

describe.skipIf(skip !== undefined)(`the head on WebGPU${why}`, () => {
  for (const shape of [
    { rows: 19, V: 330, D: 288, S: 330 },
    { rows: 19, V: 2100, D: 288, S: 2048, format: "q8" },
    { rows: 70, V: 2100, D: 30, S: 2048 },
  ] as const satisfies readonly Shape[]) {
    test(`every variant gives the same bits: ${JSON.stringify(shape)}`, async () => {
      const names = new Set<string>();
      const first = await on({ isSoftware: false, choose: (_, all) => void all.forEach(({ name }) => void names.add(name)) }, shape);
      const taken: string[] = [];
      for (const name of ["skinny", "8x64 8x8", "16x64 wide", "64x64", "64x64 wide", "64x64 8x8 wide", "64x64 16x8"]) {
        if (!names.has(name)) continue;
        taken.push(name);
        // The head's products alone: dx += dz·w is a product like any other (products.test.ts).
        const choose: WebGpuOptions["choose"] = ({ op }, all) => (op === "linear" ? all.find((one) => one.name === name) : undefined);
        expect(await on({ isSoftware: false, choose }, shape), name).toEqual(first);
      }
      expect(taken).toHaveLength(shape.D % 16 === 0 ? 7 : 6);
    }, 240_000);
  }

  test("the width of a slice changes no bit", async () => {
    const shape = { rows: 5, V: 4500, D: 24 };
    const first = await on({}, { ...shape, S: 4500 });
    for (const S of [2048, 4096]) expect(await on({}, { ...shape, S })).toEqual(first);
  });

  for (const format of ["f32", "q8"] as const) {
    test(`a weight in shards of 64 KiB, ${format}: log-probs and tokens bit for bit, the gradient but for the order of its sums`, async () => {
      // 33 tiles a shard, and 2 a run where there are more than 512: runs lie across the cuts.
      const shape: Shape = format === "f32" ? { rows: 4, V: 33_000, D: 5, S: 2048 } : { rows: 4, V: 5000, D: 64, S: 2048, format };
      const weight: Tensor = { name: "w", shape: [shape.V, shape.D], dtype: format, home: "weights" };
      const shards = shardsOf(weight, 64 << 10);
      expect(shards.length).toBeGreaterThan(4);
      if (format === "f32") expect((shards[1]!.first / 64) % 2).toBe(1);
      const [whole, cut] = [await on({}, shape), await on({ bindingBytes: 64 << 10 }, shape)];
      const { dx: wholeGradient, ...wholeRest } = whole;
      const { dx: cutGradient, ...cutRest } = cut;
      expect(cutRest).toEqual(wholeRest);
      for (const [i, value] of Array.from(wholeGradient!).entries())
        expect(Math.abs(cutGradient![i]! - value)).toBeLessThan(1e-5 * (1 + Math.abs(value)));
    });
  }

  /** Tokens and log-probs of one distribution over V tokens, a uniform and an inverse temperature a row. */
  const draw = async (options: WebGpuOptions, logits: Float32Array, uniforms: Float32Array, inverses: Float32Array) => {
    const [n, V, D] = [uniforms.length, logits.length, 5];
    const backend = await createTestBackend(options);
    const w: Tensor = { name: "w", shape: [V, D], dtype: "f32", home: "weights" };
    await backend.allocate(
      w,
      Float32Array.from({ length: V * D }, (_, i) => (i % D === 0 ? logits[i / D]! : 1)),
    );
    const rows: Rows = { count: "outRows", base: 0, capacity: n };
    const vector = (name: string, dtype: Tensor["dtype"] = "f32"): Tensor => ({ name, shape: [n], dtype, home: "io" });
    const x: Tensor = { name: "x", shape: [n, D], dtype: "f32", home: "io" };
    const parts: Tensor = { name: "parts", shape: [n, headParts(V)], dtype: "f32", home: "arena" };
    const [inverseTemperature, uniform, token, logprob] = [vector("i"), vector("u"), vector("token", "i32"), vector("logprob")];
    const steps: Step[] = [{ op: "sample", rows, x, w, parts, inverseTemperature, uniform, token, logprob }];
    const executable = await backend.compile({ name: "sample", steps });
    backend.write(
      x,
      Float32Array.from({ length: n * D }, (_, i) => Number(i % D === 0)),
    );
    backend.write(inverseTemperature, inverses);
    backend.write(uniform, uniforms);
    await executable.run({ outRows: n });
    const tokens = [...((await backend.read(token)) as Int32Array)];
    const logprobs = [...((await backend.read(logprob)) as Float32Array)];
    await backend.dispose();
    return { tokens, logprobs };
  };

  test("a walk through a run of tiles that lies in two shards goes on where it was", async () => {
    // The mass is on tokens 2048 … 2175, one run; shards of 2112 rows cut it in the middle. The last two rows are greedy: a tie across the cut.
    const logits = Float32Array.from({ length: 33_000 }, (_, j) => (j === 2100 || j === 2150 ? 5.5 : j >= 2048 && j < 2176 ? 5 : -9));
    const uniforms = Float32Array.from({ length: 42 }, (_, i) => ((i * 11 + 0.5) % 42) / 42);
    const inverses = Float32Array.from({ length: 42 }, (_, i) => (i < 40 ? 1 : 0));
    const [whole, cut] = [await draw({}, logits, uniforms, inverses), await draw({ bindingBytes: 64 << 10 }, logits, uniforms, inverses)];
    expect(cut).toEqual(whole);
    expect(whole.tokens.slice(40)).toEqual([2100, 2100]);
    for (const side of [(token: number) => token < 2112, (token: number) => token >= 2112])
      expect(whole.tokens.filter((token) => token >= 2048 && token < 2176 && side(token)).length).toBeGreaterThan(15);
  });

  test("tokens come as often as their probabilities say", async () => {
    // 4096 draws of 150 tokens, in tiles of 64: χ² with 149 degrees of freedom is 149 ± 17.
    const [n, V] = [4096, 150];
    const logits = Float32Array.from({ length: V }, createNormal(createRandom(9)));
    const { tokens } = await draw({}, logits, Float32Array.from({ length: n }, createRandom(10)), new Float32Array(n).fill(1));
    const counts = new Float64Array(V);
    for (const one of tokens) counts[one]!++;
    const total = logits.reduce((sum, value) => sum + Math.exp(value), 0);
    const chi = counts.reduce((sum, count, j) => {
      const expected = (n * Math.exp(logits[j]!)) / total;
      return sum + (count - expected) ** 2 / expected;
    }, 0);
    expect(chi).toBeGreaterThan(149 - 5 * 17);
    expect(chi).toBeLessThan(149 + 5 * 17);
  });
});

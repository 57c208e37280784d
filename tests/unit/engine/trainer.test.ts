// The trainer: what it adds up, what it refuses, what it leaves alone; and every backend's forward, gradients and step
// against the reference.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Datum, Loss } from "../../../packages/engine/src/contract.ts";
import { packDatums } from "../../../packages/engine/src/optimizer/packing.ts";
import { createTrainer, type TrainerCore } from "../../../packages/engine/src/optimizer/trainer.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createLock } from "../../../packages/engine/src/plan/lock.ts";
import { createReferenceBackend, type ReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { BACKENDS } from "./backends.ts";
import { createNormal, createRandom } from "./opCases.ts";
import { createTinyModel, TINY } from "./tinyModel.ts";

const PPO: Loss = { name: "ppoClip", clipLow: 0.2, clipHigh: 0.28, dualClip: 3 };
const CROSS_ENTROPY: Loss = { name: "crossEntropy" };

const createTinyTrainer = async <B extends Backend>(backend: B, microBatchTokens = 64): Promise<{ backend: B; trainer: TrainerCore }> => {
  const { spec, weights, lora } = await createTinyModel(backend);
  return { backend, trainer: await createTrainer({ backend, spec, weights, lora, microBatchTokens, lock: createLock() }) };
};
const tiny = (microBatchTokens?: number): Promise<{ backend: ReferenceBackend; trainer: TrainerCore }> =>
  createTinyTrainer(createReferenceBackend(), microBatchTokens);

/** Datums with every per-token array filled in; the log-probs are near those of a random policy, so that some ratios are clipped. */
const makeDatums = (count: number, seed = 1): Datum[] => {
  const random = createRandom(seed);
  const normal = createNormal(random);
  return Array.from({ length: count }, () => {
    const length = 5 + Math.floor(random() * 9);
    const targetStart = 1 + Math.floor(random() * (length - 3));
    const n = length - targetStart;
    const numbers = (center: number, spread: number): Float32Array => Float32Array.from({ length: n }, () => center + spread * normal());
    return {
      tokens: Int32Array.from({ length }, () => Math.floor(random() * TINY.vocab)),
      targetStart,
      mask: Uint8Array.from({ length: n }, (_, j) => (j === 0 || random() < 0.7 ? 1 : 0)),
      weights: numbers(0, 1),
      samplerLogprobs: numbers(-4, 1),
      oldLogprobs: numbers(-4, 1),
      advantages: numbers(0, 1),
    };
  });
};

const gradientOf = ({ backend, trainer }: { backend: ReferenceBackend; trainer: TrainerCore }): Float64Array =>
  Float64Array.from(backend.values(trainer.state.gradients.flat));
const largest = (values: ArrayLike<number>): number => Array.from(values).reduce((max, value) => Math.max(max, Math.abs(value)), 0);
const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  return largest(Array.from(a, (value, i) => value - b[i]!));
};

describe("packing", () => {
  test("a datum goes into the first micro-batch with room; datums without rows into none", () => {
    expect(packDatums([5, 8, 3, 0, 4, 9], 10)).toEqual([[0, 2], [1], [4], [5]]);
    expect(packDatums([], 10)).toEqual([]);
  });
});

describe("adding up", () => {
  for (const loss of [CROSS_ENTROPY, { name: "importanceSampling" }, PPO] as const satisfies readonly Loss[]) {
    test(`${loss.name}: a packed batch gives what its datums give one by one`, async () => {
      const data = makeDatums(4);
      const [together, apart] = [await tiny(), await tiny()];
      const all = await together.trainer.forwardBackward(data, loss, { temperature: 0.8 });
      let lossSum = 0;
      for (const [i, datum] of data.entries()) {
        const one = await apart.trainer.forwardBackward([datum], loss, { temperature: 0.8 });
        lossSum += one.lossSum;
        expect(one.logprobs[0]).toEqual(all.logprobs[i]);
        expect(one.entropies[0]).toEqual(all.entropies[i]);
      }
      expect(all.lossSum).toBeCloseTo(lossSum, 5);
      const gradient = gradientOf(together);
      expect(largest(gradient)).toBeGreaterThan(0.01);
      expect(distance(gradient, gradientOf(apart))).toBeLessThan(1e-10 * largest(gradient));
    });
  }

  test("micro-batch splits give the same summed gradient", async () => {
    const data = makeDatums(6);
    const [whole, split] = [await tiny(128), await tiny(14)];
    const [a, b] = [await whole.trainer.forwardBackward(data, PPO), await split.trainer.forwardBackward(data, PPO)];
    expect(b.logprobs).toEqual(a.logprobs);
    expect(b.lossSum).toBeCloseTo(a.lossSum, 5);
    expect(distance(gradientOf(whole), gradientOf(split))).toBeLessThan(1e-10 * largest(gradientOf(whole)));
  });

  test("a merged trajectory gives the summed gradient of its separate transitions", async () => {
    // prompt 7 3 9, response 21 4, tool 30 2, response 11 5 6
    const tokens = Int32Array.of(7, 3, 9, 21, 4, 30, 2, 11, 5, 6);
    const numbers = (...values: number[]): Float32Array => Float32Array.from(values);
    const merged: Datum = {
      tokens,
      targetStart: 3,
      mask: Uint8Array.of(1, 1, 0, 0, 1, 1, 1),
      samplerLogprobs: numbers(-3, -4, Number.NaN, Number.NaN, -2, -4, -5),
      advantages: numbers(0.5, 0.5, Number.NaN, Number.NaN, -0.7, -0.7, -0.7),
    };
    const separate: Datum[] = [
      { tokens: tokens.slice(0, 5), targetStart: 3, samplerLogprobs: numbers(-3, -4), advantages: numbers(0.5, 0.5) },
      { tokens, targetStart: 7, samplerLogprobs: numbers(-2, -4, -5), advantages: numbers(-0.7, -0.7, -0.7) },
    ];
    const [a, b] = [await tiny(), await tiny()];
    const one = await a.trainer.forwardBackward([merged], PPO);
    const two = await b.trainer.forwardBackward(separate, PPO);
    expect([...one.logprobs[0]!].filter((value) => value !== 0)).toEqual([...two.logprobs[0]!, ...two.logprobs[1]!]);
    expect(one.lossSum).toBeCloseTo(two.lossSum, 6);
    expect(largest(gradientOf(a))).toBeGreaterThan(0.01);
    expect(distance(gradientOf(a), gradientOf(b))).toBeLessThan(1e-10);
  });

  test("weighted cross-entropy with weights −dL/dlogprob gives the gradient of the fused loss", async () => {
    const data = makeDatums(3).map((datum): Datum => ({ ...datum, mask: new Uint8Array(datum.advantages!.length).fill(1) }));
    const [fused, linear] = [await tiny(), await tiny()];
    await fused.trainer.forwardBackward(data, { name: "importanceSampling" });
    const { logprobs } = await linear.trainer.forward(data);
    const weighted = data.map((datum, i): Datum => {
      const weights = datum.advantages!.map((advantage, j) => advantage * Math.exp(logprobs[i]![j]! - datum.samplerLogprobs![j]!));
      return { tokens: datum.tokens, targetStart: datum.targetStart, weights };
    });
    await linear.trainer.forwardBackward(weighted, CROSS_ENTROPY);
    expect(distance(gradientOf(fused), gradientOf(linear))).toBeLessThan(1e-5 * largest(gradientOf(fused)));
  });

  test("forward returns what forwardBackward returns, zero where masked, and leaves the gradients alone", async () => {
    const data = makeDatums(3);
    const scored = await tiny();
    const trained = await tiny();
    const [a, b] = [await scored.trainer.forward(data), await trained.trainer.forwardBackward(data, PPO)];
    expect(a.logprobs).toEqual(b.logprobs);
    expect(a.entropies).toEqual(b.entropies);
    expect(largest(gradientOf(scored))).toBe(0);
    for (const [i, { mask, tokens, targetStart }] of data.entries()) {
      expect(a.logprobs[i]).toHaveLength(tokens.length - targetStart);
      expect([...a.logprobs[i]!].map((value) => (value < 0 ? 1 : 0))).toEqual([...mask!]);
    }
    for (const value of a.entropies.flatMap((row) => [...row])) expect(value).toBeLessThanOrEqual(Math.log(TINY.vocab));
  });
});

describe("what must not matter", () => {
  test("an advantage of zero gives gradients of exactly zero", async () => {
    const data = makeDatums(3).map((datum): Datum => ({ ...datum, advantages: new Float32Array(datum.advantages!.length) }));
    for (const loss of [PPO, { name: "importanceSampling" } as const]) {
      const made = await tiny();
      await made.trainer.forwardBackward(data, loss);
      expect(gradientOf(made).every((value) => value === 0)).toBe(true);
    }
  });

  test("NaN where the mask is 0 changes nothing", async () => {
    const data = makeDatums(4);
    const spoil = (values: Float32Array, mask: Uint8Array): Float32Array => values.map((value, j) => (mask[j] === 0 ? Number.NaN : value));
    const spoiled = data.map(
      (datum): Datum => ({
        ...datum,
        advantages: spoil(datum.advantages!, datum.mask!),
        oldLogprobs: spoil(datum.oldLogprobs!, datum.mask!),
      }),
    );
    expect(spoiled.some(({ advantages }) => advantages!.some(Number.isNaN))).toBe(true);
    const [a, b] = [await tiny(), await tiny()];
    expect(await b.trainer.forwardBackward(spoiled, PPO)).toEqual(await a.trainer.forwardBackward(data, PPO));
    expect(gradientOf(b)).toEqual(gradientOf(a));
  });

  test("tokens behind the last trained target change nothing and take no room", async () => {
    const [datum] = makeDatums(1) as [Datum];
    const n = datum.tokens.length - datum.targetStart;
    const short: Datum = { ...datum, mask: new Uint8Array(n).fill(1) };
    const pad = (values: Float32Array): Float32Array => Float32Array.of(...values, Number.NaN, Number.NaN);
    const long: Datum = {
      tokens: Int32Array.of(...datum.tokens, 3, 4),
      targetStart: datum.targetStart,
      mask: Uint8Array.of(...short.mask!, 0, 0),
      advantages: pad(datum.advantages!),
      oldLogprobs: pad(datum.oldLogprobs!),
    };
    const [a, b] = [await tiny(), await tiny(datum.tokens.length - 1)];
    await a.trainer.forwardBackward([short], PPO);
    const output = await b.trainer.forwardBackward([long], PPO);
    expect(output.logprobs[0]).toHaveLength(n + 2);
    expect(gradientOf(b)).toEqual(gradientOf(a));
  });

  test("no datums, or none that is trained, give an empty update", async () => {
    const { trainer } = await tiny();
    expect(await trainer.forwardBackward([], PPO)).toEqual({ logprobs: [], entropies: [], lossSum: 0 });
    const [datum] = makeDatums(1) as [Datum];
    const masked = { ...datum, mask: new Uint8Array(datum.mask!.length) };
    const { logprobs, lossSum } = await trainer.forwardBackward([masked], PPO);
    expect([largest(logprobs[0]!), lossSum]).toEqual([0, 0]);
  });
});

describe("what is refused", () => {
  const [good] = makeDatums(1, 9) as [Datum];
  const ones = new Uint8Array(good.mask!.length).fill(1);
  const bad: readonly (readonly [string, Partial<Record<keyof Datum, unknown>>, RegExp])[] = [
    ["a token beyond the vocabulary", { tokens: good.tokens.with(2, TINY.vocab) }, /datum 1: tokens\[2\] is in 0 … 49, got 50/],
    ["a negative token", { tokens: good.tokens.with(0, -1) }, /datum 1: tokens\[0\]/],
    ["one token", { tokens: Int32Array.of(1) }, /datum 1: tokens has at least 2 entries, got 1/],
    ["a plain array of tokens", { tokens: [1, 2, 3] }, /datum 1: tokens is an Int32Array/],
    ["a first target at 0", { targetStart: 0 }, /datum 1: targetStart/],
    ["a first target at the end", { targetStart: good.tokens.length }, /datum 1: targetStart/],
    ["a mask of another length", { mask: ones.subarray(1) }, /datum 1: mask has \d+ entries/],
    ["a mask of other numbers", { mask: ones.with(0, 2) }, /datum 1: mask\[0\] is 0 or 1, got 2/],
    [
      "an advantage that is not finite",
      { mask: ones, advantages: good.advantages!.with(1, Number.NaN) },
      /datum 1: advantages\[1\] is finite/,
    ],
    ["log-probs of another length", { oldLogprobs: good.oldLogprobs!.subarray(1) }, /datum 1: oldLogprobs has/],
    ["no advantages", { advantages: undefined }, /datum 1: advantages is needed by ppoClip/],
    ["no log-probs at all", { oldLogprobs: undefined, samplerLogprobs: undefined }, /datum 1: samplerLogprobs is needed by ppoClip/],
  ];
  for (const [name, change, message] of bad) {
    test(`${name}, and nothing is accumulated`, async () => {
      const made = await tiny();
      const attempt = made.trainer.forwardBackward([good, { ...good, ...change } as Datum], PPO);
      await expect(attempt).rejects.toMatchObject({ code: "bad-request", message: expect.stringMatching(message) });
      expect(largest(gradientOf(made))).toBe(0);
    });
  }

  test("a datum that is longer than a micro-batch, with both numbers", async () => {
    const { trainer } = await tiny(4);
    const datum: Datum = { tokens: Int32Array.of(1, 2, 3, 4, 5, 6, 7), targetStart: 1 };
    await expect(trainer.forward([datum])).rejects.toThrow(/at most 4 rows of a micro-batch, got 6; raise microBatchTokens/);
  });

  test("a datum that is longer than the model's positions", async () => {
    const { trainer } = await tiny(500);
    await expect(trainer.forward([{ tokens: new Int32Array(130), targetStart: 1 }])).rejects.toThrow(/model's 128 positions, got 129/);
  });

  test("a temperature of zero, and clip ranges that are ratios", async () => {
    const { trainer } = await tiny();
    await expect(trainer.forward([good], { temperature: 0 })).rejects.toThrow(/temperature is a positive number, got 0/);
    await expect(trainer.forwardBackward([good], { ...PPO, clipLow: 1.2 })).rejects.toThrow(/clipLow is an offset/);
    await expect(trainer.forwardBackward([good], { ...PPO, dualClip: 1 })).rejects.toThrow(/dualClip is a ratio > 1/);
    await expect(trainer.optimStep({ learningRate: Number.NaN })).rejects.toThrow(/learningRate is a number ≥ 0, got NaN/);
  });
});

describe("optimStep", () => {
  test("reports the norm, moves the weights, clears the gradients and counts", async () => {
    const made = await tiny();
    const { backend, trainer } = made;
    await trainer.forwardBackward(makeDatums(3), PPO);
    const norm = Math.sqrt(gradientOf(made).reduce((sum, value) => sum + value ** 2, 0));
    const before = backend.values(trainer.state.parameters.flat).slice();
    const { gradNorm, applied } = await trainer.optimStep({ learningRate: 0.01 });
    expect(applied).toBe(true);
    expect(gradNorm).toBeCloseTo(norm, 4);
    expect(trainer.state.adamStep).toBe(1);
    expect(largest(gradientOf(made))).toBe(0);
    // With a gradient far above eps, the first step has the size of the learning rate.
    expect(distance(backend.values(trainer.state.parameters.flat), before)).toBeCloseTo(0.01, 6);
  });

  test("a gradient that is not finite changes nothing but is cleared", async () => {
    const made = await tiny();
    const { backend, trainer } = made;
    const { parameters, gradients, firstMoments } = trainer.state;
    const before = backend.values(parameters.flat).slice();
    backend.write(gradients.flat, Float32Array.of(Number.NaN, 1), 10);
    expect(await trainer.optimStep({ learningRate: 0.01 })).toEqual({ gradNorm: Number.NaN, applied: false });
    expect(backend.values(parameters.flat)).toEqual(before);
    expect(largest(backend.values(firstMoments.flat))).toBe(0);
    expect(gradientOf(made).every((value) => value === 0)).toBe(true);
    expect(trainer.state.adamStep).toBe(0);
  });

  test("steps on one batch make its tokens likelier; steps on the negated weights make them less likely", async () => {
    for (const sign of [1, -1]) {
      const { trainer } = await tiny();
      const data = makeDatums(4).map((datum): Datum => ({ ...datum, weights: new Float32Array(datum.weights!.length).fill(sign) }));
      const total = async (): Promise<number> => {
        const { logprobs } = await trainer.forward(data);
        return logprobs.reduce((sum, row) => row.reduce((part, value) => part + value, sum), 0);
      };
      const before = await total();
      for (let step = 0; step < 5; step++) {
        await trainer.forwardBackward(data, CROSS_ENTROPY);
        await trainer.optimStep({ learningRate: 0.01, gradClipNorm: 1 });
      }
      expect(sign * ((await total()) - before)).toBeGreaterThan(10);
    }
  });
});

describe("a signal", () => {
  test("that is aborted beforehand changes nothing", async () => {
    const made = await tiny();
    await made.trainer.forwardBackward(makeDatums(2), PPO);
    const before = gradientOf(made);
    const signal = AbortSignal.abort();
    await expect(made.trainer.forwardBackward(makeDatums(2), PPO, { signal })).rejects.toMatchObject({
      code: "aborted",
      message: expect.stringMatching(/nothing was changed/),
    });
    expect(gradientOf(made)).toEqual(before);
  });

  test("that is aborted between micro-batches clears all gradients and says so", async () => {
    const made = await tiny(14);
    await made.trainer.forwardBackward(makeDatums(2), PPO);
    const controller = new AbortController();
    let runs = 0;
    const { read } = made.backend;
    made.backend.read = async (...args) => {
      if (++runs === 1) controller.abort();
      return await read(...args);
    };
    await expect(made.trainer.forwardBackward(makeDatums(6), PPO, { signal: controller.signal })).rejects.toMatchObject({
      code: "aborted",
      message: expect.stringMatching(/all accumulated gradients were cleared/),
    });
    expect(largest(gradientOf(made))).toBe(0);
  });

  test("calls that are made at once run one after another", async () => {
    const data = makeDatums(2);
    const [together, apart] = [await tiny(), await tiny()];
    const both = await Promise.all([
      together.trainer.forwardBackward([data[0]!], PPO),
      together.trainer.forward([data[1]!]),
      together.trainer.forwardBackward([data[1]!], PPO),
    ]);
    const first = await apart.trainer.forwardBackward([data[0]!], PPO);
    const second = await apart.trainer.forwardBackward([data[1]!], PPO);
    expect([both[0].logprobs, both[1].logprobs, both[2].logprobs]).toEqual([first.logprobs, second.logprobs, second.logprobs]);
    expect(gradientOf(together)).toEqual(gradientOf(apart));
  });
});

for (const { name, create, skip } of BACKENDS) {
  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await create();
    });
    afterAll(async () => {
      await backend?.dispose();
    });

    test("forward, every gradient and one optimiser step agree with the reference", async () => {
      const data = makeDatums(5, 4);
      const reference = await tiny(24);
      const made = await createTinyTrainer(backend, 24);
      const [want, got] = [await reference.trainer.forwardBackward(data, PPO), await made.trainer.forwardBackward(data, PPO)];
      for (const field of ["logprobs", "entropies"] as const) {
        for (const [i, row] of want[field].entries()) expect(distance(got[field][i]!, row), `${field} of datum ${i}`).toBeLessThan(2e-5);
      }
      expect(Math.abs(got.lossSum - want.lossSum)).toBeLessThan(1e-4);
      const scored = await made.trainer.forward(data);
      for (const [i, row] of scored.logprobs.entries()) expect(distance(row, got.logprobs[i]!)).toBe(0);

      const gradient = gradientOf(reference);
      expect(largest(gradient)).toBeGreaterThan(0.01);
      expect(distance(await backend.read(made.trainer.state.gradients.flat), gradient) / largest(gradient)).toBeLessThan(1e-5);

      const adam = { learningRate: 1e-3, eps: 1e-3, weightDecay: 0.1, gradClipNorm: 1 };
      const [wantStep, gotStep] = [await reference.trainer.optimStep(adam), await made.trainer.optimStep(adam)];
      expect(gotStep.applied).toBe(true);
      expect(Math.abs(gotStep.gradNorm / wantStep.gradNorm - 1)).toBeLessThan(1e-5);
      const parameters = reference.backend.values(reference.trainer.state.parameters.flat);
      expect(distance(await backend.read(made.trainer.state.parameters.flat), parameters)).toBeLessThan(1e-6);
      expect(largest(await backend.read(made.trainer.state.gradients.flat))).toBe(0);
    });
  });
}

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chooseToken } from "../../../packages/engine/src/sampler/choose.ts";

const logits = Float32Array.of(0.5, 2, -1, 2, 1);
const probabilities = (values: ArrayLike<number>, inverse = 1): number[] => {
  const weights = Array.from(values, (x) => Math.exp(x * inverse));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
};
const maskOf = (...ids: number[]): Uint32Array => Uint32Array.of(ids.reduce((bits, id) => bits | (1 << id), 0));
/** The share of uniform numbers that each token gets, with its reported probability. */
const draws = (options: Parameters<typeof chooseToken>[1], mask?: Uint32Array) => {
  const counts = new Map<number, { share: number; drawn: number; full: number }>();
  const steps = 20_000;
  for (let i = 0; i < steps; i++) {
    const { token, logprob, drawnLogprob } = chooseToken(logits, options, i / steps, mask)!;
    const entry = counts.get(token) ?? { share: 0, drawn: Math.exp(drawnLogprob), full: Math.exp(logprob) };
    entry.share += 1 / steps;
    counts.set(token, entry);
  }
  return counts;
};

describe("the host's choice", () => {
  test("gives each token the share that it says, and says what the whole softmax gives it", () => {
    const full = probabilities(logits, 2);
    const cases: readonly [Parameters<typeof chooseToken>[1], Uint32Array | undefined, readonly number[]][] = [
      [{ temperature: 0.5 }, undefined, [0, 1, 2, 3, 4]],
      [{ temperature: 0.5, topK: 3 }, undefined, [1, 3, 4]],
      [{ temperature: 0.5, topK: 1 }, undefined, [1]],
      [{ temperature: 0.5, topP: 0.6 }, undefined, [1, 3]],
      [{ temperature: 0.5 }, maskOf(0, 2, 4), [0, 2, 4]],
      [{ temperature: 0.5, topK: 2 }, maskOf(0, 2, 4), [0, 4]],
    ];
    for (const [options, mask, kept] of cases) {
      const counts = draws(options, mask);
      expect([...counts.keys()].sort()).toEqual([...kept]);
      const mass = kept.reduce((sum, id) => sum + full[id]!, 0);
      for (const [id, { share, drawn, full: said }] of counts) {
        expect(said).toBeCloseTo(full[id]!, 6);
        expect(drawn).toBeCloseTo(full[id]! / mass, 6);
        expect(share).toBeCloseTo(full[id]! / mass, 3);
      }
    }
  });

  test("adds a bias before everything else, and leaves it out of the whole distribution", () => {
    const logitBias = [[2, 5]] as const;
    const biased = probabilities([0.5, 2, 4, 2, 1]);
    for (const [id, { share, full }] of draws({ temperature: 1, logitBias })) {
      expect(share).toBeCloseTo(biased[id]!, 3);
      expect(full).toBeCloseTo(probabilities(logits)[id]!, 6);
    }
    expect(chooseToken(logits, { temperature: 0, logitBias }, 0)?.token).toBe(2);
  });

  test("at temperature 0 takes the most likely allowed token, of equal ones the lowest id", () => {
    expect(chooseToken(logits, { temperature: 0 }, 0.99)).toMatchObject({ token: 1, drawnLogprob: 0, isForced: false });
    expect(chooseToken(logits, { temperature: 0 }, 0.5, maskOf(0, 3))?.token).toBe(3);
  });

  test("a mask of one token forces it; a mask of none gives nothing", () => {
    expect(chooseToken(logits, { temperature: 1 }, 0.5, maskOf(2))).toMatchObject({ token: 2, isForced: true });
    expect(chooseToken(logits, { temperature: 1 }, 0.5, maskOf(2))?.drawnLogprob).toBeCloseTo(0, 12);
    expect(chooseToken(logits, { temperature: 1, topK: 1 }, 0.5)).toMatchObject({ isForced: false });
    expect(chooseToken(logits, { temperature: 1 }, 0.5, maskOf())).toBeUndefined();
  });

  test("whatever the logits, the token is an allowed one and its log-probs are those of probabilities", () => {
    const values = fc.array(fc.float({ min: -50, max: 50, noNaN: true }), { minLength: 1, maxLength: 40 });
    const options = fc.record(
      {
        temperature: fc.constantFrom(0, 0.01, 1, 3),
        topK: fc.integer({ min: 1, max: 50 }),
        topP: fc.double({ min: 1e-6, max: 1, noNaN: true }),
      },
      { requiredKeys: ["temperature"] },
    );
    fc.assert(
      fc.property(values, options, fc.double({ min: 0, max: 0.999999, noNaN: true }), fc.nat(), (given, restriction, uniform, pick) => {
        const mask = new Uint32Array(2);
        for (let id = 0; id < given.length; id++) if (id === pick % given.length || id % 3 === 0) mask[id >> 5]! |= 1 << (id & 31);
        const { token, logprob, drawnLogprob } = chooseToken(Float32Array.from(given), restriction, uniform, mask)!;
        expect((mask[token >> 5]! >>> (token & 31)) & 1).toBe(1);
        expect(logprob).toBeLessThanOrEqual(1e-9);
        expect(drawnLogprob).toBeLessThanOrEqual(1e-9);
        expect(drawnLogprob).toBeGreaterThanOrEqual(logprob - 1e-9);
      }),
    );
  });
});

// Losses as functions: what must hold for every input, not only for the golden ones.
import {
  cispo,
  crossEntropy,
  dppoTv,
  dro,
  gspo,
  importanceSampling,
  KL,
  type LossRow,
  type PolicyLoss,
  penaliseAdvantages,
  ppoClip,
  sapo,
  toTinkerLoss,
} from "@fulgurite/rl";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

const HOMOGENEOUS: Record<string, () => PolicyLoss> = { crossEntropy, importanceSampling, ppoClip, cispo, gspo, sapo, dppoTv };
const ALL: Record<string, () => PolicyLoss> = { ...HOMOGENEOUS, dro: () => dro({ beta: 0.3 }) };

const number = (min: number, max: number) => fc.double({ min, max, noNaN: true });
const token = fc.record({ old: number(-4, -0.05), k: number(-1.2, 1.6), advantage: number(-2, 2), mask: fc.constantFrom(0, 1) });
const row = fc.array(token, { minLength: 1, maxLength: 8 }).map(
  (tokens): Required<Omit<LossRow, "regularizerWeight">> => ({
    logprobs: tokens.map(({ old, k }) => old + k),
    oldLogprobs: tokens.map(({ old }) => old),
    advantages: tokens.map(({ advantage }) => advantage),
    mask: tokens.map(({ mask }) => mask),
  }),
);
const sum = (values: ArrayLike<number>): number => Array.from(values).reduce((total, value) => total + value, 0);
const isNear = (a: number, b: number, tolerance = 1e-9): boolean => Math.abs(a - b) <= tolerance * (1 + Math.abs(b));

describe.each(Object.entries(ALL))("%s", (_, makeLoss) => {
  const loss = makeLoss();

  test("masked tokens have neither loss nor gradient, whatever the arrays hold there", () => {
    fc.assert(
      fc.property(row, (one) => {
        const poison = (values: ArrayLike<number>) => Array.from(values).map((value, i) => (one.mask[i] ? value : Number.NaN));
        const clean = loss.evaluate(one);
        const poisoned = loss.evaluate({
          ...one,
          logprobs: poison(one.logprobs),
          oldLogprobs: poison(one.oldLogprobs),
          advantages: poison(one.advantages),
        });
        expect(poisoned).toEqual(clean);
        clean.gradient.forEach((g, i) => {
          if (!one.mask[i]) expect(g).toBe(0);
        });
      }),
    );
  });
});

describe.each(Object.entries(HOMOGENEOUS))("%s, scaled by its advantage", (_, makeLoss) => {
  const loss = makeLoss();

  test("an advantage c times as large gives a loss and a gradient c times as large", () => {
    fc.assert(
      fc.property(row, number(0.01, 50), (one, c) => {
        const [plain, scaled] = [one.advantages, Array.from(one.advantages).map((advantage) => advantage * c)].map((advantages) =>
          loss.evaluate({ ...one, advantages }),
        );
        plain!.loss.forEach((value, i) => {
          expect(isNear(scaled!.loss[i]!, c * value)).toBe(true);
          expect(isNear(scaled!.gradient[i]!, c * plain!.gradient[i]!)).toBe(true);
        });
      }),
    );
  });

  test("an advantage of 0 gives a gradient of exactly 0", () => {
    fc.assert(
      fc.property(row, (one) => {
        const { gradient } = loss.evaluate({ ...one, advantages: Array.from(one.advantages).map(() => 0) });
        expect(gradient.every((g) => g === 0)).toBe(true);
      }),
    );
  });
});

test("at r = 1 the clipped, weighted and gated losses all have the gradient −A", () => {
  fc.assert(
    fc.property(row, (one) => {
      for (const [name, makeLoss] of Object.entries(HOMOGENEOUS)) {
        const { gradient } = makeLoss().evaluate({ ...one, logprobs: one.oldLogprobs });
        gradient.forEach((g, i) => {
          expect(isNear(g, one.mask[i] ? -one.advantages[i]! : 0), name).toBe(true);
        });
      }
    }),
  );
});

const H = 1e-5;
/** d(sum of losses)/d(logprob of one token), by central differences. */
function numeric(loss: PolicyLoss, one: LossRow, at: number): number {
  const shifted = (by: number) => Array.from(one.logprobs).map((value, i) => (i === at ? value + by : value));
  const value = (by: number) => sum(loss.evaluate({ ...one, logprobs: shifted(by) }).loss);
  return (value(H) - value(-H)) / (2 * H);
}
const isFarFrom = (value: number, kinks: readonly number[]): boolean => kinks.every((kink) => Math.abs(value - kink) > 1e-3);

describe("gradients equal central differences away from the kinks", () => {
  const cases: [string, PolicyLoss, number[]][] = [
    ["crossEntropy", crossEntropy(), []],
    ["importanceSampling", importanceSampling(), []],
    ["ppoClip", ppoClip(), [0.8, 1.28, 3]],
    ["sapo", sapo(), []],
    ["dro", dro({ beta: 0.3 }), []],
  ];
  test.each(cases)("%s", (_, loss, kinks) => {
    fc.assert(
      fc.property(row, (one) => {
        const { gradient } = loss.evaluate({ ...one, regularizerWeight: 0.7 });
        gradient.forEach((g, i) => {
          const ratio = Math.exp(one.logprobs[i]! - one.oldLogprobs[i]!);
          if (!isFarFrom(ratio, kinks)) return;
          expect(isNear(g, numeric(loss, { ...one, regularizerWeight: 0.7 }, i), 1e-5)).toBe(true);
        });
      }),
    );
  });

  test("gspo, whose row couples its tokens: the mean over a row with one advantage", () => {
    fc.assert(
      fc.property(row, number(-2, 2), (one, advantage) => {
        const count = sum(one.mask);
        if (count === 0) return;
        const same = { ...one, advantages: one.mask.length ? Array.from(one.mask).map(() => advantage) : [] };
        const loss = gspo({ clipLow: 0.2, clipHigh: 0.3 });
        const mean = sum(Array.from(one.mask).map((m, i) => (m ? one.logprobs[i]! - one.oldLogprobs[i]! : 0))) / count;
        if (!isFarFrom(Math.exp(mean), [0.8, 1.3])) return;
        loss.evaluate(same).gradient.forEach((g, i) => {
          expect(isNear(g / count, numeric(loss, same, i) / count, 1e-5)).toBe(true);
        });
      }),
    );
  });

  test("cispo and dppoTv hold their weight still: loss = gradient · logprob", () => {
    fc.assert(
      fc.property(row, (one) => {
        for (const loss of [cispo(), dppoTv()]) {
          const { loss: values, gradient } = loss.evaluate(one);
          values.forEach((value, i) => {
            expect(isNear(value, one.mask[i] ? gradient[i]! * one.logprobs[i]! : 0)).toBe(true);
          });
        }
      }),
    );
  });

  test("ppoClip is continuous where it starts to clip", () => {
    for (const advantage of [1.5, -1.5])
      for (const kink of [0.8, 1.28, 3]) {
        const at = (ratio: number) =>
          sum(ppoClip().evaluate({ logprobs: [Math.log(ratio) - 1], oldLogprobs: [-1], advantages: [advantage] }).loss);
        expect(at(kink * (1 + 1e-9))).toBeCloseTo(at(kink * (1 - 1e-9)), 6);
      }
  });
});

test.each(["k1", "k2", "k3"] as const)("the gradient of %s equals central differences where it is not clamped", (name) => {
  fc.assert(
    fc.property(number(-4, 0), number(-4, 0), (logprob, ref) => {
      if (name === "k3" && Math.exp(ref - logprob) - (ref - logprob) - 1 > 9.9) return;
      const slope = (KL[name].value(logprob + H, ref) - KL[name].value(logprob - H, ref)) / (2 * H);
      expect(isNear(KL[name].gradient(logprob, ref), slope, 1e-5)).toBe(true);
    }),
  );
});

test("a penalty in the advantage leaves the mean advantage of the batch as it was", () => {
  fc.assert(
    fc.property(fc.array(row, { minLength: 1, maxLength: 4 }), (rows) => {
      const before = rows.map((one) => ({ ...one, samplerLogprobs: one.logprobs, refLogprobs: one.oldLogprobs }));
      const after = penaliseAdvantages(before, 0.1);
      const total = (of: (i: number) => ArrayLike<number>) =>
        sum(rows.map((one, i) => sum(Array.from(of(i)).filter((_, token) => one.mask[token]))));
      expect(
        isNear(
          total((i) => after[i]!),
          total((i) => rows[i]!.advantages),
        ),
      ).toBe(true);
    }),
  );
});

test("a clip of 0.2 is an offset here and a ratio of 0.8 and 1.2 for Tinker", () => {
  expect(toTinkerLoss(ppoClip({ clipLow: 0.2, clipHigh: 0.2, dualClip: Number.POSITIVE_INFINITY }).fused!)).toEqual({
    loss_fn: "ppo",
    loss_fn_config: { clip_low_threshold: 0.8, clip_high_threshold: 1.2 },
  });
  expect(() => toTinkerLoss(ppoClip().fused!)).toThrow("no dual clip, got 3");
});

test("options in the wrong unit are refused", () => {
  expect(() => ppoClip({ clipLow: 1.2 })).toThrow("ppoClip: clipLow is an offset from 1");
  expect(() => ppoClip({ dualClip: 0.5 })).toThrow("dualClip is a ratio > 1");
  expect(() => cispo({ ratioMax: 0.2 })).toThrow("are ratios, got 0 and 0.2");
  expect(() => dro({ beta: 0 })).toThrow("beta must be > 0");
});

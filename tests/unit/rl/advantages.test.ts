// Estimators as functions of rewards: sums, shifts, missing siblings, state.
import {
  type Advantages,
  type CreditedGroup,
  creditGroups,
  discounted,
  groupNormalized,
  leaveOneOut,
  maxRl,
  movingBaseline,
  perStep,
  reinforcePlusPlus,
  returnToGo,
} from "@fulgurite/rl";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { groups as anyGroups, call } from "./transitions.ts";

const rewards = fc.array(fc.double({ min: -3, max: 3, noNaN: true }), { minLength: 2, maxLength: 8 });
const group = (values: readonly number[], calls = 1): CreditedGroup => ({
  family: "",
  rollouts: values.map((rollout) => ({
    rollout,
    calls: new Float64Array(calls).fill(rollout),
    callTokens: new Int32Array(calls).fill(2),
  })),
});
const of = (estimator: Advantages, values: readonly number[]): number[] =>
  estimator.estimate([group(values)]).advantages[0]!.map((calls) => calls[0]!);
const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

const CENTRED: Record<string, Advantages> = {
  GRPO: groupNormalized(),
  "Dr. GRPO": groupNormalized({ divideByStd: false }),
  "Lite PPO": groupNormalized({ std: "batch", eps: 1e-4 }),
  RLOO: leaveOneOut(),
};

describe.each(Object.entries(CENTRED))("%s", (_, estimator) => {
  test("the advantages of a group sum to 0", () => {
    fc.assert(
      fc.property(rewards, (values) => {
        const advantages = of(estimator, values);
        expect(Math.abs(sum(advantages))).toBeLessThan(1e-7 * (1 + sum(advantages.map(Math.abs))));
      }),
    );
  });

  test("a reward shifted for the whole group changes nothing", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: -8, max: 8 }), { minLength: 2, maxLength: 8 }),
        fc.integer({ min: -16, max: 16 }),
        (eighths, shift) => {
          const values = eighths.map((eighth) => eighth / 8);
          const shifted = of(
            estimator,
            values.map((value) => value + shift),
          );
          of(estimator, values).forEach((advantage, i) => {
            expect(shifted[i]).toBeCloseTo(advantage, 9);
          });
        },
      ),
    );
  });

  test("equal rewards give exactly 0, also where the mean is not exact", () => {
    expect(of(estimator, [0.1, 0.1, 0.1])).toEqual([0, 0, 0]);
  });

  test("a group of one teaches nothing", () => {
    expect(of(estimator, [5])).toEqual([0]);
  });

  test("a rollout without a number stays outside the statistics and has advantage 0", () => {
    const [a, b, missing, c] = of(estimator, [1, 0, Number.NaN, 0.25]);
    expect([a, b, c]).toEqual(of(estimator, [1, 0, 0.25]));
    expect(missing).toBe(0);
  });
});

test("leave-one-out is n/(n − 1) times centred", () => {
  fc.assert(
    fc.property(rewards, (values) => {
      const n = values.length;
      const centred = of(groupNormalized({ divideByStd: false }), values);
      of(leaveOneOut(), values).forEach((advantage, i) => {
        expect(advantage).toBeCloseTo((centred[i]! * n) / (n - 1), 9);
      });
    }),
  );
});

test("rewards 1, 0, 1, 0 with 3, 1, 2, 1 calls are ±0.866 over rollouts and +0.586, −1.464 over calls", () => {
  const turns = [3, 1, 2, 1];
  const mixed: CreditedGroup = { family: "", rollouts: turns.map((calls, i) => group([1 - (i % 2)], calls).rollouts[0]!) };
  const first = (estimator: Advantages) => estimator.estimate([mixed]).advantages[0]!.map((calls) => Number(calls[0]!.toFixed(3)));
  expect(first(groupNormalized())).toEqual([0.866, -0.866, 0.866, -0.866]);
  expect(first(groupNormalized({ statistics: "transition" }))).toEqual([0.586, -1.464, 0.586, -1.464]);
});

test("MaxRL weighs a success by the rarity of success", () => {
  expect(of(maxRl({ eps: 0 }), [1, 0, 0, 0])).toEqual([3, -1, -1, -1]);
  expect(of(maxRl({ eps: 0 }), [1, 1, 1, 0]).map((a) => Number(a.toFixed(4)))).toEqual([0.3333, 0.3333, 0.3333, -1]);
});

test("the moving baseline keeps one average a family, from step to step", () => {
  const estimator = movingBaseline({ decay: 0.5 });
  const families = (a: number, b: number): CreditedGroup[] => [
    { ...group([a]), family: "a" },
    { ...group([b]), family: "b" },
  ];
  const first = estimator.estimate(families(1, 0));
  expect(first.state).toEqual({ a: 0.5, b: 0 });
  const second = estimator.estimate(families(1, 1), first.state);
  expect(second.advantages).toEqual([[Float64Array.of(0.5)], [Float64Array.of(1)]]);
  expect(first.state).toEqual({ a: 0.5, b: 0 });
});

test("REINFORCE++ has mean 0 and variance 1 over the tokens of the batch", () => {
  fc.assert(
    fc.property(anyGroups, (many) => {
      const credited = creditGroups(many, perStep());
      const { advantages } = reinforcePlusPlus().estimate(credited);
      const tokens = credited.flatMap(({ rollouts }, g) =>
        rollouts.flatMap((rollout, m) =>
          [...rollout.callTokens].flatMap((count, c) => new Array<number>(count).fill(advantages[g]![m]![c]!)),
        ),
      );
      expect(Math.abs(sum(tokens))).toBeLessThan(1e-6 * tokens.length);
      const variance = sum(tokens.map((a) => a * a)) / Math.max(tokens.length - 1, 1);
      const raw = credited.flatMap(({ rollouts }) => rollouts.flatMap((rollout) => [...rollout.calls]));
      expect(variance < 1.000001).toBe(true);
      // a spread below the eps inside the root is not blown up to 1
      if (Math.max(...raw) - Math.min(...raw) > 0.1) expect(variance).toBeGreaterThan(0.9);
    }),
  );
});

describe("credit", () => {
  const won = { rolloutId: "won", transitions: [0, 0.2, 1].map((reward, turn) => call({ turn, reward })), reward: 1 };
  const lost = { rolloutId: "lost", transitions: [0, 0, 0].map((reward, turn) => call({ turn, reward })), reward: 0 };
  const pair = { id: "t", trajectories: [won, lost] };

  test("a discount is applied to the advantage, so no call of a won rollout turns negative", () => {
    const { advantages } = groupNormalized({ divideByStd: false }).estimate(creditGroups([pair], discounted({ gamma: 0.5 })));
    expect(advantages).toEqual([[Float64Array.of(0.125, 0.25, 0.5), Float64Array.of(-0.125, -0.25, -0.5)]]);
  });

  test("per-step credit compares rollouts by their sum, returns to go by the first return", () => {
    expect(perStep().assign(won, pair)).toEqual({ calls: Float64Array.of(0, 0.2, 1), rollout: 1.2 });
    expect(returnToGo({ gamma: 0.5 }).assign(won, pair)).toEqual({ calls: Float64Array.of(0.35, 0.7, 1), rollout: 0.35 });
  });

  test("a rollout that cannot be scored is NaN in every credit", () => {
    for (const credit of [perStep(), returnToGo(), discounted({ gamma: 0.9 })])
      expect(credit.assign({ ...won, reward: Number.NaN }, pair).rollout).toBeNaN();
  });
});

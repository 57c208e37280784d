// Rows and datums: merging, masks, baked weights, what is left out and what is refused; judged by the gradient of a bigram table.
import {
  type Aggregate,
  type Algorithm,
  type Batch,
  cispo,
  dppoTv,
  dro,
  type Example,
  forwardBackward,
  type Group,
  grpo,
  gspo,
  icePop,
  importanceSampling,
  mergeCalls,
  type PolicyLoss,
  perRolloutMean,
  ppoClip,
  reinforce,
  rloo,
  rowMeanTokenMean,
  rowMeanTokenSum,
  rowMeanTokenSumNorm,
  sapo,
  toDatums,
  tokenMean,
  tokenSum,
  tokenTis,
} from "@fulgurite/rl";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createBigramPolicy } from "./bigramPolicy.ts";
import { groups as anyGroups, call, trajectory, VOCABULARY } from "./transitions.ts";

const AGGREGATES: Record<string, Aggregate> = {
  perRolloutMean: perRolloutMean(),
  tokenMean: tokenMean(),
  tokenSum: tokenSum(),
  rowMeanTokenSum: rowMeanTokenSum(),
  rowMeanTokenMean: rowMeanTokenMean(),
  rowMeanTokenSumNorm: rowMeanTokenSumNorm(7),
};
const TABLE = Float64Array.from({ length: VOCABULARY ** 2 }, (_, i) => Math.sin(i * 1.7));

async function gradientOf(batch: Pick<Batch, "examples">, loss: PolicyLoss, options: Parameters<typeof forwardBackward>[3] = {}) {
  const policy = createBigramPolicy(VOCABULARY, TABLE);
  const update = await forwardBackward(policy.trainer, batch, loss, options);
  return { gradient: policy.gradient, update, calls: policy.calls };
}
function expectClose(got: ArrayLike<number>, wanted: ArrayLike<number>, tolerance = 1e-6): void {
  expect(got.length).toBe(wanted.length);
  for (let i = 0; i < wanted.length; i++) expect(Math.abs(got[i]! - wanted[i]!)).toBeLessThan(tolerance * (1 + Math.abs(wanted[i]!)));
}

describe("merging", () => {
  const step = (turn: number, prompt: number[], response: number[], more = {}) =>
    call({
      turn,
      promptTokens: Int32Array.from(prompt),
      responseTokens: Int32Array.from(response),
      samplerLogprobs: Float32Array.from(response, () => -1),
      ...more,
    });

  test("two interleaved agents make two rows, not four", () => {
    const { rows, breaks } = mergeCalls([step(0, [1], [2]), step(1, [5], [6]), step(2, [1, 2, 3], [4]), step(3, [5, 6, 3], [4])]);
    expect(rows.map((row) => [...row.tokens])).toEqual([
      [1, 2, 3, 4],
      [5, 6, 3, 4],
    ]);
    expect(rows.map((row) => [...row.callOf])).toEqual([
      [0, -1, 2],
      [1, -1, 3],
    ]);
    expect(breaks).toBe(1);
  });

  test("a call extends the row with the longest matching context", () => {
    const { rows } = mergeCalls([step(0, [1], [2]), step(1, [1], [2, 3]), step(2, [1, 2, 3, 4], [5])]);
    expect(rows.map((row) => row.calls)).toEqual([[0], [1, 2]]);
  });

  test("a prompt may be exactly what was so far", () => {
    const { rows } = mergeCalls([step(0, [1], [2]), step(1, [1, 2], [3])]);
    expect(rows.map((row) => [...row.mask])).toEqual([[1, 1]]);
  });

  test("temperatures are not mixed inside a row", () => {
    expect(mergeCalls([step(0, [1], [2]), step(1, [1, 2], [3], { temperature: 0.5 })]).rows).toHaveLength(2);
  });

  test("empty and overlong calls are dropped and counted", () => {
    const merged = mergeCalls([step(0, [1], []), step(1, [1, 2, 3], [4]), step(2, [1], [2])], { maxTokens: 3 });
    expect(merged.rows.map((row) => row.calls)).toEqual([[2]]);
    expect(merged.dropped).toEqual({ overlong: 1, empty: 1 });
  });

  test("every sampled token is in exactly one row, with its log-prob and its call", () => {
    fc.assert(
      fc.property(trajectory("r"), ({ transitions }) => {
        const { rows } = mergeCalls(transitions);
        const seen = rows.flatMap((row) =>
          [...row.mask].flatMap((trained, j) =>
            trained ? [{ call: row.callOf[j]!, token: row.tokens[row.targetStart + j]!, logprob: row.samplerLogprobs[j]! }] : [],
          ),
        );
        const wanted = transitions.flatMap(({ responseTokens, samplerLogprobs }, index) =>
          [...responseTokens].map((token, j) => ({ call: index, token, logprob: samplerLogprobs[j]! })),
        );
        const byCall = <T extends { call: number }>(list: T[]): T[] => [...list].sort((a, b) => a.call - b.call);
        expect(byCall(seen)).toEqual(byCall(wanted));
      }),
    );
  });
});

describe("gradients of a batch", () => {
  const HOMOGENEOUS = [ppoClip(), importanceSampling(), cispo(), sapo(), dppoTv()];

  test("merged trajectories and separate transitions have the same gradient", async () => {
    await fc.assert(
      fc.asyncProperty(anyGroups, async (groups) => {
        for (const loss of HOMOGENEOUS) {
          const algorithm: Algorithm = { ...grpo(), loss };
          const merged = await gradientOf(toDatums(groups, algorithm), loss);
          const separate = await gradientOf(toDatums(groups, { ...algorithm, rows: "transition" }), loss);
          expectClose(merged.gradient, separate.gradient);
        }
      }),
      { numRuns: 40 },
    );
  });

  test("a batch cut into passes of a few tokens has the same gradient and loss", async () => {
    await fc.assert(
      fc.asyncProperty(anyGroups, fc.integer({ min: 1, max: 20 }), async (groups, maxTokensPerPass) => {
        const batch = toDatums(groups, grpo());
        const whole = await gradientOf(batch, grpo().loss);
        const parts = await gradientOf(batch, grpo().loss, { maxTokensPerPass });
        expectClose(parts.gradient, whole.gradient, 1e-12);
        expectClose([parts.update.lossSum], [whole.update.lossSum], 1e-12);
        if (batch.examples.length > 1 && maxTokensPerPass === 1) expect(parts.calls.forwardBackward).toBe(batch.examples.length);
      }),
      { numRuns: 40 },
    );
  });

  test("permuted rollouts have the same summed gradient and permuted datums", async () => {
    await fc.assert(
      fc.asyncProperty(anyGroups, async (groups) => {
        const turned = groups.map((group): Group => ({ ...group, trajectories: [...group.trajectories].reverse() })).reverse();
        const [one, other] = [toDatums(groups, grpo()), toDatums(turned, grpo())];
        const key = ({ rolloutId, datum }: Example) => `${rolloutId} ${datum.tokens} ${Array.from(datum.advantages, (a) => a.toFixed(6))}`;
        expect(other.examples.map(key).sort()).toEqual(one.examples.map(key).sort());
        expectClose((await gradientOf(other, grpo().loss)).gradient, (await gradientOf(one, grpo().loss)).gradient);
      }),
      { numRuns: 40 },
    );
  });

  test("baked advantages and a token sum equal the aggregate of the raw losses", () => {
    fc.assert(
      fc.property(anyGroups, (groups) => {
        for (const aggregate of Object.values(AGGREGATES))
          for (const loss of [...HOMOGENEOUS, gspo()]) {
            const algorithm: Algorithm = { ...grpo({ aggregate }), loss };
            const baked = toDatums(groups, algorithm);
            const raw = toDatums(groups, { ...algorithm, aggregate: tokenSum() });
            const lossOf = ({ datum }: Example) =>
              loss
                .evaluate({ ...datum, logprobs: datum.samplerLogprobs.map((value) => value + 0.1) })
                .loss.reduce((total, value) => total + value, 0);
            const direct = raw.examples.reduce((total, example, i) => total + baked.examples[i]!.weight * lossOf(example), 0);
            expectClose([baked.examples.reduce((total, example) => total + lossOf(example), 0)], [direct]);
          }
      }),
      { numRuns: 20 },
    );
  });

  test("the linear trick gives the gradient and the loss of the trainer's own loss", async () => {
    await fc.assert(
      fc.asyncProperty(anyGroups, async (groups) => {
        for (const algorithm of [grpo(), rloo()]) {
          const { fused, ...onHost } = algorithm.loss;
          expect(fused).toBeDefined();
          const batch = toDatums(groups, algorithm);
          const own = await gradientOf(batch, algorithm.loss);
          const trick = await gradientOf(batch, onHost);
          expectClose(trick.gradient, own.gradient);
          expectClose([trick.update.lossSum], [own.update.lossSum], 1e-5);
          expect(own.calls.forward).toBe(0);
          expect(trick.calls.forward).toBe(trick.calls.forwardBackward);
        }
      }),
      { numRuns: 40 },
    );
  });

  test("REINFORCE goes to the trainer's cross-entropy with the advantages as weights", async () => {
    const group = { id: "t", trajectories: [1, 0].map((reward, i) => ({ rolloutId: `r${i}`, transitions: [call({})], reward })) };
    const { gradient, calls } = await gradientOf(toDatums([group], reinforce()), reinforce().loss);
    expect(calls).toMatchObject({ forward: 0, forwardBackward: 1 });
    // the same call with +½ and −½, each weighted ½, cancels
    expectClose(gradient, new Float64Array(VOCABULARY ** 2));
  });

  test("the β of DRO takes the averaging weight that the advantage carries", async () => {
    const group = {
      id: "t",
      trajectories: [1, 0].map((reward, i) => ({
        rolloutId: `r${i}`,
        transitions: [call({ responseTokens: Int32Array.of(2 + i), samplerLogprobs: Float32Array.of(-1) })],
        reward,
      })),
    };
    const loss = dro({ beta: 0.5 });
    const { update } = await gradientOf(toDatums([group], { ...reinforce(), loss }), loss);
    const [a, b] = update.outputs.map((output) => output.logprobs[0]!);
    const token = (advantage: number, logprob: number) => -(advantage * logprob - 0.25 * (logprob + 1) ** 2);
    expectClose([update.lossSum], [(token(0.5, a!) + token(-0.5, b!)) / 2]);
  });

  test("a correction multiplies ω of trainer over sampler into the advantage", async () => {
    const group = {
      id: "t",
      trajectories: [1, 0].map((reward, i) => ({
        rolloutId: `r${i}`,
        transitions: [call({ responseTokens: Int32Array.of(2 + i) })],
        reward,
      })),
    };
    const algorithm = grpo({ correction: tokenTis({ cap: 1.5 }) });
    const { update, calls } = await gradientOf(toDatums([group], algorithm), algorithm.loss, { correction: tokenTis({ cap: 1.5 }) });
    expect(calls.forward).toBe(1);
    for (const { datum, logprobs, omegas } of update.outputs) {
      const omega = Math.min(1.5, Math.exp(logprobs[0]! + 1));
      expectClose(omegas!, [omega]);
      expectClose(datum.oldLogprobs, [logprobs[0]!]);
    }
    expect(update.metrics.effectiveSampleFraction).toBeLessThanOrEqual(1);
    expect(update.metrics.policyKl).toBe(0);
    expect(update.metrics.samplerK3).toBeGreaterThan(0);
    const none = await gradientOf(toDatums([group], algorithm), algorithm.loss, { correction: icePop({ min: 100, max: 200 }) });
    expectClose(none.gradient, new Float64Array(VOCABULARY ** 2));
  });
});

describe("toDatums", () => {
  const two = (rewards: number[], more: object = {}): Group => ({
    id: "t",
    trajectories: rewards.map((reward, i) => ({ rolloutId: `r${i}`, transitions: [call({ rolloutId: `r${i}`, ...more })], reward })),
  });

  test("rows without an advantage are left out of the compute and kept in the counts", () => {
    const [flat, mixed] = [two([1, 1]), { ...two([1, 0]), id: "u" }];
    const alone = toDatums([mixed], { ...reinforce(), aggregate: rowMeanTokenSum() });
    const beside = toDatums([flat, mixed], { ...reinforce(), aggregate: rowMeanTokenSum() });
    expect(alone.examples.map(({ datum }) => [...datum.advantages])).toEqual([[0.25], [-0.25]]);
    expect(beside.examples.map(({ datum }) => [...datum.advantages])).toEqual([[0.125], [-0.125]]);
    expect(beside.counts).toMatchObject({ datums: 2, rows: 4 });
  });

  test("rollouts that cannot be scored give no rows and move no average", () => {
    expect(toDatums([two([1, 0, Number.NaN])], grpo()).examples).toEqual(toDatums([two([1, 0])], grpo()).examples);
  });

  test("the old log-probs are the sampler's", () => {
    for (const { datum } of toDatums([two([1, 0])], grpo()).examples) expect(datum.oldLogprobs).toBe(datum.samplerLogprobs);
  });

  test("calls of versions too long ago are dropped and counted", () => {
    const batch = toDatums([two([1, 0], { policyVersion: 2 })], grpo(), { version: 7 });
    expect(batch.examples).toEqual([]);
    expect(batch.counts.droppedStale).toBe(2);
    expect(toDatums([two([1, 0], { policyVersion: 3 })], grpo(), { version: 7 }).counts.droppedStale).toBe(0);
  });

  test("a rollout whose calls are all too old does not move the statistics of its group", () => {
    const stale = two([1, 0, 1]);
    const old = { ...stale.trajectories[2]!, rolloutId: "old" };
    const fresh = stale.trajectories
      .slice(0, 2)
      .map((one) => ({ ...one, transitions: [call({ ...one.transitions[0]!, policyVersion: 9 })] }));
    const batch = toDatums([{ id: "t", trajectories: [...fresh, old] }], grpo(), { version: 9 });
    expect(batch.counts).toMatchObject({ droppedStale: 1, rows: 2 });
    expect(batch.examples).toEqual(toDatums([{ id: "t", trajectories: fresh }], grpo()).examples);
  });

  test.each([
    ["a log-prob", { samplerLogprobs: Float32Array.of(Number.NaN) }, "samplerLogprobs[0] must be finite, got NaN"],
    ["a step reward", { reward: Number.POSITIVE_INFINITY }, "the reward must be finite, got Infinity"],
    ["too few log-probs", { samplerLogprobs: new Float32Array(0) }, "one entry for each of the 1 response tokens, got 0"],
    ["no prompt", { promptTokens: new Int32Array(0) }, "a prompt has at least one token, got 0"],
    ["a greedy call", { temperature: 0 }, "sampled at a temperature > 0, got 0"],
  ])("%s that cannot be trained on is refused, naming rollout and call", (_, more, message) => {
    expect(() => toDatums([two([1, 0], { turn: 3, ...more })], grpo())).toThrow("toDatums: rollout r0, call 3 (span s0): ");
    expect(() => toDatums([two([1, 0], { turn: 3, ...more })], grpo())).toThrow(message);
  });

  test("an infinite outcome is refused", () => {
    expect(() => toDatums([two([Number.POSITIVE_INFINITY, 0])], grpo())).toThrow("rollout r0: the reward must be finite");
  });
});

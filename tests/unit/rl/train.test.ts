// The loop on a bandit: it learns from true rewards and from nothing else, it resumes as if it had never stopped, it says what failed.
import {
  decodeCheckpoint,
  encodeCheckpoint,
  evaluate,
  grpo,
  movingBaseline,
  orderTasks,
  RlError,
  reinforce,
  rloo,
  type StepReport,
  samplingOf,
  sapo,
  seedFrom,
  toVerlNames,
} from "@fulgurite/rl";
import { describe, expect, test } from "vitest";
import { all, Crash, createBandit, createBanditRunner, TASKS, VOCABULARY } from "./banditRun.ts";
import { createBigramPolicy } from "./bigramPolicy.ts";

const reward = (reports: readonly StepReport[], from: number, to?: number): number => {
  const values = reports.slice(from, to).map(({ metrics }) => metrics.reward!);
  return values.reduce((sum, value) => sum + value, 0) / values.length;
};
const gain = (reports: readonly StepReport[]): number => reward(reports, -5) - reward(reports, 0, 5);

describe("what is learned", () => {
  test.each([
    ["grpo", grpo()],
    ["rloo", rloo()],
    ["reinforce", reinforce()],
    ["grpo with SAPO through the linear trick", { ...grpo(), loss: sapo() }],
    ["a moving baseline", { ...rloo(), advantages: movingBaseline({ decay: 0.9 }) }],
  ])("true rewards: %s rises", async (_, algorithm) => {
    for (const seed of [1, 2]) {
      const reports = await all(createBandit({ algorithm, seed, steps: 30 }).options);
      expect(reward(reports, 0, 5)).toBeLessThan(0.35);
      expect(reward(reports, -5)).toBeGreaterThan(0.7);
    }
  });

  test("random rewards: the share of right answers does not rise", async () => {
    let total = 0;
    for (const seed of [1, 2, 3, 4]) {
      const coin = createBandit({
        seed,
        steps: 40,
        bandit: { reward: (_task, _answer, rollout) => seedFrom(rollout.metadata.seed as number, 99) % 2 },
      });
      const before = await share(coin.policy);
      await all(coin.options);
      total += (await share(coin.policy)) - before;
    }
    expect(total / 4).toBeLessThan(0.1);
  });

  test("shuffled rewards, the true ones of another task's rollout, do not teach either", async () => {
    const { options, policy } = createBandit({
      seed: 5,
      steps: 40,
      bandit: { reward: (_task, answer, rollout) => (answer === 4 + (seedFrom(rollout.metadata.seed as number, 7) % 4) ? 1 : 0) },
    });
    await all(options);
    expect(await share(policy)).toBeLessThan(0.4);
  });

  test("a learning rate of 0 leaves the policy as it was", async () => {
    const { options, policy } = createBandit({ steps: 12, adam: { learningRate: 0 } });
    const reports = await all(options);
    expect(Math.abs(gain(reports))).toBeLessThan(0.15);
    expect(policy.table).toEqual(new Float64Array(VOCABULARY ** 2));
    expect(reports.at(-1)!.metrics.applied).toBe(1);
  });

  test("a group size of one teaches nothing, and no step is taken", async () => {
    const { options, policy } = createBandit({ steps: 2, groupSize: 1 });
    const reports = await all(options);
    expect(reports.map(({ metrics }) => [metrics.applied, metrics.datums, metrics.zeroVarianceFraction])).toEqual([
      [0, 0, 1],
      [0, 0, 1],
    ]);
    expect(policy.calls).toMatchObject({ forwardBackward: 0, optimStep: 0 });
    expect(reports.at(-1)!.version).toBe(2);
  });

  /** Probability of the right answer, mean over the tasks. */
  async function share(policy: ReturnType<typeof createBigramPolicy>): Promise<number> {
    const rows = TASKS.map(({ input }) => {
      const row = policy.table.slice((input as number) * VOCABULARY, ((input as number) + 1) * VOCABULARY).map(Math.exp);
      return row[(input as number) + 4]! / row.reduce((sum, weight) => sum + weight, 0);
    });
    return rows.reduce((sum, p) => sum + p, 0) / rows.length;
  }
});

describe("what a step says", () => {
  test("on the first on-policy pass trainer and sampler agree, nothing is clipped, and two calls make one row", async () => {
    const [first] = await all(createBandit({ steps: 1 }).options);
    expect(first).toMatchObject({ step: 0, version: 1, failures: [] });
    expect(first!.metrics).toMatchObject({
      ...{ rollouts: 24, failed: 0, turns: 2, responseTokens: 1, promptTokens: 3, truncatedFraction: 1, rows: 24, mergedRows: 24 },
      ...{ clipFraction: 0, dualClipFraction: 0, applied: 1 },
    });
    expect(first!.metrics.samplerGapMax).toBeLessThan(1e-6);
    expect(first!.metrics.entropy).toBeCloseTo(Math.log(VOCABULARY), 5);
    expect(Object.keys(first!.metrics).filter((name) => name.endsWith("Ms"))).toEqual([]);
    expect(toVerlNames(first!.metrics)["actor/ppo_kl"]).toBe(first!.metrics.policyKl);
  });

  test("trainer and sampler agree at another temperature too", async () => {
    const [, second] = await all(createBandit({ steps: 2, temperature: 0.5, adam: { learningRate: 0.5 } }).options);
    expect(second!.metrics.entropy).toBeLessThan(Math.log(VOCABULARY) - 0.05);
    expect(second!.metrics.samplerGapMax).toBeLessThan(1e-6);
  });

  test("times are reported when a clock is given", async () => {
    let now = 0;
    const [first] = await all({ ...createBandit({ steps: 1 }).options, clock: () => (now += 5) });
    expect(first!.metrics).toMatchObject({ collectMs: 5, updateMs: 5 });
  });

  test("every version is published, to the policy and to the store, and rollouts run in it", async () => {
    const { options, policy, store } = createBandit({ steps: 3, runId: "r" });
    await all(options);
    expect(policy.sampler.policyVersion).toBe(3);
    const resource = await store.resource("r");
    expect(resource).toMatchObject({ version: 3, kind: "lora", metadata: { run: "r" } });
    expect(resource!.files).toEqual(await policy.trainer.exportAdapter());
    const versions: unknown[] = [];
    for await (const rollout of store.rollouts({ metadata: { step: 2 } })) versions.push(rollout.metadata.version);
    expect(new Set(versions)).toEqual(new Set([2]));
  });

  test("onRollout hears every rollout in order of task and member", async () => {
    const heard: string[] = [];
    const { options } = createBandit({
      steps: 1,
      groupSize: 2,
      onRollout: (rollout, value) => heard.push(`${rollout.id} ${typeof value}`),
    });
    await all(options);
    expect(heard.slice(0, 3)).toEqual(["run/v0/s0/t0/m0 number", "run/v0/s0/t0/m1 number", "run/v0/s0/t1/m0 number"]);
  });

  test("a gradient that is not finite is not applied, and the step says so", async () => {
    const { options, policy } = createBandit({ steps: 1 });
    const { trainer } = policy;
    const broken = {
      ...policy,
      sampler: policy.sampler,
      trainer: {
        ...trainer,
        optimStep: async (adam: Parameters<typeof trainer.optimStep>[0]) => {
          policy.gradient[0] = Number.NaN;
          return trainer.optimStep(adam);
        },
      },
    };
    const [first] = await all({ ...options, policy: broken });
    expect(first!.metrics.applied).toBe(0);
    expect(first!.metrics).not.toHaveProperty("gradNorm");
    expect(Object.values(first!.metrics).every(Number.isFinite)).toBe(true);
    expect(policy.table).toEqual(new Float64Array(VOCABULARY ** 2));
  });
});

describe("resuming", () => {
  const plain = (reports: readonly StepReport[]) => reports.map(({ step, version, metrics }) => ({ step, version, metrics }));
  const settings = { steps: 6, seed: 3, runId: "r", algorithm: { ...grpo(), advantages: movingBaseline() } };

  test("a run left after any step continues as the uninterrupted one, with a fresh policy", async () => {
    const whole = createBandit(settings);
    const wanted = await all(whole.options);
    for (const cut of [1, 3, 6]) {
      const first = createBandit(settings);
      const early = await all({ ...first.options, steps: cut });
      const second = createBandit({ ...settings, bandit: { store: first.store } });
      expect(plain([...early, ...(await all(second.options))])).toEqual(plain(wanted));
      expect(second.policy.table).toEqual(whole.policy.table);
      expect(second.policy.sampler.policyVersion).toBe(6);
    }
  });

  test.each([1, 7, 24, 25, 40, 60, 100])(
    "a process that dies at its %i. claim is continued by another one, step by step",
    async (diesAtClaim) => {
      const whole = createBandit(settings);
      const wanted = await all(whole.options);
      const first = createBandit({ ...settings, bandit: { diesAtClaim } });
      const early: StepReport[] = [];
      const dying = (async () => {
        for await (const report of trainOf(first)) early.push(report);
      })();
      await expect(dying).rejects.toThrow(Crash);
      const second = createBandit({ ...settings, bandit: { store: first.store } });
      const late = await all(second.options);
      expect(plain([...early, ...late])).toEqual(plain(wanted));
      expect(second.policy.table).toEqual(whole.policy.table);
      // what had ended was not run again: every claim but the lost ones counts once
      const { attempts } = await first.store.stats();
      expect(attempts - 6 * 24).toBeLessThanOrEqual(5);
    },
  );

  test("a crash between checkpoint and publication repeats the publication only", async () => {
    const whole = createBandit(settings);
    const wanted = await all(whole.options);
    const first = createBandit(settings);
    const early: StepReport[] = [];
    const breaking = {
      ...first.policy,
      sampler: first.policy.sampler,
      publish: async (version: number) => {
        if (version === 3) throw new Crash("between checkpoint and publish");
        await first.policy.publish(version);
      },
    };
    await expect(
      (async () => {
        for await (const report of trainOf({ ...first, options: { ...first.options, policy: breaking } })) early.push(report);
      })(),
    ).rejects.toThrow(Crash);
    const second = createBandit({ ...settings, bandit: { store: first.store } });
    const late = await all(second.options);
    expect(early.map(({ step }) => step)).toEqual([0, 1]);
    expect(plain(late)).toEqual(plain(wanted).slice(3));
    expect((await second.store.resource("r", 3))?.metadata).toEqual({ run: "r", report: wanted[2] });
  });

  test("with rare checkpoints the steps since the last are repeated from the stored rollouts", async () => {
    const whole = createBandit(settings);
    const wanted = await all(whole.options);
    const first = createBandit({ ...settings, checkpointEvery: 4, bandit: { diesAtClaim: 24 * 3 + 8 } });
    await expect(all(first.options)).rejects.toThrow(Crash);
    const second = createBandit({ ...settings, checkpointEvery: 4, bandit: { store: first.store } });
    expect(plain(await all(second.options))).toEqual(plain(wanted));
  });

  test("a stored rollout that another version sampled is run again, under another id", async () => {
    const wanted = await all(createBandit({ ...settings, steps: 1 }).options);
    const { options, policy, store } = createBandit({ ...settings, steps: 1 });
    const id = "r/v0/s0/t0/m0";
    await store.enqueue([{ id, input: orderTasks(TASKS, 3)(0).input, metadata: { seed: 1, temperature: 1 } }]);
    await policy.publish(9);
    await options.runner.drain();
    await policy.publish(0);
    expect(plain(await all(options))).toEqual(plain(wanted));
    const ids: string[] = [];
    for await (const rollout of store.rollouts({ metadata: { task: orderTasks(TASKS, 3)(0).id, member: 0 } })) ids.push(rollout.id);
    expect(ids).toEqual([`${id}/again1`]);
  });

  test("a rollout left queued for a version that is not served is never run by it", async () => {
    const wanted = await all(createBandit(settings).options);
    const seen: [unknown, number][] = [];
    const policy = createBigramPolicy(VOCABULARY);
    const { options, store } = createBandit({
      ...settings,
      bandit: { policy, before: (rollout) => void seen.push([rollout.metadata.version, policy.sampler.policyVersion]) },
    });
    const input = orderTasks(TASKS, 3)(2 * 4).input;
    await store.enqueue([{ id: "r/v2/s2/t0/m0", input, metadata: { run: "r", version: 2, temperature: 1, seed: 1 } }]);
    expect(plain(await all(options))).toEqual(plain(wanted));
    expect(seen).toHaveLength(6 * 24);
    expect(seen.filter(([planned, served]) => planned !== served)).toEqual([]);
  });

  test.each([
    ["groupSize", { groupSize: 4 }, "groupSize 6, got 4"],
    ["tasks", { tasks: TASKS.slice(1) }, "tasks "],
    ["seed", { seed: 4 }, "seed 3, got 4"],
    ["algorithm", { algorithm: rloo() }, "algorithm "],
    ["adam", { adam: { learningRate: 0.2 } }, "adam "],
  ])("a checkpoint made with another %s is refused, naming it", async (_, other, message) => {
    const first = createBandit(settings);
    await all({ ...first.options, steps: 1 });
    const second = createBandit({ ...settings, ...other, bandit: { store: first.store } });
    await expect(all(second.options)).rejects.toThrow(`train: run "r" was checkpointed at step 1 with ${message}`);
    await expect(all(second.options)).rejects.toMatchObject({ code: "checkpoint" });
  });

  test("an aborted run rejects with the reason and can be continued", async () => {
    const whole = createBandit(settings);
    const wanted = await all(whole.options);
    const abort = new AbortController();
    const first = createBandit({
      ...settings,
      signal: abort.signal,
      bandit: { before: (_, claims) => (claims === 30 ? abort.abort("enough") : undefined) },
    });
    await expect(all(first.options)).rejects.toBe("enough");
    const second = createBandit({ ...settings, bandit: { store: first.store } });
    expect(plain(await all(second.options))).toEqual(plain(wanted).slice(1));
  });

  test("an adapter name that another run has published is refused", async () => {
    const first = createBandit({ ...settings, steps: 1, adapterName: "shared" });
    await all(first.options);
    const second = createBandit({ ...settings, runId: "other", adapterName: "shared", bandit: { store: first.store } });
    await expect(all(second.options)).rejects.toThrow('adapter "shared" version 1 was already published by run "r"');
  });
});

const trainOf = ({ options }: { options: Parameters<typeof all>[0] }): AsyncIterable<StepReport> => {
  return { [Symbol.asyncIterator]: () => iterate(options) };
};
async function* iterate(options: Parameters<typeof all>[0]): AsyncGenerator<StepReport> {
  const { train } = await import("@fulgurite/rl");
  yield* train(options);
}

describe("what goes wrong", () => {
  test("failed rollouts are counted, named and left out of every average", async () => {
    const failing = (member: number) => ({
      before: (rollout: { metadata: Readonly<Record<string, unknown>> }) => {
        if (rollout.metadata.member === member) throw new TypeError("the agent's own fault");
      },
    });
    const [report] = await all(createBandit({ steps: 1, bandit: failing(2) }).options);
    expect(report!.metrics).toMatchObject({ rollouts: 24, failed: 4, rows: 20 });
    expect(report!.failures).toHaveLength(4);
    expect(report!.failures[0]).toEqual({ rolloutId: "run/v0/s0/t0/m2", reason: "TypeError: the agent's own fault" });
  });

  test("more than half failed: the run stops and names the first error", async () => {
    const { options, policy } = createBandit({
      bandit: {
        before: (rollout) => {
          if ((rollout.metadata.member as number) < 4) throw new TypeError("no such tool");
        },
      },
    });
    await expect(all(options)).rejects.toThrow(
      "got 8 of 24 in step 0; the first failure, rollout run/v0/s0/t0/m0: TypeError: no such tool",
    );
    expect(policy.calls.forwardBackward).toBe(0);
  });

  test("a rollout whose calls carry no token ids says why it cannot be trained", async () => {
    await expect(all(createBandit({ bandit: { isRecorded: false } }).options)).rejects.toThrow(
      "none of its 3 spans is a finished model call with token ids and log-probs; the agent must call the given endpoint",
    );
  });

  test("a rollout without a reward is a failure, not a zero", async () => {
    const { options } = createBandit({ steps: 1, bandit: { reward: (_, __, rollout) => (rollout.metadata.member === 0 ? undefined : 1) } });
    const [report] = await all(options);
    expect(report!.metrics).toMatchObject({ failed: 4, reward: 1 });
    expect(report!.failures[0]!.reason).toContain("it recorded no reward");
  });

  test("options outside their contract are refused before anything runs", async () => {
    const { options, store } = createBandit();
    await expect(all({ ...options, groupSize: 0 })).rejects.toThrow("train: groupSize is an integer ≥ 1, got 0");
    await expect(all({ ...options, temperature: 0 })).rejects.toThrow("temperature must be > 0");
    await expect(all({ ...options, tasks: [] })).rejects.toThrow("at least one task");
    expect((await store.stats()).attempts).toBe(0);
  });
});

describe("evaluate", () => {
  test("greedy accuracy after training is 1, and repeating the evaluation runs nothing again", async () => {
    const { options, policy, store } = createBandit({ steps: 40 });
    const runner = createBanditRunner({ policy, store });
    const settings = { policy, store, runner, tasks: TASKS, label: "held out" };
    const before = await evaluate(settings);
    expect(before).toMatchObject({ version: 0, count: 4, failed: 0 });
    expect(before.reward).toBeLessThan(0.5);
    await all(options);
    const after = await evaluate(settings);
    expect(after).toMatchObject({ version: 40, reward: 1, count: 4, failed: 0 });
    const { claims } = runner;
    expect(await evaluate(settings)).toEqual(after);
    expect(runner.claims).toBe(claims);
    const modes = new Set<string>();
    for await (const rollout of store.rollouts({ metadata: { label: "held out" } })) modes.add(rollout.mode);
    expect(modes).toEqual(new Set(["val"]));
  });

  test("sampled and greedy evaluations of one version are told apart", async () => {
    const { policy, store } = createBandit();
    const runner = createBanditRunner({ policy, store });
    await evaluate({ policy, store, runner, tasks: TASKS });
    await evaluate({ policy, store, runner, tasks: TASKS, temperature: 1 });
    expect(runner.claims).toBe(8);
  });

  test("a label that was used with other tasks is refused", async () => {
    const { policy, store } = createBandit();
    const runner = createBanditRunner({ policy, store });
    await evaluate({ policy, store, runner, tasks: TASKS });
    await expect(evaluate({ policy, store, runner, tasks: [...TASKS].reverse() })).rejects.toThrow("already stored with another task");
  });
});

test("what a rollout's metadata says is how it samples", () => {
  expect(samplingOf({ mode: "val", metadata: { temperature: 0, seed: 9, maxTokens: 5, other: 1 } })).toEqual({
    mode: "val",
    temperature: 0,
    seed: 9,
    maxTokens: 5,
  });
  expect(samplingOf({ mode: "train", metadata: { seed: "9" } })).toEqual({ mode: "train" });
});

test("each epoch visits every task once, in its own order, the same for the same seed", () => {
  const many = Array.from({ length: 20 }, (_, i) => ({ id: `${i}`, input: i }));
  const epoch = (seed: number, number: number) => {
    const at = orderTasks(many, seed);
    return many.map((_, i) => at(number * 20 + i).id);
  };
  expect([...epoch(1, 0)].sort()).toEqual(many.map(({ id }) => id).sort());
  expect(epoch(1, 0)).toEqual(epoch(1, 0));
  expect(epoch(1, 0)).not.toEqual(epoch(1, 1));
  expect(epoch(1, 0)).not.toEqual(epoch(2, 0));
});

test("a checkpoint comes back as it was written, and anything else is refused", () => {
  const checkpoint = {
    cursor: {
      runId: "r",
      step: 3,
      version: 4,
      seed: 5,
      options: { groupSize: 8 },
      report: { step: 2, version: 4, metrics: {}, failures: [] },
    },
    trainerState: Uint8Array.of(1, 2, 3),
  };
  const bytes = encodeCheckpoint(checkpoint);
  expect(decodeCheckpoint(bytes)).toEqual(checkpoint);
  const wrong = (change: (copy: Uint8Array) => Uint8Array) => () => decodeCheckpoint(change(bytes.slice()));
  expect(wrong((copy) => copy.subarray(0, 5))).toThrow(RlError);
  expect(wrong((copy) => copy.fill(0, 0, 1))).toThrow('magic "FGCK"');
  expect(wrong((copy) => copy.fill(9, 4, 5))).toThrow("format 1, got 9");
  expect(wrong((copy) => copy.subarray(0, 30))).toThrow("at least");
});

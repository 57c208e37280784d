// Evaluation: one rollout a task with the policy as it is, nothing learned. Repeating an evaluation of the same run, label, version
// and temperature finds what already ran.

import type { Policy } from "@fulgurite/engine";
import type { Json, Mode, Store } from "@fulgurite/trace";
import { collect, type RunnerLike } from "./collect.ts";
import { RlError } from "./errors.ts";
import { seedFrom } from "./random.ts";
import { samplingMetadata } from "./sampling.ts";
import type { Task } from "./tasks.ts";

export interface EvaluateOptions {
  readonly policy: { readonly sampler: Pick<Policy["sampler"], "policyVersion"> };
  readonly store: Store;
  /** Must sample as the rollout says: createRunner({ sampling: samplingOf, … }). */
  readonly runner: RunnerLike;
  readonly tasks: readonly Task[];
  readonly mode?: Mode; // "val"
  /** 0: greedy; 1: as in training. */
  readonly temperature?: number; // 0
  readonly maxTokens?: number;
  readonly seed?: number; // 0
  readonly runId?: string; // "run"
  /** Tells evaluations of one version apart: "held-out", "training tasks". */
  readonly label?: string; // "evaluation"
  readonly signal?: AbortSignal;
}

export interface Evaluation {
  readonly version: number;
  /** Mean over the rollouts that have one; NaN when none has. */
  readonly reward: number;
  /** Rollouts that have a reward. */
  readonly count: number;
  readonly failed: number;
  /** In order of the tasks; NaN: failed. */
  readonly rewards: Float64Array;
  readonly failures: readonly { readonly rolloutId: string; readonly reason: string }[];
}

export async function evaluate(options: EvaluateOptions): Promise<Evaluation> {
  const { policy, store, runner, tasks, maxTokens, signal } = options;
  const { mode = "val", temperature = 0, seed = 0, runId = "run", label = "evaluation" } = options;
  if (tasks.length === 0) throw new RlError("bad-options", "evaluate: tasks has at least one task, got 0");
  const version = policy.sampler.policyVersion;
  const collected = await collect(
    tasks.map((task, position) => ({
      id: `${runId}/${label}/v${version}/T${temperature}/seed${seed}/t${position}`,
      input: task.input,
      mode,
      metadata: {
        ...({ run: runId, label, task: task.id, version } satisfies Record<string, Json>),
        ...samplingMetadata({ temperature, seed: seedFrom(seed, position), ...(maxTokens === undefined ? {} : { maxTokens }) }),
      },
    })),
    { store, runner, version, ...(signal ? { signal } : {}) },
  );
  const rewards = Float64Array.from(collected, ({ trajectory }) => trajectory.reward);
  const scored = rewards.filter((reward) => !Number.isNaN(reward));
  return {
    version,
    reward: scored.reduce((sum, reward) => sum + reward, 0) / scored.length,
    count: scored.length,
    failed: rewards.length - scored.length,
    rewards,
    failures: collected.flatMap(({ rollout, failure }) => (failure === undefined ? [] : [{ rolloutId: rollout.id, reason: failure }])),
  };
}

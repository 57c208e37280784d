// Collecting: enqueue planned rollouts, let the runner work, read them back in the order of the plan, never of arrival.
// A plan's id is its identity: after a crash the same plan finds what already ran, and only the rest is run.

import type { Runner } from "@fulgurite/agent";
import { type Rollout, rewardOf, type Store, type StoredSpan, type TaskInput, toTransitions } from "@fulgurite/trace";
import { RlError } from "./errors.ts";
import { canonicalJson } from "./tasks.ts";
import type { Trajectory } from "./trajectory.ts";

export type RunnerLike = Pick<Runner, "drain">;

export interface PlannedRollout extends TaskInput {
  readonly id: string;
}

export interface CollectedRollout {
  readonly rollout: Rollout;
  /** Without transitions and with reward NaN where the rollout failed or recorded no reward. */
  readonly trajectory: Trajectory;
  /** Why there is no reward. */
  readonly failure?: string;
  /** Why nothing can be trained although there is a reward. */
  readonly untrainable?: string;
}

export interface CollectOptions {
  readonly store: Store;
  readonly runner: RunnerLike;
  /** Rollouts that were sampled at another version are not taken for these; they are run again under a new id. */
  readonly version: number;
  readonly signal?: AbortSignal;
}

/** A process that dies while it runs an agent leaves an attempt without a heartbeat: that, and only that, is tried again. */
const CRASH_RETRIES = { maxAttempts: 3, retryOn: ["unresponsive"] } as const;

async function readRollout(store: Store, rollout: Rollout): Promise<CollectedRollout> {
  const unscored = (failure: string): CollectedRollout => ({
    rollout,
    trajectory: { rolloutId: rollout.id, transitions: [], reward: Number.NaN },
    failure,
  });
  const attempts = await store.attempts(rollout.id);
  const attempt = attempts.findLast(({ status }) => rollout.status !== "succeeded" || status === "succeeded");
  if (rollout.status !== "succeeded" || attempt === undefined) {
    const error = attempt?.error;
    return unscored(error ? `${error.name}: ${error.message}` : `it ended as ${attempt?.status ?? rollout.status}`);
  }
  const spans: StoredSpan[] = [];
  for await (const span of store.spans({ rolloutId: rollout.id, attemptId: attempt.id })) spans.push(span);
  const reward = rewardOf(spans);
  if (reward === undefined) return unscored("it recorded no reward; an agent returns a number, or calls reward()");
  // concurrent calls of an attempt arrive in any order; their turn is given when they start
  const transitions = toTransitions(spans).sort((a, b) => a.turn - b.turn);
  const trajectory = { rolloutId: rollout.id, transitions, reward };
  if (transitions.length > 0) return { rollout, trajectory };
  const calls =
    spans.length === 0 ? "it recorded no span" : `none of its ${spans.length} spans is a finished model call with token ids and log-probs`;
  return { rollout, trajectory, untrainable: `${calls}; the agent must call the given endpoint, and its upstream must return token ids` };
}

const isTerminal = ({ status }: Rollout): boolean => status !== "queued" && status !== "running";

/** What is stored under a planned id is of use: still to be run, or run to an end by the policy of this version. */
async function isUsable(store: Store, rollout: Rollout, version: number): Promise<boolean> {
  if (!isTerminal(rollout)) return true;
  if (rollout.status === "cancelled") return false;
  const { trajectory } = await readRollout(store, rollout);
  return trajectory.transitions.every((transition) => transition.policyVersion === version);
}

async function enqueue(store: Store, plan: readonly PlannedRollout[], version: number): Promise<Rollout[]> {
  const found: Rollout[] = [];
  let open = plan.map((_, position) => position);
  for (let again = 0; open.length > 0; again++) {
    const rollouts = await store.enqueue(
      open.map((position) => {
        const planned = plan[position]!;
        return {
          ...planned,
          config: { ...CRASH_RETRIES, ...planned.config },
          id: again === 0 ? planned.id : `${planned.id}/again${again}`,
        };
      }),
    );
    const unusable: number[] = [];
    for (const [i, rollout] of rollouts.entries()) {
      const position = open[i]!;
      if (canonicalJson(rollout.input) !== canonicalJson(plan[position]!.input))
        throw new RlError(
          "bad-options",
          `collect: rollout ${rollout.id} is already stored with another task, got ${canonicalJson(plan[position]!.input)}; use another runId or label`,
        );
      if (await isUsable(store, rollout, version)) found[position] = rollout;
      else unusable.push(position);
    }
    open = unusable;
  }
  return found;
}

/** Runs what has not run yet; resolves when all have ended, in the order of the plan. */
export async function collect(plan: readonly PlannedRollout[], options: CollectOptions): Promise<CollectedRollout[]> {
  const { store, runner, version, signal } = options;
  signal?.throwIfAborted();
  const rollouts = await enqueue(store, plan, version);
  if (!rollouts.every(isTerminal)) await runner.drain(signal ? { signal } : {});
  const ended = await store.waitFor(
    rollouts.map((rollout) => rollout.id),
    signal ? { signal } : {},
  );
  const collected: CollectedRollout[] = [];
  for (const rollout of ended) collected.push(await readRollout(store, rollout));
  return collected;
}

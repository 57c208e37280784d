// One experiment: measure on held-out tasks, train, measure again. What the command line and the studio both run, so that
// their figures mean the same. Everything it learns is in the store: the same call after a crash goes on where it was.

import type { Agent } from "@fulgurite/agent";
import type { StepReport } from "@fulgurite/rl";
import type { Json, Mode, Rollout, Store } from "@fulgurite/trace";
import { evaluate } from "./evaluate.ts";
import type { LoadedPolicy } from "./loadPolicy.ts";
import { train } from "./train.ts";

/** An agent with tasks, ready to be trained. */
export interface Demo<Task = Json> {
  readonly name: string;
  readonly title: string;
  readonly description: string;
  /** A pure function of its arguments; train and val are disjoint. */
  tasks(split: Mode, count: number, seed?: number): { id: string; input: Task }[];
  readonly agent: Agent<Task>;
  /** Sizes by name; "default" exists. */
  readonly recipes: Readonly<Record<string, Recipe>>;
}

export interface Recipe {
  readonly steps: number;
  readonly tasksPerStep: number;
  readonly groupSize: number;
  readonly learningRate: number;
  /** Tasks that are drawn from in training. */
  readonly trainTasks: number;
  /** Held-out tasks of a measurement. */
  readonly heldOutTasks: number;
}

/** Mean reward on the held-out tasks: one sample each at temperature 1, and greedy. */
export interface Score {
  readonly sampled: number;
  readonly greedy: number;
}

export type Phase = "before" | "training" | "after";

/** What an experiment has found so far. */
export interface ExperimentRecord {
  readonly recipe: Recipe;
  readonly seed: number;
  readonly before?: Score;
  readonly after?: Score;
  readonly steps: readonly StepReport[];
}

type Kept = Omit<ExperimentRecord, "steps">;

export interface RolloutProgress {
  readonly phase: Phase;
  readonly done: number;
  readonly total: number;
  readonly rollout: Rollout;
  /** NaN when it failed. */
  readonly reward: number;
  /** Of the rollouts so far in this step or measurement; a failed one counts as 0. */
  readonly meanReward: number;
}

export interface ExperimentOptions<Task> {
  readonly policy: LoadedPolicy;
  readonly store: Store;
  readonly demo: Demo<Task>;
  readonly recipe: Recipe;
  readonly seed: number;
  /** Names the run inside the store; an unfinished run of this name is continued. */
  readonly runId: string;
  /** false leaves the first measurement out, for a control whose start is known. */
  readonly measureBefore?: boolean;
  readonly signal?: AbortSignal;
  /** As each one ends. */
  readonly onRollout?: (progress: RolloutProgress) => void;
}

const stateName = (runId: string): string => `experiment/${runId}`;

const keep = (store: Store, runId: string, kept: Kept): Promise<void> =>
  store.putState(stateName(runId), new TextEncoder().encode(JSON.stringify({ v: 1, ...kept })));

/** What the store knows of an experiment; undefined when it has none of this name. */
export const readExperiment = async (store: Store, runId: string): Promise<ExperimentRecord | undefined> => {
  const bytes = await store.getState(stateName(runId));
  if (!bytes) return undefined;
  const { v: _, ...kept } = JSON.parse(new TextDecoder().decode(bytes)) as Kept & { v: number };
  return { ...kept, steps: there(await reportsOf(store, runId)) };
};

/** Without the holes of steps whose versions were collected (collectGarbage): filter skips them. */
const there = (reports: readonly StepReport[]): StepReport[] => reports.filter(() => true);

/** Every published adapter version carries the report of the step that made it; the adapters' bytes are not read. */
const reportsOf = async (store: Store, runId: string): Promise<StepReport[]> => {
  const reports: StepReport[] = [];
  for await (const { name, metadata } of store.resources()) {
    if (name !== runId || metadata.report === undefined) continue;
    const report = metadata.report as unknown as StepReport;
    reports[report.step] = report;
  }
  return reports;
};

/**
 * Measures, trains, measures; yields the record whenever it has grown. A run that is aborted, or whose process dies, is
 * continued by the same call on the same store with a freshly loaded policy or the one it was interrupted with; `steps`
 * alone may differ, which ends training early or prolongs it.
 */
export async function* experiment<Task>(options: ExperimentOptions<Task>): AsyncGenerator<ExperimentRecord, void, void> {
  const { policy, store, demo, recipe, seed, runId, measureBefore = true, signal, onRollout } = options;
  const { steps, tasksPerStep, groupSize, learningRate, heldOutTasks, trainTasks } = recipe;

  // the runner knows when a rollout ends, the agent knows its reward
  const rewards = new Map<string, number>();
  const progress = { phase: "before" as Phase, done: 0, total: 0, sum: 0 };
  const enter = (phase: Phase, total: number): void => {
    Object.assign(progress, { phase, done: 0, total, sum: 0 });
    rewards.clear();
  };
  const session = {
    policy,
    store,
    agent: (async (task, context) => {
      const reward = await demo.agent(task, context);
      if (typeof reward === "number") rewards.set(context.rollout.id, reward);
      return reward;
    }) as Agent<Task>,
    onEnd: (rollout: Rollout) => {
      const reward = rewards.get(rollout.id) ?? Number.NaN;
      progress.sum += Number.isFinite(reward) ? reward : 0;
      const done = ++progress.done;
      onRollout?.({ phase: progress.phase, done, total: progress.total, rollout, reward, meanReward: progress.sum / done });
    },
    ...(signal && { signal }),
  };

  const measure = async (phase: "before" | "after"): Promise<Score> => {
    enter(phase, 2 * heldOutTasks);
    const tasks = demo.tasks("val", heldOutTasks);
    // the two measurements draw from different seeds: an unchanged policy shows the noise of a measurement
    const common = {
      ...session,
      tasks: tasks as never,
      mode: "val" as const,
      runId,
      label: phase,
      seed: 2 * seed + (phase === "after" ? 1 : 0),
    };
    const sampled = await evaluate({ ...common, temperature: 1 });
    const greedy = await evaluate({ ...common, temperature: 0 });
    return { sampled: sampled.reward, greedy: greedy.reward };
  };

  const known = await readExperiment(store, runId);
  let kept: Kept = { recipe, seed, ...(known?.before && { before: known.before }) };
  const reports: StepReport[] = [];
  for (const report of known?.steps ?? []) reports[report.step] = report;
  await keep(store, runId, kept);
  yield { ...kept, steps: there(reports) };

  if (measureBefore && !kept.before) {
    kept = { ...kept, before: await measure("before") };
    await keep(store, runId, kept);
    yield { ...kept, steps: there(reports) };
  }

  enter("training", tasksPerStep * groupSize);
  for await (const report of train({
    ...session,
    tasks: demo.tasks("train", trainTasks) as never,
    steps,
    tasksPerStep,
    groupSize,
    seed,
    runId,
    adam: { learningRate },
  })) {
    reports[report.step] = report;
    yield { ...kept, steps: there(reports) };
    enter("training", tasksPerStep * groupSize);
  }

  kept = { ...kept, after: await measure("after") };
  await keep(store, runId, kept);
  yield { ...kept, steps: there(reports) };
}

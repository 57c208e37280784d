// The loop: collect spans into the store; take them out, learn, publish the next version. Forever, or for `steps`.
// Every step is a function of (seed, step, policy): a run that is cut anywhere and started again with the same options continues as if
// nothing had happened. The checkpoint is written before the adapter is published, so a crash between the two repeats the publishing only.
// Left out: asynchronous collection (rollouts of older versions in a batch), several passes over one batch, early stopping.

import type { AdamParams, Policy } from "@fulgurite/engine";
import type { Json, Rollout, Store } from "@fulgurite/trace";
import { type Algorithm, describeAlgorithm, grpo } from "./algorithm.ts";
import { type Checkpoint, checkSameRun, decodeCheckpoint, encodeCheckpoint } from "./checkpoint.ts";
import { type CollectedRollout, collect, type PlannedRollout, type RunnerLike } from "./collect.ts";
import { toDatums } from "./datums.ts";
import { RlError } from "./errors.ts";
import { rolloutMetrics } from "./metrics.ts";
import { seedFrom } from "./random.ts";
import { samplingMetadata } from "./sampling.ts";
import { describeTasks, orderTasks, type Task, type TaskSource } from "./tasks.ts";
import type { Group } from "./trajectory.ts";
import { forwardBackward } from "./update.ts";

export interface TrainOptions {
  /** The trainer and the sampler hold the same adapter. */
  readonly policy: Pick<Policy, "sampler" | "trainer" | "publish">;
  readonly store: Store;
  /** Must sample as the rollout says: createRunner({ sampling: samplingOf, … }). */
  readonly runner: RunnerLike;
  readonly tasks: TaskSource;
  readonly algorithm?: Algorithm; // grpo()
  /** Counted from the start of the run, not from where it is resumed. */
  readonly steps: number;
  readonly tasksPerStep?: number; // 16
  /** Rollouts of a task that are compared with each other. */
  readonly groupSize?: number; // 8
  readonly adam?: Partial<AdamParams>;
  readonly temperature?: number; // 1
  /** Of one response; absent: the runner's. */
  readonly maxTokens?: number;
  readonly seed?: number; // 0
  /** Names the run in the store. A known one is resumed. */
  readonly runId?: string; // "run"
  /** Of the published resource. */
  readonly adapterName?: string; // the runId
  /** In steps; the last step is always checkpointed. */
  readonly checkpointEvery?: number; // 1
  readonly signal?: AbortSignal;
  /** In order of task and member, when all rollouts of a step have ended. NaN: not scored. */
  readonly onRollout?: (rollout: Rollout, reward: number) => void;
  /** Milliseconds. Present: collectMs and updateMs are among the metrics. */
  readonly clock?: () => number;
}

export interface StepReport {
  /** From 0. */
  readonly step: number;
  /** Of the policy that this step made. */
  readonly version: number;
  readonly metrics: Readonly<Record<string, number>>;
  readonly failures: readonly { readonly rolloutId: string; readonly reason: string }[];
}

/** For adapters of models below 3M parameters; larger ones want 1e-4 … 5e-4. */
const ADAM: AdamParams = { learningRate: 2e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0, gradClipNorm: 1 };

function atLeast(minimum: number, options: Record<string, number>): void {
  for (const [name, got] of Object.entries(options))
    if (!(Number.isInteger(got) && got >= minimum))
      throw new RlError("bad-options", `train: ${name} is an integer ≥ ${minimum}, got ${got}`);
}

/** As metadata: JSON has no NaN, so metrics that are not finite are left out. */
const toRecord = ({ metrics, failures, ...rest }: StepReport): Json => ({
  ...rest,
  metrics: Object.fromEntries(Object.entries(metrics).filter(([, value]) => Number.isFinite(value))),
  failures: failures.map((failure) => ({ ...failure })),
});

/** Rollouts without a number teach nothing; when most have none, something is broken that more steps would only hide. */
function refuseMostlyFailed(collected: readonly CollectedRollout[], step: number): StepReport["failures"] {
  const failures = collected.flatMap(({ rollout, failure, untrainable }) => {
    const reason = failure ?? untrainable;
    return reason === undefined ? [] : [{ rolloutId: rollout.id, reason }];
  });
  if (failures.length * 2 > collected.length)
    throw new RlError(
      "rollouts-failed",
      `train: at least half of the rollouts of a step must be trainable, got ${collected.length - failures.length} of ${collected.length} in step ${step}; the first failure, rollout ${failures[0]!.rolloutId}: ${failures[0]!.reason}`,
    );
  return failures;
}

/**
 * Trains; yields after every published version. Each version's metadata carries the report of the step that made it, so that a curve
 * can be drawn from the store alone. The generator may be left at any yield, and a later call with the same runId and options
 * continues.
 *
 * @throws RlError "rollouts-failed" when more than half of a step's rollouts cannot be trained on, "checkpoint" when the run was started
 * with other options, "bad-data" for numbers that are not finite; whatever store, runner and trainer throw; the signal's reason
 */
export async function* train(options: TrainOptions): AsyncGenerator<StepReport, void, void> {
  const { policy, store, runner, tasks, steps, maxTokens, signal, onRollout, clock } = options;
  const { algorithm = grpo(), tasksPerStep = 16, groupSize = 8, temperature = 1, seed = 0, runId = "run", checkpointEvery = 1 } = options;
  const { adapterName = runId } = options;
  const { sampler, trainer } = policy;
  const adam = { ...ADAM, ...options.adam };
  atLeast(0, { steps, seed });
  atLeast(1, { tasksPerStep, groupSize, checkpointEvery });
  if (!(temperature > 0))
    throw new RlError("bad-options", `train: temperature must be > 0, got ${temperature}; greedy rollouts explore nothing`);
  const taskAt = orderTasks(tasks, seed);
  const identity: Record<string, Json> = {
    ...{ tasks: describeTasks(tasks), tasksPerStep, groupSize, seed, temperature, maxTokens: maxTokens ?? null, adapterName },
    ...{ algorithm: describeAlgorithm(algorithm), adam: { ...adam } },
  };
  const stateName = `train/${runId}`;

  let version = sampler.policyVersion;
  let firstStep = 0;
  let estimator: Json | undefined;

  const publish = async (report: StepReport | undefined): Promise<void> => {
    await policy.publish(version);
    const published = await store.resource(adapterName, version);
    if (published === undefined) {
      const metadata = { run: runId, ...(report && { report: toRecord(report) }) };
      await store.publish({ name: adapterName, kind: "lora", version, metadata, files: await trainer.exportAdapter() });
    } else if (published.metadata.run !== runId) {
      const by = published.metadata.run === undefined ? "something else" : `run ${JSON.stringify(published.metadata.run)}`;
      throw new RlError(
        "bad-options",
        `train: adapter "${adapterName}" version ${version} was already published by ${by}; use another adapterName`,
      );
    }
    // else this step is being repeated: a published version never changes, even if a GPU's last bits do
  };

  const saved = await store.getState(stateName);
  if (saved) {
    const { cursor, trainerState }: Checkpoint = decodeCheckpoint(saved);
    checkSameRun(cursor, identity);
    await trainer.loadState(trainerState);
    ({ version, step: firstStep, estimator } = cursor);
    await publish(cursor.report);
  }
  // of a process that died: its running attempts are tried again, its queued rollouts of other versions would run with the wrong policy
  await store.requeueStale(Number.MAX_SAFE_INTEGER);
  const leftovers: string[] = [];
  for await (const rollout of store.rollouts({ status: ["queued"], metadata: { run: runId } }))
    if (rollout.metadata.version !== version) leftovers.push(rollout.id);
  for (const id of leftovers) await store.cancel(id);

  const planOf = (step: number, stepTasks: readonly Task[]): PlannedRollout[] =>
    stepTasks.flatMap((task, position) =>
      Array.from({ length: groupSize }, (_, member) => ({
        id: `${runId}/v${version}/s${step}/t${position}/m${member}`,
        input: task.input,
        mode: "train",
        metadata: {
          ...{ run: runId, step, task: task.id, member, version },
          ...samplingMetadata({
            temperature,
            seed: seedFrom(seed, step, position, member),
            ...(maxTokens === undefined ? {} : { maxTokens }),
          }),
        },
      })),
    );

  for (let step = firstStep; step < steps; step++) {
    const startedMs = clock?.() ?? 0;
    const stepTasks = Array.from({ length: tasksPerStep }, (_, position) => taskAt(step * tasksPerStep + position));
    const collected = await collect(planOf(step, stepTasks), { store, runner, version, ...(signal ? { signal } : {}) });
    for (const { rollout, trajectory } of collected) onRollout?.(rollout, trajectory.reward);
    const failures = refuseMostlyFailed(collected, step);
    const groups = stepTasks.map(
      (task, position): Group => ({
        id: task.id,
        trajectories: collected.slice(position * groupSize, (position + 1) * groupSize).map(({ trajectory }) => trajectory),
      }),
    );

    // from here to the checkpoint the signal waits: half an update must not stay behind in the trainer
    signal?.throwIfAborted();
    const collectedMs = clock?.() ?? 0;
    const batch = toDatums(groups, algorithm, {
      version,
      maxTokens: sampler.limits.maxContext,
      ...(estimator === undefined ? {} : { state: estimator }),
    });
    estimator = batch.state;
    const update = await forwardBackward(trainer, batch, algorithm.loss, algorithm.correction ? { correction: algorithm.correction } : {});
    // without a gradient Adam would still move along its momentum
    const { gradNorm, applied } = batch.examples.length > 0 ? await trainer.optimStep(adam) : { gradNorm: 0, applied: false };
    const updatedMs = clock?.() ?? 0;

    version++;
    const report: StepReport = {
      step,
      version,
      metrics: {
        ...rolloutMetrics(groups),
        ...batch.counts,
        ...update.metrics,
        // what was refused for not being a number is no number to report
        ...(Number.isFinite(gradNorm) ? { gradNorm } : {}),
        applied: applied ? 1 : 0,
        ...(clock ? { collectMs: collectedMs - startedMs, updateMs: updatedMs - collectedMs } : {}),
      },
      failures,
    };
    if ((step + 1) % checkpointEvery === 0 || step + 1 === steps)
      await store.putState(
        stateName,
        encodeCheckpoint({
          cursor: { runId, step: step + 1, version, seed, options: identity, report, ...(estimator === undefined ? {} : { estimator }) },
          trainerState: await trainer.saveState(),
        }),
      );
    await publish(report);

    yield report;
  }
}

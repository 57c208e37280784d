// From groups to what a trainer eats: credit → advantages → rows → averaging weights → datums. Pure; nothing here asks a model.
// The advantage of a token is that of its call times the row's averaging weight. Rows whose advantages are all 0 are left out of the
// compute, and stay in the counts that the averages divide by. A number that is not finite is refused here, naming rollout and call.

import type { Datum } from "@fulgurite/engine";
import type { Json, Transition } from "@fulgurite/trace";
import { creditGroups } from "./advantages.ts";
import type { Algorithm } from "./algorithm.ts";
import { RlError } from "./errors.ts";
import { mergeCalls, type Row } from "./rows.ts";
import { type Group, isScored, type Trajectory } from "./trajectory.ts";

/** A datum and what its trainer need not know. */
export interface Example {
  readonly rolloutId: string;
  /** mask, samplerLogprobs, oldLogprobs and advantages are present. */
  readonly datum: Required<Pick<Datum, "mask" | "samplerLogprobs" | "oldLogprobs" | "advantages">> & Datum;
  /** The averaging weight that is baked into the advantages. */
  readonly weight: number;
  readonly temperature: number;
}

export interface BatchCounts {
  /** Rows with an advantage, which are computed. */
  readonly datums: number;
  /** All rows of scored rollouts. */
  readonly rows: number;
  /** Rows that hold more than one call. */
  readonly mergedRows: number;
  readonly mergeMismatchOther: number;
  readonly droppedOverlong: number;
  readonly droppedEmpty: number;
  readonly droppedStale: number;
}

export interface Batch {
  /** In order of group, rollout and row. */
  readonly examples: readonly Example[];
  readonly counts: BatchCounts;
  /** State of the advantage estimator after this batch. */
  readonly state?: Json;
}

export interface DatumOptions {
  /** State of the advantage estimator before this batch. */
  readonly state?: Json;
  /** The policy version that is being trained; absent: nothing is stale. */
  readonly version?: number;
  /** Longest row that the trainer takes, in tokens. */
  readonly maxTokens?: number;
}

const REMEDY = "do not train on it, and look where it was recorded";

function checkCall({ rolloutId, turn, spanId, ...call }: Transition): void {
  const where = `toDatums: rollout ${rolloutId}, call ${turn} (span ${spanId})`;
  const refuse = (rule: string, got: unknown): never => {
    throw new RlError("bad-data", `${where}: ${rule}, got ${got}; ${REMEDY}`);
  };
  if (call.promptTokens.length === 0) refuse("a prompt has at least one token", 0);
  if (call.samplerLogprobs.length !== call.responseTokens.length)
    refuse(`samplerLogprobs has one entry for each of the ${call.responseTokens.length} response tokens`, call.samplerLogprobs.length);
  const bad = call.samplerLogprobs.findIndex((logprob) => !Number.isFinite(logprob));
  if (bad >= 0) refuse(`samplerLogprobs[${bad}] must be finite`, call.samplerLogprobs[bad]);
  if (call.reward !== undefined && !Number.isFinite(call.reward)) refuse("the reward must be finite", call.reward);
  if (!(call.temperature > 0)) refuse("a call that is trained was sampled at a temperature > 0", call.temperature);
}

function checkTrajectory(trajectory: Trajectory): void {
  if (Math.abs(trajectory.reward) === Number.POSITIVE_INFINITY)
    throw new RlError(
      "bad-data",
      `toDatums: rollout ${trajectory.rolloutId}: the reward must be finite (NaN: not scored), got ${trajectory.reward}; ${REMEDY}`,
    );
  if (isScored(trajectory)) trajectory.transitions.forEach(checkCall);
}

interface AdvantagedRow {
  readonly rolloutId: string;
  readonly row: Row;
  /** By call of the trajectory. */
  readonly advantages: Float64Array;
}

/** Rollouts that cannot be scored give no rows and are not among those that an average divides by. */
export function toDatums(groups: readonly Group[], algorithm: Algorithm, options: DatumOptions = {}): Batch {
  const { version, maxTokens } = options;
  const oldest = version === undefined ? Number.NEGATIVE_INFINITY : version - (algorithm.maxStaleness ?? 4);
  let droppedStale = 0;
  const fresh = groups.map((group) => ({
    ...group,
    trajectories: group.trajectories.map((trajectory) => {
      checkTrajectory(trajectory);
      const transitions = trajectory.transitions.filter((transition) => transition.policyVersion >= oldest);
      droppedStale += trajectory.transitions.length - transitions.length;
      // without a call there is nothing to compare: such a rollout must not move its group's statistics
      return { ...trajectory, transitions, reward: transitions.length === 0 ? Number.NaN : trajectory.reward };
    }),
  }));
  const { advantages, state } = algorithm.advantages.estimate(creditGroups(fresh, algorithm.credit), options.state);

  const rows: AdvantagedRow[] = [];
  const counts = { mergedRows: 0, mergeMismatchOther: 0, droppedOverlong: 0, droppedEmpty: 0 };
  fresh.forEach((group, g) => {
    group.trajectories.forEach((trajectory, member) => {
      if (!isScored(trajectory)) return;
      const ofCalls = advantages[g]![member]!;
      ofCalls.forEach((advantage, call) => {
        if (!Number.isFinite(advantage))
          throw new RlError(
            "bad-data",
            `toDatums: rollout ${trajectory.rolloutId}, call ${call}: the advantage must be finite, got ${advantage} from ${algorithm.advantages.name}`,
          );
      });
      const merged = mergeCalls(trajectory.transitions, {
        ...(algorithm.rows ? { rows: algorithm.rows } : {}),
        ...(maxTokens === undefined ? {} : { maxTokens }),
      });
      counts.mergeMismatchOther += merged.breaks;
      counts.droppedOverlong += merged.dropped.overlong;
      counts.droppedEmpty += merged.dropped.empty;
      for (const row of merged.rows) {
        if (row.calls.length > 1) counts.mergedRows++;
        rows.push({ rolloutId: trajectory.rolloutId, row, advantages: ofCalls });
      }
    });
  });

  const weights = algorithm.aggregate.weights(
    rows.map(({ rolloutId, row }) => ({ rolloutId, trainedTokens: row.mask.reduce((sum, trained) => sum + trained, 0) })),
  );
  const examples = rows.flatMap(({ rolloutId, row, advantages: ofCalls }, i): Example[] => {
    const weight = weights[i]!;
    const baked = Float32Array.from(row.callOf, (call) => (call < 0 ? 0 : ofCalls[call]! * weight));
    if (baked.every((advantage) => advantage === 0)) return [];
    const { tokens, targetStart, mask, samplerLogprobs, temperature } = row;
    // bypass mode: the sampler is the proximal policy, so no forward pass is needed before the update
    return [
      {
        rolloutId,
        datum: { tokens, targetStart, mask, samplerLogprobs, oldLogprobs: samplerLogprobs, advantages: baked },
        weight,
        temperature,
      },
    ];
  });
  return {
    examples,
    counts: { datums: examples.length, rows: rows.length, ...counts, droppedStale },
    ...(state === undefined ? {} : { state }),
  };
}

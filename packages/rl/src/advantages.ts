// Advantages: what a call earned, relative to its group or a baseline. One number a call; pure, f64.
// Statistics run over rollouts, one number each, and are broadcast to the calls: over calls, a long rollout would count more often.
// A rollout whose number is NaN stays outside every statistic and has advantage 0. Standard deviations are unbiased (n − 1).
// Per-token estimators (GAE, reward to go) are in tokenAdvantages.ts.

import type { Json } from "@fulgurite/trace";
import type { Credit, Credited } from "./credit.ts";
import type { Group } from "./trajectory.ts";

export interface CreditedRollout extends Credited {
  /** Sampled tokens of each call, [transitions]. */
  readonly callTokens: Int32Array;
}

export interface CreditedGroup {
  readonly family: string;
  readonly rollouts: readonly CreditedRollout[];
}

export interface Estimate {
  /** [group][rollout] → [transitions]. */
  readonly advantages: Float64Array[][];
  /** What the estimator remembers until the next step; part of a checkpoint. */
  readonly state?: Json;
}

export interface Advantages {
  readonly name: string;
  readonly options: Readonly<Record<string, Json>>;
  /** @param state of the step before; undefined at the first. */
  estimate(groups: readonly CreditedGroup[], state?: Json): Estimate;
}

/** What to do with a group of one: a missing sibling must not become a large advantage ("zero"); verl takes the reward itself ("raw"). */
export type Singleton = "zero" | "raw";

export function creditGroups(groups: readonly Group[], credit: Credit): CreditedGroup[] {
  return groups.map((group) => ({
    family: group.family ?? "",
    rollouts: group.trajectories.map((trajectory) => ({
      ...credit.assign(trajectory, group),
      callTokens: Int32Array.from(trajectory.transitions, (transition) => transition.responseTokens.length),
    })),
  }));
}

const isComparable = (rollout: Credited): boolean => Number.isFinite(rollout.rollout);
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
const areEqual = (values: readonly number[]): boolean => values.every((value) => value === values[0]);

/** Unbiased; 0 where fewer than two values leave nothing to estimate. */
export function standardDeviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1));
}

/** The advantage of each call, from the rule for one number. */
function broadcast(rollout: Credited, advantage: (value: number) => number): Float64Array {
  if (!isComparable(rollout)) return new Float64Array(rollout.calls.length);
  if (rollout.discounts) return rollout.discounts.map((discount) => discount * advantage(rollout.rollout));
  return rollout.calls.map(advantage);
}

/** Applies a rule group by group. The rule sees the rollouts that can be compared; `undefined` from it means: this group teaches nothing. */
function byGroup(
  groups: readonly CreditedGroup[],
  rule: (comparable: readonly CreditedRollout[]) => ((value: number, rollout: Credited) => number) | undefined,
): Float64Array[][] {
  return groups.map(({ rollouts }) => {
    const advantage = rule(rollouts.filter(isComparable));
    return rollouts.map((rollout) =>
      advantage ? broadcast(rollout, (value) => advantage(value, rollout)) : new Float64Array(rollout.calls.length),
    );
  });
}

const ofGroupOfOne = (singleton: Singleton, raw: (value: number) => number): ((value: number) => number) | undefined =>
  singleton === "raw" ? raw : undefined;

export interface GroupNormalizedOptions {
  /** Added to the standard deviation: 1e-6 in verl, 1e-4 in TRL. */
  readonly eps?: number;
  /** false: Dr. GRPO, only centred. */
  readonly divideByStd?: boolean;
  /** "batch": Lite PPO, the deviation over all groups. */
  readonly std?: "group" | "batch";
  readonly singleton?: Singleton;
  /** "transition": over calls, as Agent Lightning 0.x did. */
  readonly statistics?: "rollout" | "transition";
}

/**
 * GRPO: (s − mean of the group) / (standard deviation + eps). A group whose numbers are all equal teaches nothing, exactly 0:
 * rounding in the mean must not be divided by a deviation of the same size.
 *
 * Example: rewards [1, 0, 0, 0.5] give [1.3056, −0.7833, −0.7833, 0.2611].
 */
export function groupNormalized(options: GroupNormalizedOptions = {}): Advantages {
  const { eps = 1e-6, divideByStd = true, std = "group", singleton = "zero", statistics = "rollout" } = options;
  const samples = (rollouts: readonly Credited[]): number[] =>
    rollouts.flatMap((rollout) => (statistics === "rollout" ? [rollout.rollout] : [...rollout.calls]));
  return {
    name: "groupNormalized",
    options: { eps, divideByStd, std, singleton, statistics },
    estimate: (groups) => {
      const batchStd = standardDeviation(samples(groups.flatMap((group) => group.rollouts.filter(isComparable))));
      const advantages = byGroup(groups, (rollouts) => {
        if (rollouts.length === 1) return ofGroupOfOne(singleton, (value) => (divideByStd ? value / (1 + eps) : value));
        const values = samples(rollouts);
        if (areEqual(values)) return undefined;
        const center = mean(values);
        const scale = divideByStd ? (std === "batch" ? batchStd : standardDeviation(values)) + eps : 1;
        return (value) => (value - center) / scale;
      });
      return { advantages };
    },
  };
}

/** RLOO: s − mean of the others. */
export const leaveOneOut = ({ singleton = "zero" }: { singleton?: Singleton } = {}): Advantages => ({
  name: "leaveOneOut",
  options: { singleton },
  estimate: (groups) => ({
    advantages: byGroup(groups, (rollouts) => {
      if (rollouts.length === 1) return ofGroupOfOne(singleton, (value) => value);
      if (areEqual(rollouts.map((rollout) => rollout.rollout))) return undefined;
      const total = rollouts.reduce((sum, rollout) => sum + rollout.rollout, 0);
      return (value, rollout) => value - (total - rollout.rollout) / (rollouts.length - 1);
    }),
  }),
});

/** MaxRL (arXiv 2602.02710): (s − mean) / (mean + eps). Hard tasks weigh about 1/p. For rewards ≥ 0. */
export const maxRl = ({ eps = 1e-6, singleton = "zero" }: { eps?: number; singleton?: Singleton } = {}): Advantages => ({
  name: "maxRl",
  options: { eps, singleton },
  estimate: (groups) => ({
    advantages: byGroup(groups, (rollouts) => {
      if (rollouts.length === 1) return ofGroupOfOne(singleton, (value) => value);
      const values = rollouts.map((rollout) => rollout.rollout);
      if (areEqual(values)) return undefined;
      const center = mean(values);
      return (value) => (value - center) / (center + eps);
    }),
  }),
});

/**
 * Role-conditioned advantage (SPIRAL, arXiv 2506.24119; prime-rl): s − b, then b ← decay·b + (1 − decay)·s, one b a task family,
 * rollouts taken in order. The group size is free. b starts at 0 and is the estimator's state.
 */
export const movingBaseline = ({ decay = 0.95 }: { decay?: number } = {}): Advantages => ({
  name: "movingBaseline",
  options: { decay },
  estimate: (groups, state) => {
    const baselines: Record<string, number> = { ...(state as Record<string, number> | undefined) };
    const advantages = groups.map(({ family, rollouts }) =>
      rollouts.map((rollout) => {
        const baseline = baselines[family] ?? 0;
        if (isComparable(rollout)) baselines[family] = decay * baseline + (1 - decay) * rollout.rollout;
        return broadcast(rollout, (value) => value - baseline);
      }),
    );
    return { advantages, state: baselines };
  },
});

/**
 * REINFORCE++: whitened over the sampled tokens of the batch; `baseline` subtracts the group's mean first. Without a discount between
 * tokens, so that a call keeps one number; a discount between calls is the credit's (`returnToGo`).
 */
export const reinforcePlusPlus = ({
  baseline = false,
  singleton = "zero",
}: {
  baseline?: boolean;
  singleton?: Singleton;
} = {}): Advantages => ({
  name: "reinforcePlusPlus",
  options: { baseline, singleton },
  estimate: (groups) => {
    const values = baseline
      ? groupNormalized({ divideByStd: false, singleton }).estimate(groups).advantages
      : byGroup(groups, () => (value) => value);
    let tokens = 0;
    let total = 0;
    let squares = 0;
    const eachCall = (visit: (value: number, count: number) => void): void => {
      for (const [group, { rollouts }] of groups.entries())
        for (const [member, rollout] of rollouts.entries())
          if (isComparable(rollout)) for (const [call, value] of values[group]![member]!.entries()) visit(value, rollout.callTokens[call]!);
    };
    eachCall((value, count) => {
      tokens += count;
      total += value * count;
    });
    const center = total / Math.max(tokens, 1);
    eachCall((value, count) => {
      squares += count * (value - center) ** 2;
    });
    const scale = Math.sqrt(squares / Math.max(tokens - 1, 1) + 1e-8);
    const advantages = groups.map(({ rollouts }, group) =>
      rollouts.map((rollout, member) => values[group]![member]!.map((value) => (isComparable(rollout) ? (value - center) / scale : 0))),
    );
    return { advantages };
  },
});

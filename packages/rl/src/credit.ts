// Credit: how the outcome of a rollout becomes a number for each of its model calls. Pure, f64; knows nothing of groups' statistics.
// r_k: the reward emitted at call k (of T, from 0); R: the outcome. A trajectory whose reward is NaN gets NaN everywhere.
// Not here: turn GAE (needs a critic) and GiGPO (needs anchor states).

import type { Json } from "@fulgurite/trace";
import type { Group, Trajectory } from "./trajectory.ts";

export interface Credited {
  /** What each call earned, [transitions]. */
  readonly calls: Float64Array;
  /** The number by which rollouts of a group are compared. */
  readonly rollout: number;
  /**
   * [transitions]. When present, the advantage of call k is the rollout's advantage times discounts[k]: discounting the reward
   * instead would push the early calls of a won rollout below the group's mean, and so punish them.
   */
  readonly discounts?: Float64Array;
}

export interface Credit {
  readonly name: string;
  readonly options: Readonly<Record<string, Json>>;
  assign(trajectory: Trajectory, group: Group): Credited;
}

/** Every call earns the outcome: the paper's choice (arXiv 2508.03680). */
export const identical = (): Credit => ({
  name: "identical",
  options: {},
  assign: ({ transitions, reward }) => ({ calls: new Float64Array(transitions.length).fill(reward), rollout: reward }),
});

/** Call k earns γ^(T−1−k)·R: later calls get more. */
export const discounted = ({ gamma }: { gamma: number }): Credit => ({
  name: "discounted",
  options: { gamma },
  assign: ({ transitions, reward }) => {
    const discounts = Float64Array.from(transitions, (_, call) => gamma ** (transitions.length - 1 - call));
    return { calls: discounts.map((discount) => discount * reward), rollout: reward, discounts };
  },
});

const stepRewards = ({ transitions, reward }: Trajectory): Float64Array =>
  Float64Array.from(transitions, (transition) => (Number.isNaN(reward) ? Number.NaN : (transition.reward ?? 0)));

/** Call k earns r_k: tool worked, parse failed, cost. Rollouts are compared by the sum. */
export const perStep = (): Credit => ({
  name: "perStep",
  options: {},
  assign: (trajectory) => {
    const calls = stepRewards(trajectory);
    return { calls, rollout: calls.length === 0 ? trajectory.reward : calls.reduce((sum, reward) => sum + reward, 0) };
  },
});

/** Call k earns G_k = r_k + γ·G_(k+1). Rollouts are compared by G_0. */
export const returnToGo = ({ gamma = 1 }: { gamma?: number } = {}): Credit => ({
  name: "returnToGo",
  options: { gamma },
  assign: (trajectory) => {
    const calls = stepRewards(trajectory);
    for (let call = calls.length - 2; call >= 0; call--) calls[call]! += gamma * calls[call + 1]!;
    return { calls, rollout: calls[0] ?? trajectory.reward };
  },
});

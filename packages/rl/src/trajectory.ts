// What is learned from: the model calls of one attempt in order, and the rollouts of one task that are compared with each other.

import type { Transition } from "@fulgurite/trace";

/** One attempt. */
export interface Trajectory {
  readonly rolloutId: string;
  /** In order of turn; empty where nothing could be trained. */
  readonly transitions: readonly Transition[];
  /** The outcome: the rollout's last reward. NaN: this rollout cannot be scored and stays outside every statistic. */
  readonly reward: number;
}

export interface Group {
  /** The task. */
  readonly id: string;
  /** Tasks that share a moving baseline; absent: all of them. */
  readonly family?: string;
  readonly trajectories: readonly Trajectory[];
}

/** A failed rollout may have recorded calls before it broke: they are no example of anything. */
export const isScored = (trajectory: Trajectory): boolean => Number.isFinite(trajectory.reward) && trajectory.transitions.length > 0;

// How a rollout samples, written where the rollout travels: in its metadata. The runner is given samplingOf as its `sampling` option.

import type { Sampling } from "@fulgurite/agent";
import type { Json, Rollout } from "@fulgurite/trace";

export interface SamplingPlan {
  readonly temperature: number;
  /** u32. */
  readonly seed: number;
  readonly maxTokens?: number;
}

export const samplingMetadata = ({ temperature, seed, maxTokens }: SamplingPlan): Record<string, Json> => ({
  temperature,
  seed,
  ...(maxTokens === undefined ? {} : { maxTokens }),
});

/** What the run decided about a rollout; empty for rollouts that no run enqueued. */
export function samplingOf({ mode, metadata }: Pick<Rollout, "mode" | "metadata">): Partial<Sampling> {
  const { temperature, seed, maxTokens } = metadata;
  return {
    mode,
    ...(typeof temperature === "number" ? { temperature } : {}),
    ...(typeof seed === "number" ? { seed } : {}),
    ...(typeof maxTokens === "number" ? { maxTokens } : {}),
  };
}

// The two state machines as data, one guard each, and what an attempt's end means for its rollout. Pure.

import { TraceError } from "./errors.ts";
import type { Attempt, AttemptEnd, AttemptStatus, Rollout, RolloutConfig, RolloutStatus } from "./vocabulary.ts";

export const ROLLOUT_CHANGES: Readonly<Record<RolloutStatus, readonly RolloutStatus[]>> = {
  queued: ["running", "cancelled"],
  running: ["queued", "succeeded", "failed", "cancelled"], // queued: retried
  succeeded: [],
  failed: [],
  cancelled: [],
};

export const ATTEMPT_CHANGES: Readonly<Record<AttemptStatus, readonly AttemptStatus[]>> = {
  running: ["succeeded", "failed", "timeout", "unresponsive", "cancelled"],
  succeeded: [],
  failed: [],
  timeout: [],
  unresponsive: [],
  cancelled: [],
};

/**
 * One execution, a minute long. An attempt that timed out or vanished may be retried once maxAttempts is raised; one that
 * failed by itself is not, because an agent's exception is a fact about the policy and most often happens again.
 */
export const DEFAULT_CONFIG: RolloutConfig = Object.freeze({
  timeoutMs: 60_000,
  maxAttempts: 1,
  retryOn: Object.freeze(["timeout", "unresponsive"] as const),
});

export const isTerminal = (status: RolloutStatus): boolean => ROLLOUT_CHANGES[status].length === 0;

const listed = (statuses: readonly string[]): string => (statuses.length === 0 ? "nothing: it is final" : statuses.join(", "));

/** @throws TraceError "status" unless the table allows the change. */
export const guardRollout = (rollout: Pick<Rollout, "id" | "status">, next: RolloutStatus): void => {
  const allowed = ROLLOUT_CHANGES[rollout.status];
  if (!allowed.includes(next))
    throw new TraceError(
      "status",
      `rollout ${rollout.id}: ${rollout.status} may become ${listed(allowed)}, got ${next}; read its status first`,
    );
};

/** @throws TraceError "status" unless the table allows the change. */
export const guardAttempt = (attempt: Pick<Attempt, "rolloutId" | "id" | "status">, next: AttemptStatus): void => {
  const allowed = ATTEMPT_CHANGES[attempt.status];
  if (!allowed.includes(next))
    throw new TraceError(
      "status",
      `attempt ${attempt.id} of rollout ${attempt.rolloutId}: ${attempt.status} may become ${listed(allowed)}, got ${next}; claim again for another attempt`,
    );
};

/** What a rollout becomes when its latest attempt ends so. Success and cancellation are final; the rest is retried as the config says. */
export const decideAfter = (end: AttemptEnd, rollout: Pick<Rollout, "attempts" | "config">): Exclude<RolloutStatus, "running"> => {
  if (end === "succeeded" || end === "cancelled") return end;
  return rollout.config.retryOn.includes(end) && rollout.attempts < rollout.config.maxAttempts ? "queued" : "failed";
};

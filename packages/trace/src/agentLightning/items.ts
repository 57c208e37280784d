// Agent Lightning's rollouts into a store: what Store.adopt takes. v1.0 knows attempts by their ids only, so when they began and
// ended is what their events say, and all but the last have failed, for another followed.

import type { Attempt, AttemptStatus, Rollout, RolloutStatus, StoredSpan, StoreItem } from "../vocabulary.ts";
import { fromAgentLightning } from "./index.ts";
import type { AgentLightningTrace } from "./shapes.ts";

const LAST = {
  queued: "failed", // to be tried again
  running: "running",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "cancelled",
} as const satisfies Readonly<Record<RolloutStatus, AttemptStatus>>;

const attemptOf = (rollout: Rollout, id: string, spans: readonly StoredSpan[], isLast: boolean): Omit<Attempt, "sequence"> => {
  const status = isLast ? LAST[rollout.status] : "failed";
  const startedAtMs = spans.reduce((first, { startMs }) => Math.min(first, startMs), spans[0]?.startMs ?? rollout.createdAtMs);
  const lastHeartbeatMs = spans.reduce((last, { endMs }) => Math.max(last, endMs), startedAtMs);
  const endedAtMs = isLast ? (rollout.endedAtMs ?? lastHeartbeatMs) : lastHeartbeatMs;
  const ended = status === "running" ? {} : { endedAtMs };
  return { rolloutId: rollout.id, id, status, workerId: "agentlightning", startedAtMs, lastHeartbeatMs, ...ended };
};

/** For one call of Store.adopt. Events of another rollout are left out. @throws as fromAgentLightning. */
export const toStoreItems = (trace: AgentLightningTrace): StoreItem[] => {
  const { rollout, spans: all } = fromAgentLightning(trace);
  const spans = all.filter(({ rolloutId }) => rolloutId === rollout.id);
  const ids = [...new Set(spans.map(({ attemptId }) => attemptId))];
  const told = trace.rollout.status.last_attempt_id;
  if (told && !ids.includes(told)) ids.push(told);
  else if (ids.length === 0 && rollout.attempts > 0) ids.push("0");
  const attempts = Math.max(rollout.attempts, ids.length);
  return [
    { kind: "rollout", data: { ...rollout, attempts } },
    ...ids.map((id, index): StoreItem => {
      const own = spans.filter(({ attemptId }) => attemptId === id);
      const sequence = attempts - ids.length + index + 1;
      return { kind: "attempt", data: { ...attemptOf(rollout, id, own, index === ids.length - 1), sequence } };
    }),
    ...spans.map((data): StoreItem => ({ kind: "span", data })),
  ];
};

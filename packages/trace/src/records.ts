// What a record does to the rows. A rollout's status follows from its attempts, so claiming or ending one is one record
// and no crash can leave the two halves of a change apart. Replaying a log is this function over its records.

import type { Rows, StoreRecord } from "./rows.ts";
import { decideAfter, guardRollout, isTerminal } from "./status.ts";
import type { Attempt, Rollout, StoreEvent } from "./vocabulary.ts";

/** The rollout after one of its attempts began, lived or ended. Only the latest attempt moves it; one whose beginning was lost with a damaged line began. */
export const afterAttempt = (rollout: Rollout, attempt: Attempt): Rollout => {
  if (isTerminal(rollout.status) || attempt.sequence < rollout.attempts) return rollout;
  let begun = rollout;
  if (attempt.sequence > rollout.attempts) {
    if (rollout.status !== "running") guardRollout(rollout, "running");
    begun = Object.freeze({ ...rollout, status: "running", attempts: attempt.sequence });
  }
  if (attempt.status === "running" || begun.status !== "running") return begun;
  const status = decideAfter(attempt.status, begun);
  guardRollout(begun, status);
  return Object.freeze({ ...begun, status, ...(isTerminal(status) ? { endedAtMs: attempt.endedAtMs } : {}) } as Rollout);
};

/** Changes the rows and says what listeners may want to hear. An attempt or span whose rollout is not there changes nothing: undefined. */
export const applyRecord = async (rows: Rows, record: StoreRecord): Promise<StoreEvent[] | undefined> => {
  switch (record.kind) {
    case "rollout": {
      const rollout = record.data;
      await rows.putRollout(rollout);
      if (rollout.status === "cancelled")
        for (const attempt of await rows.attempts(rollout.id))
          if (attempt.status === "running")
            await rows.putAttempt(Object.freeze({ ...attempt, status: "cancelled", endedAtMs: rollout.endedAtMs } as Attempt));
      return [{ kind: "rollout", id: rollout.id, status: rollout.status }];
    }
    case "attempt": {
      const rollout = await rows.rollout(record.data.rolloutId);
      if (rollout === undefined) return undefined;
      await rows.putAttempt(record.data);
      const next = afterAttempt(rollout, record.data);
      if (next === rollout) return [];
      await rows.putRollout(next);
      return [{ kind: "rollout", id: next.id, status: next.status }];
    }
    case "span": {
      const { rolloutId, attemptId } = record.data;
      if ((await rows.attempt({ rolloutId, id: attemptId })) === undefined) return undefined;
      await rows.putSpan(record.data);
      return [{ kind: "spans", rolloutId, count: 1 }];
    }
    case "resource":
      await rows.putResource(record.data);
      return [{ kind: "resource", name: record.data.name, version: record.data.version }];
    case "unpublished": {
      const { name, version } = record.data;
      await rows.removeResource(name, version);
      return [{ kind: "unpublished", name, version }];
    }
    case "gone":
      await rows.removeRollout(record.data.rolloutId);
      return [{ kind: "gone", id: record.data.rolloutId }];
  }
};

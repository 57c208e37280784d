// What a record does to the rows. A rollout's status follows from its attempts, so claiming or ending one is one record
// and no crash can leave the two halves of a change apart. Replaying a log is this function over its records.

import type { Rows, Soon, StoreRecord } from "./rows.ts";
import { decideAfter, guardRollout, isTerminal } from "./status.ts";
import type { Attempt, Rollout, StoredSpan, StoreEvent } from "./vocabulary.ts";

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

const after = <A, B>(value: Soon<A>, act: (value: A) => Soon<B>): Soon<B> => (value instanceof Promise ? value.then(act) : act(value));

/** Changes the rows and says what listeners may want to hear. An attempt or span whose rollout is not there changes nothing: undefined. */
export const applyRecord = (rows: Rows, record: StoreRecord): Soon<StoreEvent[] | undefined> =>
  record.kind === "span" ? applySpan(rows, record.data) : applyOther(rows, record);

/** Most records are spans: where the rows answer at once, so does this. */
const applySpan = (rows: Rows, span: StoredSpan): Soon<StoreEvent[] | undefined> => {
  const { rolloutId, attemptId } = span;
  return after(rows.attempt({ rolloutId, id: attemptId }), (attempt) =>
    attempt === undefined ? undefined : after(rows.putSpan(span), () => [{ kind: "spans", rolloutId, count: 1 }] as StoreEvent[]),
  );
};

const applyOther = async (rows: Rows, record: Exclude<StoreRecord, { readonly kind: "span" }>): Promise<StoreEvent[] | undefined> => {
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

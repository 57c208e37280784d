// The object stores of a database `fulgurite/<name>`. A migration that only adds lets older tabs go on. One after which older
// code would write what nobody counts takes away or renames an object store that this code has, as version 3 did with the
// counters of version 2: older code is refused, by name then, today's by TraceError "outdated" (connection.ts).

import { ask, undo } from "./requests.ts";
import type { Turn } from "./turns.ts";

/*
 * store      key                         value       indexes
 * rollouts   id                          Rollout     bySeq seq (unique) · byStatus [status, seq]
 * attempts   [rolloutId, id]             Attempt     bySequence [rolloutId, sequence] (unique) · byHeartbeat [status, lastHeartbeatMs]
 * spans      [rolloutId, attemptId, id]  StoredSpan  byRollout [rolloutId, seq]
 * resources  [name, version]             Resource
 * states     its name                    Uint8Array
 * turns      turn (given by the store)   Turn
 *
 * While an attempt runs, its last heartbeat may be a turn's.
 */
export const SCHEMA_VERSION = 3;

/** What every command opens together. */
export const ROW_STORES = ["rollouts", "attempts", "spans", "resources", "turns"] as const;

/** Does it have every object store of this version? */
export const isKnown = ({ objectStoreNames }: IDBDatabase): boolean =>
  [...ROW_STORES, "states"].every((name) => objectStoreNames.contains(name));

const migrate = async (transaction: IDBTransaction, oldVersion: number): Promise<void> => {
  const { db } = transaction;
  if (oldVersion === 0) {
    const rollouts = db.createObjectStore("rollouts", { keyPath: "id" });
    rollouts.createIndex("bySeq", "seq", { unique: true });
    rollouts.createIndex("byStatus", ["status", "seq"]);
    const attempts = db.createObjectStore("attempts", { keyPath: ["rolloutId", "id"] });
    attempts.createIndex("bySequence", ["rolloutId", "sequence"], { unique: true });
    attempts.createIndex("byHeartbeat", ["status", "lastHeartbeatMs"]);
    db.createObjectStore("spans", { keyPath: ["rolloutId", "attemptId", "id"] }).createIndex("byRollout", ["rolloutId", "seq"]);
    db.createObjectStore("resources", { keyPath: ["name", "version"] });
    db.createObjectStore("states");
  }
  const turns = db.createObjectStore("turns", { keyPath: "turn", autoIncrement: true });
  if (oldVersion > 0) {
    const spans = transaction.objectStore("spans");
    const counters = oldVersion === 2 ? transaction.objectStore("counters") : db.createObjectStore("counters"); // version 1 had none
    /** The last seq: as it was counted, or, where version 1 wrote last, of what is there. */
    const lastOf = async (rows: IDBObjectStore, counter: string): Promise<number> => {
      const last = await ask(rows.index("bySeq").openKeyCursor(null, "prev"));
      return Math.max((await ask(counters.get(counter))) ?? 0, (last?.key as number | undefined) ?? 0);
    };
    const rolloutSeq = await lastOf(transaction.objectStore("rollouts"), "rolloutSeq");
    await ask(turns.add({ rolloutSeq, spanSeq: await lastOf(spans, "spanSeq"), beats: [] } satisfies Turn));
    for (const name of ["bySeq", "byAttempt"]) spans.deleteIndex(name);
    db.deleteObjectStore("counters");
  }
};

/** All or nothing: what fails here leaves the older version, and fails the opening. */
export const upgrade = (transaction: IDBTransaction, oldVersion: number): void =>
  void migrate(transaction, oldVersion).catch(() => undo(transaction)); // the opening tells why

// The object stores of a database `fulgurite/<name>`. A migration that only adds lets older tabs go on. One after which older
// code would write what nobody counts takes away or renames what that code asks for, as version 3 did with the counters of
// version 2: older code is refused by name, today's with TraceError "outdated" (isKnown).

import { ask } from "./requests.ts";
import type { Turn } from "./turns.ts";

export const SCHEMA_VERSION = 3;

type Indexes = Readonly<Record<string, string | string[]>>;

/*
 * store      key                         value
 * rollouts   id                          Rollout
 * attempts   [rolloutId, id]             Attempt      while it runs, its last heartbeat may be a turn's
 * spans      [rolloutId, attemptId, id]  StoredSpan
 * resources  [name, version]             Resource
 * states     its name                    Uint8Array
 * turns      turn (given by the store)   Turn
 */
const STORES: Readonly<Record<string, readonly [IDBObjectStoreParameters, Indexes?]>> = {
  rollouts: [{ keyPath: "id" }, { bySeq: "seq", byStatus: ["status", "seq"] }],
  attempts: [{ keyPath: ["rolloutId", "id"] }, { bySequence: ["rolloutId", "sequence"], byHeartbeat: ["status", "lastHeartbeatMs"] }],
  spans: [{ keyPath: ["rolloutId", "attemptId", "id"] }, { byRollout: ["rolloutId", "seq"] }],
  resources: [{ keyPath: ["name", "version"] }],
  states: [{}],
  turns: [{ keyPath: "turn", autoIncrement: true }],
};
const UNIQUE: readonly string[] = ["bySeq", "bySequence"];

/** Is all there that this code asks for? */
export const isKnown = (db: IDBDatabase): boolean => {
  try {
    const transaction = db.transaction(Object.keys(STORES));
    return Object.entries(STORES).every(([name, [, indexes = {}]]) => {
      const { indexNames } = transaction.objectStore(name);
      return Object.keys(indexes).every((index) => indexNames.contains(index));
    });
  } catch (error) {
    if ((error as Error).name === "NotFoundError") return false;
    throw error;
  }
};

const migrate = async (transaction: IDBTransaction, oldVersion: number): Promise<void> => {
  const { db } = transaction;
  for (const [name, [key, indexes = {}]] of Object.entries(STORES)) {
    if (oldVersion > 0 && name !== "turns") continue;
    const store = db.createObjectStore(name, key);
    for (const [index, path] of Object.entries(indexes)) store.createIndex(index, path, { unique: UNIQUE.includes(index) });
  }
  if (oldVersion === 0) return;
  const spans = transaction.objectStore("spans");
  const counters = oldVersion === 2 ? transaction.objectStore("counters") : db.createObjectStore("counters"); // version 1 had none
  /** The last seq: as it was counted, or, where version 1 wrote last, of what is there. */
  const lastOf = async (rows: IDBObjectStore, counter: string): Promise<number> => {
    const last = await ask(rows.index("bySeq").openKeyCursor(null, "prev"));
    return Math.max((await ask(counters.get(counter))) ?? 0, (last?.key as number | undefined) ?? 0);
  };
  const rolloutSeq = await lastOf(transaction.objectStore("rollouts"), "rolloutSeq");
  const turn: Turn = { rolloutSeq, spanSeq: await lastOf(spans, "spanSeq"), beats: [] };
  await ask(transaction.objectStore("turns").add(turn));
  for (const name of ["bySeq", "byAttempt"]) spans.deleteIndex(name);
  db.deleteObjectStore("counters");
};

/** All or nothing: what fails here leaves the older version, and fails the opening. */
export const upgrade = (transaction: IDBTransaction, oldVersion: number): Promise<void> =>
  migrate(transaction, oldVersion).catch((error) => {
    try {
      transaction.abort();
    } catch {
      // it ended by itself
    }
    throw error;
  });

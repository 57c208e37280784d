// The object stores of a database `fulgurite/<name>`. Version 3 took the counters away, so that releases of version 2, which
// leave no turns, are refused by name (NotFoundError) instead of writing what nobody counts. Later migrations only add, so that
// an older tab can go on.

import type { DBSchema, IDBPDatabase, IDBPTransaction, StoreNames } from "idb";
import type { Attempt, Resource, Rollout, StoredSpan } from "../vocabulary.ts";
import type { Turn } from "./turns.ts";

export const SCHEMA_VERSION = 3;

export interface StoreSchema extends DBSchema {
  rollouts: { key: string; value: Rollout; indexes: { bySeq: number; byStatus: [string, number] } };
  attempts: {
    key: [string, string]; // rollout, attempt
    value: Attempt; // while it runs its last heartbeat may be a turn's
    indexes: { bySequence: [string, number]; byHeartbeat: [string, number] };
  };
  spans: {
    key: [string, string, string]; // rollout, attempt, span
    value: StoredSpan;
    indexes: { byRollout: [string, number] };
  };
  resources: { key: [string, number]; value: Resource }; // name, version
  states: { key: string; value: Uint8Array };
  turns: { key: number; value: Turn };
}

export type StoreDatabase = IDBPDatabase<StoreSchema>;

const UNTYPED_INDEXES = ["bySeq", "byAttempt"] as const; // of spans, up to version 2

/** The last seqs that version 2 counted, and version 1 showed by its rows. */
const lastSeqs = async (
  transaction: IDBPTransaction<unknown, string[], "versionchange">,
  oldVersion: number,
): Promise<[number, number]> => {
  const ofRows = async (store: string): Promise<number> =>
    Number((await transaction.objectStore(store).index("bySeq").openKeyCursor(null, "prev"))?.key ?? 0);
  const counted = async (name: string): Promise<number> =>
    oldVersion < 2 ? 0 : ((await transaction.objectStore("counters").get(name)) ?? 0);
  return [Math.max(await ofRows("rollouts"), await counted("rolloutSeq")), Math.max(await ofRows("spans"), await counted("spanSeq"))];
};

const migrate = async (
  db: StoreDatabase,
  oldVersion: number,
  transaction: IDBPTransaction<StoreSchema, StoreNames<StoreSchema>[], "versionchange">,
): Promise<void> => {
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
    db.createObjectStore("turns", { keyPath: "turn", autoIncrement: true });
    return;
  }
  if (oldVersion < 3) {
    const [rolloutSeq, spanSeq] = await lastSeqs(transaction as never, oldVersion);
    const turns = db.createObjectStore("turns", { keyPath: "turn", autoIncrement: true });
    await turns.add({ rolloutSeq, spanSeq, beats: [] } as never);
    for (const name of UNTYPED_INDEXES) transaction.objectStore("spans").deleteIndex(name as never);
    if (oldVersion === 2) db.deleteObjectStore("counters" as never);
  }
};

/** All or nothing: what fails here leaves the older version, and fails the opening. */
export const upgrade = (
  db: StoreDatabase,
  oldVersion: number,
  _newVersion: number | null,
  transaction: IDBPTransaction<StoreSchema, StoreNames<StoreSchema>[], "versionchange">,
): void =>
  void migrate(db, oldVersion, transaction).catch(() => {
    try {
      transaction.abort();
    } catch {
      // it ended by itself: the opening tells why
    }
  });

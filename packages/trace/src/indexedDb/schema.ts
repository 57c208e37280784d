// The object stores of a database `fulgurite/<name>`. Migrations only add, so that an older tab can go on reading.

import type { DBSchema, IDBPDatabase } from "idb";
import type { Attempt, Resource, Rollout, StoredSpan } from "../vocabulary.ts";

export const SCHEMA_VERSION = 2;

export interface StoreSchema extends DBSchema {
  rollouts: { key: string; value: Rollout; indexes: { bySeq: number; byStatus: [string, number] } };
  attempts: {
    key: [string, string]; // rollout, attempt
    value: Attempt;
    indexes: { bySequence: [string, number]; byHeartbeat: [string, number] };
  };
  spans: {
    key: [string, string, string]; // rollout, attempt, span
    value: StoredSpan;
    indexes: { bySeq: number; byRollout: [string, number]; byAttempt: [string, string, number] };
  };
  resources: { key: [string, number]; value: Resource }; // name, version
  states: { key: string; value: Uint8Array };
  counters: { key: "rolloutSeq" | "spanSeq"; value: number }; // the last that were given
}

export type StoreDatabase = IDBPDatabase<StoreSchema>;

export const upgrade = (db: StoreDatabase, oldVersion: number): void => {
  if (oldVersion < 1) {
    const rollouts = db.createObjectStore("rollouts", { keyPath: "id" });
    rollouts.createIndex("bySeq", "seq", { unique: true });
    rollouts.createIndex("byStatus", ["status", "seq"]);
    const attempts = db.createObjectStore("attempts", { keyPath: ["rolloutId", "id"] });
    attempts.createIndex("bySequence", ["rolloutId", "sequence"], { unique: true });
    attempts.createIndex("byHeartbeat", ["status", "lastHeartbeatMs"]);
    const spans = db.createObjectStore("spans", { keyPath: ["rolloutId", "attemptId", "id"] });
    spans.createIndex("bySeq", "seq", { unique: true });
    spans.createIndex("byRollout", ["rolloutId", "seq"]);
    spans.createIndex("byAttempt", ["rolloutId", "attemptId", "seq"]);
    db.createObjectStore("resources", { keyPath: ["name", "version"] });
    db.createObjectStore("states");
  }
  if (oldVersion < 2) db.createObjectStore("counters");
};

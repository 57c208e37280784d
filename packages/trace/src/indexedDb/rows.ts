// The rows of one IndexedDB transaction. Every method awaits this transaction's requests and nothing else. What appends that
// share it ask again and again (the attempt, the last seq) is asked of the database once: nobody else writes meanwhile.

import type { IDBPTransaction } from "idb";
import { manifestOfSync } from "../manifest.ts";
import { withoutFiles } from "../memory.ts";
import type { Rows } from "../rows.ts";
import type { Attempt, Resource, ResourceEntry, RolloutStatus } from "../vocabulary.ts";
import type { StoreSchema } from "./schema.ts";

export const ROW_STORES = ["rollouts", "attempts", "spans", "resources", "counters"] as const;
type RowTransaction = IDBPTransaction<StoreSchema, typeof ROW_STORES, "readonly" | "readwrite">;
type RowStore = Exclude<(typeof ROW_STORES)[number], "counters">;

const STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"] as const satisfies readonly RolloutStatus[];
const LAST = Number.POSITIVE_INFINITY;

/** Releases before manifests wrote none. */
const entryOf = (row: Omit<Resource, "manifest"> & Partial<Resource>): ResourceEntry =>
  withoutFiles({ ...row, manifest: row.manifest ?? manifestOfSync(row.files) });

/** `keepSeqs` is the transaction's last write. */
export const createIndexedDbRows = (transaction: RowTransaction): Rows & { keepSeqs(): Promise<void> } => {
  const rollouts = transaction.objectStore("rollouts");
  const attempts = transaction.objectStore("attempts");
  const spans = transaction.objectStore("spans");
  const resources = transaction.objectStore("resources");
  const counters = transaction.objectStore("counters");
  const write = transaction as IDBPTransaction<StoreSchema, typeof ROW_STORES, "readwrite">;
  const put = async <S extends RowStore>(store: S, value: StoreSchema[S]["value"]): Promise<void> => {
    await write.objectStore(store).put(value);
  };
  const given = { rolloutSeq: 0, spanSeq: 0 };
  const keepSeq = async (name: keyof typeof given, seq: number): Promise<void> => {
    if (((await counters.get(name)) ?? 0) < seq) await write.objectStore("counters").put(seq, name);
  };
  const lastRolloutSeq = async (): Promise<number> =>
    Math.max((await counters.get("rolloutSeq")) ?? 0, (await rollouts.index("bySeq").openKeyCursor(null, "prev"))?.key ?? 0);
  let storedSpanSeq: number | undefined;
  const lastSpanSeq = async (): Promise<number> => {
    storedSpanSeq ??= Math.max((await counters.get("spanSeq")) ?? 0, (await spans.index("bySeq").openKeyCursor(null, "prev"))?.key ?? 0);
    return Math.max(storedSpanSeq, given.spanSeq);
  };
  const knownAttempts = new Map<string, Map<string, Attempt>>(); // by rollout
  const know = (attempt: Attempt): void => {
    const known = knownAttempts.get(attempt.rolloutId) ?? new Map<string, Attempt>();
    knownAttempts.set(attempt.rolloutId, known.set(attempt.id, attempt));
  };

  const resource = async (name: string, version?: number): Promise<Resource | undefined> => {
    if (version !== undefined) return resources.get([name, version]);
    return (await resources.openCursor(IDBKeyRange.bound([name, 0], [name, LAST]), "prev"))?.value;
  };

  return {
    rollout: (id) => rollouts.get(id),
    rollouts: async (order, fromSeq, limit) => {
      if (order === "oldest") return rollouts.index("bySeq").getAll(IDBKeyRange.lowerBound(fromSeq ?? 0, true), limit);
      const found = [];
      const range = IDBKeyRange.upperBound(fromSeq ?? LAST, true);
      for (
        let cursor = await rollouts.index("bySeq").openCursor(range, "prev");
        cursor && found.length < limit;
        cursor = await cursor.continue()
      )
        found.push(cursor.value);
      return found;
    },
    queued: async (limit) =>
      limit === 0 ? [] : rollouts.index("byStatus").getAll(IDBKeyRange.bound(["queued", 0], ["queued", LAST]), limit), // a count of 0 means all
    attempt: async ({ rolloutId, id }) => {
      const known = knownAttempts.get(rolloutId)?.get(id);
      if (known) return known;
      const attempt = await attempts.get([rolloutId, id]);
      if (attempt) know(attempt);
      return attempt;
    },
    attempts: (rolloutId) => attempts.index("bySequence").getAll(IDBKeyRange.bound([rolloutId, 0], [rolloutId, LAST])),
    silentSince: (beforeMs) =>
      attempts.index("byHeartbeat").getAll(IDBKeyRange.bound(["running", -LAST], ["running", beforeMs], false, true)),
    hasSpan: async (rolloutId, attemptId, id) => (await spans.getKey([rolloutId, attemptId, id])) !== undefined,
    spans: ({ rolloutId, attemptId }, afterSeq, limit) =>
      attemptId === undefined
        ? spans.index("byRollout").getAll(IDBKeyRange.bound([rolloutId, afterSeq], [rolloutId, LAST], true), limit)
        : spans.index("byAttempt").getAll(IDBKeyRange.bound([rolloutId, attemptId, afterSeq], [rolloutId, attemptId, LAST], true), limit),
    lastRolloutSeq,
    lastSpanSeq,
    resource,
    resourceEntry: async (name, version) => {
      const row = await resource(name, version);
      return row && entryOf(row);
    },
    resources: async (after, limit) => {
      const found: ResourceEntry[] = [];
      const range = after === undefined ? undefined : IDBKeyRange.lowerBound([...after], true);
      for (let cursor = await resources.openCursor(range); cursor && found.length < limit; cursor = await cursor.continue())
        found.push(entryOf(cursor.value));
      return found;
    },
    stats: async () => {
      const counts = {} as Record<RolloutStatus, number>;
      for (const status of STATUSES)
        counts[status] = await rollouts.index("byStatus").count(IDBKeyRange.bound([status, 0], [status, LAST]));
      return {
        rollouts: counts,
        attempts: await attempts.count(),
        spans: await spans.count(),
        resources: await resources.count(),
      };
    },
    putRollout: (rollout) => {
      given.rolloutSeq = Math.max(given.rolloutSeq, rollout.seq);
      return put("rollouts", rollout);
    },
    putAttempt: (attempt) => {
      know(attempt);
      return put("attempts", attempt);
    },
    putSpan: async (span) => {
      given.spanSeq = Math.max(given.spanSeq, span.seq);
      // not awaited: one that fails aborts the transaction, whose end tells; what is thrown at once is thrown on
      write
        .objectStore("spans")
        .put(span)
        .catch(() => {});
    },
    putResource: (resource) => put("resources", resource),
    removeRollout: async (id) => {
      // where an older release wrote last; else they are kept already, and a full disk still deletes, for nothing is put
      await keepSeq("rolloutSeq", await lastRolloutSeq());
      await keepSeq("spanSeq", await lastSpanSeq());
      knownAttempts.delete(id);
      const ofRollout = IDBKeyRange.bound([id], [id, []]); // a list is greater than every text
      await write.objectStore("spans").delete(ofRollout);
      await write.objectStore("attempts").delete(ofRollout);
      await write.objectStore("rollouts").delete(id);
    },
    removeResource: async (name, version) => write.objectStore("resources").delete([name, version]),
    keepSeqs: async () => {
      if (given.rolloutSeq > 0) await keepSeq("rolloutSeq", given.rolloutSeq);
      if (given.spanSeq > 0) await keepSeq("spanSeq", given.spanSeq);
    },
  };
};

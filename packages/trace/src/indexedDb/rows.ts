// The rows of one IndexedDB transaction. Every method awaits this transaction's requests and nothing else. What is asked for
// again and again (the head, a running attempt and its rollout) is asked of the database once, or not at all by an append that
// trusts what is known (turns.ts).

import { type IDBPTransaction, unwrap } from "idb";
import { keyOf } from "../commands.ts";
import { manifestOfSync } from "../manifest.ts";
import { withoutFiles } from "../memory.ts";
import type { Rows } from "../rows.ts";
import { ROLLOUT_CHANGES } from "../status.ts";
import type { Attempt, Resource, ResourceEntry, Rollout, RolloutStatus, StoredSpan } from "../vocabulary.ts";
import type { StoreSchema } from "./schema.ts";
import { type Beat, type Head, headOf, type Known, type Lesson, learn, TURNS_KEPT } from "./turns.ts";

export const ROW_STORES = ["rollouts", "attempts", "spans", "resources", "turns"] as const;
/** One that only reads is asked to write nothing. */
export type RowTransaction = IDBPTransaction<StoreSchema, typeof ROW_STORES, "readwrite">;

/** What a transaction goes by without reading. */
export interface Guess {
  /** Instead of the head and of running attempts. */
  readonly known?: Known | undefined;
  /** No span is there yet; one that is breaks a constraint, and so the transaction. */
  readonly isNew: boolean;
}

export interface IndexedDbRows extends Rows {
  /** The transaction's last write. Resolves with what it teaches once it is committed, if anything; "wrong" where `known` was. */
  end(): Promise<Lesson | "wrong" | undefined>;
}

const LAST = Number.POSITIVE_INFINITY;

/** Releases before manifests wrote none. */
const entryOf = (row: Omit<Resource, "manifest"> & Partial<Resource>): ResourceEntry =>
  withoutFiles({ ...row, manifest: row.manifest ?? manifestOfSync(row.files) });

const see = <T>(seen: Map<string, T>, key: string, row: T | undefined): T | undefined => {
  if (row) seen.set(key, row);
  return row;
};

/** What a cursor shows, `limit` of it at most. */
const rowsOf = async <T>(opened: Promise<{ readonly value: T; continue(): unknown } | null>, limit: number): Promise<T[]> => {
  const found: T[] = [];
  for (let cursor = await opened; cursor && found.length < limit; cursor = (await cursor.continue()) as typeof cursor | null)
    found.push(cursor.value);
  return found;
};

export const createIndexedDbRows = (transaction: RowTransaction, { known, isNew }: Guess): IndexedDbRows => {
  const rollouts = transaction.objectStore("rollouts");
  const attempts = transaction.objectStore("attempts");
  const spans = transaction.objectStore("spans");
  const resources = transaction.objectStore("resources");
  const turns = transaction.objectStore("turns");
  const seenRollouts = new Map<string, Rollout>();
  const seenAttempts = new Map<string, Attempt>();
  const beats = new Map<string, Beat>();
  const newSpans: StoredSpan[] = [];
  const given = { rolloutSeq: 0, spanSeq: 0 }; // the last, by this transaction
  let isChanged = false;

  let reading: Promise<Head> | undefined;
  const head = (): Promise<Head> => {
    reading ??= known === undefined ? turns.getAll().then(headOf) : Promise.resolve(known);
    return reading;
  };
  const lastSeq = async (name: keyof typeof given): Promise<number> => Math.max((await head())[name], given[name]);
  if (transaction.mode === "readwrite") head().catch(() => {}); // beside the first request of the body

  // not awaited: one that fails aborts the transaction, whose end tells
  const addSpan = (span: StoredSpan) => unwrap(spans).add(span);

  /** While it runs, its last heartbeat may be a turn's. */
  const alive = async (rows: readonly Attempt[]): Promise<Attempt[]> => {
    const before = (await head()).beats;
    return rows.map((row) => {
      const key = keyOf(row.rolloutId, row.id);
      const [, , atMs = 0] = beats.get(key) ?? before.get(key) ?? [];
      return row.status === "running" && atMs > row.lastHeartbeatMs ? { ...row, lastHeartbeatMs: atMs } : row;
    });
  };

  const resource = async (name: string, version?: number): Promise<Resource | undefined> => {
    if (version !== undefined) return resources.get([name, version]);
    return (await rowsOf(resources.openCursor(IDBKeyRange.bound([name, 0], [name, LAST]), "prev"), 1))[0];
  };

  return {
    rollout: (id) => seenRollouts.get(id) ?? known?.rollouts.get(id) ?? rollouts.get(id).then((row) => see(seenRollouts, id, row)),
    rollouts: (order, fromSeq, limit) =>
      order === "oldest"
        ? rollouts.index("bySeq").getAll(IDBKeyRange.lowerBound(fromSeq ?? 0, true), limit)
        : rowsOf(rollouts.index("bySeq").openCursor(IDBKeyRange.upperBound(fromSeq ?? LAST, true), "prev"), limit),
    queued: async (limit) =>
      limit === 0 ? [] : rollouts.index("byStatus").getAll(IDBKeyRange.bound(["queued", 0], ["queued", LAST]), limit), // a count of 0 means all
    attempt: ({ rolloutId, id }) => {
      const key = keyOf(rolloutId, id);
      const trusted = seenAttempts.get(key) ?? known?.attempts.get(key);
      if (trusted) return see(seenAttempts, key, trusted);
      return attempts.get([rolloutId, id]).then(async (row) => see(seenAttempts, key, row && (await alive([row]))[0]));
    },
    attempts: async (rolloutId) => alive(await attempts.index("bySequence").getAll(IDBKeyRange.bound([rolloutId, 0], [rolloutId, LAST]))),
    silentSince: async (beforeMs) => {
      const range = IDBKeyRange.bound(["running", -LAST], ["running", beforeMs], false, true);
      const rows = await alive(await attempts.index("byHeartbeat").getAll(range)); // a row's heartbeat is never later than the last
      return rows.filter(({ lastHeartbeatMs }) => lastHeartbeatMs < beforeMs);
    },
    hasSpan: (rolloutId, attemptId, id) => !isNew && spans.getKey([rolloutId, attemptId, id]).then((key) => key !== undefined),
    spans: async ({ rolloutId, attemptId }, afterSeq, limit) => {
      const found: StoredSpan[] = [];
      for (let seq = afterSeq; ; ) {
        const page = await spans.index("byRollout").getAll(IDBKeyRange.bound([rolloutId, seq], [rolloutId, LAST], true), limit);
        if (attemptId === undefined) return page;
        found.push(...page.filter((span) => span.attemptId === attemptId));
        if (page.length < limit || found.length >= limit) return found.slice(0, limit);
        seq = (page.at(-1) as StoredSpan).seq;
      }
    },
    lastRolloutSeq: () => lastSeq("rolloutSeq"),
    lastSpanSeq: () => lastSeq("spanSeq"),
    resource,
    resourceEntry: async (name, version) => {
      const row = await resource(name, version);
      return row && entryOf(row);
    },
    resources: async (after, limit) => {
      const range = after === undefined ? undefined : IDBKeyRange.lowerBound([...after], true);
      return (await rowsOf(resources.openCursor(range), limit)).map(entryOf);
    },
    stats: async () => {
      const counts = {} as Record<RolloutStatus, number>;
      for (const status of Object.keys(ROLLOUT_CHANGES) as RolloutStatus[])
        counts[status] = await rollouts.index("byStatus").count(IDBKeyRange.bound([status, 0], [status, LAST]));
      return {
        rollouts: counts,
        attempts: await attempts.count(),
        spans: await spans.count(),
        resources: await resources.count(),
      };
    },
    putRollout: async (rollout) => {
      isChanged = true;
      given.rolloutSeq = Math.max(given.rolloutSeq, rollout.seq);
      seenRollouts.set(rollout.id, rollout);
      await rollouts.put(rollout);
    },
    putAttempt: async (attempt) => {
      isChanged = true;
      const { rolloutId, id, status, lastHeartbeatMs } = attempt;
      const key = keyOf(rolloutId, id);
      const isBeat = status === "running" && seenAttempts.get(key)?.status === "running";
      seenAttempts.set(key, attempt);
      if (isBeat) beats.set(key, [rolloutId, id, lastHeartbeatMs]);
      else await attempts.put(attempt);
    },
    putSpan: (span) => {
      isChanged = true;
      given.spanSeq = Math.max(given.spanSeq, span.seq);
      if (isNew) newSpans.push(span);
      else addSpan(span); // it may be looked for
    },
    putResource: async (resource) => void (await resources.put(resource)),
    removeRollout: async (id) => {
      // it does not run, so nobody goes by it without asking: no turn, and a full disk still deletes
      const ofRollout = IDBKeyRange.bound([id], [id, []]); // a list is greater than every text
      await Promise.all([spans.delete(ofRollout), attempts.delete(ofRollout), rollouts.delete(id)]);
    },
    removeResource: (name, version) => resources.delete([name, version]),
    end: async () => {
      if (!isChanged && known === undefined) return undefined;
      const before = await head();
      const turn = before.turn + 1;
      const seqs = { rolloutSeq: await lastSeq("rolloutSeq"), spanSeq: await lastSeq("spanSeq") };
      const lesson: Lesson = { ...seqs, before, turn, beats, rollouts: seenRollouts, attempts: seenAttempts };
      const isWhole =
        turn % TURNS_KEPT === 0 || [...seenAttempts].some(([key, { status }]) => status !== "running" && before.beats.has(key));
      const adding = turns.add({ ...seqs, beats: [...(isWhole ? learn(undefined, lesson).beats : beats).values()] });
      adding.catch(() => {}); // the transaction's end tells
      if (isWhole) turns.delete(IDBKeyRange.upperBound(turn, true)).catch(() => {});
      newSpans.forEach(addSpan); // after the turn, whose number then comes while they are on their way
      return known === undefined || (await adding) === turn ? lesson : "wrong"; // what was read in this transaction is not wrong
    },
  };
};

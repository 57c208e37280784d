// The rows of one IndexedDB transaction. Every method awaits this transaction's requests and nothing else. What is asked for
// again and again (the head, a running attempt and its rollout) is asked of the database once, or not at all by an append that
// trusts what is known (turns.ts).

import { type IDBPTransaction, unwrap } from "idb";
import { manifestOfSync } from "../manifest.ts";
import { withoutFiles } from "../memory.ts";
import type { Rows } from "../rows.ts";
import type { Attempt, Resource, ResourceEntry, Rollout, RolloutStatus, StoredSpan } from "../vocabulary.ts";
import type { StoreSchema } from "./schema.ts";
import { attemptKey, type Beat, type Head, headOf, type Known, type Lesson, learn, TURNS_KEPT } from "./turns.ts";

export const ROW_STORES = ["rollouts", "attempts", "spans", "resources", "turns"] as const;
type RowTransaction = IDBPTransaction<StoreSchema, typeof ROW_STORES, "readonly" | "readwrite">;

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

const STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"] as const satisfies readonly RolloutStatus[];
const LAST = Number.POSITIVE_INFINITY;

/** Releases before manifests wrote none. */
const entryOf = (row: Omit<Resource, "manifest"> & Partial<Resource>): ResourceEntry =>
  withoutFiles({ ...row, manifest: row.manifest ?? manifestOfSync(row.files) });

export const createIndexedDbRows = (transaction: RowTransaction, { known, isNew }: Guess): IndexedDbRows => {
  const rollouts = transaction.objectStore("rollouts");
  const attempts = transaction.objectStore("attempts");
  const spans = transaction.objectStore("spans");
  const resources = transaction.objectStore("resources");
  const write = transaction as IDBPTransaction<StoreSchema, typeof ROW_STORES, "readwrite">;
  const seenRollouts = new Map<string, Rollout>();
  const seenAttempts = new Map<string, Attempt>();
  const beats = new Map<string, Beat>();
  const given = { rolloutSeq: 0, spanSeq: 0 };
  const ended: string[] = [];
  let isTrusting = false;
  let isChanged = false;

  let reading: Promise<Head> | undefined;
  const head = async (): Promise<Head> => {
    isTrusting ||= known !== undefined;
    reading ??= known === undefined ? transaction.objectStore("turns").getAll().then(headOf) : Promise.resolve(known);
    return reading;
  };
  if (known === undefined && transaction.mode === "readwrite") void head().catch(() => {}); // beside the first request of the body

  /** While it runs, its last heartbeat may be a turn's. */
  const alive = async (rows: readonly Attempt[]): Promise<Attempt[]> => {
    const told = rows.some(({ status }) => status === "running") ? (await head()).beats : beats;
    return rows.map((row) => {
      const key = attemptKey(row.rolloutId, row.id);
      const atMs = (beats.get(key) ?? told.get(key))?.[2] ?? 0;
      return row.status === "running" && atMs > row.lastHeartbeatMs ? Object.freeze({ ...row, lastHeartbeatMs: atMs }) : row;
    });
  };

  const resource = async (name: string, version?: number): Promise<Resource | undefined> => {
    if (version !== undefined) return resources.get([name, version]);
    return (await resources.openCursor(IDBKeyRange.bound([name, 0], [name, LAST]), "prev"))?.value;
  };

  const spansAfter = (rolloutId: string, seq: number, limit: number): Promise<StoredSpan[]> =>
    spans.index("byRollout").getAll(IDBKeyRange.bound([rolloutId, seq], [rolloutId, LAST], true), limit);

  return {
    rollout: async (id) => {
      const trusted = known?.rollouts.get(id);
      isTrusting ||= trusted !== undefined;
      const rollout = seenRollouts.get(id) ?? trusted ?? (await rollouts.get(id));
      if (rollout) seenRollouts.set(id, rollout);
      return rollout;
    },
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
      const key = attemptKey(rolloutId, id);
      const trusted = known?.attempts.get(key);
      isTrusting ||= trusted !== undefined;
      let attempt = seenAttempts.get(key) ?? trusted;
      if (attempt === undefined) {
        const row = await attempts.get([rolloutId, id]);
        if (row === undefined) return undefined;
        [attempt] = (await alive([row])) as [Attempt];
      }
      seenAttempts.set(key, attempt);
      return attempt;
    },
    attempts: async (rolloutId) => alive(await attempts.index("bySequence").getAll(IDBKeyRange.bound([rolloutId, 0], [rolloutId, LAST]))),
    silentSince: async (beforeMs) => {
      const range = IDBKeyRange.bound(["running", -LAST], ["running", beforeMs], false, true);
      const rows = await alive(await attempts.index("byHeartbeat").getAll(range)); // a row's heartbeat is never later than the last
      return rows.filter(({ lastHeartbeatMs }) => lastHeartbeatMs < beforeMs);
    },
    hasSpan: async (rolloutId, attemptId, id) => !isNew && (await spans.getKey([rolloutId, attemptId, id])) !== undefined,
    spans: async ({ rolloutId, attemptId }, afterSeq, limit) => {
      const found: StoredSpan[] = [];
      for (let seq = afterSeq; ; ) {
        const page = await spansAfter(rolloutId, seq, limit);
        if (attemptId === undefined) return page;
        found.push(...page.filter((span) => span.attemptId === attemptId));
        if (page.length < limit || found.length >= limit) return found.slice(0, limit);
        seq = (page.at(-1) as StoredSpan).seq;
      }
    },
    lastRolloutSeq: async () => Math.max((await head()).rolloutSeq, given.rolloutSeq),
    lastSpanSeq: async () => Math.max((await head()).spanSeq, given.spanSeq),
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
      const count = async (status: RolloutStatus) => {
        counts[status] = await rollouts.index("byStatus").count(IDBKeyRange.bound([status, 0], [status, LAST]));
      };
      const [attemptCount, spanCount, resourceCount] = await Promise.all([
        attempts.count(),
        spans.count(),
        resources.count(),
        ...STATUSES.map(count),
      ]);
      return { rollouts: counts, attempts: attemptCount, spans: spanCount, resources: resourceCount };
    },
    putRollout: async (rollout) => {
      isChanged = true;
      given.rolloutSeq = Math.max(given.rolloutSeq, rollout.seq);
      seenRollouts.set(rollout.id, rollout);
      await write.objectStore("rollouts").put(rollout);
    },
    putAttempt: async (attempt) => {
      isChanged = true;
      const { rolloutId, id, status, lastHeartbeatMs } = attempt;
      const key = attemptKey(rolloutId, id);
      const isBeat = status === "running" && seenAttempts.get(key)?.status === "running";
      seenAttempts.set(key, attempt);
      if (isBeat) beats.set(key, [rolloutId, id, lastHeartbeatMs]);
      else await write.objectStore("attempts").put(attempt);
      if (status !== "running") ended.push(key);
    },
    putSpan: async (span) => {
      isChanged = true;
      given.spanSeq = Math.max(given.spanSeq, span.seq);
      // not awaited: one that fails aborts the transaction, whose end tells
      unwrap(write.objectStore("spans")).add(span);
    },
    putResource: async (resource) => void (await write.objectStore("resources").put(resource)),
    removeRollout: async (id) => {
      // it does not run, so nobody knows of it without asking: no turn, and a full disk still deletes
      const ofRollout = IDBKeyRange.bound([id], [id, []]); // a list is greater than every text
      await Promise.all([
        write.objectStore("spans").delete(ofRollout),
        write.objectStore("attempts").delete(ofRollout),
        write.objectStore("rollouts").delete(id),
      ]);
    },
    removeResource: async (name, version) => write.objectStore("resources").delete([name, version]),
    end: async () => {
      if (!isChanged && !isTrusting) return undefined;
      const before = await head();
      const turn = before.turn + 1;
      const isWhole = turn % TURNS_KEPT === 0 || ended.some((key) => before.beats.has(key));
      const rolloutSeq = Math.max(before.rolloutSeq, given.rolloutSeq);
      const spanSeq = Math.max(before.spanSeq, given.spanSeq);
      const lesson: Lesson = { before, turn, rolloutSeq, spanSeq, beats, rollouts: seenRollouts, attempts: seenAttempts };
      const told = isWhole ? learn(undefined, lesson).beats : beats;
      const turns = write.objectStore("turns");
      const adding = turns.add({ rolloutSeq, spanSeq, beats: [...told.values()] });
      if (isWhole) turns.delete(IDBKeyRange.upperBound(turn, true)).catch(() => {});
      if (known === undefined) adding.catch(() => {});
      else if ((await adding) !== turn) return "wrong";
      return lesson;
    },
  };
};

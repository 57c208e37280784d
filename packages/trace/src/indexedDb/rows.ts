// The rows of one IndexedDB transaction. Every method awaits this transaction's requests and nothing else. What is asked for
// again and again (the head, a running attempt and its rollout) is asked of the database once, or not at all by an append that
// trusts what is known (turns.ts).

import { keyOf } from "../commands.ts";
import { manifestOfSync } from "../manifest.ts";
import { withoutFiles } from "../memory.ts";
import type { Rows } from "../rows.ts";
import { ROLLOUT_CHANGES } from "../status.ts";
import type { Attempt, Resource, ResourceEntry, Rollout, RolloutStatus, StoredSpan } from "../vocabulary.ts";
import { ask, askCursor } from "./requests.ts";
import { ROW_STORES } from "./schema.ts";
import { type Beat, type Head, headOf, type Known, type Lesson, learn, TURNS_KEPT } from "./turns.ts";

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

type FiveStores = readonly [IDBObjectStore, IDBObjectStore, IDBObjectStore, IDBObjectStore, IDBObjectStore];

const LAST = Number.POSITIVE_INFINITY;

/** Of an index or key whose second part is a number. */
const allOf = (first: string): IDBKeyRange => IDBKeyRange.bound([first, 0], [first, LAST]);

/** Releases before manifests wrote none. */
const entryOf = (row: Omit<Resource, "manifest"> & Partial<Resource>): ResourceEntry =>
  withoutFiles({ ...row, manifest: row.manifest ?? manifestOfSync(row.files) });

const see = <T>(seen: Map<string, T>, key: string, row: T | undefined): T | undefined => {
  if (row) seen.set(key, row);
  return row;
};

export const createIndexedDbRows = (transaction: IDBTransaction, { known, isNew }: Guess): IndexedDbRows => {
  const [rollouts, attempts, spans, resources, turns] = ROW_STORES.map((store) => transaction.objectStore(store)) as unknown as FiveStores;
  const seenRollouts = new Map<string, Rollout>();
  const seenAttempts = new Map<string, Attempt>();
  const beats = new Map<string, Beat>();
  const newSpans: StoredSpan[] = [];
  const given = { rolloutSeq: 0, spanSeq: 0 }; // the last, by this transaction
  let isChanged = false;

  let reading: Promise<Head> | undefined;
  const head = (): Promise<Head> => {
    reading ??= known === undefined ? ask(turns.getAll()).then(headOf) : Promise.resolve(known);
    return reading;
  };
  const lastSeq = async (name: keyof typeof given): Promise<number> => Math.max((await head())[name], given[name]);
  if (transaction.mode === "readwrite") head().catch(() => {}); // beside the first request of the body

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
    if (version !== undefined) return ask(resources.get([name, version]));
    return (await askCursor<Resource>(resources.openCursor(allOf(name), "prev"), 1))[0];
  };

  return {
    rollout: (id) =>
      seenRollouts.get(id) ??
      known?.rollouts.get(id) ??
      ask<Rollout | undefined>(rollouts.get(id)).then((row) => see(seenRollouts, id, row)),
    rollouts: (order, fromSeq, limit) =>
      order === "oldest"
        ? ask(rollouts.index("bySeq").getAll(IDBKeyRange.lowerBound(fromSeq ?? 0, true), limit))
        : askCursor(rollouts.index("bySeq").openCursor(IDBKeyRange.upperBound(fromSeq ?? LAST, true), "prev"), limit),
    queued: async (limit) => (limit === 0 ? [] : ask(rollouts.index("byStatus").getAll(allOf("queued"), limit))), // a count of 0 means all
    attempt: ({ rolloutId, id }) => {
      const key = keyOf(rolloutId, id);
      const trusted = seenAttempts.get(key) ?? known?.attempts.get(key);
      if (trusted) return see(seenAttempts, key, trusted);
      return ask<Attempt | undefined>(attempts.get([rolloutId, id])).then(async (row) =>
        see(seenAttempts, key, row && (await alive([row]))[0]),
      );
    },
    attempts: async (rolloutId) => alive(await ask(attempts.index("bySequence").getAll(allOf(rolloutId)))),
    silentSince: async (beforeMs) => {
      const range = IDBKeyRange.bound(["running", -LAST], ["running", beforeMs], false, true);
      const rows = await alive(await ask(attempts.index("byHeartbeat").getAll(range))); // a row's heartbeat is never later than the last
      return rows.filter(({ lastHeartbeatMs }) => lastHeartbeatMs < beforeMs);
    },
    hasSpan: (rolloutId, attemptId, id) => !isNew && ask(spans.getKey([rolloutId, attemptId, id])).then((key) => key !== undefined),
    spans: async ({ rolloutId, attemptId }, afterSeq, limit) => {
      const found: StoredSpan[] = [];
      for (let seq = afterSeq; ; ) {
        const range = IDBKeyRange.bound([rolloutId, seq], [rolloutId, LAST], true);
        const page: StoredSpan[] = await ask(spans.index("byRollout").getAll(range, limit));
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
      return (await askCursor<Resource>(resources.openCursor(range), limit)).map(entryOf);
    },
    stats: async () => {
      const counts = {} as Record<RolloutStatus, number>;
      for (const status of Object.keys(ROLLOUT_CHANGES) as RolloutStatus[])
        counts[status] = await ask(rollouts.index("byStatus").count(allOf(status)));
      return {
        rollouts: counts,
        attempts: await ask(attempts.count()),
        spans: await ask(spans.count()),
        resources: await ask(resources.count()),
      };
    },
    putRollout: async (rollout) => {
      isChanged = true;
      given.rolloutSeq = Math.max(given.rolloutSeq, rollout.seq);
      seenRollouts.set(rollout.id, rollout);
      await ask(rollouts.put(rollout));
    },
    putAttempt: async (attempt) => {
      isChanged = true;
      const { rolloutId, id, status, lastHeartbeatMs } = attempt;
      const key = keyOf(rolloutId, id);
      const isBeat = status === "running" && seenAttempts.get(key)?.status === "running";
      seenAttempts.set(key, attempt);
      if (isBeat) beats.set(key, [rolloutId, id, lastHeartbeatMs]);
      else await ask(attempts.put(attempt));
    },
    putSpan: (span) => {
      isChanged = true;
      given.spanSeq = Math.max(given.spanSeq, span.seq);
      if (isNew) newSpans.push(span);
      else spans.add(span); // it may be looked for
    },
    putResource: async (resource) => void (await ask(resources.put(resource))),
    removeRollout: async (id) => {
      // it does not run, so nobody goes by it without asking: no turn, and a full disk still deletes
      const ofRollout = IDBKeyRange.bound([id], [id, []]); // a list is greater than every text
      await Promise.all([spans.delete(ofRollout), attempts.delete(ofRollout), rollouts.delete(id)].map(ask));
    },
    removeResource: (name, version) => ask(resources.delete([name, version])),
    end: async () => {
      if (!isChanged && known === undefined) return undefined;
      const before = await head();
      const turn = before.turn + 1;
      const seqs = { rolloutSeq: await lastSeq("rolloutSeq"), spanSeq: await lastSeq("spanSeq") };
      const lesson: Lesson = { ...seqs, before, turn, beats, rollouts: seenRollouts, attempts: seenAttempts };
      const isWhole =
        turn % TURNS_KEPT === 0 || [...seenAttempts].some(([key, { status }]) => status !== "running" && before.beats.has(key));
      const adding = ask(turns.add({ ...seqs, beats: [...(isWhole ? learn(undefined, lesson).beats : beats).values()] }));
      adding.catch(() => {}); // the transaction's end tells
      if (isWhole) turns.delete(IDBKeyRange.upperBound(turn, true));
      for (const span of newSpans) spans.add(span); // after the turn, whose number then comes while they are on their way
      return known === undefined || (await adding) === turn ? lesson : "wrong"; // what was read in this transaction is not wrong
    },
  };
};

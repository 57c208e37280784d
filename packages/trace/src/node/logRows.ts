// The rows of a log: what has not ended is in memory, with the latest that has; the rest is read from where the index says.

import { createMemoryRows, type Keeping, type MemoryRows } from "../memory.ts";
import { afterAttempt } from "../records.ts";
import type { Rows } from "../rows.ts";
import { isTerminal } from "../status.ts";
import type { Attempt, Rollout, StoredSpan } from "../vocabulary.ts";
import type { LogIndex } from "./logIndex.ts";
import type { LogRecord, StoredResource } from "./logRecord.ts";
import type { Counts, LiveRow } from "./manifest.ts";
import { ofResource, ofRollout, ownerOf, rolloutOf } from "./segmentFile.ts";
import type { Held, Place } from "./segmentIndex.ts";

/** Rollouts that have ended and are in memory all the same: most are asked for soon, by those who waited. */
const KEPT_ENDED = 512;

export interface LogRows extends Rows {
  /** Rows beyond these seqs were here once and are gone: what comes next is beyond them. */
  raiseSeqs(rolloutSeq: number, spanSeq: number): void;
  /** Lets go of what ended long ago. Between two transactions. */
  release(): Promise<void>;
  /** What has not ended. */
  live(): Promise<LiveRow[]>;
  readonly counts: Counts;
  /** A record of the log was left out, because what it belongs to was lost. */
  leaveOut(): void;
}

export interface LogRowsOptions {
  readonly index: () => LogIndex;
  readonly readAll: (places: readonly Place[]) => Promise<LogRecord[]>;
  readonly resources: Omit<Keeping<never, StoredResource>, "keepSpan" | "loadSpans">;
  /** Where to begin. */
  readonly counts: Counts;
  readonly rows: readonly LiveRow[];
}

/** A rollout as its last record, or its cancellation, and the last record of each attempt make it. */
const foldRow = (record: Rollout, attempts: readonly Attempt[]): LiveRow => {
  const inOrder = [...attempts].sort((a, b) => a.sequence - b.sequence);
  const rollout = inOrder.reduce(afterAttempt, record);
  const ended = (attempt: Attempt): Attempt =>
    rollout.status === "cancelled" && attempt.status === "running"
      ? Object.freeze({ ...attempt, status: "cancelled", endedAtMs: rollout.endedAtMs } as Attempt)
      : attempt;
  return { rollout, attempts: inOrder.map(ended) };
};

export const createLogRows = async ({ index, readAll, resources, counts, rows }: LogRowsOptions): Promise<LogRows> => {
  const memory: MemoryRows = createMemoryRows<never, StoredResource>({
    ...resources,
    keepSpan: () => undefined as never,
    loadSpans: async () => [],
  });
  const idBySeq = new Map<number, string>(); // of those in memory
  const ended = new Set<string>(); // in memory, in the order of their ends
  for (const { rollout, attempts } of rows) {
    await memory.putRollout(rollout);
    idBySeq.set(rollout.seq, rollout.id);
    for (const attempt of attempts) await memory.putAttempt(attempt);
  }

  const placesOf = ({ record, attempts }: Held): Place[] => (record ? [record, ...attempts] : [...attempts]);

  /** What the log says of a rollout, a part after the other. */
  const folding = (owner: string): { add(records: readonly LogRecord[]): void; row(): LiveRow | undefined } => {
    let record: Rollout | undefined;
    const attempts = new Map<string, Attempt>();
    return {
      add: (records) => {
        for (const found of records) {
          if (ownerOf(found) !== owner) continue; // another's with the same key
          if (found.kind === "rollout") {
            if (found.data.status !== "cancelled") attempts.clear(); // they are of one that was lost
            record = found.data;
          }
          if (found.kind === "attempt") attempts.set(found.data.id, found.data);
        }
      },
      row: () => record && foldRow(record, [...attempts.values()]),
    };
  };

  /** What the log says of a rollout; `fromSeq`: its own, where it is known. */
  const rowOf = async (id: string, fromSeq?: number): Promise<LiveRow | undefined> => {
    const inMemory = memory.rollout(id);
    if (inMemory) return { rollout: inMemory, attempts: await memory.attempts(id) };
    const owner = ofRollout(id);
    const said = folding(owner);
    for await (const held of index().holdings(owner, fromSeq)) {
      said.add(await readAll(placesOf(held)));
      const row = said.row();
      if (row && isTerminal(row.rollout.status)) return row;
    }
    return said.row();
  };

  /** The same of many. They are read in the order of the files, where what was written together lies together. */
  const rolloutsOf = async (ids: readonly string[]): Promise<(Rollout | undefined)[]> => {
    const absent = new Map<string, Place[][]>();
    for (const id of ids) {
      if (absent.has(id) || memory.rollout(id)) continue;
      const parts: Place[][] = [];
      for await (const held of index().holdings(ofRollout(id))) parts.push(placesOf(held));
      absent.set(id, parts);
    }
    const places = [...absent.values()].flat(2);
    places.sort((a, b) => (a.file === b.file ? a.offset - b.offset : a.file < b.file ? -1 : 1));
    const records = await readAll(places);
    const recordOf = new Map(places.map((place, at) => [place, records[at] as LogRecord]));
    return ids.map((id) => {
      const parts = absent.get(id);
      if (parts === undefined) return memory.rollout(id);
      const said = folding(ofRollout(id));
      for (const part of parts) {
        said.add(part.map((place) => recordOf.get(place) as LogRecord));
        const rollout = said.row()?.rollout;
        if (rollout && isTerminal(rollout.status)) return rollout;
      }
      return said.row()?.rollout;
    });
  };

  const spans: Rows["spans"] = async ({ rolloutId, attemptId }, afterSeq, limit) => {
    const attempts = counts.orphans > 0 ? ((await rowOf(rolloutId))?.attempts ?? []) : undefined;
    const isAsked = (span: StoredSpan): boolean =>
      span.rolloutId === rolloutId &&
      (attemptId === undefined || span.attemptId === attemptId) &&
      (attempts === undefined || attempts.some(({ id }) => id === span.attemptId));
    const found: StoredSpan[] = [];
    for (let after = afterSeq; found.length < limit; ) {
      const places = await index().spans(ofRollout(rolloutId), after, limit);
      const last = places.at(-1);
      if (last === undefined) break;
      after = last.seq;
      for (const { kind, data } of await readAll(places.map(({ place }) => place))) if (kind === "span" && isAsked(data)) found.push(data);
    }
    return found.slice(0, limit);
  };

  return {
    ...memory,
    counts,
    rolloutsOf,
    rollout: (id) => memory.rollout(id) ?? rowOf(id).then((row) => row?.rollout),
    attempt: (ref) => memory.attempt(ref) ?? rowOf(ref.rolloutId).then((row) => row?.attempts.find(({ id }) => id === ref.id)),
    attempts: async (rolloutId) => [...((await rowOf(rolloutId))?.attempts ?? [])],
    rollouts: async (order, fromSeq, limit) => {
      const places = await index().rollouts(order, fromSeq, limit);
      const unknown = places.flatMap((found) => ("place" in found && !idBySeq.has(found.seq) ? [found.place] : []));
      const owners = (await readAll(unknown)).map(ownerOf).values();
      const ids = places.map(
        (found) => idBySeq.get(found.seq) ?? rolloutOf(("owner" in found ? found.owner : owners.next().value) as string),
      );
      const rows = await Promise.all(ids.map(async (id, at) => (await rowOf(id, places[at]?.seq))?.rollout));
      return rows.filter((rollout) => rollout !== undefined);
    },
    leaveOut: () => {
      counts.orphans += 1;
    },
    hasSpan: (rolloutId, attemptId, id) => index().hasSpan(rolloutId, attemptId, id, memory.rollout(rolloutId)?.seq),
    spans,
    stats: async () => {
      const { attempts, spans: spanCount, orphans: _, ...rollouts } = counts;
      return { rollouts, attempts, spans: spanCount, resources: (await memory.stats()).resources };
    },

    putRollout: async (rollout) => {
      const before = memory.rollout(rollout.id);
      if (before) counts[before.status] -= 1;
      counts[rollout.status] += 1;
      await memory.putRollout(rollout);
      idBySeq.set(rollout.seq, rollout.id);
      if (isTerminal(rollout.status)) ended.add(rollout.id);
    },
    putAttempt: async (attempt) => {
      const isInMemory = memory.rollout(attempt.rolloutId) !== undefined;
      const ref = { rolloutId: attempt.rolloutId, id: attempt.id };
      const known = isInMemory ? memory.attempt(ref) : (await rowOf(ref.rolloutId))?.attempts.find(({ id }) => id === ref.id);
      if (known === undefined) counts.attempts += 1;
      if (isInMemory) await memory.putAttempt(attempt);
    },
    putSpan: (span) => {
      counts.spans += 1;
      memory.raiseSeqs(0, span.seq);
    },
    removeRollout: async (id) => {
      const row = await rowOf(id);
      const known = counts.orphans > 0 ? (await spans({ rolloutId: id }, 0, Number.POSITIVE_INFINITY)).length : undefined;
      const forgotten = await index().forget(ofRollout(id));
      if (row === undefined) return;
      counts.spans -= known ?? forgotten;
      counts[row.rollout.status] -= 1;
      counts.attempts -= row.attempts.length;
      await memory.removeRollout(id);
      idBySeq.delete(row.rollout.seq);
      ended.delete(id);
    },
    removeResource: async (name, version) => {
      await memory.removeResource(name, version);
      await index().forget(ofResource({ name, version }));
    },
    release: async () => {
      for (const id of ended) {
        if (ended.size <= KEPT_ENDED) break;
        const rollout = memory.rollout(id) as Rollout;
        await memory.removeRollout(id);
        idBySeq.delete(rollout.seq);
        ended.delete(id);
      }
    },
    live: async () => {
      const rows: LiveRow[] = [];
      for (const rollout of await memory.rollouts("oldest", undefined, Number.POSITIVE_INFINITY))
        if (!isTerminal(rollout.status)) rows.push({ rollout, attempts: await memory.attempts(rollout.id) });
      return rows;
    },
  };
};

// Where everything in the log is: a sidecar for each file that is left, and a SegmentIndex for the file that is being written.
// Who is gone is a bit beside the sidecar, which itself never changes.
//
// Memory is looked at before anything is awaited: meanwhile the file may be left, and another begun.

import type { Soon } from "../rows.ts";
import type { Blocks } from "./blocks.ts";
import { DamagedBlock } from "./blocks.ts";
import type { KeyFilter } from "./keyFilter.ts";
import type { LogRecord } from "./logRecord.ts";
import { ofRollout, ownerOf } from "./segmentFile.ts";
import { type Held, type Place, placesOf, type SegmentIndex, type SpanPlace } from "./segmentIndex.ts";
import { type Extent, type Key, keyOf, readSidecar, type Sidecar } from "./sidecar.ts";

/** A log file that is left, as the manifest knows it. */
export interface Segment extends Extent {
  readonly name: string;
  readonly lastSeq: number;
  /** The highest seqs up to its end, those that were dropped included. */
  readonly rolloutSeq: number;
  readonly spanSeq: number;
  /** Rows of its sidecar: owners, and words that one is gone. */
  readonly owners: number;
  readonly gone: number;
  /** A bit a row: that owner is gone by a record of a later file. */
  readonly marks: Uint8Array;
}

export const isMarked = ({ marks }: Segment, row: number): boolean => (((marks[row >> 3] as number) >> (row & 7)) & 1) === 1;

const mark = ({ marks }: Segment, row: number): void => {
  marks[row >> 3] = (marks[row >> 3] as number) | (1 << (row & 7));
};

const bitsOf = (byte: number): number => {
  let bits = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) bits += 1;
  return bits;
};

/** All of whom it tells are gone. */
export const isSpent = ({ owners, gone, marks }: Segment): boolean =>
  owners + gone > 0 && // else it is already nothing but a dropped line
  marks.reduce((sum, byte) => sum + bitsOf(byte), 0) === owners;

/** 64 KiB each, of a file of usual size. */
const FILTERS_KEPT = 256;

export interface LogIndexOptions {
  readonly blocks: Blocks;
  readonly sidecarPath: (segment: Extent) => string;
  readonly read: (place: Place) => Promise<LogRecord>;
  /** Makes a sidecar anew from its log file. */
  readonly rebuild: (segment: Segment) => Promise<void>;
  /** The file that is being written, with what is on its way to it. */
  readonly recent: () => SegmentIndex;
}

export interface LogIndex {
  /** Oldest first. */
  readonly segments: Segment[];
  /** By owner: where what was forgotten still lies on the disk. Whoever overwrites it empties this. */
  readonly remains: Map<string, Place[]>;
  /** What is known of an owner, in the order of the records. `fromRollout`: a rollout's seq, before which nothing is its. */
  holdings(owner: string, fromRollout?: number): AsyncGenerator<Held>;
  hasSpan(rolloutId: string, attemptId: string, id: string, fromRollout?: number): Soon<boolean>;
  spans(owner: string, afterSeq: number, limit: number): Promise<SpanPlace[]>;
  /** The next `limit` rollouts beyond a seq: by their owner where it is at hand, else by their record. */
  rollouts(order: "oldest" | "newest", fromSeq: number | undefined, limit: number): Promise<RolloutPlace[]>;
  /** Nothing of an owner is given any more. Returns how many spans. */
  forget(owner: string): Promise<number>;
  /** That, in one segment only. */
  forgetIn(segment: Segment, owner: string): Promise<number>;
  /** Runs over a segment's sidecar, made anew if need be. */
  within<T>(segment: Segment, act: (sidecar: Sidecar) => T): Promise<T>;
}

export type RolloutPlace = { readonly seq: number } & ({ readonly owner: string } | { readonly place: Place });

export const createLogIndex = ({ blocks, sidecarPath, read, rebuild, recent }: LogIndexOptions): LogIndex => {
  const segments: Segment[] = [];
  const remains = new Map<string, Place[]>();
  const sidecars = new WeakMap<Segment, Sidecar>();
  /** Of those that were asked for spans, the oldest first. */
  const filters = new Map<Segment, KeyFilter>();

  const sidecarOf = (segment: Segment): Sidecar => {
    let sidecar = sidecars.get(segment);
    if (sidecar === undefined) {
      sidecar = readSidecar(blocks, sidecarPath(segment), segment.name, segment);
      if (sidecar.counts.owners !== segment.owners) throw new DamagedBlock(`${segment.name}: its sidecar has other owners`);
      sidecars.set(segment, sidecar);
    }
    return sidecar;
  };

  const within: LogIndex["within"] = async (segment, act) => {
    try {
      return act(sidecarOf(segment));
    } catch (error) {
      if (!(error instanceof DamagedBlock)) throw error;
      sidecars.delete(segment);
      await rebuild(segment);
      return act(sidecarOf(segment));
    }
  };

  /** The segments that may tell of a rollout of that seq; those before it do not. */
  const segmentsFrom = (fromRollout: number): Segment[] => {
    let first = segments.length;
    while (first > 0 && (segments[first - 1] as Segment).rolloutSeq >= fromRollout) first -= 1;
    return segments.slice(first);
  };

  const liveRows = (segment: Segment, sidecar: Sidecar, key: Key): number[] => sidecar.owners(key).filter((row) => !isMarked(segment, row));

  const leave = (owner: string, places: readonly Place[]): void => {
    remains.set(owner, [...(remains.get(owner) ?? []), ...places]);
  };

  const forgetIn: LogIndex["forgetIn"] = async (segment, owner) => {
    let spans = 0;
    for (const row of await within(segment, (sidecar) => liveRows(segment, sidecar, keyOf(owner)))) {
      const [places, count] = await within(segment, (sidecar) => [sidecar.places(row), sidecar.spanCount(row)] as const);
      const [proof] = places;
      if (proof === undefined || ownerOf(await read(proof)) !== owner) continue;
      mark(segment, row);
      leave(owner, places);
      spans += count;
    }
    return spans;
  };

  const isIn = async (asked: readonly Segment[], owner: string, attemptId: string, id: string, spanKey: Key): Promise<boolean> => {
    const key = keyOf(owner);
    for (const segment of asked) {
      if (!filters.has(segment)) {
        const [oldest] = filters.keys();
        if (filters.size >= FILTERS_KEPT && oldest !== undefined) filters.delete(oldest);
        filters.set(segment, await within(segment, (sidecar) => sidecar.spanFilter()));
      }
      if (!filters.get(segment)?.mayHold(spanKey)) continue;
      const places = await within(segment, (sidecar) => (liveRows(segment, sidecar, key).length > 0 ? sidecar.spansOf(spanKey) : []));
      for (const place of places) {
        const record = await read(place);
        if (ownerOf(record) === owner && record.kind === "span" && record.data.attemptId === attemptId && record.data.id === id)
          return true;
      }
    }
    return false;
  };

  const isInSegments = (rolloutId: string, attemptId: string, id: string, fromRollout: number): Soon<boolean> => {
    const asked = segmentsFrom(fromRollout);
    if (asked.length === 0) return false;
    const owner = ofRollout(rolloutId);
    const spanKey = keyOf(owner, attemptId, id);
    return asked.some((segment) => filters.get(segment)?.mayHold(spanKey) ?? true) && isIn(asked, owner, attemptId, id, spanKey);
  };

  return {
    segments,
    remains,
    within,

    async *holdings(owner, fromRollout = 0) {
      const later = recent().find(owner);
      const key = keyOf(owner);
      for (const segment of segmentsFrom(fromRollout))
        yield* await within(segment, (sidecar) => liveRows(segment, sidecar, key).map((row) => sidecar.held(row)));
      if (later) yield later;
    },

    hasSpan: (rolloutId, attemptId, id, fromRollout = 0) =>
      recent().hasSpan(rolloutId, attemptId, id) || isInSegments(rolloutId, attemptId, id, fromRollout),

    spans: async (owner, afterSeq, limit) => {
      const later = recent().spans(owner, afterSeq, limit);
      const key = keyOf(owner);
      const found: SpanPlace[] = [];
      for (const segment of segments) {
        if (found.length >= limit) break;
        if (segment.spanSeq <= afterSeq) continue;
        found.push(
          ...(await within(segment, (sidecar) =>
            liveRows(segment, sidecar, key)
              .flatMap((row) => sidecar.spans(row, afterSeq, limit - found.length))
              .sort((a, b) => a.seq - b.seq),
          )),
        );
      }
      return [...found, ...later].slice(0, limit);
    },

    rollouts: async (order, fromSeq, limit) => {
      // those beyond all before it: what is written anew to be cancelled began elsewhere
      const before = segments.at(-1)?.rolloutSeq ?? 0;
      const later = [...recent().rollouts()].filter(({ seq }) => seq > before);
      const isBeyond = (seq: number): boolean => fromSeq === undefined || (order === "oldest" ? seq > fromSeq : seq < fromSeq);
      const found: RolloutPlace[] = [];
      const takeRecent = (): void => {
        const all = later.filter(({ seq }) => isBeyond(seq));
        if (order === "newest") all.reverse();
        found.push(...all.slice(0, limit - found.length));
      };
      const takeSealed = async (at: number): Promise<void> => {
        const segment = segments[at] as Segment;
        const floor = segments[at - 1]?.rolloutSeq ?? 0;
        await within(segment, (sidecar) => {
          const kept = found.length; // a repaired sidecar begins again
          const [low, high] = [sidecar.rolloutBeyond(floor), sidecar.counts.rollouts];
          const step = order === "oldest" ? 1 : -1;
          const first =
            order === "oldest"
              ? Math.max(low, sidecar.rolloutBeyond(fromSeq ?? 0))
              : sidecar.rolloutBeyond((fromSeq ?? Number.POSITIVE_INFINITY) - 0.5) - 1;
          const mine: RolloutPlace[] = [];
          for (let index = first; index >= low && index < high && kept + mine.length < limit; index += step) {
            const { seq, row } = sidecar.rollout(index);
            const { record } = sidecar.held(row);
            if (!isMarked(segment, row) && record) mine.push({ seq, place: record });
          }
          found.push(...mine);
        });
      };
      if (order === "newest") takeRecent();
      const ats = segments
        .map((_, at) => at)
        .filter((at) => {
          const [low, high] = [segments[at - 1]?.rolloutSeq ?? 0, (segments[at] as Segment).rolloutSeq];
          return high > low && (fromSeq === undefined || (order === "oldest" ? high > fromSeq : low + 1 < fromSeq));
        });
      for (const at of order === "oldest" ? ats : ats.reverse()) {
        if (found.length >= limit) break;
        await takeSealed(at);
      }
      if (order === "oldest") takeRecent();
      return found;
    },

    forget: async (owner) => {
      const entry = recent().drop(owner);
      if (entry) leave(owner, placesOf(entry));
      let spans = entry?.spans.length ?? 0;
      for (const segment of segments) spans += await forgetIn(segment, owner);
      return spans;
    },
    forgetIn,
  };
};

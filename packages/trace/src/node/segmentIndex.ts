// What a part of the log holds of whom, in memory: where the records of an owner are, which spans there are, which rollouts
// began here. For the file that is being written, with what is on its way to it; a file that is left gets a sidecar of this.

import { firstOf } from "../halving.ts";
import type { FrameBuffer } from "./frame.ts";
import type { Dropped, LogData } from "./logRecord.ts";
import { goneOf, ofRollout, ownerOf, rolloutOf, seqsOf } from "./segmentFile.ts";

/** Where a record is: a part of the memory that is on its way to the disk, then of a file. */
export interface Place {
  held: FrameBuffer | undefined;
  file: string;
  offset: number;
  readonly byteLength: number;
}

export interface SpanPlace {
  readonly seq: number;
  readonly place: Place;
}

/** What is here of one owner. */
export interface Held {
  /** The latest record of the rollout or resource itself. */
  readonly record: Place | undefined;
  /** The latest record of each attempt. */
  readonly attempts: readonly Place[];
}

interface IndexedSpan extends SpanPlace {
  readonly attemptId: string;
  readonly id: string;
}

export interface Entry {
  record: Place | undefined;
  /** Of its rollout; 0 for what is none. */
  rolloutSeq: number;
  /** Its rollout was enqueued here: what came before it is of one that was lost. */
  begins: boolean;
  readonly attempts: Map<string, Place>;
  readonly spans: IndexedSpan[];
  /** By attempt: the ids of its spans. */
  readonly spanIds: Map<string, Set<string>>;
  /** Records of the rollout and of its attempts that later ones here took the place of. */
  readonly older: Place[];
}

const createEntry = (): Entry => ({
  record: undefined,
  rolloutSeq: 0,
  begins: false,
  attempts: new Map(),
  spans: [],
  spanIds: new Map(),
  older: [],
});

/** Of all records of an owner, in no order. */
export const placesOf = ({ record, attempts, spans, older }: Entry): Place[] => [
  ...(record ? [record] : []),
  ...attempts.values(),
  ...spans.map(({ place }) => place),
  ...older,
];

/** The first index of `items` whose seq is beyond `seq`. */
export const firstBeyond = (items: { readonly length: number }, seqAt: (index: number) => number, seq: number): number =>
  firstOf(items.length, (index) => seqAt(index) > seq);

export class SegmentIndex {
  /** By rollout: the entry of its owner, which need not be spelt for each of its spans. */
  readonly #ofRollouts: Map<string, Entry> = new Map();

  readonly owners: Map<string, Entry> = new Map();
  /** Rollouts by seq, each where its seq was new; those that are gone since are passed over by whoever reads. */
  readonly order: { readonly seq: number; readonly owner: string }[] = [];
  /** Owners that records here say are gone. */
  readonly gone: Set<string> = new Set();
  rolloutSeq = 0;
  spanSeq = 0;
  lastSeq = 0;

  #entry(owner: string): Entry {
    let entry = this.owners.get(owner);
    if (entry === undefined) {
      entry = createEntry();
      this.owners.set(owner, entry);
    }
    return entry;
  }

  #raise(rolloutSeq: number, spanSeq: number, lastSeq: number): void {
    this.rolloutSeq = Math.max(this.rolloutSeq, rolloutSeq);
    this.spanSeq = Math.max(this.spanSeq, spanSeq);
    this.lastSeq = Math.max(this.lastSeq, lastSeq);
  }

  #rollout(id: string): Entry | undefined {
    let entry = this.#ofRollouts.get(id);
    if (entry === undefined) {
      entry = this.owners.get(ofRollout(id));
      if (entry !== undefined) this.#ofRollouts.set(id, entry);
    }
    return entry;
  }

  /** Notes a record; who it says is gone is still to be dropped. */
  note(record: LogData | Dropped, seq: number, place: Place): void {
    if (record.kind === "span") {
      const { data } = record;
      this.#noteSpan(this.#rollout(data.rolloutId) ?? this.#entry(ofRollout(data.rolloutId)), {
        seq: data.seq,
        place,
        attemptId: data.attemptId,
        id: data.id,
      });
      this.#raise(0, data.seq, seq);
      return;
    }
    const owner = ownerOf(record);
    if (owner !== undefined) {
      if (record.kind === "rollout" && record.data.status !== "cancelled") this.drop(owner);
      const entry = this.#entry(owner);
      const before = record.kind === "attempt" ? entry.attempts.get(record.data.id) : entry.record;
      if (before) entry.older.push(before);
      if (record.kind === "attempt") entry.attempts.set(record.data.id, place);
      else entry.record = place;
      if (record.kind === "rollout") {
        entry.begins ||= record.data.status !== "cancelled";
        this.#noteRollout(entry, owner, record.data.seq);
      }
    }
    const gone = goneOf(record);
    if (gone !== undefined) this.gone.add(gone);
    const { rolloutSeq, spanSeq } = seqsOf(record);
    this.#raise(rolloutSeq, spanSeq, seq);
  }

  /** Notes a record that is read back, in its turn. */
  replay(record: LogData | Dropped, seq: number, place: Place): void {
    this.note(record, seq, place);
    const gone = goneOf(record);
    if (gone !== undefined) this.drop(gone);
  }

  #noteSpan(entry: Entry, span: IndexedSpan): void {
    let ids = entry.spanIds.get(span.attemptId);
    if (ids === undefined) {
      ids = new Set();
      entry.spanIds.set(span.attemptId, ids);
    }
    const known = ids.size;
    ids.add(span.id);
    if (ids.size > known) entry.spans.push(span);
  }

  /** A rollout that is written anew, to be cancelled, has a seq that was given before. */
  #noteRollout(entry: Entry, owner: string, seq: number): void {
    entry.rolloutSeq = seq;
    if (seq > (this.order.at(-1)?.seq ?? 0)) this.order.push({ seq, owner });
  }

  /** Forgets what was noted of an owner, and returns it. */
  drop(owner: string): Entry | undefined {
    const entry = this.owners.get(owner);
    if (this.owners.delete(owner)) this.#ofRollouts.delete(rolloutOf(owner));
    return entry;
  }

  find(owner: string): Held | undefined {
    const entry = this.owners.get(owner);
    return entry && { record: entry.record, attempts: [...entry.attempts.values()] };
  }

  hasSpan(rolloutId: string, attemptId: string, id: string): boolean {
    return this.#rollout(rolloutId)?.spanIds.get(attemptId)?.has(id) ?? false;
  }

  /** The next `limit` spans of an owner beyond a seq. */
  spans(owner: string, afterSeq: number, limit: number): SpanPlace[] {
    const spans = this.owners.get(owner)?.spans ?? [];
    const from = firstBeyond(spans, (index) => (spans[index] as SpanPlace).seq, afterSeq);
    return spans.slice(from, from + limit);
  }

  /** Those that began here, by seq, and are not gone. */
  *rollouts(): Generator<{ readonly seq: number; readonly owner: string }> {
    for (const item of this.order) if (this.owners.get(item.owner)?.rolloutSeq === item.seq) yield item;
  }
}

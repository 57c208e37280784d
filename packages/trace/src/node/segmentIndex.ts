// What a part of the log holds of whom, in memory: where the records of an owner are, which spans there are, which rollouts
// began here. For the file that is being written and for what is on its way to it; a file that is left gets a sidecar of this.

import type { FrameBuffer } from "./frame.ts";
import type { Dropped, LogData } from "./logRecord.ts";
import { goneOf, ownerOf, seqsOf } from "./segmentFile.ts";

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
}

const createEntry = (): Entry => ({ record: undefined, rolloutSeq: 0, begins: false, attempts: new Map(), spans: [], spanIds: new Map() });

/** The first index of `items` whose seq is beyond `seq`, by halving. */
export const firstBeyond = (items: { readonly length: number }, seqAt: (index: number) => number, seq: number): number => {
  let [low, high] = [0, items.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (seqAt(middle) > seq) high = middle;
    else low = middle + 1;
  }
  return low;
};

export class SegmentIndex {
  /** Of the span that was noted last: most are of the rollout that the one before was of, and its owner need not be spelt again. */
  #last: { readonly rolloutId: string; readonly entry: Entry } | undefined;

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

  note(record: LogData | Dropped, seq: number, place: Place): void {
    if (record.kind === "span" && record.data.rolloutId === this.#last?.rolloutId) {
      this.#noteSpan(this.#last.entry, { seq: record.data.seq, place, attemptId: record.data.attemptId, id: record.data.id });
      this.#raise(0, record.data.seq, seq);
      return;
    }
    this.#last = undefined;
    const owner = ownerOf(record);
    if (owner !== undefined) {
      if (record.kind === "rollout" && record.data.status !== "cancelled") this.owners.delete(owner);
      const entry = this.#entry(owner);
      if (record.kind === "span") {
        this.#noteSpan(entry, { seq: record.data.seq, place, attemptId: record.data.attemptId, id: record.data.id });
        this.#last = { rolloutId: record.data.rolloutId, entry };
      } else if (record.kind === "attempt") entry.attempts.set(record.data.id, place);
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

  /** Forgets what was noted of an owner. Returns how many spans. */
  drop(owner: string): number {
    const spans = this.owners.get(owner)?.spans.length ?? 0;
    this.#last = undefined;
    this.owners.delete(owner);
    return spans;
  }

  /** Takes over what came after. */
  absorb(later: SegmentIndex): void {
    this.#last = undefined;
    for (const owner of later.gone) this.gone.add(owner);
    for (const [owner, entry] of later.owners) {
      const mine = this.owners.get(owner);
      if (mine === undefined || entry.begins) {
        this.owners.set(owner, entry);
        continue;
      }
      mine.record = entry.record ?? mine.record;
      mine.rolloutSeq = entry.rolloutSeq || mine.rolloutSeq;
      for (const [id, place] of entry.attempts) mine.attempts.set(id, place);
      for (const span of entry.spans) this.#noteSpan(mine, span);
    }
    for (const item of later.order) if (item.seq > (this.order.at(-1)?.seq ?? 0)) this.order.push(item);
    this.#raise(later.rolloutSeq, later.spanSeq, later.lastSeq);
  }

  find(owner: string): Held | undefined {
    const entry = this.owners.get(owner);
    return entry && { record: entry.record, attempts: [...entry.attempts.values()] };
  }

  hasSpan(owner: string, attemptId: string, id: string): boolean {
    return this.owners.get(owner)?.spanIds.get(attemptId)?.has(id) ?? false;
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

// What a log file that is no longer written holds of whom, beside it on disk: sorted tables of fixed width, searched where
// they lie. It says nothing that its log file does not say, and is made anew from it when it is missing or wrong.
//
//   content of index/<first seq, 16 digits>.idx (as blocks, blocks.ts); numbers little-endian, f64 where they may pass 2^32
//   offset 0    8 bytes   "fulgidx2"
//          8    f64       firstSeq: of the log file
//         16    f64       end: so many bytes of the log file are indexed
//         24    u32       check: CRC-32 of the last 4096 (or fewer) of those bytes
//         28    u32 × 6   rows of: owners O, attempts A, older records B, spans S, rollouts R, gone G
//         52    O × 44    owners, by key: u32 × 2 key · f64 offset, u32 byteLength of the latest rollout or resource record,
//                         0 0 for none · u32 × 2 first attempt, attempts · u32 × 2 first older record, older records ·
//                         u32 × 2 first span, spans
//               A × 12    attempts, by owner: f64 offset, u32 byteLength of the latest record of one
//               B × 12    older records, by owner, that the latest took the place of: f64 offset, u32 byteLength
//               S × 20    spans, by owner, then seq: f64 seq · f64 offset, u32 byteLength
//               S × 12    span keys, by key: u32 × 2 key · u32 row in spans
//               R × 12    rollouts that began here, by seq: f64 seq · u32 row in owners
//               G × 8     who is gone, by key: u32 × 2 key
//
// A key is keyOf of the owner (segmentFile.ts); of a span, of owner, attempt id and span id. Two may have one key: what a
// record says decides. Owners that are gone by a record of the same file are not there.

import { crc32 } from "node:zlib";
import { firstOf } from "../halving.ts";
import { type Blocks, blocksLength, DamagedBlock, fromBlocks, toBlocks } from "./blocks.ts";
import { KeyFilter } from "./keyFilter.ts";
import { type Entry, firstBeyond, type Held, type Place, type SegmentIndex, type SpanPlace } from "./segmentIndex.ts";

const MAGIC = "fulgidx2";
const HEADER = 52;
const CHECKED_BYTES = 4096;
const WIDTH = { owners: 44, attempts: 12, older: 12, spans: 20, keys: 12, rollouts: 12, gone: 8 } as const;

/** Which bytes of which log file. */
export interface Extent {
  readonly firstSeq: number;
  readonly end: number;
  readonly check: number;
}

/** Of the bytes of a log file up to its end. */
export const checkOf = (bytes: Buffer): number => crc32(bytes.subarray(Math.max(0, bytes.length - CHECKED_BYTES)));
export const checkedFrom = (end: number): number => Math.max(0, end - CHECKED_BYTES);

export interface Key {
  readonly high: number;
  readonly low: number;
}

/** What a key is made of, so far. */
interface Lanes {
  readonly a: number;
  readonly b: number;
}

const EMPTY: Lanes = { a: 0xdeadbeef, b: 0x41c6ce57 };

/** Two lanes of multiply and xor over a text's UTF-16 units, and a unit that ends it. */
const lanesAfter = ({ a, b }: Lanes, text: string): Lanes => {
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    a = Math.imul(a ^ unit, 2654435761);
    b = Math.imul(b ^ unit, 1597334677);
  }
  return { a: Math.imul(a ^ 0x1ffff, 2654435761), b: Math.imul(b ^ 0x1ffff, 1597334677) };
};

/** Mixed as MurmurHash3 ends. */
const keyFrom = ({ a, b }: Lanes): Key => {
  const high = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  const low = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(high ^ (high >>> 13), 3266489909);
  return { high: high >>> 0, low: low >>> 0 };
};

/** 64 bits of texts. */
export const keyOf = (...texts: readonly string[]): Key => keyFrom(texts.reduce(lanesAfter, EMPTY));

const byKey = (a: { readonly key: Key }, b: { readonly key: Key }): number => a.key.high - b.key.high || a.key.low - b.key.low;

/** So many row numbers fit behind 32 bits of a key, in a number that is still exact. */
const MOST_ROWS = 2 ** 21;

/** Rows in the order of their keys. Sorted as numbers they take a third of the time: nothing else goes on while a file is left. */
export const rowsByKey = (high: Uint32Array, low: Uint32Array): Uint32Array => {
  const isBefore = (a: number, b: number): boolean => high[a] === high[b] && (low[a] as number) < (low[b] as number);
  if (high.length > MOST_ROWS)
    return Uint32Array.from(high, (_, row) => row).sort(
      (a, b) => (high[a] as number) - (high[b] as number) || (low[a] as number) - (low[b] as number),
    );
  const numbers = new Float64Array(high.length);
  for (let row = 0; row < high.length; row++) numbers[row] = (high[row] as number) * MOST_ROWS + row;
  numbers.sort();
  const rows = new Uint32Array(high.length);
  for (let at = 0; at < rows.length; at++) rows[at] = (numbers[at] as number) % MOST_ROWS;
  for (let end = 1; end < rows.length; end++)
    for (let at = end; at > 0 && isBefore(rows[at] as number, rows[at - 1] as number); at--) {
      const row = rows[at] as number;
      rows[at] = rows[at - 1] as number;
      rows[at - 1] = row;
    }
  return rows;
};

interface Owner {
  readonly owner: string;
  readonly entry: Entry;
  readonly key: Key;
}

/** Nearly all of a sidecar: the spans of all owners, and their keys. */
const writeSpans = (view: DataView, owners: readonly Owner[], count: number): void => {
  const high = new Uint32Array(count);
  const low = new Uint32Array(count);
  let row = 0;
  for (const { owner, entry } of owners) {
    const ofOwner = lanesAfter(EMPTY, owner);
    let last = { attemptId: "", lanes: EMPTY }; // most spans are of the attempt that the one before was of
    for (const { seq, place, attemptId, id } of entry.spans) {
      if (last.attemptId !== attemptId) last = { attemptId, lanes: lanesAfter(ofOwner, attemptId) };
      const key = keyFrom(lanesAfter(last.lanes, id));
      high[row] = key.high;
      low[row] = key.low;
      const at = row++ * WIDTH.spans;
      view.setFloat64(at, seq, true);
      view.setFloat64(at + 8, place.offset, true);
      view.setUint32(at + 16, place.byteLength, true);
    }
  }
  let at = count * WIDTH.spans;
  for (const sorted of rowsByKey(high, low)) {
    view.setUint32(at, high[sorted] as number, true);
    view.setUint32(at + 4, low[sorted] as number, true);
    view.setUint32(at + 8, sorted, true);
    at += WIDTH.keys;
  }
};

/** The whole file. All places must be on disk. */
export const encodeSidecar = (index: SegmentIndex, { firstSeq, end, check }: Extent): Buffer => {
  const owners: Owner[] = [...index.owners].map(([owner, entry]) => ({ owner, entry, key: keyOf(owner) })).sort(byKey);
  const rowOf = new Map(owners.map(({ owner }, row) => [owner, row]));
  const rollouts = [...index.rollouts()];
  const gone = [...index.gone].map((owner) => ({ key: keyOf(owner) })).sort(byKey);
  const count = (of: (entry: Entry) => number): number => owners.reduce((sum, { entry }) => sum + of(entry), 0);
  const attemptCount = count(({ attempts }) => attempts.size);
  const olderCount = count(({ older }) => older.length);
  const spanCount = count(({ spans }) => spans.length);
  const tables = tablesOf({
    owners: owners.length,
    attempts: attemptCount,
    older: olderCount,
    spans: spanCount,
    rollouts: rollouts.length,
    gone: gone.length,
  });
  const content = Buffer.alloc(tables.end);
  let at = 0;
  const u32 = (value: number): void => {
    at = content.writeUInt32LE(value, at);
  };
  const f64 = (value: number): void => {
    at = content.writeDoubleLE(value, at);
  };
  const key = ({ high, low }: Key): void => {
    u32(high);
    u32(low);
  };
  const place = (placed: Place | undefined): void => {
    f64(placed?.offset ?? 0);
    u32(placed?.byteLength ?? 0);
  };

  at = content.write(MAGIC, "latin1");
  f64(firstSeq);
  f64(end);
  for (const value of [check, owners.length, attemptCount, olderCount, spanCount, rollouts.length, gone.length]) u32(value);
  let attemptRow = 0;
  let olderRow = 0;
  let spanRow = 0;
  for (const { entry, key: ownKey } of owners) {
    key(ownKey);
    place(entry.record);
    for (const value of [attemptRow, entry.attempts.size, olderRow, entry.older.length, spanRow, entry.spans.length]) u32(value);
    attemptRow += entry.attempts.size;
    olderRow += entry.older.length;
    spanRow += entry.spans.length;
  }
  for (const { entry } of owners) for (const placed of entry.attempts.values()) place(placed);
  for (const { entry } of owners) for (const placed of entry.older) place(placed);
  writeSpans(new DataView(content.buffer, content.byteOffset + at, spanCount * (WIDTH.spans + WIDTH.keys)), owners, spanCount);
  at += spanCount * (WIDTH.spans + WIDTH.keys);
  for (const { seq, owner } of rollouts) {
    f64(seq);
    u32(rowOf.get(owner) as number);
  }
  for (const { key: goneKey } of gone) key(goneKey);
  return toBlocks(content);
};

/** The sidecar of a log file that now ends elsewhere and tells of nothing else; undefined for a damaged one. */
export const restamped = (file: Buffer, { firstSeq, end, check }: Extent): Buffer | undefined => {
  const content = fromBlocks(file);
  if (content === undefined || content.toString("latin1", 0, 8) !== MAGIC || content.readDoubleLE(8) !== firstSeq) return undefined;
  content.writeDoubleLE(end, 16);
  content.writeUInt32LE(check, 24);
  return toBlocks(content);
};

interface Counts {
  readonly owners: number;
  readonly attempts: number;
  readonly older: number;
  readonly spans: number;
  readonly rollouts: number;
  readonly gone: number;
}

interface Tables {
  readonly counts: Counts;
  /** Offset of each table, and of the end. */
  readonly at: Readonly<Record<keyof typeof WIDTH, number>>;
  readonly end: number;
}

const tablesOf = (counts: Counts): Tables => {
  const rows = { ...counts, keys: counts.spans };
  const at: Partial<Record<keyof typeof WIDTH, number>> = {};
  let end = HEADER;
  for (const name of Object.keys(WIDTH) as (keyof typeof WIDTH)[]) {
    at[name] = end;
    end += rows[name] * WIDTH[name];
  }
  return { counts, at: at as Tables["at"], end };
};

/** Searched for by owner; a row found under a key may be another's with the same key. */
export interface Sidecar {
  readonly counts: Counts;
  /** Rows of the owners that have this key. */
  owners(key: Key): number[];
  held(row: number): Held;
  spanCount(row: number): number;
  /** Of all records of an owner's row, in no order. */
  places(row: number): Place[];
  /** The next `limit` spans of an owner's row beyond a seq. */
  spans(row: number, afterSeq: number, limit: number): SpanPlace[];
  /** Spans that have this key. */
  spansOf(key: Key): Place[];
  /** The place in the order of the first rollout beyond a seq; and what is at a place. */
  rolloutBeyond(seq: number): number;
  rollout(at: number): { readonly seq: number; readonly row: number };
  /** Of the keys of its spans. */
  spanFilter(): KeyFilter;
  /** The keys of who is gone. */
  gone(): Key[];
}

/** @throws DamagedBlock when the file is not that of `extent`; so does each of its methods when it meets damage. */
export const readSidecar = (blocks: Blocks, path: string, log: string, { firstSeq, end, check }: Extent): Sidecar => {
  const header = blocks.read(path, 0, HEADER);
  const [owners, attempts, older, spans, rollouts, gone] = [28, 32, 36, 40, 44, 48].map((at) => header.readUInt32LE(at)) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const { counts, at, end: contentLength } = tablesOf({ owners, attempts, older, spans, rollouts, gone });
  if (
    header.toString("latin1", 0, 8) !== MAGIC ||
    header.readDoubleLE(8) !== firstSeq ||
    header.readDoubleLE(16) !== end ||
    header.readUInt32LE(24) !== check ||
    blocksLength(contentLength) !== blocks.byteLength(path)
  )
    throw new DamagedBlock(`${path}: it is not of bytes 0 to ${end} of ${log}`);

  const rowAt = (table: keyof typeof WIDTH, row: number): Buffer => blocks.read(path, at[table] + row * WIDTH[table], WIDTH[table]);
  const placeAt = (row: Buffer, offset: number): Place => ({
    held: undefined,
    file: log,
    offset: row.readDoubleLE(offset),
    byteLength: row.readUInt32LE(offset + 8),
  });
  const keyAt = (row: Buffer): Key => ({ high: row.readUInt32LE(0), low: row.readUInt32LE(4) });

  /** The first row whose key is not below: keys are spread evenly, so it is looked for around where it should be, ever wider. */
  const firstWith = (table: "owners" | "keys", rows: number, { high, low }: Key): number => {
    const isBelow = (row: number): boolean => {
      const found = keyAt(rowAt(table, row));
      return found.high < high || (found.high === high && found.low < low);
    };
    const guess = Math.floor((high / 2 ** 32) * rows);
    let [from, to] = [guess, guess];
    for (let step = 8; from > 0 && !isBelow(from - 1); step *= 2) from = Math.max(0, from - step);
    for (let step = 8; to < rows && isBelow(to); step *= 2) to = Math.min(rows, to + step);
    return from + firstOf(to - from, (ahead) => !isBelow(from + ahead));
  };
  const rowsWith = (table: "owners" | "keys", rows: number, { high, low }: Key): Buffer[] => {
    const found: Buffer[] = [];
    for (let row = firstWith(table, rows, { high, low }); row < rows; row++) {
      const bytes = rowAt(table, row);
      if (bytes.readUInt32LE(0) !== high || bytes.readUInt32LE(4) !== low) break;
      found.push(bytes);
    }
    return found;
  };
  const spanAt = (row: number): SpanPlace => {
    const bytes = rowAt("spans", row);
    return { seq: bytes.readDoubleLE(0), place: placeAt(bytes, 8) };
  };

  /** So many rows of a table, the first number and the count of which an owner's row has at `offset`. */
  const part = <T>(ownerRow: Buffer, offset: number, read: (row: number) => T): T[] => {
    const [first, count] = [ownerRow.readUInt32LE(offset), ownerRow.readUInt32LE(offset + 4)];
    return Array.from({ length: count }, (_, index) => read(first + index));
  };
  const attemptsOf = (ownerRow: Buffer): Place[] => part(ownerRow, 20, (row) => placeAt(rowAt("attempts", row), 0));
  const recordOf = (ownerRow: Buffer): Place | undefined => {
    const record = placeAt(ownerRow, 8);
    return record.byteLength === 0 ? undefined : record;
  };

  return {
    counts,
    owners: (key) => {
      const first = firstWith("owners", owners, key);
      return rowsWith("owners", owners, key).map((_, index) => first + index);
    },
    held: (row) => {
      const bytes = rowAt("owners", row);
      return { record: recordOf(bytes), attempts: attemptsOf(bytes) };
    },
    spanCount: (row) => rowAt("owners", row).readUInt32LE(40),
    places: (row) => {
      const bytes = rowAt("owners", row);
      const record = recordOf(bytes);
      const older = part(bytes, 28, (at) => placeAt(rowAt("older", at), 0));
      return [...(record ? [record] : []), ...attemptsOf(bytes), ...part(bytes, 36, (at) => spanAt(at).place), ...older];
    },
    spans: (row, afterSeq, limit) => {
      const bytes = rowAt("owners", row);
      const [first, count] = [bytes.readUInt32LE(36), bytes.readUInt32LE(40)];
      const from = firstBeyond({ length: count }, (index) => spanAt(first + index).seq, afterSeq);
      return Array.from({ length: Math.min(limit, count - from) }, (_, index) => spanAt(first + from + index));
    },
    spansOf: (key) => rowsWith("keys", spans, key).map((bytes) => spanAt(bytes.readUInt32LE(8)).place),
    spanFilter: () => {
      const filter = new KeyFilter(spans);
      for (let row = 0; row < spans; row++) filter.add(keyAt(rowAt("keys", row)));
      return filter;
    },
    rolloutBeyond: (seq) => firstBeyond({ length: rollouts }, (index) => rowAt("rollouts", index).readDoubleLE(0), seq),
    rollout: (index) => {
      const bytes = rowAt("rollouts", index);
      return { seq: bytes.readDoubleLE(0), row: bytes.readUInt32LE(8) };
    },
    gone: () => Array.from({ length: gone }, (_, row) => keyAt(rowAt("gone", row))),
  };
};

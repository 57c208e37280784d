// One file of the log: its name, what can be read of it, and what it holds.

import { basename } from "node:path";
import { decodeHeader, decodeOutline } from "./codec.ts";
import { withFile } from "./durable.ts";
import { findFrame, frameAt, isTorn } from "./frame.ts";
import { seqOfLine } from "./lineRecord.ts";
import { NEWLINE } from "./lines.ts";
import type { Dropped, LogData, LogRecord } from "./logRecord.ts";

export const SEGMENT: RegExp = /^(\d{16})\.log$/;
export const nameOf = (firstSeq: number): string => `${String(firstSeq).padStart(16, "0")}.log`;
export const firstSeqOf = (name: string): number => Number(SEGMENT.exec(name)?.[1]);

interface Found {
  readonly start: number;
  /** Of its bytes, a line's newline not among them. */
  readonly end: number;
  /** Where the next one begins. */
  readonly next: number;
  readonly seq: number;
}

export interface Scan {
  readonly header: boolean;
  /** Of frames; undefined for lines. */
  readonly mark: number | undefined;
  /** Whole ones below the limit; outlineAt decodes them. */
  readonly records: readonly Found[];
  /** Damaged places that stand before a whole record. */
  readonly damaged: number;
  /** Where the last whole record ends. */
  readonly end: number;
  /** So many bytes stand behind it, not counting the zeros that the file may end with. */
  readonly tailLength: number;
  /** They were written to the end and are no record: damaged, perhaps, not torn. */
  readonly isTailEnded: boolean;
}

interface Body extends Pick<Scan, "records" | "damaged"> {
  /** Where the last whole record ends; 0 without one. */
  readonly end: number;
}

const scanLines = (bytes: Buffer, from: number, damagedBefore: number, voidFrom: number): Body => {
  const records: Found[] = [];
  let pending = damagedBefore;
  let damaged = 0;
  let end = 0;
  for (
    let start = from, newline = bytes.indexOf(NEWLINE, from);
    newline >= 0;
    start = newline + 1, newline = bytes.indexOf(NEWLINE, start)
  ) {
    const seq = seqOfLine(bytes.subarray(start, newline));
    if (seq === undefined) pending += 1;
    else if (seq >= voidFrom) break;
    else {
      end = newline + 1;
      records.push({ start, end: newline, next: end, seq });
      damaged += pending;
      pending = 0;
    }
  }
  return { records, damaged, end };
};

const SECTOR_BYTES = 512;

/** Is a sector among these bytes nothing but zeros? */
const hasEmptySector = (bytes: Buffer, from: number, to: number): boolean => {
  for (let at = Math.ceil(from / SECTOR_BYTES) * SECTOR_BYTES; at + SECTOR_BYTES <= to; at += SECTOR_BYTES)
    if (bytes.subarray(at, at + SECTOR_BYTES).every((byte) => byte === 0)) return true;
  return false;
};

const scanFrames = (bytes: Buffer, from: number, firstSeq: number, damagedBefore: number, voidFrom: number, mark: number): Body => {
  const records: Found[] = [];
  let pending = damagedBefore;
  let damaged = 0;
  let end = 0;
  /** What was there when a place was met that the disk never wrote, and the first number that is missing. */
  let unwritten: (Body & { readonly missing: number }) | undefined;
  for (let start = from; start < bytes.length; ) {
    const frame = frameAt(bytes, start, mark);
    if (frame === undefined) {
      pending += 1;
      const next = findFrame(bytes, start + 1, mark);
      if (next === undefined) break;
      if (hasEmptySector(bytes, start, next))
        unwritten ??= { records: [...records], damaged, end, missing: (records.at(-1)?.seq ?? firstSeq - 1) + 1 };
      start = next;
      continue;
    }
    if (frame.seq >= voidFrom) break;
    if (unwritten !== undefined && frame.firstSeq > unwritten.missing) unwritten = undefined; // a later write came after it: it was written once
    records.push({ start, end: frame.end, next: frame.end, seq: frame.seq });
    damaged += pending;
    pending = 0;
    start = end = frame.end;
  }
  // a crash in the midst of the last write left later parts of it on the disk, and not this: none of it was acknowledged
  return voidFrom === Number.POSITIVE_INFINITY && unwritten !== undefined ? unwritten : { records, damaged, end };
};

/** @throws TraceError "corrupt" for a whole header of another version. */
export const scan = (bytes: Buffer, path: string, voidFrom: number): Scan => {
  const newline = bytes.indexOf(NEWLINE);
  const header = newline < 0 ? undefined : decodeHeader(bytes.subarray(0, newline), path);
  const from = header ? newline + 1 : 0;
  // without its header a file is what is found in it
  const first = header ? undefined : findFrame(bytes, 0);
  const mark = header ? header.mark : first === undefined ? undefined : frameAt(bytes, first)?.mark;
  const { records, damaged, end } =
    mark === undefined
      ? scanLines(bytes, from, 0, voidFrom)
      : scanFrames(bytes, first ?? from, firstSeqOf(basename(path)), header ? 0 : 1, voidFrom, mark);
  const whole = Math.max(from, end);
  let written = bytes.length;
  while (written > whole && bytes[written - 1] === 0) written -= 1;
  return {
    header: header !== undefined,
    mark,
    records,
    damaged,
    end: whole,
    tailLength: written - whole,
    isTailEnded:
      written > whole && (mark === undefined ? bytes.indexOf(NEWLINE, whole) >= 0 : !isTorn(bytes.subarray(0, written), whole, mark)),
  };
};

/** Of a record that scan found; a span's attributes are not decoded. @throws TraceError "corrupt" for a record of another version. */
export const outlineAt = (bytes: Buffer, { start, end }: Pick<Found, "start" | "end">): LogRecord =>
  decodeOutline(bytes.subarray(start, end));

export const truncate = (path: string, byteLength: number): Promise<void> =>
  withFile(path, "r+", async (handle) => {
    await handle.truncate(byteLength);
    await handle.sync();
  });

/** What a file holds, as far as deleting it is concerned. */
export interface Contents {
  /** Where its last acknowledged record ends. */
  end: number;
  lastSeq: number;
  /** Owners of records here (ownerOf), each with the number of its last one. */
  readonly owners: Map<string, number>;
  /** Owners that records here say are gone. */
  readonly gone: Set<string>;
  rolloutSeq: number;
  spanSeq: number;
}

export const createContents = (end: number): Contents => ({
  end,
  lastSeq: 0,
  owners: new Map(),
  gone: new Set(),
  rolloutSeq: 0,
  spanSeq: 0,
});

export const ofRollout = (id: string): string => `rollout ${id}`;
export const rolloutOf = (owner: string): string => owner.slice("rollout ".length);
export const ofResource = ({ name, version }: { readonly name: string; readonly version: number }): string => `resource ${version} ${name}`;

/** What a record is deleted with: its rollout, or the resource's version that it is. */
export const ownerOf = (record: LogData | Dropped): string | undefined => {
  switch (record.kind) {
    case "rollout":
      return ofRollout(record.data.id);
    case "attempt":
    case "span":
      return ofRollout(record.data.rolloutId);
    case "resource":
      return ofResource(record.data);
    default:
      return undefined;
  }
};

/** The owner that a record says is gone: what is before it of that owner is void. */
export const goneOf = (record: LogData | Dropped): string | undefined =>
  record.kind === "gone" ? ofRollout(record.data.rolloutId) : record.kind === "unpublished" ? ofResource(record.data) : undefined;

/** The highest seqs of rollouts and spans that go with a record. */
export const seqsOf = (record: LogData | Dropped): { rolloutSeq: number; spanSeq: number } => ({
  rolloutSeq: record.kind === "rollout" ? record.data.seq : record.kind === "dropped" ? record.data.rolloutSeq : 0,
  spanSeq: record.kind === "span" ? record.data.seq : record.kind === "dropped" ? record.data.spanSeq : 0,
});

export const note = (contents: Contents, record: LogRecord): void => {
  const { rolloutSeq, spanSeq } = seqsOf(record);
  contents.lastSeq = record.seq;
  contents.rolloutSeq = Math.max(contents.rolloutSeq, rolloutSeq);
  contents.spanSeq = Math.max(contents.spanSeq, spanSeq);
  const owner = ownerOf(record);
  if (owner !== undefined) contents.owners.set(owner, record.seq);
  const gone = goneOf(record);
  if (gone !== undefined) contents.gone.add(gone);
};

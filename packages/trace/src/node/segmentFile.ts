// One file of the log: its name, what can be read of it, and what it holds.

import { open } from "node:fs/promises";
import { decodeHeader, decodeOutline, decodeSeq, type LogRecord } from "./codec.ts";

const NEWLINE = 0x0a;
export const SEGMENT: RegExp = /^(\d{16})\.log$/;
export const nameOf = (firstSeq: number): string => `${String(firstSeq).padStart(16, "0")}.log`;
export const firstSeqOf = (name: string): number => Number(SEGMENT.exec(name)?.[1]);

interface Line {
  readonly start: number;
  /** Without the newline. */
  readonly end: number;
  /** Of its record. */
  readonly seq: number;
}

export interface Scan {
  readonly header: boolean;
  /** Of whole records below the limit; outlineAt decodes them. */
  readonly lines: readonly Line[];
  /** Damaged lines that stand before a whole record. */
  readonly damaged: number;
  /** Where the last whole line ends, its newline included. */
  readonly end: number;
}

export const scan = (bytes: Buffer, path: string, voidFrom: number): Scan => {
  let header = false;
  const lines: Line[] = [];
  let pending = 0;
  let damaged = 0;
  let end = 0;
  for (let start = 0, newline = bytes.indexOf(NEWLINE); newline >= 0; start = newline + 1, newline = bytes.indexOf(NEWLINE, start)) {
    const line = bytes.subarray(start, newline);
    if (start === 0) {
      header = decodeHeader(line, path) !== undefined;
      if (header) end = newline + 1;
      else pending += 1;
      continue;
    }
    const seq = decodeSeq(line);
    if (seq === undefined) pending += 1;
    else if (seq >= voidFrom) break;
    else {
      lines.push({ start, end: newline, seq });
      damaged += pending;
      pending = 0;
      end = newline + 1;
    }
  }
  return { header, lines, damaged, end };
};

/** Of a line that scan found; a span's attributes are left as they are written. @throws TraceError "corrupt" for a record of another version. */
export const outlineAt = (bytes: Buffer, { start, end }: Line): LogRecord => decodeOutline(bytes.subarray(start, end));

export const truncate = async (path: string, byteLength: number): Promise<void> => {
  const handle = await open(path, "r+");
  try {
    await handle.truncate(byteLength);
    await handle.sync();
  } finally {
    await handle.close();
  }
};

/** What a file holds, as far as deleting it is concerned. */
export interface Contents {
  /** Where its last acknowledged line ends. */
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
export const ownerOf = (record: LogRecord): string | undefined => {
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
export const goneOf = (record: LogRecord): string | undefined =>
  record.kind === "gone" ? ofRollout(record.data.rolloutId) : record.kind === "unpublished" ? ofResource(record.data) : undefined;

/** The highest seqs of rollouts and spans that go with a record. */
export const seqsOf = (record: LogRecord): { rolloutSeq: number; spanSeq: number } => ({
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

// Taking what is gone off the disk. Files are handled from the oldest on, each replaced or removed in one durable step, so a
// crash leaves a log that reads the same: records that were still to be dropped are void by the record after them that says what
// is gone, and that record itself is dropped only when nothing before it needs it any more.
//
// In place of dropped records stands one that says which numbers they had. A file of nothing else is deleted, and that record
// is added to the file before it; until the old file is unlinked it is void (it is beyond the next file's first number).
// The first file has none before it, and stays as a header and that record.

import { type FileHandle, open, readFile, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { decodeHeader } from "./codec.ts";
import { replaceFile, syncFolder, writeAll } from "./durable.ts";
import { encodeFrame } from "./frame.ts";
import { encodeDroppedLine } from "./lineRecord.ts";
import { NEWLINE } from "./lines.ts";
import type { Dropped, LogRecord } from "./logRecord.ts";
import { type Contents, createContents, firstSeqOf, goneOf, note, outlineAt, ownerOf, scan, seqsOf } from "./segmentFile.ts";
import type { Place } from "./segmentIndex.ts";

export interface Compacted {
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly records: number;
}

/** What the log knows of its files, oldest first, and the number of the last record that says of an owner that it is gone. */
export interface LogContents {
  readonly folder: string;
  readonly files: Map<string, Contents>;
  readonly goneAt: Map<string, number>;
}

/** Every record of the log, in order. */
export const noteRecord = ({ files, goneAt }: LogContents, record: LogRecord, { file }: Place, end: number): void => {
  const contents = files.get(file) ?? createContents(0);
  files.set(file, contents);
  note(contents, record);
  contents.end = end;
  const gone = goneOf(record);
  if (gone !== undefined) goneAt.set(gone, record.seq);
};

const isVoid = (goneAt: ReadonlyMap<string, number>, owner: string, seq: number): boolean => seq < (goneAt.get(owner) ?? 0);

const headerOf = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.indexOf(NEWLINE) + 1);

/** As the other records of its file are written. */
const encodeDropped = (seq: number, data: Dropped["data"], mark: number | undefined): Buffer =>
  mark === undefined ? encodeDroppedLine({ seq, kind: "dropped", data }) : encodeFrame({ seq, kind: "dropped", data }, mark);

const HEADER_BYTES = 512;

/** The header of a file as it is. @throws TraceError "corrupt" for a damaged one. */
const readHeader = async (handle: FileHandle, path: string): Promise<{ bytes: Buffer; mark: number | undefined }> => {
  const { bytesRead, buffer } = await handle.read(Buffer.alloc(HEADER_BYTES), 0, HEADER_BYTES, 0);
  const bytes = headerOf(buffer.subarray(0, bytesRead));
  const header = decodeHeader(bytes.subarray(0, -1), path);
  if (header === undefined)
    throw new TraceError("corrupt", `${path}: a whole header, got a damaged one; open the store again to keep what is whole`);
  return { bytes, mark: header.mark };
};

/** What is still to be known of a file that is removed. */
export interface Spent {
  readonly name: string;
  readonly lastSeq: number;
  readonly rolloutSeq: number;
  readonly spanSeq: number;
}

/**
 * Removes a file of which nothing is needed; the first of all is emptied. `before` is the file before it and where that ends.
 * Returns where the record of what was dropped ends, in `before` or in the emptied file.
 */
export const removeFile = async (folder: string, spent: Spent, before: { name: string; end: number } | undefined): Promise<number> => {
  const { name, lastSeq, rolloutSeq, spanSeq } = spent;
  const path = join(folder, (before ?? spent).name);
  const handle = await open(path, "r+");
  let end: number;
  try {
    const header = await readHeader(handle, path);
    const record = encodeDropped(lastSeq, { firstSeq: firstSeqOf(name), rolloutSeq, spanSeq }, header.mark);
    if (before === undefined) {
      await replaceFile(path, Buffer.concat([header.bytes, record]));
      return header.bytes.length + record.length;
    }
    await handle.truncate(before.end); // behind it is only what was never acknowledged
    await writeAll(handle, record, before.end);
    await handle.sync();
    end = before.end + record.length;
  } finally {
    await handle.close();
  }
  await unlink(join(folder, name));
  await syncFolder(folder);
  return end;
};

/** Rewrites every file without the records of what is gone. Nobody may hold a place in them. */
export const rewriteAll = async (log: LogContents, signal?: AbortSignal): Promise<Compacted> => {
  const { folder, files, goneAt } = log;
  const sizeOf = async (): Promise<number> => {
    let bytes = 0;
    for (const name of files.keys()) bytes += (await stat(join(folder, name))).size;
    return bytes;
  };
  const bytesBefore = await sizeOf();
  const remove = async (name: string, { lastSeq, rolloutSeq, spanSeq }: Contents, before: string | undefined): Promise<void> => {
    const kept = before === undefined ? undefined : (files.get(before) as Contents);
    const end = await removeFile(folder, { name, lastSeq, rolloutSeq, spanSeq }, kept && { name: before as string, end: kept.end });
    if (kept === undefined) return;
    kept.end = end;
    files.delete(name);
  };
  const names = [...files.keys()];
  let records = 0;
  let before: string | undefined;
  for (const [index, name] of names.entries()) {
    signal?.throwIfAborted();
    const path = join(folder, name);
    const bytes = await readFile(path);
    const next = names[index + 1];
    const scanned = scan(bytes, path, next === undefined ? Number.POSITIVE_INFINITY : firstSeqOf(next));
    const kept = [headerOf(bytes)];
    const contents = createContents(0);
    let run: { seq: number; data: Dropped["data"] } | undefined;
    let dropped = 0;
    const endRun = (): void => {
      if (run) kept.push(encodeDropped(run.seq, run.data, scanned.mark));
      run = undefined;
    };
    for (const found of scanned.records) {
      const record = outlineAt(bytes, found);
      if (isKept(record, goneAt)) {
        endRun();
        kept.push(bytes.subarray(found.start, found.next));
        note(contents, record);
        continue;
      }
      if (record.kind !== "dropped" || run !== undefined) dropped += 1;
      const { rolloutSeq, spanSeq } = seqsOf(record);
      const firstSeq = run?.data.firstSeq ?? (record.kind === "dropped" ? record.data.firstSeq : record.seq);
      run = {
        seq: record.seq,
        data: {
          firstSeq,
          rolloutSeq: Math.max(run?.data.rolloutSeq ?? 0, rolloutSeq),
          spanSeq: Math.max(run?.data.spanSeq ?? 0, spanSeq),
        },
      };
      note(contents, { ...run, kind: "dropped" });
    }
    endRun();
    if (dropped > 0) {
      records += dropped;
      const rewritten = Buffer.concat(kept);
      contents.end = rewritten.length;
      files.set(name, contents);
      if (contents.owners.size > 0) await replaceFile(path, rewritten);
      else await remove(name, contents, before);
    }
    if (files.has(name)) before = name;
  }
  return { bytesBefore, bytesAfter: await sizeOf(), records };
};

const isKept = (record: LogRecord, goneAt: ReadonlyMap<string, number>): boolean => {
  const owner = ownerOf(record);
  return owner !== undefined && !isVoid(goneAt, owner, record.seq);
};

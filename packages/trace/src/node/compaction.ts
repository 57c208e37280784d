// Taking what is gone off the disk. Files are handled from the oldest on, each replaced or removed in one durable step, so a
// crash leaves a log that reads the same: records that were still to be dropped are void by the record after them that says what
// is gone, and that record itself is dropped only when nothing before it needs it any more.
//
// In place of dropped records stands a line that says which numbers they had. A file of nothing else is deleted, and the line
// is added to the file before it; until the old file is unlinked that line is void (it is beyond the next file's first number).
// The first file has none before it, and stays as two lines.

import { open, readFile, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import { type Dropped, encodeRecord, type LogRecord } from "./codec.ts";
import { replaceFile, syncFolder, writeAll } from "./durable.ts";
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
export const noteRecord = ({ files, goneAt }: LogContents, record: LogRecord, { file, offset, byteLength }: Place): void => {
  const contents = files.get(file) ?? createContents(0);
  files.set(file, contents);
  note(contents, record);
  contents.end = offset + byteLength + 1;
  const gone = goneOf(record);
  if (gone !== undefined) goneAt.set(gone, record.seq);
};

const isVoid = (goneAt: ReadonlyMap<string, number>, owner: string, seq: number): boolean => seq < (goneAt.get(owner) ?? 0);

const headerOf = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.indexOf(0x0a) + 1);

const droppedLine = (seq: number, data: Dropped["data"]): Buffer => encodeRecord({ seq, kind: "dropped", data });

/** What is still to be known of a file that is removed. */
export interface Spent {
  readonly name: string;
  readonly lastSeq: number;
  readonly rolloutSeq: number;
  readonly spanSeq: number;
}

/**
 * Removes a file of which nothing is needed; the first of all is emptied. `before` is the file before it and where that ends.
 * Returns where the line of what was dropped ends, in `before` or in the emptied file.
 */
export const removeFile = async (folder: string, spent: Spent, before: { name: string; end: number } | undefined): Promise<number> => {
  const { name, lastSeq, rolloutSeq, spanSeq } = spent;
  const line = droppedLine(lastSeq, { firstSeq: firstSeqOf(name), rolloutSeq, spanSeq });
  if (before === undefined) {
    const path = join(folder, name);
    const bytes = Buffer.concat([headerOf(await readFile(path)), line]);
    await replaceFile(path, bytes);
    return bytes.length;
  }
  const handle = await open(join(folder, before.name), "r+");
  try {
    await handle.truncate(before.end); // behind it is only what was never acknowledged
    await writeAll(handle, line, before.end);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await unlink(join(folder, name));
  await syncFolder(folder);
  return before.end + line.length;
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
    const lines = [headerOf(bytes)];
    const contents = createContents(0);
    let run: { seq: number; data: Dropped["data"] } | undefined;
    let dropped = 0;
    const endRun = (): void => {
      if (run) lines.push(droppedLine(run.seq, run.data));
      run = undefined;
    };
    for (const line of scanned.lines) {
      const record = outlineAt(bytes, line);
      if (isKept(record, goneAt)) {
        endRun();
        lines.push(bytes.subarray(line.start, line.end + 1));
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
      const rewritten = Buffer.concat(lines);
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

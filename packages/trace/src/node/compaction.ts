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
import { type Contents, createContents, firstSeqOf, note, ownerOf, scan, seqsOf } from "./segmentFile.ts";

export interface Compacted {
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly records: number;
}

/** What the log knows of its files, oldest first, and the number of the last record that says of an owner that it is gone. */
export interface LogContents {
  readonly folder: string;
  readonly files: Map<string, Contents>;
  readonly goneAt: ReadonlyMap<string, number>;
}

const isVoid = (goneAt: ReadonlyMap<string, number>, owner: string, seq: number): boolean => seq < (goneAt.get(owner) ?? 0);

const headerOf = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.indexOf(0x0a) + 1);

const droppedLine = (seq: number, data: Dropped["data"]): Buffer => encodeRecord({ seq, kind: "dropped", data });

/** Removes a file of which nothing is needed. */
const removeSegment = async ({ folder, files }: LogContents, name: string, before: string | undefined): Promise<void> => {
  const contents = files.get(name) as Contents;
  const { lastSeq, rolloutSeq, spanSeq } = contents;
  const line = droppedLine(lastSeq, { firstSeq: firstSeqOf(name), rolloutSeq, spanSeq });
  if (before === undefined) {
    const path = join(folder, name);
    const bytes = Buffer.concat([headerOf(await readFile(path)), line]);
    await replaceFile(path, bytes);
    files.set(name, { ...createContents(bytes.length), lastSeq, rolloutSeq, spanSeq });
    return;
  }
  const kept = files.get(before) as Contents;
  const handle = await open(join(folder, before), "r+");
  try {
    await handle.truncate(kept.end); // behind it is only what was never acknowledged
    await writeAll(handle, line, kept.end);
    await handle.sync();
  } finally {
    await handle.close();
  }
  kept.end += line.length;
  kept.lastSeq = lastSeq;
  kept.rolloutSeq = Math.max(kept.rolloutSeq, rolloutSeq);
  kept.spanSeq = Math.max(kept.spanSeq, spanSeq);
  await unlink(join(folder, name));
  await syncFolder(folder);
  files.delete(name);
};

/** Deletes the files whose owners are all gone, but not `current`. Returns their names. */
export const removeSpent = async (log: LogContents, current: string | undefined): Promise<string[]> => {
  const { files, goneAt } = log;
  const removed: string[] = [];
  const needed = new Set<string>(); // gone owners that a kept file still has records of
  let before: string | undefined;
  for (const [name, { owners, gone }] of [...files]) {
    const isSpent =
      name !== current &&
      owners.size + gone.size > 0 && // else it is already nothing but a dropped line
      [...owners].every(([id, seq]) => isVoid(goneAt, id, seq)) &&
      ![...gone].some((id) => needed.has(id));
    if (isSpent) {
      await removeSegment(log, name, before);
      removed.push(name);
      if (!files.has(name)) continue;
    } else for (const id of owners.keys()) if (goneAt.has(id)) needed.add(id);
    before = name;
  }
  return removed;
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
    for (const { line, record } of scanned.records) {
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
      else await removeSegment(log, name, before);
    }
    if (files.has(name)) before = name;
  }
  return { bytesBefore, bytesAfter: await sizeOf(), records };
};

const isKept = (record: LogRecord, goneAt: ReadonlyMap<string, number>): boolean => {
  const owner = ownerOf(record);
  return owner !== undefined && !isVoid(goneAt, owner, record.seq);
};

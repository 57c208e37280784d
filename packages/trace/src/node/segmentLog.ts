// Append-only files of lines (codec.ts), named by the sequence number of their first record, rotated at a size.
// A record is acknowledged when its bytes are on disk (fdatasync); records that arrive during one sync share the next.
//
// After a failed write or sync the kernel may have dropped the bytes and call the next sync a success, so the file is closed
// for ever and the unacknowledged records go into a new one. Hence, when reading: what a file says from the next file's
// first number on is void. If the new file fails too, the log is failed, and says so to everyone until it is opened again.

import { randomBytes } from "node:crypto";
import { copyFile, type FileHandle, mkdir, open, readdir, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { decodeRecord, encodeLine, encodeRecord, LOG_MAGIC, LOG_VERSION, type LogData, type LogRecord } from "./codec.ts";
import { type Compacted, type LogContents, removeSpent, rewriteAll } from "./compaction.ts";
import { isMissing, replaceFile, syncFolder, writeAll } from "./durable.ts";
import { type Contents, createContents, firstSeqOf, goneOf, nameOf, note, SEGMENT, scan, truncate } from "./segmentFile.ts";

/** Where a record is: its line in memory until it is on disk, then a part of a file. */
export interface Place {
  line?: Buffer | undefined;
  file: string;
  offset: number;
  readonly byteLength: number;
}

/** The two calls that a disk can fail, replaceable so that tests can fail them. */
export interface LogIo {
  write(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void>;
  datasync(handle: FileHandle): Promise<void>;
}

export interface SegmentLogOptions {
  readonly rotateBytes: number;
  readonly io: LogIo;
  readonly clock: () => number;
  readonly onReport: (message: string) => void;
  /** Every record on disk, in order, before open resolves. */
  readonly onRecord: (record: LogRecord, place: Place) => Promise<void>;
}

export interface SegmentLog {
  /** Queues records. Their places can be read at once; they are safe when a settled() called afterwards resolves. */
  add(data: readonly LogData[]): Place[];
  /** Resolves when all that was added before is on disk. @throws TraceError "storage" once the log is failed. */
  settled(): Promise<void>;
  read(place: Place): Promise<LogRecord>;
  /** Deletes the files whose owners are all gone. Nothing may be added or read meanwhile. */
  removeSpent(): Promise<void>;
  /** Rewrites the files without what is gone. Places from before are no longer true: for a log that nothing is read from. */
  rewriteAll(signal?: AbortSignal): Promise<Compacted>;
  close(): Promise<void>;
}

export const platformIo: LogIo = { write: writeAll, datasync: (handle) => handle.datasync() };

const NEWLINE = 0x0a;
/** @throws the platform's errors; TraceError "corrupt" for files of another version. */
export const openSegmentLog = async (
  folder: string,
  quarantine: string,
  { rotateBytes, io, clock, onReport, onRecord }: SegmentLogOptions,
): Promise<SegmentLog> => {
  const headerLine = (firstSeq: number) => encodeLine({ magic: LOG_MAGIC, v: LOG_VERSION, firstSeq, createdMs: clock() });
  const setAside = async (name: string): Promise<string> => {
    await mkdir(quarantine, { recursive: true });
    const kept = join(quarantine, `${name}.${randomBytes(4).toString("hex")}`);
    await copyFile(join(folder, name), kept);
    const handle = await open(kept, "r+");
    await handle.sync();
    await handle.close();
    await syncFolder(quarantine);
    return kept;
  };

  // ---- what is there ------------------------------------------------------------------------------------------------
  let lastSeq = 0;
  const files = new Map<string, Contents>();
  const goneAt = new Map<string, number>();
  const contents: LogContents = { folder, files, goneAt };
  const take = (name: string, record: LogRecord): void => {
    note(files.get(name) as Contents, record);
    const gone = goneOf(record);
    if (gone !== undefined) goneAt.set(gone, record.seq);
  };
  let current: { name: string; handle: FileHandle; end: number } | undefined;

  const replay = async (name: string, voidFrom: number, isLast: boolean): Promise<number> => {
    const path = join(folder, name);
    const bytes = await readFile(path);
    const { header, records, damaged, end } = scan(bytes, path, voidFrom);
    if (damaged > 0) {
      const kept = await setAside(name);
      const good = records.map(({ line }) => bytes.subarray(line.start, line.end + 1));
      await replaceFile(path, Buffer.concat([headerLine(firstSeqOf(name)), ...good]));
      onReport(
        `${path}: ${damaged} damaged lines stood before whole ones; the file as it was is ${kept}, its ${records.length} whole records are kept`,
      );
      return replay(name, voidFrom, isLast);
    }
    if (isLast && end < bytes.length) {
      // a line that was ended and is still wrong was perhaps not torn but damaged: keep it
      const kept = bytes.indexOf(NEWLINE, end) >= 0 ? `; the file as it was is ${await setAside(name)}` : "";
      await truncate(path, end);
      onReport(
        `${path}: ${bytes.length - end} bytes after the last whole record were never acknowledged or are damaged, and are cut off${kept}`,
      );
    }
    if (header) files.set(name, createContents(end));
    for (const { line, record } of records) {
      if (record.seq <= lastSeq) continue;
      const firstSeq = record.kind === "dropped" ? record.data.firstSeq : record.seq;
      if (firstSeq > lastSeq + 1) onReport(`${path}: records ${lastSeq + 1} to ${firstSeq - 1} are missing before it`);
      lastSeq = record.seq;
      take(name, record);
      await onRecord(record, { file: name, offset: line.start, byteLength: line.end - line.start });
    }
    return header ? end : 0;
  };

  const names = (await readdir(folder)).filter((name) => SEGMENT.test(name)).sort();
  for (const [index, name] of names.entries()) {
    const next = names[index + 1];
    const end = await replay(name, next === undefined ? Number.POSITIVE_INFINITY : firstSeqOf(next), next === undefined);
    if (next !== undefined) continue;
    if (end > 0) current = { name, handle: await open(join(folder, name), "r+"), end };
    else {
      await unlink(join(folder, name)); // its header was being written
      files.delete(name);
    }
  }

  // ---- writing ------------------------------------------------------------------------------------------------------
  interface Batch {
    readonly firstSeq: number;
    readonly places: Place[];
    readonly records: LogRecord[];
    readonly done: Promise<void>;
    settle(error?: unknown): void;
  }
  let waiting: Batch | undefined;
  let writing: Promise<void> = Promise.resolve();
  let failure: TraceError | undefined;
  let isWriting = false;

  const openBatch = (firstSeq: number): Batch => {
    let settle: Batch["settle"] = () => {};
    const done = new Promise<void>((resolve, reject) => {
      settle = (error) => (error === undefined ? resolve() : reject(error));
    });
    done.catch(() => {}); // whoever waits hears it from settled()
    return { firstSeq, places: [], records: [], done, settle };
  };

  const startFile = async (firstSeq: number): Promise<NonNullable<typeof current>> => {
    const name = nameOf(firstSeq);
    // a file of this name can only hold records that were never acknowledged
    await unlink(join(folder, name)).catch((error) => {
      if (!isMissing(error)) throw error;
    });
    const handle = await open(join(folder, name), "wx");
    try {
      const line = headerLine(firstSeq);
      await io.write(handle, line, 0);
      await io.datasync(handle);
      await syncFolder(folder);
      files.set(name, createContents(line.length));
      return { name, handle, end: line.length };
    } catch (error) {
      await handle.close();
      throw error;
    }
  };

  const leaveFile = async (): Promise<void> => {
    const left = current;
    current = undefined;
    await left?.handle.close();
  };

  const writeBatch = async ({ firstSeq, places, records }: Batch): Promise<void> => {
    if (current !== undefined && current.end >= rotateBytes) await leaveFile();
    current ??= await startFile(firstSeq);
    const file = current;
    const bytes = Buffer.concat(places.map((place) => place.line as Buffer));
    await io.write(file.handle, bytes, file.end);
    await io.datasync(file.handle);
    for (const place of places) {
      place.file = file.name;
      place.offset = file.end;
      file.end += place.byteLength + 1;
      place.line = undefined;
    }
    for (const record of records) take(file.name, record);
    (files.get(file.name) as Contents).end = file.end;
  };

  const drain = async (): Promise<void> => {
    isWriting = true;
    for (let batch = waiting; batch !== undefined; batch = waiting) {
      waiting = undefined;
      try {
        if (failure) throw failure;
        try {
          await writeBatch(batch);
        } catch (first) {
          onReport(`${folder}: writing failed (${first}); the file is left for ever, and its unacknowledged records go into a new one`);
          await leaveFile().catch(() => {}); // its descriptor is gone either way
          await writeBatch(batch);
        }
        batch.settle();
      } catch (error) {
        failure ??= new TraceError(
          "storage",
          `${folder}: records must reach the disk, got ${error} twice; free the disk and open the store again`,
          {
            cause: error,
          },
        );
        batch.settle(failure);
      }
    }
    isWriting = false;
  };

  const readers = new Map<string, Promise<FileHandle>>();

  return {
    add: (data) => {
      if (failure) throw failure;
      const places = data.map((record) => {
        lastSeq += 1;
        const numbered: LogRecord = { seq: lastSeq, ...record };
        const line = encodeRecord(numbered);
        waiting ??= openBatch(lastSeq);
        const place: Place = { line, file: "", offset: 0, byteLength: line.length - 1 };
        waiting.places.push(place);
        waiting.records.push(numbered);
        return place;
      });
      if (places.length > 0 && waiting) {
        writing = waiting.done;
        if (!isWriting) void drain();
      }
      return places;
    },
    settled: async () => {
      if (failure) throw failure;
      await writing;
    },
    read: async (place) => {
      let line = place.line?.subarray(0, -1);
      if (line === undefined) {
        let reader = readers.get(place.file);
        if (reader === undefined) {
          reader = open(join(folder, place.file), "r");
          readers.set(place.file, reader);
        }
        line = Buffer.allocUnsafe(place.byteLength);
        await (await reader).read(line, 0, place.byteLength, place.offset);
      }
      const record = decodeRecord(line);
      if (record === undefined)
        throw new TraceError(
          "corrupt",
          `${join(folder, place.file)}: a whole record at byte ${place.offset}, got a damaged one; restore the file from a copy`,
        );
      return record;
    },
    removeSpent: async () => {
      for (const name of await removeSpent(contents, current?.name)) {
        await (await readers.get(name))?.close();
        readers.delete(name);
      }
    },
    rewriteAll: async (signal) => {
      await leaveFile();
      return rewriteAll(contents, signal);
    },
    close: async () => {
      await writing.catch(() => {}); // each caller was told
      await leaveFile();
      for (const reader of readers.values()) await (await reader).close();
    },
  };
};

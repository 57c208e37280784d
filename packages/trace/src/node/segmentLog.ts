// Append-only files of lines (codec.ts), named by the sequence number of their first record. A record is acknowledged when its
// bytes are on disk (fdatasync); records that arrive during one sync share the next. A file that is left gets a sidecar.
//
// After a failed write or sync the kernel may have dropped the bytes and call the next sync a success, so the file is closed
// for ever and the unacknowledged records go into a new one. Hence, when reading: what a file says from the next file's
// first number on is void. If the new file fails too, the log is failed, and says so to everyone until it is opened again;
// when what failed is a full disk, nothing of the records stays: whoever opens the log again finds what was acknowledged.

import { randomBytes } from "node:crypto";
import { constants, copyFile, type FileHandle, mkdir, open, readdir, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { createBlocks } from "./blocks.ts";
import { decodeRecord, encodeLine, encodeRecord, LOG_MAGIC, LOG_VERSION, type LogData, type LogRecord } from "./codec.ts";
import { fullDisk, isFull } from "./diskFull.ts";
import { isMissing, replaceFile, syncFolder, writeAll } from "./durable.ts";
import { createLogIndex, type LogIndex, type Segment } from "./logIndex.ts";
import { firstSeqOf, goneOf, nameOf, outlineAt, SEGMENT, scan, truncate } from "./segmentFile.ts";
import { type Place, SegmentIndex } from "./segmentIndex.ts";
import { checkedFrom, checkOf, type Extent, encodeSidecar, restamped } from "./sidecar.ts";

/** The calls that a disk can fail, replaceable so that tests can fail them. What is written is on disk once both have resolved. */
export interface LogIo {
  /** Of a file that was opened with LOG_FLAGS: where the system has O_DSYNC, this is all. */
  write(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void>;
  datasync(handle: FileHandle): Promise<void>;
  /** Of what lies beside the log: sidecars and the manifest. */
  replace(path: string, bytes: Uint8Array): Promise<void>;
}

export interface LogFolders {
  readonly log: string;
  readonly index: string;
  readonly quarantine: string;
}

export interface SegmentLogOptions {
  /** Where to begin: the oldest files, of which all is known. */
  readonly known: readonly Segment[];
  readonly rotateBytes: number;
  readonly io: LogIo;
  readonly clock: () => number;
  readonly onReport: (message: string) => void;
  /** Every record that replay() reads, in order. The index says of it only once this is done. */
  readonly onRecord: (record: LogRecord, place: Place) => Promise<void>;
  /** A file was left, and everything that is on disk is in it or before it. */
  readonly onLeft: () => Promise<void>;
}

export interface SegmentLog {
  readonly index: LogIndex;
  /**
   * Reads what is on disk after what is known; before it resolves only the index and read may be used.
   * @throws the platform's errors; TraceError "corrupt" for files of another version.
   */
  replay(): Promise<void>;
  /** Queues records. The index has them at once; they are safe when a settled() called afterwards resolves. */
  add(data: readonly LogData[]): void;
  /** Resolves when all that was added before is on disk. @throws TraceError "full" or "storage" once the log is failed. */
  settled(): Promise<void>;
  hasFailed(): boolean;
  /** @throws TraceError "corrupt" for damage, which is then known to whoever opens the log next. */
  read(place: Place): Promise<LogRecord>;
  /** Many at once: what lies together is read together. @throws as read. */
  readAll(places: readonly Place[]): Promise<LogRecord[]>;
  /** Is the file as large as it should get? */
  isRipe(): boolean;
  /** Leaves the file. Everything must be settled, and nothing be added meanwhile. */
  leave(): Promise<void>;
  /** A file that was left now ends elsewhere, and tells of nothing else. Returns its extent. */
  extend(segment: Segment, end: number): Promise<Extent>;
  /** Forgets a file that was removed, or emptied: `end` is then where it ends. Returns the extent of what is left. */
  discard(segment: Segment, end?: number): Promise<Extent>;
  close(): Promise<void>;
}

/** Written and synced by one call to the system, which halves the time that an append waits: Linux has it, others sync after. */
const DSYNC: number | undefined = constants.O_DSYNC;
const LOG_FLAGS = constants.O_RDWR | (DSYNC ?? 0);

export const platformIo: LogIo = {
  write: writeAll,
  datasync: async (handle) => {
    if (DSYNC === undefined) await handle.datasync();
  },
  replace: replaceFile,
};

const NEWLINE = 0x0a;
const OPEN_READERS = 64;
/** What lies this near is read in one go, and so much at most. */
const GAP_BYTES = 4096;
const RUN_BYTES = 2 ** 20;

interface Run {
  readonly file: string;
  readonly offset: number;
  end: number;
  /** Of the places that were asked for. */
  readonly first: number;
  last: number;
}

export const sidecarName = (firstSeq: number): string => nameOf(firstSeq).replace(".log", ".idx");

/** What the bytes of a log file say, by themselves. */
export const indexBytes = (bytes: Buffer, path: string, name: string): SegmentIndex => {
  const index = new SegmentIndex();
  for (const line of scan(bytes, path, Number.POSITIVE_INFINITY).lines) {
    const record = outlineAt(bytes, line);
    index.note(record, { file: name, offset: line.start, byteLength: line.end - line.start });
    const gone = goneOf(record);
    if (gone !== undefined) index.drop(gone);
  }
  return index;
};

export const createSegmentLog = (
  folders: LogFolders,
  { known, rotateBytes, io, clock, onReport, onRecord, onLeft }: SegmentLogOptions,
): SegmentLog => {
  const folder = folders.log;
  const headerLine = (firstSeq: number) => encodeLine({ magic: LOG_MAGIC, v: LOG_VERSION, firstSeq, createdMs: clock() });
  const setAside = async (name: string): Promise<string> => {
    await mkdir(folders.quarantine, { recursive: true });
    const kept = join(folders.quarantine, `${name}.${randomBytes(4).toString("hex")}`);
    await copyFile(join(folder, name), kept);
    const handle = await open(kept, "r+");
    await handle.sync();
    await handle.close();
    await syncFolder(folders.quarantine);
    return kept;
  };

  // ---- reading ------------------------------------------------------------------------------------------------------
  interface Reader {
    readonly handle: Promise<FileHandle>;
    users: number;
  }
  const readers = new Map<string, Reader>(); // by last use

  const dropReader = async (name: string): Promise<void> => {
    const reader = readers.get(name);
    readers.delete(name);
    await reader?.handle.then((handle) => handle.close());
  };

  const readerOf = (name: string): Reader => {
    const reader = readers.get(name) ?? { handle: open(join(folder, name), "r"), users: 0 };
    readers.delete(name);
    readers.set(name, reader);
    if (readers.size > OPEN_READERS)
      for (const [oldest, { users }] of readers) {
        if (users > 0 || oldest === name) continue;
        void dropReader(oldest);
        break;
      }
    return reader;
  };

  const lineAt = async ({ file, offset, byteLength }: Place): Promise<Buffer> => {
    const reader = readerOf(file);
    reader.users += 1;
    try {
      const line = Buffer.allocUnsafe(byteLength);
      await (await reader.handle).read(line, 0, byteLength, offset);
      return line;
    } finally {
      reader.users -= 1;
    }
  };

  const decoded = async (line: Buffer, place: Place): Promise<LogRecord> => {
    const record = decodeRecord(line);
    if (record !== undefined) return record;
    await forgetIndex(); // so that all of the log is read again, and the damage set aside
    throw new TraceError(
      "corrupt",
      `${join(folder, place.file)}: a whole record at byte ${place.offset}, got a damaged one; restore the file from a copy, or open the store again to keep what is whole`,
    );
  };

  const read: SegmentLog["read"] = async (place) => decoded(place.line?.subarray(0, -1) ?? (await lineAt(place)), place);

  const readAll: SegmentLog["readAll"] = async (places) => {
    const runs: Run[] = [];
    for (const [at, { line, file, offset, byteLength }] of places.entries()) {
      const run = runs.at(-1);
      const isNext = run !== undefined && line === undefined && run.file === file && offset >= run.end && offset <= run.end + GAP_BYTES;
      if (isNext && offset + byteLength - run.offset <= RUN_BYTES) {
        run.end = offset + byteLength;
        run.last = at;
      } else if (line === undefined) runs.push({ file, offset, end: offset + byteLength, first: at, last: at });
      else runs.push({ file: "", offset: 0, end: 0, first: at, last: at });
    }
    const found = await Promise.all(
      runs.map(async ({ file, offset, end, first, last }) => {
        if (file === "") return [await read(places[first] as Place)];
        const bytes = await lineAt({ file, offset, byteLength: end - offset });
        const records: LogRecord[] = [];
        for (const place of places.slice(first, last + 1)) {
          const from = place.offset - offset;
          records.push(await decoded(bytes.subarray(from, from + place.byteLength), place));
        }
        return records;
      }),
    );
    return found.flat();
  };

  // ---- what is where ------------------------------------------------------------------------------------------------
  interface Batch {
    readonly firstSeq: number;
    readonly places: Place[];
    readonly index: SegmentIndex;
    readonly done: Promise<void>;
    settle(error?: unknown): void;
  }
  let current: { readonly name: string; readonly handle: FileHandle; end: number } | undefined;
  let active = new SegmentIndex();
  let written: Batch | undefined;
  let waiting: Batch | undefined;
  let lastSeq = known.at(-1)?.lastSeq ?? 0;
  let isIndexed = true;
  const blocks = createBlocks();
  const sidecarPath = ({ firstSeq }: Extent): string => join(folders.index, sidecarName(firstSeq));

  const forgetIndex = async (): Promise<void> => {
    isIndexed = false;
    await unlink(join(folders.index, "manifest")).catch(() => {}); // there is none, or verify will tell
  };

  const keepSidecar = async (extent: Extent, bytes: Buffer): Promise<void> => {
    const path = sidecarPath(extent);
    blocks.forget(path);
    const there = await readFile(path).catch(() => undefined);
    if (there?.equals(bytes)) return;
    try {
      await io.replace(path, bytes);
    } catch (error) {
      blocks.hold(path, bytes);
      onReport(`${path}: what is where could not be written (${error}); it stays in memory, and is made again when the store is opened`);
    }
  };

  const rebuild = async (segment: Segment): Promise<void> => {
    const path = join(folder, segment.name);
    const bytes = (await readFile(path)).subarray(0, segment.end);
    const index = indexBytes(bytes, path, segment.name);
    if (bytes.length < segment.end || checkOf(bytes) !== segment.check || index.owners.size !== segment.owners) {
      await forgetIndex();
      throw new TraceError(
        "corrupt",
        `${path}: the file that was written, got a damaged one; restore it from a copy, or open the store again to keep what is whole`,
      );
    }
    await keepSidecar(segment, encodeSidecar(index, segment));
  };

  const index = createLogIndex({
    blocks,
    sidecarPath,
    read,
    rebuild,
    recent: () => {
      const parts = [active];
      if (written) parts.push(written.index);
      if (waiting) parts.push(waiting.index);
      return parts;
    },
  });
  index.segments.push(...known);

  const extentOf = async (name: string, end: number): Promise<Extent> => {
    const from = checkedFrom(end);
    return { firstSeq: firstSeqOf(name), end, check: checkOf(await lineAt({ file: name, offset: from, byteLength: end - from })) };
  };

  /** `held` says what is in the first `end` bytes of a file. */
  const toSegment = async (name: string, end: number, held: SegmentIndex): Promise<Segment> => {
    const extent = await extentOf(name, end);
    await keepSidecar(extent, encodeSidecar(held, extent));
    const before = index.segments.at(-1);
    return {
      ...extent,
      name,
      lastSeq: Math.max(held.lastSeq, before?.lastSeq ?? 0),
      rolloutSeq: Math.max(held.rolloutSeq, before?.rolloutSeq ?? 0),
      spanSeq: Math.max(held.spanSeq, before?.spanSeq ?? 0),
      owners: held.owners.size,
      gone: held.gone.size,
      marks: new Uint8Array(Math.ceil(held.owners.size / 8)),
    };
  };

  /** From here on the index of a file that is left is its sidecar. */
  const seal = async (name: string, end: number): Promise<void> => {
    index.segments.push(await toSegment(name, end, active));
    active = new SegmentIndex();
    if (isIndexed) await onLeft();
  };

  const replayFile = async (name: string, voidFrom: number, isLast: boolean): Promise<number> => {
    const path = join(folder, name);
    const bytes = await readFile(path);
    const { header, lines, damaged, end } = scan(bytes, path, voidFrom);
    if (damaged > 0) {
      const kept = await setAside(name);
      const good = lines.map((line) => bytes.subarray(line.start, line.end + 1));
      await replaceFile(path, Buffer.concat([headerLine(firstSeqOf(name)), ...good]));
      onReport(
        `${path}: ${damaged} damaged lines stood before whole ones; the file as it was is ${kept}, its ${lines.length} whole records are kept`,
      );
      return replayFile(name, voidFrom, isLast);
    }
    if (isLast && end < bytes.length) {
      // a line that was ended and is still wrong was perhaps not torn but damaged: keep it
      const kept = bytes.indexOf(NEWLINE, end) >= 0 ? `; the file as it was is ${await setAside(name)}` : "";
      await truncate(path, end);
      onReport(
        `${path}: ${bytes.length - end} bytes after the last whole record were never acknowledged or are damaged, and are cut off${kept}`,
      );
    }
    for (const line of lines) {
      if (line.seq <= lastSeq) continue;
      const record = outlineAt(bytes, line);
      const firstSeq = record.kind === "dropped" ? record.data.firstSeq : record.seq;
      if (firstSeq > lastSeq + 1) onReport(`${path}: records ${lastSeq + 1} to ${firstSeq - 1} are missing before it`);
      lastSeq = record.seq;
      const place = { file: name, offset: line.start, byteLength: line.end - line.start };
      await onRecord(record, place);
      active.note(record, place);
      const gone = goneOf(record);
      if (gone !== undefined) active.drop(gone);
    }
    return header ? end : 0;
  };

  const replay = async (): Promise<void> => {
    const names = (await readdir(folder)).filter((name) => SEGMENT.test(name)).sort();
    for (const [at, name] of names.entries()) {
      if (at < known.length) continue;
      const next = names[at + 1];
      const end = await replayFile(name, next === undefined ? Number.POSITIVE_INFINITY : firstSeqOf(next), next === undefined);
      if (next !== undefined) {
        if (end > 0) await seal(name, end);
      } else if (end > 0) current = { name, handle: await open(join(folder, name), LOG_FLAGS), end };
      else await unlink(join(folder, name)); // its header was being written
    }
  };

  // ---- writing ------------------------------------------------------------------------------------------------------
  let writing: Promise<void> = Promise.resolve();
  let failure: TraceError | undefined;
  let isWriting = false;

  const openBatch = (firstSeq: number): Batch => {
    let settle: Batch["settle"] = () => {};
    const done = new Promise<void>((resolve, reject) => {
      settle = (error) => (error === undefined ? resolve() : reject(error));
    });
    done.catch(() => {}); // whoever waits hears it from settled()
    return { firstSeq, places: [], index: new SegmentIndex(), done, settle };
  };

  const startFile = async (firstSeq: number): Promise<NonNullable<typeof current>> => {
    const name = nameOf(firstSeq);
    // a file of this name can only hold records that were never acknowledged
    await dropReader(name);
    await unlink(join(folder, name)).catch((error) => {
      if (!isMissing(error)) throw error;
    });
    const handle = await open(join(folder, name), LOG_FLAGS | constants.O_CREAT | constants.O_EXCL);
    try {
      const line = headerLine(firstSeq);
      await io.write(handle, line, 0);
      await io.datasync(handle);
      await syncFolder(folder);
      return { name, handle, end: line.length };
    } catch (error) {
      await handle.close();
      throw error;
    }
  };

  const leaveFile = async (): Promise<typeof current> => {
    const left = current;
    current = undefined;
    await left?.handle.close();
    return left;
  };

  const writeBatch = async ({ firstSeq, places, index: added }: Batch): Promise<void> => {
    current ??= await startFile(firstSeq);
    const file = current;
    const bytes = places.length === 1 ? (places[0]?.line as Buffer) : Buffer.concat(places.map((place) => place.line as Buffer));
    await io.write(file.handle, bytes, file.end);
    await io.datasync(file.handle);
    for (const place of places) {
      place.file = file.name;
      place.offset = file.end;
      file.end += place.byteLength + 1;
      place.line = undefined;
    }
    active.absorb(added);
    written = undefined;
  };

  /**
   * Another file takes over from one that failed, whose sidecar is made of what it says: a word that someone is gone may have
   * been on its way to it, and comes into the next.
   */
  const writeElsewhere = async (batch: Batch, left: { readonly name: string; readonly end: number } | undefined): Promise<void> => {
    const next = await startFile(batch.firstSeq);
    if (left !== undefined && left.name !== next.name) {
      const path = join(folder, left.name);
      const held = indexBytes((await readFile(path)).subarray(0, left.end), path, left.name);
      const segment = await toSegment(left.name, left.end, held);
      index.segments.push(segment);
      active = new SegmentIndex();
      for (const { gone } of [batch.index, ...(waiting ? [waiting.index] : [])])
        for (const owner of gone) await index.forgetIn(segment, owner);
    }
    current = next;
    await writeBatch(batch);
  };

  /** Takes back what a full disk took in part: it was told to be nowhere. */
  const undo = async (batch: Batch, left: { readonly name: string; readonly end: number } | undefined): Promise<void> => {
    const second = await leaveFile().catch(() => undefined);
    const name = nameOf(batch.firstSeq);
    if (second === undefined || second.name === name) await unlink(join(folder, name)).catch(() => {}); // nothing in it was acknowledged
    if (left !== undefined && left.name !== name) await truncate(join(folder, left.name), left.end);
  };

  const drain = async (): Promise<void> => {
    isWriting = true;
    for (let batch = waiting; batch !== undefined; batch = waiting) {
      waiting = undefined;
      written = batch;
      let left: typeof current;
      try {
        if (failure) throw failure;
        try {
          await writeBatch(batch);
        } catch (first) {
          onReport(`${folder}: writing failed (${first}); the file is left for ever, and its unacknowledged records go into a new one`);
          left = current;
          await leaveFile().catch(() => {}); // its descriptor is gone either way
          await writeElsewhere(batch, left);
        }
        batch.settle();
      } catch (error) {
        const isUndone =
          failure === undefined &&
          isFull(error) &&
          (await undo(batch, left).then(
            () => true,
            () => false,
          ));
        failure ??= isUndone
          ? fullDisk(folder, "what was to be written", error)
          : new TraceError(
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

  return {
    index,
    replay,
    add: (data) => {
      if (failure) throw failure;
      for (const record of data) {
        lastSeq += 1;
        const numbered: LogRecord = { seq: lastSeq, ...record };
        const line = encodeRecord(numbered);
        waiting ??= openBatch(lastSeq);
        const place: Place = { line, file: "", offset: 0, byteLength: line.length - 1 };
        waiting.places.push(place);
        waiting.index.note(numbered, place);
      }
      if (data.length > 0 && waiting) {
        writing = waiting.done;
        if (!isWriting) void drain();
      }
    },
    settled: async () => {
      if (failure) throw failure;
      await writing;
    },
    hasFailed: () => failure !== undefined,
    read,
    readAll,
    isRipe: () => current !== undefined && current.end >= rotateBytes,
    leave: async () => {
      // a file without a record has the name that the next would have
      if (current === undefined || active.lastSeq < firstSeqOf(current.name)) return;
      await seal(current.name, current.end);
      await leaveFile();
    },
    extend: async (segment, end) => {
      const extent = await extentOf(segment.name, end);
      const file = await readFile(sidecarPath(segment)).catch(() => undefined);
      const path = join(folder, segment.name);
      await keepSidecar(
        extent,
        (file && restamped(file, extent)) ?? encodeSidecar(indexBytes((await readFile(path)).subarray(0, end), path, segment.name), extent),
      );
      return extent;
    },
    discard: async (segment, end) => {
      await dropReader(segment.name);
      if (end !== undefined) {
        const extent = await extentOf(segment.name, end);
        await keepSidecar(extent, encodeSidecar(new SegmentIndex(), extent));
        return extent;
      }
      blocks.forget(sidecarPath(segment));
      await unlink(sidecarPath(segment)).catch((error) => {
        if (!isMissing(error)) throw error;
      });
      return segment;
    },
    close: async () => {
      await writing.catch(() => {}); // each caller was told
      await leaveFile();
      for (const name of [...readers.keys()]) await dropReader(name);
      blocks.close();
    },
  };
};

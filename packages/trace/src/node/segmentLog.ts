// Append-only files of records (codec.ts), named by the sequence number of their first record. A record is acknowledged when its
// bytes are on disk (fdatasync); records that arrive during a write share the next. A file that is left gets a sidecar.
//
// After a failed write or sync the kernel may have dropped the bytes and call the next sync a success, so the file is closed
// for ever and the unacknowledged records go into a new one. Hence, when reading: what a file says from the next file's
// first number on is void. If the new file fails too, the log is failed, and says so to everyone until it is opened again;
// when what failed is a full disk, nothing of the records stays: whoever opens the log again finds what was acknowledged.

import { randomBytes } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { createBlocks } from "./blocks.ts";
import { encodeHeader } from "./codec.ts";
import { fullDisk, isFull } from "./diskFull.ts";
import { replaceFile, syncFolder, withFile } from "./durable.ts";
import { FrameBuffer, newMark, outlineFrame } from "./frame.ts";
import { closeLogFile, giveBack, type LogFile, type LogIo, openLogFile, startLogFile, writeAhead, writeFrames } from "./logFile.ts";
import { createLogIndex, type LogIndex, type Segment } from "./logIndex.ts";
import { createLogReader, type LogReader } from "./logReader.ts";
import type { LogData, LogRecord } from "./logRecord.ts";
import { isDiskQuick, type Pace } from "./pace.ts";
import { firstSeqOf, nameOf, outlineAt, SEGMENT, scan, truncate } from "./segmentFile.ts";
import { type Place, SegmentIndex } from "./segmentIndex.ts";
import { createSidecarFiles, indexBytes, type SidecarFiles } from "./sidecarFiles.ts";

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
  readonly pace: Pace;
  readonly clock: () => number;
  readonly onReport: (message: string) => void;
  /** Every record that replay() reads, in order, and where it ends. The index says of it only once this is done. */
  readonly onRecord: (record: LogRecord, place: Place, end: number) => Promise<void>;
  /** A file was left, and everything that is on disk is in it or before it. */
  readonly onLeft: () => Promise<void>;
}

export interface SegmentLog {
  readonly index: LogIndex;
  /**
   * Reads what is on disk after what is known; before it resolves only the index and the reader may be used.
   * @throws the platform's errors; TraceError "corrupt" for files of another version.
   */
  replay(): Promise<void>;
  /** Queues records, for which `callers` wait. The index has them at once; they are safe when a settled() called afterwards resolves. */
  add(data: readonly LogData[], callers: number): void;
  /** Resolves when all that was added before is on disk. @throws TraceError "full" or "storage" once the log is failed. */
  settled(): Promise<void>;
  /** Has the disk nothing to do? */
  isIdle(): boolean;
  hasFailed(): boolean;
  /** Damage was met: all of the log is to be read at the next opening, so nothing may be said of it now. */
  isDamaged(): boolean;
  /** Damage that it meets is known to whoever opens the log next. */
  readonly reader: LogReader;
  readonly sidecars: SidecarFiles;
  /** Is the file as large as it should get? */
  isRipe(): boolean;
  /** Leaves the file. Everything must be settled, and nothing be added meanwhile. */
  leave(): Promise<void>;
  close(): Promise<void>;
}

/** A batch that took more memory gives it back. */
const SPARE_BYTES = 4 * 2 ** 20;

export const createSegmentLog = (
  folders: LogFolders,
  { known, rotateBytes, io, pace, clock, onReport, onRecord, onLeft }: SegmentLogOptions,
): SegmentLog => {
  const folder = folders.log;
  const setAside = async (name: string): Promise<string> => {
    await mkdir(folders.quarantine, { recursive: true });
    const kept = join(folders.quarantine, `${name}.${randomBytes(4).toString("hex")}`);
    await copyFile(join(folder, name), kept);
    await withFile(kept, "r+", (handle) => handle.sync());
    await syncFolder(folders.quarantine);
    return kept;
  };

  // ---- what is where ------------------------------------------------------------------------------------------------
  interface Batch {
    readonly firstSeq: number;
    /** So many wait for it. */
    callers: number;
    readonly frames: FrameBuffer;
    readonly places: Place[];
    readonly done: Promise<void>;
    settle(error?: unknown): void;
  }
  let mark = newMark();
  let current: LogFile | undefined;
  let active = new SegmentIndex();
  let written: Batch | undefined;
  let waiting: Batch | undefined;
  let lastSeq = known.at(-1)?.lastSeq ?? 0;
  let isDamaged = false;
  const blocks = createBlocks();

  /** All of the log is read again at the next opening, and what is damaged is set aside. */
  const distrust = async (): Promise<void> => {
    isDamaged = true;
    await unlink(join(folders.index, "manifest")).catch(() => {}); // there is none, or verify will tell
  };
  const reader = createLogReader(folder, distrust, (name) =>
    current?.name === name ? current.end : (index.segments.find((segment) => segment.name === name)?.end ?? 0),
  );
  const sidecars = createSidecarFiles({ folders, blocks, reader, replace: io.replace, onReport, onDamage: distrust });

  const index = createLogIndex({
    blocks,
    sidecarPath: sidecars.pathOf,
    read: reader.read,
    rebuild: sidecars.rebuild,
    recent: () => active,
  });
  index.segments.push(...known);

  /** From here on the index of a file that is left is its sidecar. */
  const seal = async (name: string, end: number): Promise<void> => {
    index.segments.push(await sidecars.seal(name, end, active, index.segments.at(-1)));
    active = new SegmentIndex();
    await onLeft();
  };

  const replayFile = async (name: string, voidFrom: number, isLast: boolean): Promise<{ end: number; mark: number | undefined }> => {
    const path = join(folder, name);
    const bytes = await readFile(path);
    const { header, mark, records, damaged, end, tailLength, isTailEnded } = scan(bytes, path, voidFrom);
    if (damaged > 0) {
      const kept = await setAside(name);
      const good = records.map(({ start, next }) => bytes.subarray(start, next));
      await replaceFile(path, Buffer.concat([encodeHeader(firstSeqOf(name), clock(), mark), ...good]));
      onReport(
        `${path}: ${damaged} damaged records stood before whole ones; the file as it was is ${kept}, its ${records.length} whole records are kept`,
      );
      return replayFile(name, voidFrom, isLast);
    }
    if (isLast && end < bytes.length) {
      // what was written to the end and is still wrong was perhaps not torn but damaged: keep it
      const kept = isTailEnded ? `; the file as it was is ${await setAside(name)}` : "";
      await truncate(path, end);
      if (tailLength > 0)
        onReport(`${path}: ${tailLength} bytes after the last whole record were never acknowledged or are damaged, and are cut off${kept}`);
    }
    for (const found of records) {
      if (found.seq <= lastSeq) continue;
      const record = outlineAt(bytes, found);
      const firstSeq = record.kind === "dropped" ? record.data.firstSeq : record.seq;
      if (firstSeq > lastSeq + 1) onReport(`${path}: records ${lastSeq + 1} to ${firstSeq - 1} are missing before it`);
      lastSeq = record.seq;
      const place = { held: undefined, file: name, offset: found.start, byteLength: found.end - found.start };
      await onRecord(record, place, found.next);
      active.replay(record, record.seq, place);
    }
    return { end: header ? end : 0, mark };
  };

  const replay = async (): Promise<void> => {
    const names = (await readdir(folder)).filter((name) => SEGMENT.test(name)).sort();
    for (const [at, name] of names.entries()) {
      if (at < known.length) continue;
      const next = names[at + 1];
      const { end, mark: found } = await replayFile(
        name,
        next === undefined ? Number.POSITIVE_INFINITY : firstSeqOf(next),
        next === undefined,
      );
      if (end === 0 && next === undefined)
        await unlink(join(folder, name)); // its header was being written
      else if (next === undefined && found !== undefined) {
        mark = found;
        current = await openLogFile(folder, name, end);
      } else if (end > 0 && active.lastSeq >= firstSeqOf(name)) await seal(name, end); // one of version 1 is written no more
    }
  };

  // ---- writing ------------------------------------------------------------------------------------------------------
  let writing: Promise<void> = Promise.resolve();
  let failure: TraceError | undefined;
  let isWriting = false;
  /** So many waited for the last write, and ask for the next in the same turn: it waits for half of them (pace.ts), or for the turn to end. */
  let woken = 0;
  let half: (() => void) | undefined;
  const halfOrTurn = (): Promise<void> =>
    new Promise((resolve) => {
      half = resolve;
      setImmediate(resolve);
    });
  /** Until the disk has failed once: it may be full. */
  let mayWriteAhead = true;
  /** Memory of batches that are on disk. */
  const spare: FrameBuffer[] = [];

  const openBatch = (firstSeq: number): Batch => {
    let settle: Batch["settle"] = () => {};
    const done = new Promise<void>((resolve, reject) => {
      settle = (error) => (error === undefined ? resolve() : reject(error));
    });
    done.catch(() => {}); // whoever waits hears it from settled()
    return { firstSeq, callers: 0, frames: spare.pop() ?? new FrameBuffer(mark), places: [], done, settle };
  };

  /** All or none: nothing says yet that they are there. @throws TraceError "too-large". */
  const encodeAll = (frames: FrameBuffer, data: readonly LogData[], after: number): Place[] => {
    const { length, count } = frames;
    try {
      return data.map((record, index) => ({
        held: frames,
        file: "",
        offset: frames.length,
        byteLength: frames.add(record, after + index + 1),
      }));
    } catch (error) {
      frames.length = length;
      frames.count = count;
      throw new TraceError(
        "too-large",
        `${folder}: a record's JSON is a text that the platform can make, got ${error}; nothing of this call is kept: say it in smaller parts`,
        { cause: error },
      );
    }
  };

  const startFile = async (firstSeq: number): Promise<LogFile> => {
    await reader.release(nameOf(firstSeq));
    return startLogFile(folder, io, firstSeq, clock(), mark);
  };

  const leaveFile = async (): Promise<LogFile | undefined> => {
    const left = current;
    current = undefined;
    if (left !== undefined) await closeLogFile(left);
    return left;
  };

  const writeBatch = async ({ firstSeq, frames, places }: Batch): Promise<void> => {
    current ??= await startFile(firstSeq);
    const file = current;
    await writeFrames(file, io, frames.bytes);
    for (const place of places) {
      place.held = undefined;
      place.file = file.name;
      place.offset += file.end;
    }
    file.end += frames.length;
    if (mayWriteAhead)
      writeAhead(file, io, (error) => {
        mayWriteAhead = false;
        onReport(`${file.path}: room for what comes could not be made ahead (${error}); each record makes its own`);
      });
    written = undefined;
    if (frames.capacity > SPARE_BYTES) return;
    frames.clear();
    spare.push(frames);
  };

  const renote = ({ frames, places }: Batch): void => {
    for (const place of places) {
      const record = outlineFrame(frames.slice(place.offset, place.byteLength));
      active.replay(record, record.seq, place);
    }
  };

  /**
   * Another file takes over from one that failed, whose sidecar is made of what it says: a word that someone is gone may have
   * been on its way to it, and comes into the next.
   */
  const writeElsewhere = async (batch: Batch, left: LogFile | undefined): Promise<void> => {
    const next = await startFile(batch.firstSeq);
    if (left !== undefined && left.name !== next.name) {
      const path = join(folder, left.name);
      const held = indexBytes((await readFile(path)).subarray(0, left.end), path, left.name);
      const segment = await sidecars.seal(left.name, left.end, held, index.segments.at(-1));
      index.segments.push(segment);
      active = new SegmentIndex();
      renote(batch);
      if (waiting) renote(waiting);
      for (const owner of [...active.gone]) await index.forgetIn(segment, owner);
    }
    current = next;
    await writeBatch(batch);
  };

  /** Takes back what a full disk took in part: it was told to be nowhere. */
  const undo = async (batch: Batch, left: LogFile | undefined): Promise<void> => {
    const second = await leaveFile().catch(() => undefined);
    const name = nameOf(batch.firstSeq);
    if (second === undefined || second.name === name) await unlink(join(folder, name)).catch(() => {}); // nothing in it was acknowledged
    if (left !== undefined && left.name !== name) await truncate(join(folder, left.name), left.end);
  };

  const drain = async (): Promise<void> => {
    isWriting = true;
    for (let batch = waiting; batch !== undefined; batch = waiting) {
      if (woken > 1 && (2 * batch.callers < woken || !isDiskQuick(pace, batch.callers + woken))) await halfOrTurn();
      half = undefined;
      woken = batch.callers;
      waiting = undefined;
      written = batch;
      let left: LogFile | undefined;
      try {
        if (failure) throw failure;
        try {
          const began = performance.now();
          await writeBatch(batch);
          pace.writeMs = performance.now() - began;
        } catch (first) {
          mayWriteAhead = false;
          if (isFull(first) && current) await giveBack(current);
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
    add: (data, callers) => {
      if (failure) throw failure;
      if (data.length > 0) {
        const batch = waiting ?? openBatch(lastSeq + 1);
        const places = encodeAll(batch.frames, data, lastSeq);
        waiting = batch;
        for (const [index, place] of places.entries()) {
          lastSeq += 1;
          batch.places.push(place);
          active.note(data[index] as LogData, lastSeq, place);
        }
        waiting.callers += callers;
        if (2 * waiting.callers >= woken && isDiskQuick(pace, waiting.callers + woken)) half?.();
        writing = waiting.done;
        if (!isWriting) void drain();
      }
    },
    settled: async () => {
      if (failure) throw failure;
      await writing;
    },
    isIdle: () => written === undefined,
    hasFailed: () => failure !== undefined,
    isDamaged: () => isDamaged,
    reader,
    sidecars,
    isRipe: () => current !== undefined && current.end >= rotateBytes,
    leave: async () => {
      // a file without a record has the name that the next would have
      if (current === undefined || active.lastSeq < firstSeqOf(current.name)) return;
      await seal(current.name, current.end);
      await leaveFile();
    },
    close: async () => {
      await writing.catch(() => {}); // each caller was told
      await leaveFile();
      await reader.close();
      blocks.close();
    },
  };
};

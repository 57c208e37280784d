// Records read back from the files of the log, or from memory while they are on their way. Few files are open at once.

import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { decodeRecord } from "./codec.ts";
import type { LogRecord } from "./logRecord.ts";
import type { Place } from "./segmentIndex.ts";

export interface LogReader {
  /** The bytes of a place on disk, whatever they are. */
  bytesAt(place: Omit<Place, "held">): Promise<Buffer>;
  /** @throws TraceError "corrupt" for damage. */
  read(place: Place): Promise<LogRecord>;
  /** Many at once, in that order: what lies together is read together. @throws as read. */
  readAll(places: readonly Place[]): Promise<LogRecord[]>;
  /** Lets go of a file that is about to be removed. */
  release(name: string): Promise<void>;
  close(): Promise<void>;
}

interface OpenFile {
  readonly handle: Promise<FileHandle>;
  users: number;
}

/** Places that follow each other in one file, or one that is in memory. */
export interface Run {
  readonly places: Place[];
  end: number;
}

const OPEN_FILES = 64;
/** What lies this near is read in one go, and so much at most. */
const GAP_BYTES = 4096;
const RUN_BYTES = 2 ** 20;
/** Whoever reads on from there, or nearly, reads all: so much is read ahead, and a few such parts are kept. */
const NEAR_BYTES = 2 ** 16;
const AHEAD_BYTES = 2 ** 19;
const KEPT_PARTS = 4;

/** A part of a file that does not change any more. */
interface Part {
  readonly file: string;
  readonly offset: number;
  readonly end: number;
  readonly bytes: Promise<Buffer>;
}

export const toRuns = (places: readonly Place[]): Run[] => {
  const runs: Run[] = [];
  for (const place of places) {
    const end = place.offset + place.byteLength;
    const run = runs.at(-1);
    const first = run?.places[0];
    const isNext =
      run !== undefined &&
      first !== undefined &&
      place.held === undefined &&
      first.held === undefined &&
      first.file === place.file &&
      place.offset >= run.end &&
      place.offset <= run.end + GAP_BYTES &&
      end - first.offset <= RUN_BYTES;
    if (isNext) {
      run.places.push(place);
      run.end = end;
    } else runs.push({ places: [place], end });
  }
  return runs;
};

/** `onDamage` is told before the caller is. `endOf`: where what was acknowledged in a file ends. */
export const createLogReader = (folder: string, onDamage: () => Promise<void>, endOf: (name: string) => number): LogReader => {
  const files = new Map<string, OpenFile>(); // by last use
  let parts: readonly Part[] = [];
  let last = { file: "", end: 0 };

  const release: LogReader["release"] = async (name) => {
    parts = parts.filter(({ file }) => file !== name);
    const file = files.get(name);
    files.delete(name);
    await file?.handle.then((handle) => handle.close());
  };

  const fileOf = (name: string): OpenFile => {
    const file = files.get(name) ?? { handle: open(join(folder, name), "r"), users: 0 };
    files.delete(name);
    files.set(name, file);
    file.handle.catch(() => files.delete(name)); // whoever reads is told
    if (files.size > OPEN_FILES)
      for (const [oldest, { users }] of files) {
        if (users > 0 || oldest === name) continue;
        release(oldest).catch(() => {}); // it was only read
        break;
      }
    return file;
  };

  const bytesAt: LogReader["bytesAt"] = async ({ file: name, offset, byteLength }) => {
    const file = fileOf(name);
    file.users += 1;
    try {
      const bytes = Buffer.allocUnsafe(byteLength);
      await (await file.handle).read(bytes, 0, byteLength, offset);
      return bytes;
    } finally {
      file.users -= 1;
    }
  };

  const partAt = async (file: string, offset: number, byteLength: number): Promise<Buffer> => {
    const end = offset + byteLength;
    const isNext = last.file === file && offset >= last.end && offset <= last.end + NEAR_BYTES;
    last = { file, end };
    let part = parts.find((known) => known.file === file && known.offset <= offset && end <= known.end);
    if (part === undefined) {
      const until = isNext ? Math.min(offset + AHEAD_BYTES, endOf(file)) : end;
      if (until <= end) return bytesAt({ file, offset, byteLength });
      const bytes = bytesAt({ file, offset, byteLength: until - offset });
      const made: Part = { file, offset, end: until, bytes };
      bytes.catch(() => {
        parts = parts.filter((known) => known !== made); // whoever reads is told
      });
      parts = [made, ...parts.slice(0, KEPT_PARTS - 1)];
      part = made;
    }
    return (await part.bytes).subarray(offset - part.offset, end - part.offset);
  };

  const decoded = (bytes: Buffer, place: Place): LogRecord | Promise<never> => decodeRecord(bytes) ?? refuse(place);

  const refuse = async ({ file, offset }: Place): Promise<never> => {
    await onDamage();
    throw new TraceError(
      "corrupt",
      `${join(folder, file)}: a whole record at byte ${offset}, got a damaged one; restore the file from a copy, or open the store again to keep what is whole`,
    );
  };

  const read: LogReader["read"] = async (place) =>
    decoded(place.held?.slice(place.offset, place.byteLength) ?? (await partAt(place.file, place.offset, place.byteLength)), place);

  const readRun = async ({ places, end }: Run): Promise<LogRecord[]> => {
    const first = places[0] as Place;
    if (places.length === 1) return [await read(first)];
    const bytes = await partAt(first.file, first.offset, end - first.offset);
    const records: LogRecord[] = [];
    for (const place of places) {
      const from = place.offset - first.offset;
      const record = decoded(bytes.subarray(from, from + place.byteLength), place);
      records.push(record instanceof Promise ? await record : record);
    }
    return records;
  };

  return {
    bytesAt,
    read,
    readAll: async (places) => (await Promise.all(toRuns(places).map(readRun))).flat(),
    release,
    close: async () => {
      for (const name of [...files.keys()]) await release(name);
    },
  };
};

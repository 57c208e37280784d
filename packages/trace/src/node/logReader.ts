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
interface Run {
  readonly places: Place[];
  end: number;
}

const OPEN_FILES = 64;
/** What lies this near is read in one go, and so much at most. */
const GAP_BYTES = 4096;
const RUN_BYTES = 2 ** 20;

const toRuns = (places: readonly Place[]): Run[] => {
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

/** `onDamage` is told before the caller is. */
export const createLogReader = (folder: string, onDamage: () => Promise<void>): LogReader => {
  const files = new Map<string, OpenFile>(); // by last use

  const release: LogReader["release"] = async (name) => {
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

  const decoded = async (bytes: Buffer, { file, offset }: Place): Promise<LogRecord> => {
    const record = decodeRecord(bytes);
    if (record !== undefined) return record;
    await onDamage();
    throw new TraceError(
      "corrupt",
      `${join(folder, file)}: a whole record at byte ${offset}, got a damaged one; restore the file from a copy, or open the store again to keep what is whole`,
    );
  };

  const read: LogReader["read"] = async (place) =>
    decoded(place.held?.slice(place.offset, place.byteLength) ?? (await bytesAt(place)), place);

  const readRun = async ({ places, end }: Run): Promise<LogRecord[]> => {
    const first = places[0] as Place;
    if (places.length === 1) return [await read(first)];
    const bytes = await bytesAt({ file: first.file, offset: first.offset, byteLength: end - first.offset });
    return Promise.all(
      places.map((place) => {
        const from = place.offset - first.offset;
        return decoded(bytes.subarray(from, from + place.byteLength), place);
      }),
    );
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

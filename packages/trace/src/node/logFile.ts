// The file of the log that is being written. A write within a file is quicker than one that makes it longer, because its new
// length is a change of its own for the disk: so zeros are written ahead, while nobody waits for them, and cut off when the file
// is left.

import { constants, type FileHandle, open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { encodeHeader } from "./codec.ts";
import { isMissing, replaceFile, syncFolder, withFile, writeAll } from "./durable.ts";
import { nameOf } from "./segmentFile.ts";

export interface FilePart {
  readonly position: number;
  readonly bytes: Uint8Array;
}

/** The calls that a disk can fail, replaceable so that tests can fail them. What is written is on disk once both have resolved. */
export interface LogIo {
  /** Of a file that was opened with LOG_FLAGS: where the system has O_DSYNC, this is all. */
  write(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void>;
  datasync(handle: FileHandle): Promise<void>;
  /** Makes a file longer by zeros, which are on disk when resolved. By a handle of its own: what goes wrong here, the log's own still hears of. */
  lengthen(path: string, from: number, byteLength: number): Promise<void>;
  /** Bytes of a file replaced by as many, where they are; on disk when resolved. */
  overwrite(path: string, parts: readonly FilePart[]): Promise<void>;
  /** Of what lies beside the log: sidecars and the manifest. */
  replace(path: string, bytes: Uint8Array): Promise<void>;
}

/** Written and synced by one call to the system, which halves the time that an append waits: Linux has it, others sync after. */
const DSYNC: number | undefined = constants.O_DSYNC;
const LOG_FLAGS = constants.O_RDWR | (DSYNC ?? 0);

export const platformIo: LogIo = {
  write: writeAll,
  datasync: async (handle) => {
    if (DSYNC === undefined) await handle.datasync();
  },
  lengthen: (path, from, byteLength) =>
    withFile(path, LOG_FLAGS, async (handle) => {
      await writeAll(handle, Buffer.alloc(byteLength), from);
      if (DSYNC === undefined) await handle.datasync();
    }),
  overwrite: (path, parts) =>
    withFile(path, "r+", async (handle) => {
      for (const { position, bytes } of parts) await writeAll(handle, bytes, position);
      await handle.datasync();
    }),
  replace: replaceFile,
};

/** Written ahead is as much as there is, this much at most, in whole pages. */
const AHEAD_BYTES = 2 ** 20;
const PAGE_BYTES = 4096;

export interface LogFile {
  readonly name: string;
  readonly path: string;
  readonly handle: FileHandle;
  /** Where its last acknowledged record ends. */
  end: number;
  /** Zeros are written up to there. */
  size: number;
  /** Zeros behind `size` are on their way. */
  ahead: Promise<void> | undefined;
}

const toLogFile = (path: string, name: string, handle: FileHandle, end: number): LogFile => ({
  name,
  path,
  handle,
  end,
  size: end,
  ahead: undefined,
});

/** One that is there, of which `end` bytes are all. */
export const openLogFile = async (folder: string, name: string, end: number): Promise<LogFile> => {
  const path = join(folder, name);
  return toLogFile(path, name, await open(path, LOG_FLAGS), end);
};

/** A file of that name can only hold records that were never acknowledged. */
export const startLogFile = async (folder: string, io: LogIo, firstSeq: number, createdMs: number, mark: number): Promise<LogFile> => {
  const name = nameOf(firstSeq);
  const path = join(folder, name);
  await unlink(path).catch((error) => {
    if (!isMissing(error)) throw error;
  });
  const handle = await open(path, LOG_FLAGS | constants.O_CREAT | constants.O_EXCL);
  try {
    const header = encodeHeader(firstSeq, createdMs, mark);
    await io.write(handle, header, 0);
    await io.datasync(handle);
    await syncFolder(folder);
    return toLogFile(path, name, handle, header.length);
  } catch (error) {
    await handle.close();
    throw error;
  }
};

/** They are on disk when resolved, and `end` is still before them. */
export const writeFrames = async (file: LogFile, io: LogIo, bytes: Buffer): Promise<void> => {
  const end = file.end + bytes.length;
  if (end > file.size) await file.ahead;
  await io.write(file.handle, bytes, file.end);
  await io.datasync(file.handle);
  file.size = Math.max(file.size, end);
};

/** Where few zeros are left, has more written. What did not come to its end is cut off again, and told. */
export const writeAhead = (file: LogFile, io: LogIo, onFailed: (error: unknown) => void): void => {
  const share = Math.min(file.end, AHEAD_BYTES);
  if (file.ahead !== undefined || 2 * (file.size - file.end) > share) return;
  const size = Math.ceil((file.size + share) / PAGE_BYTES) * PAGE_BYTES;
  const lengthen = async (): Promise<void> => {
    try {
      await io.lengthen(file.path, file.size, size - file.size);
      file.size = size;
    } catch (error) {
      await file.handle.truncate(file.size).catch(() => {}); // zeros say nothing
      onFailed(error);
    } finally {
      file.ahead = undefined;
    }
  };
  file.ahead = lengthen();
};

/** What is behind its end is given back; where that fails, zeros stay, which say nothing. */
export const giveBack = async (file: LogFile): Promise<void> => {
  await file.ahead;
  if (file.size > file.end) await file.handle.truncate(file.end).catch(() => {});
  file.size = file.end;
};

export const closeLogFile = async (file: LogFile): Promise<void> => {
  await giveBack(file);
  await file.handle.close();
};

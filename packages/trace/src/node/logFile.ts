// The file of the log that is being written. A write within a file is quicker than one that makes it longer, because its new
// length is a change of its own for the disk: so zeros are written ahead, and cut off when the file is left.

import { constants, type FileHandle, open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { encodeHeader } from "./codec.ts";
import { isMissing, replaceFile, syncFolder, writeAll } from "./durable.ts";
import type { FrameBuffer } from "./frame.ts";
import { nameOf } from "./segmentFile.ts";

/** The calls that a disk can fail, replaceable so that tests can fail them. What is written is on disk once both have resolved. */
export interface LogIo {
  /** Of a file that was opened with LOG_FLAGS: where the system has O_DSYNC, this is all. */
  write(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void>;
  datasync(handle: FileHandle): Promise<void>;
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
  replace: replaceFile,
};

/** Written ahead is as much as there is, this much at most, in whole pages. */
const AHEAD_BYTES = 2 ** 20;
const PAGE_BYTES = 4096;

export interface LogFile {
  readonly name: string;
  readonly handle: FileHandle;
  /** Where its last acknowledged record ends. */
  end: number;
  /** Zeros are written up to there. */
  size: number;
}

/** One that is there, of which `end` bytes are all. */
export const openLogFile = async (folder: string, name: string, end: number): Promise<LogFile> => ({
  name,
  handle: await open(join(folder, name), LOG_FLAGS),
  end,
  size: end,
});

/** A file of that name can only hold records that were never acknowledged. */
export const startLogFile = async (folder: string, io: LogIo, firstSeq: number, createdMs: number, mark: number): Promise<LogFile> => {
  const name = nameOf(firstSeq);
  await unlink(join(folder, name)).catch((error) => {
    if (!isMissing(error)) throw error;
  });
  const handle = await open(join(folder, name), LOG_FLAGS | constants.O_CREAT | constants.O_EXCL);
  try {
    const header = encodeHeader(firstSeq, createdMs, mark);
    await io.write(handle, header, 0);
    await io.datasync(handle);
    await syncFolder(folder);
    return { name, handle, end: header.length, size: header.length };
  } catch (error) {
    await handle.close();
    throw error;
  }
};

/** They are on disk when resolved, and `end` is still before them. */
export const writeFrames = async (file: LogFile, io: LogIo, frames: FrameBuffer, mayWriteAhead: boolean): Promise<void> => {
  const end = file.end + frames.length;
  const isLonger = end > file.size && mayWriteAhead;
  const size = isLonger ? Math.ceil((end + Math.min(end, AHEAD_BYTES)) / PAGE_BYTES) * PAGE_BYTES : end;
  await io.write(file.handle, isLonger ? frames.withZeros(size - end) : frames.bytes, file.end);
  await io.datasync(file.handle);
  file.size = Math.max(file.size, size);
};

/** What is behind its end is given back; where that fails, zeros stay, which say nothing. */
export const closeLogFile = async (file: LogFile): Promise<void> => {
  if (file.size > file.end) await file.handle.truncate(file.end).catch(() => {});
  await file.handle.close();
};

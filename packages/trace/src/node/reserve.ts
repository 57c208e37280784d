// Room that is kept back on the disk: on a full one there is still enough to write down that something is forgotten.

import { stat, unlink } from "node:fs/promises";
import { isMissing, replaceFile } from "./durable.ts";

const RESERVE_BYTES = 64 * 1024;

/** Puts it there unless it is, and tells whether it is. Without room, or with a disk that fails, another time. */
export const keepReserve = async (path: string): Promise<boolean> => {
  try {
    const known = await stat(path).catch(() => undefined);
    if (known?.size !== RESERVE_BYTES) await replaceFile(path, Buffer.alloc(RESERVE_BYTES, "reserve "));
    return true;
  } catch {
    return false; // told by the next write, if it is so still
  }
};

/** Gives the room free. Resolves with whether there was any. */
export const spendReserve = async (path: string): Promise<boolean> => {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if (!isMissing(error)) throw error;
    return false;
  }
};

// Writing files so that a power cut leaves the old one or the new one, never half of it.

import { randomBytes } from "node:crypto";
import { type FileHandle, open, rename, unlink } from "node:fs/promises";
import { dirname } from "node:path";

export const withFile = async <T>(path: string, flags: string | number, act: (handle: FileHandle) => Promise<T>): Promise<T> => {
  const handle = await open(path, flags);
  try {
    return await act(handle);
  } finally {
    await handle.close();
  }
};

/** Makes creations, renames and removals in a folder durable. Windows cannot open folders and needs no such thing. */
export const syncFolder = async (folder: string): Promise<void> => {
  if (process.platform === "win32") return;
  await withFile(folder, "r", (handle) => handle.sync());
};

/** One write call may take less than it was given. */
export const writeAll = async (handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> => {
  for (let done = 0; done < bytes.length; ) done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
};

/** Temp, fsync, rename, fsync of the folder. */
export const replaceFile = async (path: string, bytes: Uint8Array): Promise<void> => {
  const temporary = `${path}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    await withFile(temporary, "wx", async (handle) => {
      await writeAll(handle, bytes, 0);
      await handle.sync();
    });
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => {}); // the first error is the one to tell
    throw error;
  }
  await syncFolder(dirname(path));
};

export const isMissing = (error: unknown): boolean => (error as NodeJS.ErrnoException | undefined)?.code === "ENOENT";

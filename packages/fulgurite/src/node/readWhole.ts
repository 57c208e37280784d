// A file as one array, in parts: readFile of Node 20 refuses 2 GiB and more, says nothing on the way and cannot be hashed meanwhile.

import { open } from "node:fs/promises";

const PART_BYTES = 8 << 20;

export interface ReadWholeOptions {
  readonly signal?: AbortSignal | undefined;
  /** Each part as it comes, and the bytes of the whole file. */
  readonly onPart?: (part: Uint8Array, bytes: number, totalBytes: number) => void;
}

/** Undefined: no such file. A file that shrinks meanwhile ends where it ends. */
export const readWhole = async (path: string | URL, { signal, onPart }: ReadWholeOptions = {}): Promise<Uint8Array | undefined> => {
  const file = await open(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
    throw error;
  });
  if (!file) return undefined;
  try {
    const { size } = await file.stat();
    const bytes = new Uint8Array(size);
    let at = 0;
    while (at < size) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(bytes, at, Math.min(PART_BYTES, size - at), at);
      if (bytesRead === 0) return bytes.slice(0, at);
      at += bytesRead;
      onPart?.(bytes.subarray(at - bytesRead, at), at, size);
    }
    return bytes;
  } finally {
    await file.close();
  }
};

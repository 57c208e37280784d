// A file in parts, through one buffer: what is read is used before the next part comes.

import { open } from "node:fs/promises";
import type { WeightReceiver } from "@fulgurite/engine";

const PART_BYTES = 4 << 20;

export const streamWhole = async (path: string | URL, receiver: WeightReceiver, signal?: AbortSignal): Promise<void> => {
  const file = await open(path);
  try {
    const { size } = await file.stat();
    receiver.begin(size);
    const buffer = new Uint8Array(Math.min(PART_BYTES, size));
    for (let at = 0; at < size; ) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(buffer, 0, buffer.length, at);
      if (bytesRead === 0) return; // it became shorter meanwhile: the receiver sees that
      await receiver.part(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
  } finally {
    await file.close();
  }
};

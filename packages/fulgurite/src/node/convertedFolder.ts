// Converted weights below one folder, a file an entry, named by the SHA-256 of its name. Written under another name and renamed, so that
// of two processes that load the same model at once each writes its own and the last one stays.

import { createHash, randomUUID } from "node:crypto";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { ConvertedStore } from "../fileEdge.ts";

/** What a killed process left; nobody writes one file for so long. */
const STALE_MS = 24 * 3600 * 1000;

const removeStale = async (folder: string, prefix: string): Promise<void> => {
  for (const name of await readdir(folder)) {
    if (!name.startsWith(prefix) || !name.endsWith(".part")) continue;
    const { mtimeMs } = await stat(join(folder, name)).catch(() => ({ mtimeMs: Date.now() }));
    if (Date.now() - mtimeMs > STALE_MS) await rm(join(folder, name), { force: true });
  }
};

export const openConvertedFolder = (folder: string): ConvertedStore => ({
  entry: (name, key) => {
    const id = createHash("sha256").update(name).digest("hex");
    const path = join(folder, `${id}.fulg`);
    return {
      key,
      open: async () => {
        const file = await open(path).catch((error: NodeJS.ErrnoException) => {
          if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
          throw error;
        });
        if (!file) return undefined;
        const { size } = await file.stat();
        return {
          byteLength: size,
          read: async (at, byteLength) => {
            const bytes = new Uint8Array(Math.max(0, Math.min(byteLength, size - at)));
            for (let done = 0; done < bytes.length; ) {
              const { bytesRead } = await file.read(bytes, done, bytes.length - done, at + done);
              if (bytesRead === 0) return bytes.subarray(0, done);
              done += bytesRead;
            }
            return bytes;
          },
          close: () => file.close(),
        };
      },
      create: async () => {
        await mkdir(folder, { recursive: true });
        await removeStale(folder, id);
        const pending = `${path}.${randomUUID()}.part`;
        const file = await open(pending, "wx");
        const abort = async (): Promise<void> => {
          await file.close().catch(() => {});
          await rm(pending, { force: true });
        };
        return {
          write: async (bytes) => {
            for (let done = 0; done < bytes.length; ) done += (await file.write(bytes, done)).bytesWritten;
          },
          commit: async () => {
            try {
              await file.sync();
              await file.close();
              await rename(pending, path);
            } catch (error) {
              await abort();
              throw error;
            }
          },
          abort,
        };
      },
      remove: () => rm(path, { force: true }),
    };
  },
});

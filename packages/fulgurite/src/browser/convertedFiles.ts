// Converted weights in a browser: files of the origin's private file system, written through a sync access handle (which only workers
// have) under another name and then moved; where that is missing, bodies of the Cache API. Of two tabs that load the same model at once
// each writes its own, and the last one stays. Both are read as Blobs, a piece at a time.

import { type ConvertedFile, type ConvertedWriter, EngineError } from "@fulgurite/engine";
import type { ConvertedStore } from "../fileEdge.ts";

const FOLDER = "fulgurite-weights";
const CACHE = "fulgurite-weights-1";

/** What TypeScript's library for pages leaves out. */
interface SyncAccessHandle {
  write(bytes: Uint8Array, options: { readonly at: number }): number;
  flush(): void;
  close(): void;
}
type PrivateFile = FileSystemFileHandle & { createSyncAccessHandle(): Promise<SyncAccessHandle>; move(name: string): Promise<void> };

const idOf = async (name: string): Promise<string> =>
  Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name))), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");

const fromBlob = (blob: Blob): ConvertedFile => ({
  byteLength: blob.size,
  read: async (at, byteLength) => new Uint8Array(await blob.slice(at, at + byteLength).arrayBuffer()),
  close: async () => {},
});

const isAbsent = (error: unknown): boolean => (error as { name?: string }).name === "NotFoundError";

export const openPrivateFiles = (root: FileSystemDirectoryHandle): ConvertedStore => ({
  entry: (name, key) => {
    const place = async () => ({ folder: await root.getDirectoryHandle(FOLDER, { create: true }), file: `${await idOf(name)}.fulg` });
    return {
      key,
      open: async () => {
        const { folder, file } = await place();
        try {
          return fromBlob(await (await folder.getFileHandle(file)).getFile());
        } catch (error) {
          if (isAbsent(error)) return undefined;
          throw error;
        }
      },
      create: async (): Promise<ConvertedWriter> => {
        const { folder, file } = await place();
        const pending = `${file}.${crypto.randomUUID()}.part`;
        const handle = (await folder.getFileHandle(pending, { create: true })) as PrivateFile;
        const access = await handle.createSyncAccessHandle();
        let at = 0;
        const abort = async (): Promise<void> => {
          access.close();
          await folder.removeEntry(pending).catch(() => {});
        };
        return {
          write: async (bytes) => {
            const written = access.write(bytes, { at });
            at += written;
            if (written < bytes.length) throw new DOMException(`room for ${bytes.length} bytes more, got ${written}`, "QuotaExceededError");
          },
          commit: async () => {
            try {
              access.flush();
              access.close();
              await handle.move(file);
            } catch (error) {
              await abort();
              throw error;
            }
          },
          abort,
        };
      },
      remove: async () => {
        const { folder, file } = await place();
        await folder.removeEntry(file).catch((error: unknown) => {
          if (!isAbsent(error)) throw error;
        });
      },
    };
  },
});

export const openCachedFiles = (storage: CacheStorage): ConvertedStore => ({
  entry: (name, key) => {
    const address = async (): Promise<string> => `https://weights.fulgurite.invalid/${await idOf(name)}`;
    return {
      key,
      open: async () => {
        const found = await (await storage.open(CACHE)).match(await address());
        return found && fromBlob(await found.blob());
      },
      create: async () => {
        const { readable, writable } = new TransformStream<Uint8Array>();
        const writer = writable.getWriter();
        // an entry is replaced when the whole body has come
        const put = (await storage.open(CACHE)).put(await address(), new Response(readable));
        put.catch(() => {}); // told by commit
        return {
          write: (bytes) => Promise.race([writer.write(bytes.slice()), put.then(() => {})]),
          commit: async () => {
            await Promise.all([writer.close(), put]);
          },
          abort: async () => {
            await writer.abort(new DOMException("the load ended", "AbortError")).catch(() => {});
            await put.catch(() => {});
          },
        };
      },
      remove: async () => {
        await (await storage.open(CACHE)).delete(await address());
      },
    };
  },
});

/** Rejects where this place keeps nothing. */
export const openConvertedFiles = async (): Promise<ConvertedStore> => {
  if (!globalThis.crypto?.subtle)
    throw new EngineError("unsupported", "loadPolicy: the page is a secure context, got http; serve it over https or from localhost");
  const hasHandles =
    "createSyncAccessHandle" in ((globalThis as { FileSystemFileHandle?: { prototype: object } }).FileSystemFileHandle?.prototype ?? {});
  const root = hasHandles ? await navigator.storage.getDirectory().catch(() => undefined) : undefined;
  if (root) return openPrivateFiles(root);
  if (!globalThis.caches)
    throw new EngineError("unsupported", "loadPolicy: the browser keeps files, got neither a file system nor a cache");
  return openCachedFiles(caches);
};

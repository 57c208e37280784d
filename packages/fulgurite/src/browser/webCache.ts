// Model files in the Cache API, which takes weights and small files alike, replaces an entry at once, and works in pages and workers
// without a file handle. Version and SHA-256 lie in the entry's headers; the bytes are hashed on every read.
// navigator.storage.persist() is not asked for: some browsers ask the user, and an evicted file is only a download.

import type { ModelCache } from "../modelCache.ts";

const CACHE = "fulgurite-models-1";
const VERSION = "x-fulgurite-version";
const SHA256 = "x-fulgurite-sha256";

const sha256 = async (bytes: Uint8Array<ArrayBuffer>): Promise<string> =>
  Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A key of the Cache API is an address; .invalid is nobody's. */
const addressOf = (name: string): string => `https://model.fulgurite.invalid/${encodeURIComponent(name)}`;

export const openWebCache = (storage: CacheStorage): ModelCache => ({
  read: async (name, version, signal) => {
    const entry = await (await storage.open(CACHE)).match(addressOf(name));
    if (!entry || entry.headers.get(VERSION) !== encodeURIComponent(version)) return undefined;
    const bytes = new Uint8Array(await entry.arrayBuffer());
    signal?.throwIfAborted();
    return (await sha256(bytes)) === entry.headers.get(SHA256) ? bytes : undefined;
  },
  write: async (name, version, bytes, signal) => {
    const plain = bytes as Uint8Array<ArrayBuffer>;
    const headers = { [VERSION]: encodeURIComponent(version), [SHA256]: await sha256(plain) };
    signal?.throwIfAborted();
    await (await storage.open(CACHE)).put(addressOf(name), new Response(plain, { headers }));
  },
  remove: async (name) => {
    await (await storage.open(CACHE)).delete(addressOf(name));
  },
});

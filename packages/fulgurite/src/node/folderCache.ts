// Model files below one folder. Two files an entry, named by the SHA-256 of its name: the bytes, and beside them a label
// <same>.json = { magic, v, name, version, byteLength, sha256 }. Each is written under another name and renamed; the label comes last and the bytes are
// hashed on every read, so that a torn write, a mix of two writers and a damaged disk are all misses.

import { createHash, randomUUID } from "node:crypto";
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { ModelCache } from "../modelCache.ts";
import { readWhole } from "./readWhole.ts";

const MAGIC = "fulgurite model file";
const VERSION = 1;
const PART_BYTES = 64 << 20;

interface Label {
  readonly magic: typeof MAGIC;
  readonly v: typeof VERSION;
  readonly name: string;
  readonly version: string;
  readonly byteLength: number;
  readonly sha256: string;
}

/** One update() takes less than 2 GiB. */
const sha256 = (bytes: Uint8Array): string => {
  const hash = createHash("sha256");
  for (let at = 0; at < bytes.length; at += PART_BYTES) hash.update(bytes.subarray(at, at + PART_BYTES));
  return hash.digest("hex");
};

const readLabel = (bytes: Uint8Array | undefined): Partial<Label> => {
  try {
    return (JSON.parse(new TextDecoder().decode(bytes)) as Partial<Label> | null) ?? {};
  } catch {
    return {}; // torn: a miss
  }
};

/** Makes the folder when something is written first. */
export const openFolderCache = (folder: string): ModelCache => {
  const pathOf = (name: string): string => join(folder, createHash("sha256").update(name).digest("hex"));

  const replace = async (path: string, bytes: Uint8Array | string, signal: AbortSignal | undefined): Promise<void> => {
    const pending = `${path}.${randomUUID()}.part`;
    try {
      await writeFile(pending, bytes, signal ? { signal } : {});
      await rename(pending, path);
    } catch (error) {
      await rm(pending, { force: true });
      throw error;
    }
  };

  return {
    read: async (name, version, signal) => {
      const path = pathOf(name);
      const label = readLabel(await readWhole(`${path}.json`));
      if (label.magic !== MAGIC || label.v !== VERSION || label.name !== name || label.version !== version) return undefined;
      const hash = createHash("sha256");
      const bytes = await readWhole(path, { signal, onPart: (part) => void hash.update(part) });
      return bytes && bytes.length === label.byteLength && hash.digest("hex") === label.sha256 ? bytes : undefined;
    },
    write: async (name, version, bytes, signal) => {
      const path = pathOf(name);
      const label: Label = { magic: MAGIC, v: VERSION, name, version, byteLength: bytes.length, sha256: sha256(bytes) };
      await mkdir(folder, { recursive: true });
      await replace(path, bytes, signal);
      await replace(`${path}.json`, `${JSON.stringify(label, null, 2)}\n`, signal);
    },
    remove: async (name) => {
      const path = pathOf(name);
      await rm(`${path}.json`, { force: true }); // first: bytes without a label are a miss
      await rm(path, { force: true });
    },
  };
};

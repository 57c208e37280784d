// Bytes beside the log. Blobs: named by their SHA-256, written once, checked on every read. States: replaced whole.
//
//   blobs/<sha256>                 the bytes
//   state/<sha256 of the name>     line (lines.ts) {"magic":"fulgurite-state","v":1,"name","byteLength","sha256"}, then the bytes

import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, unlink } from "node:fs/promises";
import { basename, join } from "node:path";
import { TraceError } from "../errors.ts";
import { isMissing, replaceFile, syncFolder } from "./durable.ts";
import { decodeLine, encodeLine, NEWLINE } from "./lines.ts";
import type { BlobRef } from "./logRecord.ts";

const STATE_MAGIC = "fulgurite-state";
const STATE_VERSION = 1;

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");

const damaged = (path: string, rule: string, got: unknown): TraceError =>
  new TraceError("corrupt", `${path}: ${rule}, got ${got}; restore the file from a copy`);

const readBlob = (path: string): Promise<Buffer | undefined> =>
  readFile(path).catch((error) => {
    if (!isMissing(error)) throw error;
    return undefined;
  });

/** `bytes` of that hash are on disk when resolved. A file of that name that is damaged is replaced. */
export const keepBlob = async (folder: string, bytes: Uint8Array, hash: string): Promise<void> => {
  const path = join(folder, hash);
  const known = await readBlob(path);
  if (known === undefined || sha256(known) !== hash) await replaceFile(path, bytes);
};

/** @throws TraceError "corrupt" when the bytes are not those; a damaged file is moved to `quarantine`, and `onReport` hears where it is. */
export const loadBlob = async (
  folder: string,
  ref: BlobRef,
  quarantine: string,
  onReport: (message: string) => void,
): Promise<Uint8Array> => {
  const path = join(folder, ref.sha256);
  const bytes = await readBlob(path);
  if (bytes === undefined) throw damaged(path, `a blob of ${ref.byteLength} bytes`, "no file");
  const hash = sha256(bytes);
  if (hash === ref.sha256) return new Uint8Array(bytes);
  const kept = join(quarantine, `${basename(path)}.${hash.slice(0, 8)}`);
  try {
    await mkdir(quarantine, { recursive: true });
    await rename(path, kept);
    await syncFolder(quarantine);
    await syncFolder(folder);
    onReport(`${path}: bytes of that SHA-256, got ${hash}; the file is set aside as ${kept}, and publishing the same again puts it right`);
  } catch (error) {
    onReport(`${path}: bytes of that SHA-256, got ${hash}; the file could not be set aside (${error})`); // it stays, and is refused each time
  }
  throw damaged(path, "bytes of that SHA-256", hash);
};

/** For bytes that no resource names any more. */
export const removeBlobs = async (folder: string, hashes: Iterable<string>): Promise<void> => {
  for (const hash of hashes)
    await unlink(join(folder, hash)).catch((error) => {
      if (!isMissing(error)) throw error;
    });
};

/** Counts the resources that name each blob, so that what an unpublished one alone named can be deleted. */
export interface BlobUses {
  add(refs: Iterable<BlobRef>): void;
  remove(refs: Iterable<BlobRef>): void;
  /** Named once, and by nobody now; each is given out once. */
  takeUnused(): string[];
}

export const createBlobUses = (): BlobUses => {
  const counts = new Map<string, number>();
  const count = (refs: Iterable<BlobRef>, change: 1 | -1): void => {
    for (const { sha256 } of refs) counts.set(sha256, (counts.get(sha256) ?? 0) + change);
  };
  return {
    add: (refs) => count(refs, 1),
    remove: (refs) => count(refs, -1),
    takeUnused: () => {
      const unused = [...counts].filter(([, uses]) => uses <= 0).map(([hash]) => hash);
      for (const hash of unused) counts.delete(hash);
      return unused;
    },
  };
};

export const keepState = async (folder: string, name: string, bytes: Uint8Array): Promise<void> => {
  const header = encodeLine({ magic: STATE_MAGIC, v: STATE_VERSION, name, byteLength: bytes.length, sha256: sha256(bytes) });
  await replaceFile(join(folder, sha256(name)), Buffer.concat([header, bytes]));
};

interface State {
  readonly name: string;
  readonly bytes: Buffer;
}

/** undefined where there is no file. @throws TraceError "corrupt" when the file is not what was written. */
export const readState = async (path: string): Promise<State | undefined> => {
  const file = await readFile(path).catch((error) => {
    if (!isMissing(error)) throw error;
  });
  if (file === undefined) return undefined;
  const headerEnd = file.indexOf(NEWLINE);
  const header = decodeLine(file.subarray(0, Math.max(headerEnd, 0))) as
    | { magic?: unknown; v?: unknown; name: string; sha256?: unknown }
    | undefined;
  if (header === undefined) throw damaged(path, "a whole first line", "a damaged one");
  if (header.magic !== STATE_MAGIC || header.v !== STATE_VERSION)
    throw damaged(path, `magic ${STATE_MAGIC}, v ${STATE_VERSION}`, `magic ${header.magic}, v ${header.v}`);
  const bytes = file.subarray(headerEnd + 1);
  if (sha256(bytes) !== header.sha256) throw damaged(path, "bytes of the SHA-256 in its first line", sha256(bytes));
  return { name: header.name, bytes };
};

/** @throws TraceError "corrupt" when the file is not what was written. */
export const loadState = async (folder: string, name: string): Promise<Uint8Array | undefined> => {
  const state = await readState(join(folder, sha256(name)));
  return state && new Uint8Array(state.bytes);
};

/** @throws TraceError "corrupt" for a damaged file: whose it was is not known. */
export const stateNames = async (folder: string): Promise<string[]> => {
  const names: string[] = [];
  for (const file of await readdir(folder)) {
    if (file.endsWith(".tmp")) continue;
    const state = await readState(join(folder, file));
    if (state) names.push(state.name);
  }
  return names;
};

/** What a crash left half-written. Only for the holder of the folder's lock. */
export const removeTemporary = async (folder: string): Promise<void> => {
  for (const name of await readdir(folder)) if (name.endsWith(".tmp")) await unlink(join(folder, name));
};

// A store in a folder, for one process at a time; others reach it over HTTP.
//
//   <folder>/lock  meta.json  log/<first seq, 16 digits>.log  blobs/<sha256>  state/<sha256>  quarantine/<what was damaged>
//
// What a method answered is on disk (fdatasync) before it resolves, reads included: nothing is ever seen and then lost.
// Rollouts, attempts and the places of spans are in memory; the spans themselves are read back from the log on demand.
//
// forget: no method gives a forgotten rollout back, here or after reopening. A log file is deleted as soon as all of its
// rollouts are gone; in a file shared with rollouts that live, the bytes stay until compactFileStore. unpublish deletes the
// blobs that no other version names. Damaged files that were set aside in quarantine/ are a person's to delete.

import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { createMemoryRows, createQueue } from "../memory.ts";
import { applyRecord } from "../records.ts";
import type { Backend, StoreRecord, Transaction } from "../rows.ts";
import { createStore, type StoreOptions } from "../store.ts";
import type { Resource, Store, StoredSpan } from "../vocabulary.ts";
import { createBlobUses, keepBlob, keepState, loadBlob, loadState, removeBlobs, removeTemporary, stateNames } from "./blobs.ts";
import type { BlobRef, LogData, StoredResource } from "./codec.ts";
import type { Compacted } from "./compaction.ts";
import { isMissing, replaceFile, syncFolder } from "./durable.ts";
import { acquireLock } from "./lock.ts";
import { type LogIo, openSegmentLog, type Place, platformIo, type SegmentLog } from "./segmentLog.ts";
import { type Verification, verifyFolder } from "./verify.ts";

export type { Compacted } from "./compaction.ts";
export type { LogIo } from "./segmentLog.ts";
export type { Verification } from "./verify.ts";

export interface FileStoreOptions extends StoreOptions {
  /** Hears what a person should know: torn or damaged files, and what was done. Default: console.warn. */
  readonly onReport?: (message: string) => void;
  /** A log file is followed by another from this size on. */
  readonly rotateBytes?: number; // 64 MiB
  /** The disk under the log. Default: the platform's. Tests fail it. */
  readonly io?: LogIo;
}

const META_MAGIC = "fulgurite-store";
const META_VERSION = 1;

const checkMeta = async (path: string, nowMs: number): Promise<void> => {
  const text = await readFile(path, "utf8").catch((error) => {
    if (!isMissing(error)) throw error;
  });
  if (text === undefined) {
    await replaceFile(path, Buffer.from(`${JSON.stringify({ magic: META_MAGIC, v: META_VERSION, createdMs: nowMs })}\n`));
    return;
  }
  const meta = JSON.parse(text) as { magic?: unknown; v?: unknown };
  if (meta.magic !== META_MAGIC || meta.v !== META_VERSION)
    throw new TraceError(
      "corrupt",
      `${path}: magic ${META_MAGIC}, v ${META_VERSION}, got magic ${meta.magic}, v ${meta.v}; open it with the release that wrote it`,
    );
};

const SUBFOLDERS = ["log", "blobs", "state"] as const;

/** Runs `body` as the only process in `folder`, which must be there. */
const lockFolder = async <T>(folder: string, body: () => Promise<T>): Promise<T> => {
  const lock = await acquireLock(folder);
  try {
    return await body();
  } finally {
    await lock.release();
  }
};

/**
 * Takes what is gone off the disk: rewrites the log without it. For a store that no process has open. Stopped or killed at any
 * moment it leaves a store that reads the same; the next call goes on.
 * @throws as openFileStore; the signal's reason, between two files.
 */
export const compactFileStore = async (
  folder: string,
  { signal, ...options }: Pick<FileStoreOptions, "onReport" | "clock"> & { signal?: AbortSignal } = {},
): Promise<Compacted> => {
  const { clock = Date.now, onReport = (message: string) => console.warn(message) } = options;
  return lockFolder(folder, async () => {
    await checkMeta(join(folder, "meta.json"), clock());
    for (const name of SUBFOLDERS) await removeTemporary(join(folder, name));
    const uses = createBlobUses();
    const published = new Map<string, StoredResource>();
    const log = await openSegmentLog(join(folder, "log"), join(folder, "quarantine"), {
      rotateBytes: Number.POSITIVE_INFINITY,
      io: platformIo,
      clock,
      onReport,
      onRecord: async (record) => {
        if (record.kind !== "resource" && record.kind !== "unpublished") return;
        const key = JSON.stringify([record.data.name, record.data.version]);
        const known = published.get(key);
        if (record.kind === "resource") published.set(key, record.data);
        if (record.kind === "resource") uses.add(Object.values(record.data.files));
        else if (known) uses.remove(Object.values(known.files));
      },
    });
    try {
      await removeBlobs(join(folder, "blobs"), uses.takeUnused()); // a crash may have kept them; the log is about to forget their names
      return await log.rewriteAll(signal);
    } finally {
      await log.close();
    }
  });
};

/**
 * Reads every line, blob and state of a store that no process has open, and changes nothing.
 * @throws TraceError "locked"; "corrupt" when the folder's meta.json is another format's; the signal's reason.
 */
export const verifyFileStore = async (folder: string, { signal }: { signal?: AbortSignal } = {}): Promise<Verification> =>
  lockFolder(folder, async () => {
    await checkMeta(join(folder, "meta.json"), Date.now());
    return verifyFolder(folder, signal);
  });

/**
 * Opens (or makes) the store in `folder` and holds its lock until close().
 * After a crash call requeueStale(now): what was running then is not any more.
 * @throws TraceError "locked" naming the holder's pid; "corrupt" for another format version; the platform's file errors.
 */
export const openFileStore = async (folder: string, options: FileStoreOptions = {}): Promise<Store> => {
  const { clock = Date.now, onReport = (message) => console.warn(message), rotateBytes = 64 * 2 ** 20, io = platformIo } = options;
  const inside = (name: string) => join(folder, name);
  for (const name of SUBFOLDERS) await mkdir(inside(name), { recursive: true });
  await syncFolder(folder);
  const lock = await acquireLock(folder);
  try {
    await checkMeta(inside("meta.json"), clock());
    for (const name of SUBFOLDERS) await removeTemporary(inside(name));

    const places = new WeakMap<StoredSpan, Place>();
    const manifests = new WeakMap<Resource, StoredResource>();
    const blobUses = createBlobUses();
    let log: SegmentLog;
    const rows = createMemoryRows<Place, StoredResource>({
      keepSpan: (span) => places.get(span) as Place,
      loadSpans: (kept) => Promise.all(kept.map(async (place) => (await log.read(place)).data as StoredSpan)),
      keepResource: (resource) => {
        const stored = manifests.get(resource) as StoredResource;
        blobUses.add(Object.values(stored.files));
        return stored;
      },
      loadResource: async (stored) => {
        const files: [string, Uint8Array][] = [];
        for (const [path, ref] of Object.entries(stored.files))
          files.push([path, await loadBlob(inside("blobs"), ref, inside("quarantine"), onReport)]);
        return { ...stored, manifest: stored.files, files: Object.fromEntries(files) };
      },
      dropResource: (stored) => blobUses.remove(Object.values(stored.files)),
      entryOf: (stored) => ({ ...stored, manifest: stored.files }),
    });

    // a rollout's first record may be off the disk while its others, and the word that it is gone, are still to come
    const orphans = new Map<string, string[]>();
    log = await openSegmentLog(inside("log"), inside("quarantine"), {
      rotateBytes,
      io,
      clock,
      onReport,
      onRecord: async (record, place) => {
        if (record.kind === "dropped") return rows.raiseSeqs(record.data.rolloutSeq, record.data.spanSeq);
        if (record.kind === "gone") orphans.delete(record.data.rolloutId);
        let known: StoreRecord;
        if (record.kind === "resource") {
          known = { kind: "resource", data: { ...record.data, manifest: record.data.files, files: {} } };
          manifests.set(known.data, record.data);
        } else known = record;
        if (known.kind === "span") places.set(known.data, place);
        if ((await applyRecord(rows, known)) !== undefined) return;
        const { rolloutId } = record.data as { rolloutId: string };
        const report = `${inside("log")}: record ${record.seq} is a ${record.kind} of a rollout or attempt that was lost, and is left out`;
        const others = orphans.get(rolloutId);
        if (others) others.push(report);
        else orphans.set(rolloutId, [report]);
      },
    });
    for (const report of [...orphans.values()].flat()) onReport(report);
    const removeSpent = () =>
      log.removeSpent().catch((error) => onReport(`${inside("log")}: a file whose rollouts are all gone could not be deleted (${error})`));
    const removeUnusedBlobs = () =>
      removeBlobs(inside("blobs"), blobUses.takeUnused()).catch((error) =>
        onReport(`${inside("blobs")}: files that no resource names any more could not be deleted (${error})`),
      );
    const sweep = async (): Promise<void> => {
      await removeSpent();
      await removeUnusedBlobs();
    };
    await sweep(); // of a process that died before it came to it

    const toLogData = async (record: StoreRecord): Promise<LogData> => {
      if (record.kind !== "resource") return record;
      const { manifest, files, ...rest } = record.data; // the log's `files` are the manifest
      for (const [path, bytes] of Object.entries(files)) await keepBlob(inside("blobs"), bytes, (manifest[path] as BlobRef).sha256);
      const data: StoredResource = { ...rest, files: manifest };
      manifests.set(record.data, data);
      return { kind: "resource", data };
    };

    const transaction: Transaction = {
      ...rows,
      log: async (records) => {
        const data: LogData[] = [];
        for (const record of records) data.push(await toLogData(record));
        const added = log.add(data);
        for (const [index, record] of records.entries()) if (record.kind === "span") places.set(record.data, added[index] as Place);
      },
    };

    const inTurn = createQueue();
    const stateInTurn = createQueue();
    const backend: Backend = {
      checksFiles: true, // loadBlob does
      transact: async (_mode, body) => {
        let hasGone = false;
        const watched: Transaction = {
          ...transaction,
          log: async (records) => {
            hasGone = records.some(({ kind }) => kind === "gone" || kind === "unpublished");
            await transaction.log?.(records);
          },
        };
        // the next body may run while this one's records are on their way: that is the group commit
        const { answer, safe } = await inTurn(async () => {
          const answer = await body(watched);
          const safe = log.settled();
          safe.catch(() => {}); // awaited below, perhaps a moment after it failed
          return { answer, safe };
        });
        await safe;
        if (hasGone) await inTurn(() => log.settled().then(sweep, () => {})); // a failed log tells whoever writes next
        return answer;
      },
      putState: (name, bytes) => stateInTurn(() => keepState(inside("state"), name, bytes)),
      getState: (name) => stateInTurn(() => loadState(inside("state"), name)),
      states: () => stateInTurn(() => stateNames(inside("state"))),
      close: async () => {
        try {
          await inTurn(() => stateInTurn(() => log.close()));
        } finally {
          await lock.release();
        }
      },
    };
    return createStore(folder, backend, options);
  } catch (error) {
    await lock.release();
    throw error;
  }
};

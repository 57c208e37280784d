// A store in a folder, for one process at a time; others reach it over HTTP.
//
//   <folder>/lock  meta.json  log/<first seq, 16 digits>.log  index/manifest  index/<first seq, 16 digits>.idx
//           blobs/<sha256>  state/<sha256>  quarantine/<what was damaged>  reserve (reserve.ts)
//
// What a method answered is on disk (fdatasync) before it resolves, reads included: nothing is ever seen and then lost.
// The log is the only truth. Rollouts that have not ended are in memory; what is in a file that is no longer written is found
// through its sidecar in index/, and opening begins from the manifest. Either may be deleted: it is made anew from the log.
// On a full disk what is asked for is refused ("full") and leaves no trace; reading and forgetting go on.
//
// forget: no method gives a forgotten rollout back, here or after reopening, and what it held is overwritten on the disk
// (scrub.ts) or deleted with its file before forget resolves; ids, times and the room it took stay until compactFileStore.
// unpublish deletes the blobs that no other version names. What is in quarantine/ is a person's to delete.

import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { createQueue } from "../memory.ts";
import type { Backend, Transaction } from "../rows.ts";
import { createStore, type StoreOptions } from "../store.ts";
import type { Store } from "../vocabulary.ts";
import { createBlobUses, keepState, loadState, removeBlobs, removeTemporary, stateNames } from "./blobs.ts";
import { type Compacted, type LogContents, noteRecord, rewriteAll } from "./compaction.ts";
import { fullDisk, namingFull } from "./diskFull.ts";
import { isMissing, replaceFile, syncFolder } from "./durable.ts";
import { acquireLock } from "./lock.ts";
import { type LogIo, platformIo } from "./logFile.ts";
import type { StoredResource } from "./logRecord.ts";
import type { LogRows } from "./logRows.ts";
import { type LogState, openLogState } from "./logState.ts";
import { createPace } from "./pace.ts";
import { keepReserve, spendReserve } from "./reserve.ts";
import { createSegmentLog, type LogFolders } from "./segmentLog.ts";
import { createSharing, type Transact } from "./sharing.ts";
import { createSlabCopy } from "./slab.ts";
import { type Verification, verifyFolder } from "./verify.ts";

export type { Compacted } from "./compaction.ts";
export { type Listener, type ListenOptions, listen } from "./listen.ts";
export { type LogIo, platformIo } from "./logFile.ts";
export type { Verification } from "./verify.ts";

export interface FileStoreOptions extends StoreOptions {
  /** Hears what a person should know: torn or damaged files, and what was done. Default: console.warn. */
  readonly onReport?: (message: string) => void;
  /** A log file is followed by another from this size on. */
  readonly rotateBytes?: number; // 32 MiB
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
  let meta: { magic?: unknown; v?: unknown } | null = null;
  try {
    meta = JSON.parse(text);
  } catch {
    // told below
  }
  if (typeof meta !== "object" || meta === null)
    throw new TraceError(
      "corrupt",
      `${path}: a JSON object, got ${JSON.stringify(text.slice(0, 80))}; delete it if the folder was a store's: it says no more than that`,
    );
  if (meta.magic !== META_MAGIC || meta.v !== META_VERSION)
    throw new TraceError(
      "corrupt",
      `${path}: magic ${META_MAGIC}, v ${META_VERSION}, got magic ${meta.magic}, v ${meta.v}; open it with the release that wrote it`,
    );
};

const SUBFOLDERS = ["log", "index", "blobs", "state"] as const;

const makeSubfolders = async (folder: string): Promise<void> => {
  for (const name of SUBFOLDERS) await mkdir(join(folder, name), { recursive: true });
  await syncFolder(folder);
};

/** Runs `body` as the only process in `folder`, which must be there. */
const lockFolder = async <T>(folder: string, body: () => Promise<T>): Promise<T> =>
  namingFull(folder, "a store that nobody has open", async () => {
    const lock = await acquireLock(folder);
    try {
      return await body();
    } finally {
      await lock.release();
    }
  });

const foldersOf = (folder: string): LogFolders => ({
  log: join(folder, "log"),
  index: join(folder, "index"),
  quarantine: join(folder, "quarantine"),
});

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
    await makeSubfolders(folder);
    const uses = createBlobUses();
    const published = new Map<string, StoredResource>();
    const contents: LogContents = { folder: join(folder, "log"), files: new Map(), goneAt: new Map() };
    const log = createSegmentLog(foldersOf(folder), {
      known: [],
      rotateBytes: Number.POSITIVE_INFINITY,
      io: platformIo,
      pace: createPace(),
      clock,
      onReport,
      onRecord: async (record, place, end) => {
        noteRecord(contents, record, place, end);
        if (record.kind !== "resource" && record.kind !== "unpublished") return;
        const key = JSON.stringify([record.data.name, record.data.version]);
        const known = published.get(key);
        if (record.kind === "resource") published.set(key, record.data);
        if (record.kind === "resource") uses.add(Object.values(record.data.files));
        else if (known) uses.remove(Object.values(known.files));
      },
      onLeft: async () => {},
    });
    await log.replay();
    await log.close();
    await removeBlobs(join(folder, "blobs"), uses.takeUnused()); // a crash may have kept them; the log is about to forget their names
    await rm(join(folder, "index"), { recursive: true, force: true }); // first: it tells of files that are about to change
    await syncFolder(folder);
    const compacted = await rewriteAll(contents, signal);
    await makeSubfolders(folder);
    const state = await openLogState(folder, foldersOf(folder), {
      rotateBytes: Number.POSITIVE_INFINITY,
      io: platformIo,
      pace: createPace(),
      clock,
      onReport,
    });
    await state.close();
    return compacted;
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
 * @throws TraceError "locked" naming the holder's pid; "corrupt" for another format version; "full"; "storage" for what else the platform refuses.
 */
export const openFileStore = async (folder: string, options: FileStoreOptions = {}): Promise<Store> => {
  const { clock = Date.now, onReport = (message) => console.warn(message), rotateBytes = 32 * 2 ** 20, io = platformIo } = options;
  const inside = (name: string) => join(folder, name);
  const lock = await namingFull(folder, "the lock of an open store", async () => {
    await makeSubfolders(folder);
    return acquireLock(folder);
  });
  try {
    await namingFull(folder, "meta.json", () => checkMeta(inside("meta.json"), clock()));
    await namingFull(folder, "its files", async () => {
      for (const name of SUBFOLDERS) await removeTemporary(inside(name));
    });
    const pace = createPace();
    const openState = (): Promise<LogState> => openLogState(folder, foldersOf(folder), { rotateBytes, io, pace, clock, onReport });
    let state = await namingFull(folder, "its log", openState);
    const reserve = inside("reserve");
    await keepReserve(reserve);
    /** It is spent on forgetting: until it is there again nothing else takes the room that this makes. */
    let isSpent = false;
    let forgetting = 0;
    const guardRoom = async (): Promise<void> => {
      if (isSpent && (forgetting > 0 || !(await keepReserve(reserve))))
        throw fullDisk(folder, "what is kept back for forgetting", { code: "ENOSPC" });
      isSpent = false;
    };

    const inTurn = createQueue();
    const stateInTurn = createQueue();

    /** A full disk took nothing of what was on its way: what is on disk is all there is. */
    const startAgain = (failed: LogState): Promise<void> =>
      inTurn(async () => {
        if (state !== failed) return;
        await failed.close();
        state = await openState();
      });

    const transact: Transact = async (mode, body, callers = () => 1) => {
      let mine = state;
      let hasGone = false;
      try {
        // the next body may run while this one's records are on their way: that is the group commit
        const { answer, safe } = await inTurn(async () => {
          mine = state;
          const { rows, add } = mine;
          const log: Transaction["log"] = (records) => {
            const isGone = records.some(({ kind }) => kind === "gone" || kind === "unpublished");
            hasGone ||= isGone;
            return isSpent && !isGone ? guardRoom().then(() => add(records, callers())) : add(records, callers());
          };
          const answer = body(Object.assign(Object.create(rows) as LogRows, { log })); // to copy every method would cost more
          await answer.catch(() => {}); // a refusal may rest on what is not safe yet, and is told no sooner
          await rows.release();
          const safe = mine.log.settled();
          safe.catch(() => {}); // awaited below, perhaps a moment after it failed
          return { answer, safe };
        });
        await safe;
        // a failed log tells whoever writes next
        if (hasGone || mine.log.isRipe())
          await inTurn(() =>
            mine.log.settled().then(
              () => mine.tidy(hasGone),
              () => {},
            ),
          );
        if (hasGone && (await keepReserve(reserve))) isSpent = false;
        return await answer;
      } catch (error) {
        if (!(error instanceof TraceError && error.code === "full" && mine.log.hasFailed())) throw error;
        await startAgain(mine);
        if (mode === "read") return transact(mode, body, callers);
        if (!(hasGone && (await spendReserve(reserve)))) throw error;
        isSpent = true;
        forgetting += 1;
        try {
          return await transact(mode, body, callers);
        } finally {
          forgetting -= 1;
        }
      }
    };

    const sharing = createSharing(transact, pace, () => state.log.isIdle());
    const backend: Backend = {
      checksFiles: true, // loadBlob does
      givesOwnSpans: true, // decoded for each reader
      copyArray: createSlabCopy(),
      transact: sharing.transact,
      gather: sharing.gather,
      putState: (name, bytes) =>
        stateInTurn(async () => {
          await guardRoom();
          await namingFull(folder, `state ${name}`, () => keepState(inside("state"), name, bytes));
        }),
      getState: (name) => stateInTurn(() => namingFull(folder, `state ${name}`, () => loadState(inside("state"), name))),
      states: () => stateInTurn(() => namingFull(folder, "its states", () => stateNames(inside("state")))),
      close: async () => {
        sharing.end();
        try {
          await inTurn(() => stateInTurn(() => state.close()));
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

// One writer a folder. The file `lock` names its holder: {"magic":"fulgurite-lock","v":1,"pid","startedAt","host","token"}.
// It appears whole or not at all (a hard link to a finished file that is on disk). It is stale when its process is gone, or when its pid
// belongs to a process that began at another time; a holder on another machine is never presumed gone.

import { randomBytes } from "node:crypto";
import { link, readFile, rename, unlink } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { isMissing, withFile } from "./durable.ts";

interface Holder {
  readonly magic: "fulgurite-lock";
  readonly v: 1;
  readonly pid: number;
  /** In the kernel's own unit since boot; absent where the system does not tell (then the pid alone must do). */
  readonly startedAt?: string;
  readonly host: string;
  readonly token: string;
}

/** Field 22 of /proc/<pid>/stat; the command in field 2 may hold spaces and brackets, so count from its last bracket. */
const startOf = async (pid: number): Promise<string | undefined> => {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
};

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH"; // EPERM: it lives, and is someone else's
  }
};

const isStale = async (holder: Holder): Promise<boolean> => {
  if (holder.host !== hostname()) return false;
  if (!isAlive(holder.pid)) return true;
  const startedAt = await startOf(holder.pid);
  return holder.startedAt !== undefined && startedAt !== undefined && holder.startedAt !== startedAt;
};

const readHolder = async (path: string): Promise<Holder | undefined> => {
  const text = await readFile(path, "utf8").catch((error) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    const holder = JSON.parse(text) as Holder;
    if (holder?.magic === "fulgurite-lock" && holder.v === 1 && /^[0-9a-z]+$/.test(holder.token)) return holder;
  } catch {
    // told below
  }
  throw new TraceError(
    "locked",
    `${path}: a lock of magic fulgurite-lock, v 1, got ${JSON.stringify(text.slice(0, 80))}; if nothing uses the folder, delete the file`,
  );
};

/**
 * Puts our finished file at `path` unless a living process is there. Whoever replaces a stale lock must first hold the claim
 * on that very lock, `lock.<its token>`, taken the same way (its holder may have died too); so of many who find it stale one
 * replaces it, and the late ones see that it is no longer the lock that they judged.
 */
const take = async (folder: string, path: string, finished: string): Promise<void> => {
  for (;;) {
    try {
      return await link(finished, path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const holder = await readHolder(path);
    if (holder === undefined) continue; // released between the two looks
    if (!(await isStale(holder))) {
      const isHere = holder.host === hostname();
      throw new TraceError(
        "locked",
        `${folder}: one writer at a time, got a lock held by pid ${holder.pid} on ${holder.host}; stop that process, or share its store over HTTP${
          isHere ? "; in a copy of its folder, delete the copy of the lock" : `; if that machine is gone for good, delete ${path}`
        }`,
      );
    }
    const claim = join(folder, `lock.${holder.token}`);
    await take(folder, claim, finished);
    if ((await readHolder(path))?.token === holder.token) return rename(claim, path); // one step: the claim becomes the lock
    await unlink(claim);
  }
};

export interface Lock {
  release(): Promise<void>;
}

/** @throws TraceError "locked" naming the pid of the holder. */
export const acquireLock = async (folder: string): Promise<Lock> => {
  const path = join(folder, "lock");
  const startedAt = await startOf(process.pid);
  const token = randomBytes(8).toString("hex");
  const mine: Holder = {
    magic: "fulgurite-lock",
    v: 1,
    pid: process.pid,
    ...(startedAt === undefined ? {} : { startedAt }),
    host: hostname(),
    token,
  };
  const finished = `${path}.${token}.tmp`;
  try {
    // on disk before it is the lock: of a power cut a lock must not be left that names nobody
    await withFile(finished, "wx", async (handle) => {
      await handle.writeFile(`${JSON.stringify(mine)}\n`);
      await handle.sync();
    });
    await take(folder, path, finished);
  } finally {
    await unlink(finished).catch(() => {}); // it is a lock's other name, or was never made: the first error is the one to tell
  }
  return {
    release: async () => {
      if ((await readHolder(path))?.token === token) await unlink(path);
    },
  };
};

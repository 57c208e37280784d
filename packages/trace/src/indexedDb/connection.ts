// One handle to one database, and what to do when it dies. Browsers close handles behind the page's back: WebKit loses its
// database server, another tab upgrades or deletes, storage is cleared. Then the handle is dropped, the next use opens
// another, and the transaction that it died under runs once more. A second death is the caller's error.
//
// Who upgrades waits for every older tab to let go. So a tab lets go when it is asked, and before it is frozen, when nobody could
// ask it, of its transactions too; and who waits for one that does neither, or for an upgrade elsewhere, waits OPEN_MS.

import { TraceError, type TraceErrorCode } from "../errors.ts";
import type { Timer } from "../waitBounds.ts";
import { ask, undo } from "./requests.ts";
import { isKnown, SCHEMA_VERSION, upgrade } from "./schema.ts";

export interface Connection {
  /** Runs `body` with a live handle; again, once, if the handle died under it. Where there is none to have, every error is a TraceError. */
  use<T>(body: (db: IDBDatabase) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/**
 * How engines say that a handle is gone. All: AbortError, for a forced close aborts what is under way and only then says so, and
 * InvalidStateError, "The database connection is closing". UnknownError: WebKit's lost server and missing transactions, Chromium's
 * "Internal error". VersionError: the database is newer than what was asked for.
 */
const DEAD = /Abort|InvalidState|Unknown|Version/;

const OPEN_MS = 30_000;

const isFull = (error: Error): boolean => error.name === "QuotaExceededError";

/**
 * `onOutdated` is told once, when a newer release has changed what this one knows; from then on that error is all there is.
 * `running`: what bodies have begun and not ended.
 */
export const createConnection = (
  databaseName: string,
  onReport: (message: string) => void,
  timer: Timer,
  onOutdated: (error: TraceError) => void,
  running: ReadonlySet<IDBTransaction>,
): Connection => {
  let handle: Promise<IDBDatabase> | undefined;
  let wasOpen = false;
  let ended: TraceError | undefined;
  let awake: Promise<unknown> | undefined; // from a freeze on

  const refusal = (code: TraceErrorCode, rule: string, cause?: unknown): TraceError =>
    new TraceError(code, `${databaseName}: ${rule}`, { cause });
  const lost = (error: Error) =>
    refusal("storage", `it must be open, got ${error}; let the browser keep data, or use createMemoryStore()`, error);
  const inTheWay = () => refusal("locked", "it must be open, got another tab that holds an older version; reload that tab");

  const open = (): Promise<IDBDatabase> => {
    let stop = () => {};
    const drop = () => {
      if (handle === opening) handle = undefined;
    };
    const opened = async (tries: number, version?: number): Promise<IDBDatabase> => {
      let upgrading: IDBTransaction | undefined;
      try {
        const request = indexedDB.open(databaseName, version);
        request.onupgradeneeded = ({ oldVersion }) => {
          upgrading = request.transaction as IDBTransaction;
          if (version === undefined) return upgrading.abort(); // deleted since: begin again
          stop(); // it takes the time that it takes
          if (wasOpen && oldVersion === 0) onReport(`${databaseName}: it was deleted, and begins anew`);
          upgrade(upgrading, oldVersion);
        };
        request.onblocked = () => onReport(inTheWay().message);
        const db = await ask(request);
        db.onclose = drop;
        db.onversionchange = ({ newVersion }) => {
          drop();
          db.close();
          if (newVersion) use(async () => {}).catch(() => {}); // waits hear of it at once
        };
        if (handle !== opening) db.close(); // nobody waits for it any more
        if (db.version > SCHEMA_VERSION && !isKnown(db)) {
          db.close();
          ended = refusal("outdated", `this tab's code must know it, got version ${db.version} of a newer release; reload this tab`);
          onReport(ended.message);
          onOutdated(ended);
          throw ended;
        }
        wasOpen = true;
        globalThis.addEventListener?.("freeze", onFreeze, true); // of the document; absent in Node
        return db;
      } catch (thrown) {
        const error = upgrading?.error ?? (thrown as Error); // a full disk tells the transaction only
        if (tries > 1 && DEAD.test(error.name)) return opened(tries - 1, error.name === "VersionError" ? undefined : SCHEMA_VERSION);
        if (error instanceof TraceError || isFull(error)) throw error;
        throw lost(error);
      }
    };
    const late = new Promise<never>((_, reject) => {
      stop = timer(() => reject(inTheWay()), OPEN_MS);
    });
    const opening = Promise.race([opened(3, SCHEMA_VERSION), late]);
    opening.catch(drop).then(stop);
    return opening;
  };

  const letGo = async (): Promise<void> => {
    const last = handle;
    handle = undefined;
    await last?.then((db) => db.close()).catch(() => {}); // transactions under way still complete
  };

  /** A transaction of a tab that stands still would stop all others: it is undone, and done again when the tab goes on. */
  const onFreeze = () => {
    awake = new Promise((resolve) => globalThis.addEventListener("resume", resolve, { capture: true, once: true }));
    for (const transaction of running) undo(transaction);
    letGo();
  };

  const use: Connection["use"] = async (body) => {
    for (let isFirst = true; ; isFirst = false) {
      await awake;
      if (ended) throw ended;
      handle ??= open();
      const mine = handle;
      try {
        return await body(await mine);
      } catch (thrown) {
        const error = thrown as Error;
        if (isFull(error)) throw refusal("full", "it must have room, got none; free the disk, or export and forget rollouts", error);
        if (error instanceof TraceError) throw error; // a rule was broken; the handle's death is another matter
        if (handle === mine) {
          if (!DEAD.test(error.name)) throw error;
          letGo(); // it is dead already
        }
        if (!isFirst) throw lost(error);
      }
    }
  };

  return {
    use,
    close: () => {
      ended ??= refusal("closed", "it must be open, got a call after close(); open it again");
      globalThis.removeEventListener?.("freeze", onFreeze, true);
      return letGo();
    },
  };
};

// One handle to one database, and what to do when it dies. Browsers close handles behind the page's back: WebKit loses its
// database server, another tab upgrades or deletes, storage is cleared. Then the handle is dropped, the next use opens
// another, and the transaction that it died under runs once more. A second death is the caller's error.
//
// Who upgrades waits for every older tab to let go. So a tab lets go when it is asked, and before it is frozen, when nobody could
// ask it; and who waits for one that does neither, or for an upgrade elsewhere, waits OPEN_MS.

import { TraceError } from "../errors.ts";
import type { Timer } from "../waitBounds.ts";
import { ask } from "./requests.ts";
import { isKnown, SCHEMA_VERSION, upgrade } from "./schema.ts";

export interface Connection {
  /** Runs `body` with a live handle; again, once, if the handle died under it. Where there is none to have, every error is a TraceError. */
  use<T>(body: (db: IDBDatabase) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/**
 * How engines say that a handle is gone. All: AbortError, for a forced close aborts what is under way and only then says so, and
 * InvalidStateError, "The database connection is closing". WebKit: a lost server, a missing transaction. Chromium: "Internal error
 * opening backing store".
 */
const DEAD =
  /^(AbortError|InvalidStateError|UnknownError.*(Connection to Indexed Database server lost|without an in-progress transaction|Internal error))/;

const OPEN_MS = 30_000;

/** QuotaExceededError as TraceError "full", everything else as it is. */
export const orFull = (databaseName: string, error: unknown): unknown =>
  error instanceof Error && error.name === "QuotaExceededError"
    ? new TraceError(
        "full",
        `${databaseName}: the browser must have room for this call, got QuotaExceededError, and nothing of it is stored; export and forget rollouts, free the disk, or raise the site's quota`,
        { cause: error },
      )
    : error;

/** `onOutdated` is told once, when a newer release has changed what this one knows; from then on that error is all there is. */
export const createConnection = (
  databaseName: string,
  onReport: (message: string) => void,
  timer: Timer,
  onOutdated: (error: TraceError) => void,
): Connection => {
  let handle: Promise<IDBDatabase> | undefined;
  let wasOpen = false;
  let ended: TraceError | undefined;

  const open = (): Promise<IDBDatabase> => {
    let isLate = false;
    let stop = () => {};
    const drop = () => {
      if (handle === opening) handle = undefined;
    };
    const opened = async (version?: number): Promise<IDBDatabase> => {
      const request = indexedDB.open(databaseName, version);
      let upgrading: IDBTransaction | undefined;
      let failure: unknown;
      request.onupgradeneeded = ({ oldVersion }) => {
        upgrading = request.transaction as IDBTransaction;
        if (version === undefined) return upgrading.abort(); // deleted since: begin again
        stop(); // it takes the time that it takes
        if (wasOpen && oldVersion === 0) onReport(`${databaseName}: it was deleted with all that was in it, and begins anew`);
        upgrade(upgrading, oldVersion).catch((error) => {
          failure = error;
        });
      };
      request.onblocked = () => onReport(`${databaseName}: another tab holds an older version open; close or reload that tab to go on`);
      const db = await ask(request).catch((error) => {
        throw upgrading?.error ?? failure ?? error;
      });
      db.onclose = drop;
      db.onversionchange = ({ newVersion }) => {
        drop();
        db.close();
        if (newVersion !== null && newVersion > SCHEMA_VERSION) use(async () => {}).catch(() => {}); // waits hear of it at once
      };
      if (isLate) db.close();
      if (db.version > SCHEMA_VERSION && !isKnown(db)) {
        db.close();
        ended = new TraceError(
          "outdated",
          `${databaseName}: this tab's code must know the database, got version ${db.version} of a newer release; reload this tab`,
        );
        onReport(ended.message);
        onOutdated(ended);
        throw ended;
      }
      wasOpen = true;
      return db;
    };
    const tried = (): Promise<IDBDatabase> =>
      opened(SCHEMA_VERSION).catch((error) => {
        if (error.name === "VersionError") return opened(); // written by a newer release, which may only have added
        throw error;
      });
    const opening = new Promise<IDBDatabase>((resolve, reject) => {
      stop = timer(() => {
        isLate = true;
        reject(
          new TraceError(
            "locked",
            `${databaseName}: it must open, got no answer for ${OPEN_MS / 1000} s: another tab holds an older version open or upgrades it; close or reload that tab`,
          ),
        );
      }, OPEN_MS);
      tried()
        .catch((error) => {
          if (DEAD.test(String(error))) return tried();
          throw error;
        })
        .then(resolve, (error) => {
          const named = orFull(databaseName, error);
          reject(
            named instanceof TraceError
              ? named
              : new TraceError(
                  "storage",
                  `${databaseName}: the browser must keep data for this page, got ${error}; allow it (a private window may not), or use createMemoryStore()`,
                  { cause: error },
                ),
          );
        })
        .finally(() => stop());
    });
    opening.catch(drop);
    return opening;
  };

  const use: Connection["use"] = async (body) => {
    for (let isFirst = true; ; isFirst = false) {
      if (ended) throw ended;
      handle ??= open();
      const mine = handle;
      const db = await mine;
      try {
        return await body(db);
      } catch (error) {
        if (error instanceof TraceError) throw error; // a rule was broken; the handle's death is another matter
        if (handle === mine) {
          if (!DEAD.test(String(error))) throw error;
          handle = undefined;
          db.close(); // it is dead already
        }
        if (!isFirst)
          throw new TraceError("storage", `${databaseName}: its connection must live, got lost twice in one transaction; reload the page`, {
            cause: error,
          });
      }
    }
  };

  const letGo = async (): Promise<void> => {
    const last = handle;
    handle = undefined;
    (await last?.catch(() => undefined))?.close(); // transactions under way still complete
  };
  globalThis.addEventListener?.("freeze", letGo, true); // of the document; absent in workers and Node

  return {
    use,
    close: () => {
      ended ??= new TraceError("closed", `${databaseName}: it must be open, got a call after close(); open it again`);
      globalThis.removeEventListener?.("freeze", letGo, true);
      return letGo();
    },
  };
};

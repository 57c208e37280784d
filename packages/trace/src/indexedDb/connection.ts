// One handle to one database, and what to do when it dies. Browsers close handles behind the page's back: WebKit loses its
// database server, another tab upgrades or deletes, storage is cleared. Then the handle is dropped, the next use opens
// another, and the transaction that it died under runs once more. A second death is the caller's error.

import { TraceError } from "../errors.ts";
import { ask } from "./requests.ts";
import { SCHEMA_VERSION, upgrade } from "./schema.ts";

export interface Connection {
  /** Runs `body` with a live handle; again, once, if the handle died under it. */
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

export const createConnection = (databaseName: string, onReport: (message: string) => void): Connection => {
  let handle: Promise<IDBDatabase> | undefined;
  let isClosed = false;

  const open = (): Promise<IDBDatabase> => {
    const drop = () => {
      if (handle === opening) handle = undefined;
    };
    const opened = async (version?: number): Promise<IDBDatabase> => {
      const request = indexedDB.open(databaseName, version);
      request.onupgradeneeded = ({ oldVersion }) => upgrade(request.transaction as IDBTransaction, oldVersion);
      request.onblocked = () => onReport(`${databaseName}: another tab holds an older version open; close that tab to go on`);
      const db = await ask(request);
      db.onclose = drop;
      db.onversionchange = () => {
        drop();
        db.close();
      };
      return db;
    };
    const opening = opened(SCHEMA_VERSION).catch((error) => {
      // written by a newer release: its migrations only added, so what this one knows is all there
      if (error.name === "VersionError") return opened();
      throw error;
    });
    opening.catch(drop);
    return opening;
  };

  return {
    use: async (body) => {
      for (let isFirst = true; ; isFirst = false) {
        if (isClosed) throw new TraceError("closed", `${databaseName}: it must be open, got a call after close(); open it again`);
        handle ??= open();
        const mine = handle;
        try {
          return await body(await mine);
        } catch (error) {
          if (error instanceof TraceError) throw error; // a rule was broken; the handle's death is another matter
          if (handle === mine) {
            if (!DEAD.test(String(error))) throw error;
            handle = undefined;
            void mine.then((db) => db.close()).catch(() => {}); // it is dead already
          }
          if (!isFirst)
            throw new TraceError(
              "storage",
              `${databaseName}: its connection must live, got lost twice in one transaction; reload the page`,
              {
                cause: error,
              },
            );
        }
      }
    },
    close: async () => {
      isClosed = true;
      const last = handle;
      handle = undefined;
      const db = await last?.catch(() => undefined);
      db?.close(); // transactions under way still complete
    },
  };
};

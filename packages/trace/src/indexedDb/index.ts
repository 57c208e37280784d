// A store that a browser keeps, shared by every tab of the origin. Each command is one transaction, appends of one moment
// share one: IndexedDB itself is the lock, so claims of many tabs never collide. Other tabs hear of changes by
// BroadcastChannel, which only hints.
//
// A full disk: the call that finds no room rejects with TraceError "full" and leaves nothing behind; all that was
// acknowledged stays, reading and forget go on (forget only deletes), and the next call tries anew. When forgetting gives
// room is the browser's to decide: Chromium counts deleted bytes until it compacts. Claiming, ending and cancelling are writes
// like others. Not a quota manager: nothing is thrown out to make room.

import { TraceError } from "../errors.ts";
import type { Backend, Rows } from "../rows.ts";
import { createStore, type StoreOptions } from "../store.ts";
import type { Store } from "../vocabulary.ts";
import { platformTimer } from "../waitBounds.ts";
import { createConnection } from "./connection.ts";
import { openHints } from "./hints.ts";
import { createInOrder, type Mode, type RunTransaction } from "./inOrder.ts";
import { ask, committed, undo } from "./requests.ts";
import { createIndexedDbRows, type Guess } from "./rows.ts";
import { ROW_STORES } from "./schema.ts";
import { type Known, learn } from "./turns.ts";

export interface IndexedDbOptions extends StoreOptions {
  /** Hears what a person should know: another tab is in the way, a newer release, deleted data, the answer to `persist`. Default: console.warn. */
  readonly onReport?: (message: string) => void;
  /** Asks the browser, once, not to delete this origin's data when disks run short; some ask the user. The answer goes to onReport. */
  readonly persist?: boolean; // false
}

/** The answer, or which guess was wrong. */
type Tried<T> = { readonly answer: T } | keyof Guess;

/** What a transaction may be told for spans that are there already; an append on a full disk may have nothing else either. */
const isOfSpans = ({ name }: Error, mode: Mode): boolean =>
  name === "ConstraintError" || (mode === "append" && name === "QuotaExceededError");

const askToPersist = async (databaseName: string, onReport: (message: string) => void): Promise<void> => {
  const storage: Partial<StorageManager> | undefined = globalThis.navigator?.storage; // absent in Node and on insecure pages
  const isKept = await storage?.persist?.(); // who keeps it already says yes, and asks nobody
  onReport(
    `${databaseName}: persistent storage was asked for, got ${isKept ? "yes" : "no; the browser may delete it: export what matters"}`,
  );
};

/**
 * Opens (or makes) the database `fulgurite/<name>` of this origin.
 * claim, finish, cancel, publish and putState resolve when the browser says that they are flushed ("strict"); enqueue,
 * append and heartbeat when they are handed to the operating system: they survive a crash of the tab, not a power cut.
 * @throws TraceError, as all its methods do: "storage" where the browser keeps nothing, or loses the connection twice; "locked"
 * when another tab stands in the way for 30 s; "outdated" for a database that a newer release has changed; every method that
 * writes, and an upgrade, "full". What else the platform has to say passes untouched.
 */
export const openIndexedDbStore = async (name: string, options: IndexedDbOptions = {}): Promise<Store> => {
  const databaseName = `fulgurite/${name}`;
  const { onReport = console.warn } = options;
  const running = new Set<IDBTransaction>();
  let end = (_: TraceError): void => {};
  const connection = createConnection(databaseName, onReport, options.timer ?? platformTimer, (error) => end(error), running);
  await connection.use(async () => {}); // refuse here, not at the first write
  // nobody waits: a browser may leave the question to its user
  if (options.persist) void askToPersist(databaseName, onReport).catch((error) => onReport(String(error)));
  const hints = openHints(databaseName);

  /** Of the handle that it was learnt through: another may lead to another database. */
  let memory: { readonly db: IDBDatabase; readonly known: Known; readonly isShared: boolean } | undefined;

  const transact = async <T>(db: IDBDatabase, mode: Mode, guess: Guess, body: (rows: Rows) => Promise<T>): Promise<Tried<T>> => {
    const transaction =
      mode === "read"
        ? db.transaction(ROW_STORES)
        : db.transaction(ROW_STORES, "readwrite", { durability: mode === "strict" ? mode : "relaxed" });
    running.add(transaction);
    const done = committed(transaction);
    done.catch(() => {}); // awaited below; an abort must not also be an unhandled rejection
    try {
      const rows = createIndexedDbRows(transaction, guess);
      const answer = await body(rows);
      const lesson = await rows.end();
      if (lesson === "wrong") {
        transaction.abort();
        return "known";
      }
      transaction.commit();
      await done;
      if (lesson !== undefined) {
        const known = memory?.db === db ? memory.known : undefined;
        memory = { db, isShared: known !== undefined && known.turn !== lesson.before.turn, known: learn(known, lesson) };
      }
      return { answer };
    } catch (error) {
      undo(transaction); // the first error is the one to tell
      const cause = transaction.error ?? error;
      if (guess.isNew && isOfSpans(cause as Error, mode)) return "isNew";
      if (!(error instanceof TraceError)) memory = undefined;
      throw cause;
    } finally {
      running.delete(transaction);
    }
  };

  const run: RunTransaction = (mode, body) =>
    connection.use(async (db) => {
      const known = mode === "append" && memory?.db === db && !memory.isShared ? memory.known : undefined;
      let tried = await transact(db, mode, { known, isNew: true }, body);
      if (tried === "known") tried = await transact(db, mode, { isNew: true }, body);
      if (tried === "isNew") tried = await transact(db, mode, { isNew: false }, body);
      return (tried as Exclude<typeof tried, keyof Guess>).answer; // nothing is guessed any more
    });
  const inOrder = createInOrder(run);

  const readStates = <T>(read: (states: IDBObjectStore) => IDBRequest<T>): Promise<T> =>
    connection.use((db) => ask(read(db.transaction("states").objectStore("states"))));

  const backend: Backend = {
    givesOwnSpans: true, // cloned by the platform for each reader
    ...inOrder,
    putState: (stateName, bytes) =>
      connection.use(async (db) => {
        const transaction = db.transaction("states", "readwrite", { durability: "strict" });
        transaction.objectStore("states").put(bytes, stateName);
        await committed(transaction);
      }),
    getState: (stateName) => readStates((states) => states.get(stateName)),
    states: () => readStates((states) => states.getAllKeys() as IDBRequest<string[]>),
    close: async () => {
      await inOrder.settled();
      hints.close();
      await connection.close();
    },
  };
  return createStore(databaseName, backend, options, {
    ...hints,
    connect: (emit, endStore) => {
      hints.connect(emit);
      end = endStore;
    },
  });
};

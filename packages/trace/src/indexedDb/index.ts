// A store that a browser keeps, shared by every tab of the origin. Each command is one transaction: IndexedDB itself is the
// lock, so claims of many tabs never collide. Other tabs hear of changes by BroadcastChannel, which only hints.
// Not a quota manager: a full disk is the caller's error, and what was stored stays readable.

import type { Backend } from "../rows.ts";
import { createStore, type Hints, type StoreOptions } from "../store.ts";
import type { Store, StoreEvent } from "../vocabulary.ts";
import { createConnection } from "./connection.ts";
import { createIndexedDbRows, ROW_STORES } from "./rows.ts";

export interface IndexedDbOptions extends StoreOptions {
  /** Hears what a person should know: another tab blocks an upgrade. Default: console.warn. */
  readonly onReport?: (message: string) => void;
}

/** A message between tabs of one store. */
interface TabMessage {
  readonly magic: "fulgurite-hints";
  readonly v: 1;
  readonly events: readonly StoreEvent[];
}

const isTabMessage = (data: unknown): data is TabMessage => {
  const message = data as Partial<TabMessage> | null;
  return message?.magic === "fulgurite-hints" && message.v === 1;
};

const openHints = (channelName: string): Hints & { close(): void } => {
  const channel = typeof BroadcastChannel === "undefined" ? undefined : new BroadcastChannel(channelName);
  // Node's channel keeps the process alive unless told; browsers' has no such method
  (channel as unknown as { unref?(): void } | undefined)?.unref?.();
  let isOpen = true;
  return {
    hasOtherWriters: true,
    announce: (events) => {
      if (isOpen) channel?.postMessage({ magic: "fulgurite-hints", v: 1, events } satisfies TabMessage);
    },
    connect: (emit) => {
      if (channel) channel.onmessage = ({ data }) => isTabMessage(data) && emit(data.events);
    },
    close: () => {
      isOpen = false;
      channel?.close();
    },
  };
};

/**
 * Opens (or makes) the database `fulgurite/<name>` of this origin.
 * claim, finish, cancel, publish and putState resolve when the browser says that they are flushed ("strict"); enqueue,
 * append and heartbeat when they are handed to the operating system: they survive a crash of the tab, not a power cut.
 * @throws the platform's DOMException where storage is refused; TraceError "storage" when the connection died twice.
 */
export const openIndexedDbStore = async (name: string, options: IndexedDbOptions = {}): Promise<Store> => {
  const databaseName = `fulgurite/${name}`;
  const connection = createConnection(databaseName, options.onReport ?? ((message) => console.warn(message)));
  await connection.use(async () => {}); // refuse here, not at the first write
  const hints = openHints(databaseName);

  const backend: Backend = {
    transact: (mode, body) =>
      connection.use(async (db) => {
        const transaction =
          mode === "read" ? db.transaction(ROW_STORES, "readonly") : db.transaction(ROW_STORES, "readwrite", { durability: mode });
        transaction.done.catch(() => {}); // awaited below; an abort must not also be an unhandled rejection
        try {
          const answer = await body(createIndexedDbRows(transaction));
          transaction.commit();
          await transaction.done;
          return answer;
        } catch (error) {
          try {
            transaction.abort();
          } catch {
            // it ended before: the first error is the one to tell
          }
          throw transaction.error ?? error;
        }
      }),
    putState: (stateName, bytes) =>
      connection.use(async (db) => {
        const transaction = db.transaction("states", "readwrite", { durability: "strict" });
        await Promise.all([transaction.store.put(bytes, stateName), transaction.done]);
      }),
    getState: (stateName) => connection.use((db) => db.get("states", stateName)),
    states: () => connection.use((db) => db.getAllKeys("states")),
    close: async () => {
      hints.close();
      await connection.close();
    },
  };
  return createStore(databaseName, backend, options, hints);
};

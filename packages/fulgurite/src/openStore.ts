// The durable store of this runtime.

import { type Store, type SuperviseOptions, supervise } from "@fulgurite/trace";
import { edge } from "#edge";
import type { StoreHooks } from "./edge.ts";

export interface OpenStoreOptions extends StoreHooks {
  /** Attempts whose tab or process is gone are ended and tried again as their config says. false leaves them to the caller. */
  readonly supervise?: SuperviseOptions | false;
}

/**
 * Browser: the IndexedDB database `fulgurite/<name>`. Node: the folder `name` (created if missing), one process at a time.
 * Throws TraceError when the store is in use, newer than this version, or damaged beyond what can be set aside.
 */
export const openStore = async (name: string, options: OpenStoreOptions = {}): Promise<Store> => {
  const { supervise: supervised, ...hooks } = options;
  const store = await edge.openStore(name, hooks);
  if (supervised === false) return store;
  const stop = supervise(store, supervised);
  return {
    ...store,
    close: async () => {
      stop();
      await store.close();
    },
  };
};

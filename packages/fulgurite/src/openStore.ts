// The durable store of this runtime.

import type { Store } from "@fulgurite/trace";
import { edge } from "#edge";

/**
 * Browser: the IndexedDB database `fulgurite/<name>`. Node: the folder `name` (created if missing), one process at a time.
 * Throws TraceError when the store is in use, newer than this version, or damaged beyond what can be set aside.
 */
export const openStore = (name: string): Promise<Store> => edge.openStore(name);

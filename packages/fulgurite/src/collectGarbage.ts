// Garbage collection that also knows checkpoints: a run that is to go on needs the adapter version that its checkpoint names.

import { decodeCheckpoint } from "@fulgurite/rl";
import { collectGarbage as collect, type Garbage, type GarbageOptions, type Store } from "@fulgurite/trace";

const CHECKPOINTS = "train/";

/**
 * Deletes the adapter versions that nothing needs: neither the latest, nor named by a rollout or its model calls, nor by a checkpoint.
 * The report of a step goes with the version that it made.
 * @throws RlError "checkpoint" for a damaged checkpoint, before anything is deleted; the store's errors; the signal's reason.
 */
export const collectGarbage = async (store: Store, options: GarbageOptions = {}): Promise<Garbage> => {
  const named = new Set<string>();
  const keyOf = (name: unknown, version: number): string => JSON.stringify([name, version]);
  for (const state of await store.states()) {
    const bytes = state.startsWith(CHECKPOINTS) ? await store.getState(state) : undefined;
    if (bytes === undefined) continue;
    const { runId, version, options: identity } = decodeCheckpoint(bytes).cursor;
    named.add(keyOf(identity.adapterName ?? runId, version));
  }
  return collect(store, {
    ...options,
    isNeeded: (entry) => named.has(keyOf(entry.name, entry.version)) || (options.isNeeded?.(entry) ?? false),
  });
};

// Is what a store holds what was put there? Reads everything once, through the store's own doors, and changes nothing.
// A folder that nobody has open is better verified by verifyFileStore, which also reads what no method gives.

import { TraceError } from "./errors.ts";
import type { Store, StoreStats } from "./vocabulary.ts";

export interface StoreVerification extends Pick<StoreStats, "attempts" | "spans" | "resources"> {
  readonly rollouts: number;
  readonly states: number;
  /** One sentence for each thing that is not what was written. Empty: the store is whole. */
  readonly problems: readonly string[];
}

/** @throws the store's errors but "corrupt", which is a finding; the signal's reason. */
export const verifyStore = async (store: Store, { signal }: { readonly signal?: AbortSignal } = {}): Promise<StoreVerification> => {
  const problems: string[] = [];
  const counts = { rollouts: 0, attempts: 0, spans: 0, resources: 0, states: 0 };
  const find = async (act: () => Promise<void>): Promise<void> => {
    signal?.throwIfAborted();
    try {
      await act();
    } catch (error) {
      if (!(error instanceof TraceError && error.code === "corrupt")) throw error;
      problems.push(error.message);
    }
  };
  await find(async () => {
    for await (const { id } of store.rollouts()) {
      counts.rollouts += 1;
      counts.attempts += (await store.attempts(id)).length;
      await find(async () => {
        for await (const _ of store.spans({ rolloutId: id })) counts.spans += 1;
      });
    }
  });
  await find(async () => {
    for await (const { name, version } of store.resources())
      await find(async () => {
        counts.resources += 1;
        await store.resource(name, version); // checks each file against its SHA-256
      });
  });
  await find(async () => {
    for (const name of await store.states())
      await find(async () => {
        counts.states += 1;
        await store.getState(name);
      });
  });
  return { ...counts, problems };
};

// The one question of every fault test: of what was acknowledged, what is there afterwards, and how often? Runs wherever a
// store does. One injected failure, one cut and one kill are each one fault; nothing else is counted.
import type { Store } from "@fulgurite/trace";

/** The line that a run ends with. */
export interface Tally {
  readonly store: string;
  readonly faults: number;
  readonly acknowledged: number;
  readonly recovered: number;
  readonly lost: number;
  readonly duplicates: number;
  readonly doubleClaims: number;
}

/** What a store holds, as names: `rollout/r`, `attempt/r/<id>`, `ended/r/<id>/failed`, `span/r/<id>`, `resource/p/1`. */
export interface Inventory {
  readonly keys: readonly string[];
  /** Of all spans. */
  readonly seqs: readonly number[];
  /** Attempts beyond what a rollout allows. */
  readonly doubleClaims: number;
}

/** One store, through all that happens to it. */
export interface Ledger {
  acknowledge(...keys: readonly string[]): void;
  /** Two workers were told that one rollout is theirs. */
  claimed(rolloutId: string, attemptId: string): void;
  /** No longer owed: it may be deleted from now on. */
  release(...keys: readonly string[]): void;
  /** Acknowledged to be deleted: being there again is a loss too. */
  gone(...keys: readonly string[]): void;
  fault(count?: number): void;
  check(found: Inventory): void;
  tally(): Tally;
}

export const takeInventory = async (store: Store): Promise<Inventory> => {
  const keys: string[] = [];
  const seqs: number[] = [];
  let doubleClaims = 0;
  for await (const { id, config } of store.rollouts()) {
    keys.push(`rollout/${id}`);
    const attempts = await store.attempts(id);
    doubleClaims += Math.max(0, attempts.length - config.maxAttempts);
    for (const attempt of attempts) {
      keys.push(`attempt/${id}/${attempt.id}`);
      if (attempt.status !== "running") keys.push(`ended/${id}/${attempt.id}/${attempt.status}`);
    }
    for await (const span of store.spans({ rolloutId: id })) {
      keys.push(`span/${id}/${span.id}`);
      seqs.push(span.seq);
    }
  }
  for await (const { name, version } of store.resources()) keys.push(`resource/${name}/${version}`);
  return { keys, seqs, doubleClaims };
};

const repeats = (items: readonly unknown[]): number => items.length - new Set(items).size;

/** Lost and doubled things are counted once however often they are looked for; `recovered` is what the last look found. */
export const createLedger = (store: string): Ledger => {
  const acknowledged = new Set<string>();
  const deleted = new Set<string>();
  const lost = new Set<string>();
  const claims = new Map<string, string>();
  const twice = new Set<string>();
  let faults = 0;
  let total = 0;
  let recovered = 0;
  let duplicates = 0;
  let doubleClaims = 0;
  return {
    acknowledge: (...keys) => {
      for (const key of keys) {
        if (!acknowledged.has(key)) total += 1;
        acknowledged.add(key);
      }
    },
    claimed: (rolloutId, attemptId) => {
      if (claims.has(rolloutId) && claims.get(rolloutId) !== attemptId) twice.add(rolloutId);
      claims.set(rolloutId, attemptId);
    },
    release: (...keys) => {
      for (const key of keys) acknowledged.delete(key);
    },
    gone: (...keys) => {
      for (const key of keys) {
        acknowledged.delete(key);
        if (!deleted.has(key)) total += 1;
        deleted.add(key);
      }
    },
    fault: (count = 1) => {
      faults += count;
    },
    check: ({ keys, seqs, doubleClaims: found }) => {
      const there = new Set(keys);
      for (const key of acknowledged) if (!there.has(key)) lost.add(key);
      for (const key of deleted) if (there.has(key)) lost.add(`deleted ${key}`);
      recovered = there.size;
      duplicates = Math.max(duplicates, repeats(keys) + repeats(seqs));
      doubleClaims = Math.max(doubleClaims, found);
    },
    tally: () => ({
      store,
      faults,
      acknowledged: total,
      recovered,
      lost: lost.size,
      duplicates,
      doubleClaims: Math.max(doubleClaims, twice.size),
    }),
  };
};

export const isClean = ({ lost, duplicates, doubleClaims }: Tally): boolean => lost + duplicates + doubleClaims === 0;

export const sum = (store: string, tallies: readonly Tally[]): Tally => {
  const add = (count: (tally: Tally) => number) => tallies.reduce((total, tally) => total + count(tally), 0);
  return {
    store,
    faults: add(({ faults }) => faults),
    acknowledged: add(({ acknowledged }) => acknowledged),
    recovered: add(({ recovered }) => recovered),
    lost: add(({ lost }) => lost),
    duplicates: add(({ duplicates }) => duplicates),
    doubleClaims: add(({ doubleClaims }) => doubleClaims),
  };
};

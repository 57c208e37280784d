// Which versions of resources nothing needs any more, and their deletion: only when it is asked for, never by the store itself.
//
// A version is kept when
//   - it is one of the latest of its name;
//   - a rollout names it (metadata.version), or a model call of it does (its policy version), and the rollout's run
//     (metadata.run) is the resource's name or its run; a rollout without a run keeps that version of every name;
//   - a rollout that is queued or running may be using it: what was the latest when it was enqueued, and all that came after;
//   - `isNeeded` says so.
// The others go oldest first, so that what was stopped has deleted the oldest. States are never looked into and never deleted.

import { ATTRIBUTES } from "./attributes.ts";
import type { ResourceEntry, Rollout, Store } from "./vocabulary.ts";

export interface GarbageOptions {
  /** Of each name, at least 1. */
  readonly keepLatest?: number; // 1
  /** Keeps what only the caller knows about. */
  readonly isNeeded?: (entry: ResourceEntry) => boolean;
  /** Says what would be deleted, and deletes nothing. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
}

export interface Garbage {
  /** In the order of their deletion. */
  readonly removed: readonly ResourceEntry[];
  readonly kept: number;
  /** Of the files that no kept version has too. */
  readonly byteLength: number;
}

/** What rollouts say about versions; `undefined` is a rollout without a run. */
interface References {
  readonly versions: Map<string | undefined, Set<number>>;
  /** When the oldest open rollout was enqueued. */
  readonly openSinceMs: Map<string | undefined, number>;
}

const runOf = ({ metadata }: Pick<Rollout, "metadata">): string | undefined =>
  typeof metadata.run === "string" ? metadata.run : undefined;

const readReferences = async (store: Store, signal: AbortSignal | undefined): Promise<References> => {
  const versions: References["versions"] = new Map();
  const openSinceMs: References["openSinceMs"] = new Map();
  for await (const rollout of store.rollouts()) {
    signal?.throwIfAborted();
    const run = runOf(rollout);
    const named = versions.get(run) ?? new Set();
    versions.set(run, named);
    if (typeof rollout.metadata.version === "number") named.add(rollout.metadata.version);
    if (rollout.status === "queued" || rollout.status === "running")
      openSinceMs.set(run, Math.min(rollout.createdAtMs, openSinceMs.get(run) ?? Number.POSITIVE_INFINITY));
    for await (const { attributes } of store.spans({ rolloutId: rollout.id })) {
      const version = attributes[ATTRIBUTES.policyVersion];
      if (typeof version === "number") named.add(version);
    }
  }
  return { versions, openSinceMs };
};

const isReferenced = (entry: ResourceEntry, replacedAtMs: number, { versions, openSinceMs }: References): boolean =>
  [undefined, entry.name, runOf(entry)].some(
    (run, index) =>
      (index === 0 || run !== undefined) &&
      (versions.get(run)?.has(entry.version) || replacedAtMs > (openSinceMs.get(run) ?? Number.POSITIVE_INFINITY)),
  );

const byAge = (a: ResourceEntry, b: ResourceEntry): number =>
  a.createdAtMs - b.createdAtMs || (a.name < b.name ? -1 : a.name > b.name ? 1 : a.version - b.version);

/**
 * Deletes the versions that nothing needs, as the head of this file says. Reads every span once.
 * @throws the store's errors; the signal's reason.
 */
export const collectGarbage = async (
  store: Store,
  { keepLatest = 1, isNeeded = () => false, dryRun = false, signal }: GarbageOptions = {},
): Promise<Garbage> => {
  const byName = new Map<string, ResourceEntry[]>(); // by version
  for await (const entry of store.resources()) {
    const versions = byName.get(entry.name);
    if (versions) versions.push(entry);
    else byName.set(entry.name, [entry]);
  }
  // after the versions: what rollouts that come meanwhile use is newer than what is looked at here
  const references = await readReferences(store, signal);
  const garbage: ResourceEntry[] = [];
  const needed: ResourceEntry[] = [];
  for (const versions of byName.values())
    for (const [index, entry] of versions.entries()) {
      const isLatest = index >= versions.length - Math.max(1, keepLatest);
      const replacedAtMs = versions[index + 1]?.createdAtMs ?? Number.POSITIVE_INFINITY;
      (isLatest || isReferenced(entry, replacedAtMs, references) || isNeeded(entry) ? needed : garbage).push(entry);
    }
  garbage.sort(byAge);
  const removed: ResourceEntry[] = [];
  for (const entry of garbage) {
    signal?.throwIfAborted();
    if (dryRun || (await store.unpublish(entry.name, entry.version))) removed.push(entry);
  }
  const filesOf = (entries: readonly ResourceEntry[]): Map<string, number> =>
    new Map(entries.flatMap(({ manifest }) => Object.values(manifest).map(({ sha256, byteLength }) => [sha256, byteLength] as const)));
  const kept = filesOf(needed);
  const byteLength = [...filesOf(removed)].reduce((sum, [sha256, length]) => (kept.has(sha256) ? sum : sum + length), 0);
  return { removed, kept: needed.length, byteLength };
};

// The store that forgets: plain maps, the specification of the others. Also the index that the file store replays its log
// into; there the payload of a span stays on disk, and only `Kept`, the way back to it, is held here.

import { firstOf } from "./halving.ts";
import type { Backend, Rows } from "./rows.ts";
import { createStore, type StoreOptions } from "./store.ts";
import type { Attempt, AttemptRef, Resource, ResourceEntry, Rollout, RolloutStatus, Store, StoredSpan } from "./vocabulary.ts";

/** How payloads are held: as they are (memory), or as the place on disk. */
export interface Keeping<KeptSpan, KeptResource> {
  keepSpan(span: StoredSpan): KeptSpan;
  loadSpans(kept: readonly KeptSpan[]): Promise<StoredSpan[]>;
  keepResource(resource: Resource): KeptResource;
  loadResource(kept: KeptResource): Promise<Resource>;
  /** Nobody asks for it again. */
  dropResource(kept: KeptResource): void;
  entryOf(kept: KeptResource): ResourceEntry;
}

interface AttemptRow<KeptSpan> {
  attempt: Attempt;
  readonly ids: Set<string>;
  readonly spans: { readonly seq: number; readonly kept: KeptSpan }[];
}

interface RolloutRow<KeptSpan> {
  rollout: Rollout;
  readonly attempts: Map<string, AttemptRow<KeptSpan>>;
}

interface Queued {
  readonly id: string;
  readonly seq: number;
}

/** IndexedDB's order of texts: by UTF-16 code units, as < compares. */
const byCode = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

export const withoutFiles = ({ name, kind, version, metadata, manifest, createdAtMs }: ResourceEntry): ResourceEntry =>
  Object.freeze({ name, kind, version, metadata, manifest, createdAtMs });

export interface MemoryRows extends Rows {
  rollout(id: string): Rollout | undefined;
  attempt(ref: AttemptRef): Attempt | undefined;
  /** Rows beyond these seqs were here once and are gone: what comes next is beyond them. */
  raiseSeqs(rolloutSeq: number, spanSeq: number): void;
}

export const createMemoryRows = <KeptSpan, KeptResource>(keeping: Keeping<KeptSpan, KeptResource>): MemoryRows => {
  const byId = new Map<string, RolloutRow<KeptSpan>>();
  const order: string[] = []; // ids by seq
  let queue: Queued[] = []; // by seq; some are queued no more: all before `head`, and those that are met
  let head = 0;
  const running = new Map<string, Attempt>(); // by rollout: a rollout has at most one
  const resources = new Map<string, Map<number, KeptResource>>();
  const latest = new Map<string, number>();
  let lastRolloutSeq = 0;
  let lastSpanSeq = 0;
  let spanCount = 0;
  let attemptCount = 0;

  /** The first index of `order` whose seq is not below: what was forgotten or lost leaves gaps. */
  const firstFrom = (seq: number): number =>
    firstOf(order.length, (at) => (byId.get(order[at] as string) as RolloutRow<KeptSpan>).rollout.seq >= seq);

  const rolloutsFrom = (direction: 1 | -1, fromSeq: number | undefined, limit: number): Rollout[] => {
    const found: Rollout[] = [];
    const low = direction === 1 ? firstFrom((fromSeq ?? 0) + 1) : firstFrom(fromSeq ?? Number.POSITIVE_INFINITY);
    for (let index = direction === 1 ? low : low - 1; index >= 0 && index < order.length && found.length < limit; index += direction)
      found.push((byId.get(order[index] as string) as RolloutRow<KeptSpan>).rollout);
    return found;
  };

  /** Most come to the end; one that is tried again has its place, and is perhaps still there. */
  const line = ({ id, seq }: Rollout): void => {
    const at = firstOf(queue.length, (index) => (queue[index] as Queued).seq >= seq);
    if (queue[at]?.seq !== seq) queue.splice(at, 0, { id, seq });
    head = Math.min(head, at);
  };

  return {
    rollout: (id) => byId.get(id)?.rollout,
    rollouts: async (direction, fromSeq, limit) => rolloutsFrom(direction === "oldest" ? 1 : -1, fromSeq, limit),
    queued: async (limit) => {
      const found: Rollout[] = [];
      for (let at = head; at < queue.length && found.length < limit; at++) {
        const { id, seq } = queue[at] as Queued;
        const rollout = byId.get(id)?.rollout;
        if (rollout?.status === "queued" && rollout.seq === seq) found.push(rollout);
        else if (at === head) head += 1;
      }
      if (head > 1_000 && 2 * head > queue.length) {
        queue = queue.slice(head);
        head = 0;
      }
      return found;
    },
    attempt: (ref) => byId.get(ref.rolloutId)?.attempts.get(ref.id)?.attempt,
    attempts: async (rolloutId) =>
      [...(byId.get(rolloutId)?.attempts.values() ?? [])].map((row) => row.attempt).sort((a, b) => a.sequence - b.sequence),
    silentSince: async (beforeMs) => [...running.values()].filter((attempt) => attempt.lastHeartbeatMs < beforeMs),
    hasSpan: (rolloutId, attemptId, id) => byId.get(rolloutId)?.attempts.get(attemptId)?.ids.has(id) ?? false,
    spans: async ({ rolloutId, attemptId }, afterSeq, limit) => {
      const rows = [...(byId.get(rolloutId)?.attempts.values() ?? [])].filter(
        ({ attempt }) => attemptId === undefined || attempt.id === attemptId,
      );
      const found = rows.flatMap((row) => row.spans.filter(({ seq }) => seq > afterSeq)).sort((a, b) => a.seq - b.seq);
      return keeping.loadSpans(found.slice(0, limit).map(({ kept }) => kept));
    },
    lastRolloutSeq: async () => lastRolloutSeq,
    lastSpanSeq: () => lastSpanSeq,
    resource: async (name, version) => {
      const kept = resources.get(name)?.get(version ?? (latest.get(name) as number));
      return kept === undefined ? undefined : keeping.loadResource(kept);
    },
    resourceEntry: async (name, version) => {
      const kept = resources.get(name)?.get(version ?? (latest.get(name) as number));
      return kept && withoutFiles(keeping.entryOf(kept));
    },
    resources: async (after, limit) => {
      const found: ResourceEntry[] = [];
      for (const name of [...resources.keys()].sort(byCode)) {
        if (after !== undefined && byCode(name, after[0]) < 0) continue;
        const versions = resources.get(name) as Map<number, KeptResource>;
        for (const version of [...versions.keys()].sort((a, b) => a - b)) {
          if (found.length >= limit) return found;
          if (after === undefined || name !== after[0] || version > after[1])
            found.push(withoutFiles(keeping.entryOf(versions.get(version) as KeptResource)));
        }
      }
      return found;
    },
    stats: async () => {
      const counts: Record<RolloutStatus, number> = { queued: 0, running: 0, succeeded: 0, failed: 0, cancelled: 0 };
      for (const { rollout } of byId.values()) counts[rollout.status] += 1;
      const resourceCount = [...resources.values()].reduce((sum, versions) => sum + versions.size, 0);
      return { rollouts: counts, attempts: attemptCount, spans: spanCount, resources: resourceCount };
    },

    putRollout: async (rollout) => {
      const row = byId.get(rollout.id);
      if (row) row.rollout = rollout;
      else {
        // what a lost file would have told first may come late
        order.splice(rollout.seq > lastRolloutSeq ? order.length : firstFrom(rollout.seq), 0, rollout.id);
        byId.set(rollout.id, { rollout, attempts: new Map() });
        lastRolloutSeq = Math.max(lastRolloutSeq, rollout.seq);
      }
      if (rollout.status === "queued") line(rollout);
    },
    putAttempt: async (attempt) => {
      const { attempts } = byId.get(attempt.rolloutId) as RolloutRow<KeptSpan>;
      const row = attempts.get(attempt.id);
      if (row) row.attempt = attempt;
      else {
        attempts.set(attempt.id, { attempt, ids: new Set(), spans: [] });
        attemptCount += 1;
      }
      if (attempt.status === "running") running.set(attempt.rolloutId, attempt);
      else if (running.get(attempt.rolloutId)?.id === attempt.id) running.delete(attempt.rolloutId);
    },
    putSpan: (span) => {
      const row = byId.get(span.rolloutId)?.attempts.get(span.attemptId) as AttemptRow<KeptSpan>;
      if (row.ids.has(span.id)) return;
      row.ids.add(span.id);
      row.spans.push({ seq: span.seq, kept: keeping.keepSpan(span) });
      lastSpanSeq = Math.max(lastSpanSeq, span.seq);
      spanCount += 1;
    },
    putResource: async (resource) => {
      const versions = resources.get(resource.name) ?? new Map<number, KeptResource>();
      versions.set(resource.version, keeping.keepResource(resource));
      resources.set(resource.name, versions);
      latest.set(resource.name, Math.max(latest.get(resource.name) ?? 0, resource.version));
    },
    removeRollout: async (id) => {
      const row = byId.get(id);
      if (row === undefined) return;
      order.splice(firstFrom(row.rollout.seq), 1);
      byId.delete(id);
      running.delete(id);
      attemptCount -= row.attempts.size;
      for (const { spans } of row.attempts.values()) spanCount -= spans.length;
    },
    removeResource: async (name, version) => {
      const versions = resources.get(name);
      const kept = versions?.get(version);
      if (kept === undefined) return;
      versions?.delete(version);
      keeping.dropResource(kept);
    },
    raiseSeqs: (rolloutSeq, spanSeq) => {
      lastRolloutSeq = Math.max(lastRolloutSeq, rolloutSeq);
      lastSpanSeq = Math.max(lastSpanSeq, spanSeq);
    },
  };
};

/** Runs bodies one after the other; one that throws does not stop the next. */
export const createQueue = (): (<T>(body: () => Promise<T>) => Promise<T>) => {
  let last: Promise<unknown> = Promise.resolve();
  return (body) => {
    const mine = last.then(body);
    last = mine.catch(() => {});
    return mine;
  };
};

const inMemory: Keeping<StoredSpan, Resource> = {
  keepSpan: (span) => span,
  loadSpans: async (spans) => [...spans],
  keepResource: (resource) => resource,
  loadResource: async (resource) => resource,
  dropResource: () => {},
  entryOf: (resource) => resource,
};

/** A store that lives as long as the object. */
export const createMemoryStore = (options: StoreOptions = {}): Store => {
  const rows = createMemoryRows(inMemory);
  const states = new Map<string, Uint8Array>();
  const inTurn = createQueue();
  const backend: Backend = {
    transact: (_mode, body) => inTurn(() => body(rows)),
    putState: async (name, bytes) => void states.set(name, bytes),
    getState: async (name) => states.get(name),
    states: async () => [...states.keys()],
    close: async () => {},
  };
  return createStore("memory", backend, options);
};

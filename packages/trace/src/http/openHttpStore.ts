// A store that is elsewhere, behind serveStore. Everything is checked and redacted here, before it leaves.
//
// An answer that was lost is asked for again: each request may be repeated without doing its work twice (ids are minted here,
// and what has none carries the id of the request). Not a cache and not an outbox: without the server nothing works.

import { TraceError } from "../errors.ts";
import { mintId } from "../ids.ts";
import { decodeFiles, decodeSpan, encodeFiles, encodeItem, encodeSpan } from "../itemCodec.ts";
import { withManifest } from "../manifest.ts";
import { redactedItems, redactedOutcome, redactedSpans, redactedTask } from "../redact.ts";
import type { StoreOptions } from "../store.ts";
import {
  arrayIn,
  bytesIn,
  checkedQuery,
  checkedResource,
  checkedTask,
  finite,
  functionIn,
  guardOwn,
  guardRef,
  idIn,
  instantIn,
  isObject,
  listIn,
  nameIn,
  refuse,
  text,
  whole,
} from "../values.ts";
import type {
  Adopted,
  Attempt,
  Claim,
  Resource,
  ResourceEntry,
  Rollout,
  RolloutQuery,
  SpanQuery,
  Store,
  StoredSpan,
  StoreEvent,
  StoreItem,
  StoreStats,
} from "../vocabulary.ts";
import { boundWait, platformTimer } from "../waitBounds.ts";
import { type Listening, startListening } from "./listening.ts";
import { ROLLOUTS_A_PAGE, SPANS_A_PAGE, WAIT_MS } from "./protocol.ts";
import { createRequests, jsonOf } from "./requests.ts";

export interface HttpStoreOptions extends StoreOptions {
  /** Sent as `authorization: Bearer …`; a function is asked before each request. */
  readonly token?: string | (() => string | Promise<string>);
  /** Default: the platform's. */
  readonly fetch?: typeof globalThis.fetch;
  /** Of one try, its body included; there are four. */
  readonly timeoutMs?: number; // 120 000
}

const TIMEOUT_MS = 120_000;

/** Of the ids in one address, as it spells them: short enough for every proxy. */
const IDS_LENGTH = 4_000;

function* idsByRequest(ids: Iterable<string>): Generator<string[]> {
  let some: string[] = [];
  let length = 0;
  for (const id of ids) {
    const own = new URLSearchParams({ id }).toString().length;
    if (some.length > 0 && length + own > IDS_LENGTH) {
      yield some;
      some = [];
      length = 0;
    }
    some.push(id);
    length += own;
  }
  if (some.length > 0) yield some;
}

/**
 * The store that serveStore serves at `baseUrl` ("https://host" or "https://host/behind/a/proxy"). Nothing is asked yet.
 * `watch` hears all stores of that server; what this object does after watch() it also hears.
 * @throws (its methods) TraceError as the store over there; "denied" for a wrong token, or none that could be had; "too-large"
 * for what the server, or a proxy before it, does not take at once; "storage" when the server cannot be reached, is no store, or
 * gives no whole answer in four tries.
 */
export const openHttpStore = (baseUrl: string, options: HttpStoreOptions = {}): Store => {
  const { clock = Date.now, timer = platformTimer, token, redact } = options;
  const newId = options.newId ?? (() => mintId(clock()));
  const requestId = () => mintId(clock()); // not from newId: the ids of rollouts are the caller's to plan
  const closing = new AbortController();
  const listeners = new Set<(event: StoreEvent) => void>();
  let redacted = 0;

  const guardOpen = () => closing.signal.throwIfAborted();
  const { fetched, call, get, list } = createRequests({
    ...{ baseUrl, token, timer, guardOpen, newRequestId: requestId },
    fetch: options.fetch,
    timeoutMs: options.timeoutMs ?? TIMEOUT_MS,
  });
  const post = async <T>(path: string, json: unknown): Promise<T> => {
    guardOpen();
    await watching?.ready;
    const heard = await call("POST", path, { json });
    return heard.bytes.length === 0 ? (undefined as T) : jsonOf<T>(heard); // 204
  };

  // One after the other what is about one thing, in the order of the calls, as in a store that is here: of requests that are
  // under way together the later may arrive first.
  const lastOf = new Map<string, Promise<unknown>>();
  const inTurn = <T>(keys: readonly string[], act: () => Promise<T>): Promise<T> => {
    const before = keys.map((key) => lastOf.get(key));
    const mine = before.every((last) => last === undefined) ? act() : Promise.all(before).then(act);
    const quiet = mine.then(
      () => {},
      () => {},
    );
    for (const key of keys) lastOf.set(key, quiet);
    void quiet.then(() => {
      for (const key of keys) if (lastOf.get(key) === quiet) lastOf.delete(key);
    });
    return mine;
  };
  const aboutRollout = (id: string): string => `rollout ${id}`;

  // ---- what happens over there --------------------------------------------------------------------------------------------
  let watching: Listening | undefined;

  const emit = (event: StoreEvent): void => {
    for (const listener of listeners)
      queueMicrotask(() => {
        if (listeners.has(listener)) listener(event);
      });
  };

  const watch = (listener: (event: StoreEvent) => void): (() => void) => {
    functionIn(listener, "watch: listener");
    const own = (event: StoreEvent) => listener(event); // the same function may be registered twice
    listeners.add(own);
    if (!closing.signal.aborted) watching ??= startListening(fetched, timer, emit);
    return () => {
      listeners.delete(own);
      if (listeners.size > 0) return;
      watching?.stop();
      watching = undefined;
    };
  };

  const waitFor: Store["waitFor"] = async (rolloutIds, { signal, timeoutMs } = {}) => {
    guardOpen();
    signal?.throwIfAborted();
    const ids = [...arrayIn(rolloutIds, "waitFor: rolloutIds")];
    if (ids.length === 0) return [];
    const done = new AbortController();
    const stops: (() => void)[] = [];
    try {
      return await new Promise<Rollout[]>((resolve, reject) => {
        stops.push(boundWait(reject, { signal, timeoutMs, timer, closing: closing.signal, count: new Set(ids).size }));
        const ask = async (): Promise<void> => {
          while (!done.signal.aborted) {
            const json = { rolloutIds: ids, timeoutMs: WAIT_MS };
            const heard = await call("POST", "/wait", { json, signal: done.signal, isQuestion: true });
            const { rollouts } = jsonOf<{ rollouts: Rollout[] | null }>(heard);
            if (rollouts) return resolve(rollouts);
          }
        };
        ask().catch(reject);
      });
    } finally {
      done.abort();
      for (const stop of stops) stop();
    }
  };

  // ---- pages --------------------------------------------------------------------------------------------------------------
  const rolloutSearch = (query: RolloutQuery): URLSearchParams => {
    const search = new URLSearchParams();
    for (const id of query.ids ?? []) search.append("id", id);
    for (const status of query.status ?? []) search.append("status", status);
    if (query.mode !== undefined) search.set("mode", query.mode);
    if (query.order !== undefined) search.set("order", query.order);
    if (query.metadata !== undefined) search.set("metadata", JSON.stringify(query.metadata));
    if (query.after !== undefined) search.set("after", String(query.after));
    return search;
  };

  async function* rollouts(given: RolloutQuery = {}): AsyncGenerator<Rollout> {
    const query = checkedQuery(given);
    guardOpen();
    let left = query.limit ?? Number.POSITIVE_INFINITY;
    if (query.status?.length === 0) return; // no status at all: an address cannot say so
    if (query.ids !== undefined) {
      const found: Rollout[] = [];
      for (const ids of idsByRequest(new Set(query.ids)))
        found.push(...((await list("/rollouts", rolloutSearch({ ...query, ids }))) as Rollout[]));
      found.sort((a, b) => (query.order === "newest" ? b.seq - a.seq : a.seq - b.seq));
      for (const rollout of found) if (left-- > 0) yield rollout;
      return;
    }
    let after = query.after;
    while (left > 0) {
      const search = rolloutSearch({ ...query, ...(after === undefined ? {} : { after }) });
      const limit = Math.min(left, ROLLOUTS_A_PAGE);
      search.set("limit", String(limit));
      const page = (await list("/rollouts", search)) as Rollout[];
      yield* page;
      left -= page.length;
      if (page.length < limit) return;
      after = page.at(-1)?.seq;
    }
  }

  async function* spans(query: SpanQuery): AsyncGenerator<StoredSpan> {
    const { rolloutId, attemptId, after = 0 } = isObject(query) ? query : refuse("spans", "a query", query);
    idIn(rolloutId);
    for (let seq = finite(after, "spans.after"); ; ) {
      const search = new URLSearchParams({ rolloutId, after: String(seq), limit: String(SPANS_A_PAGE) });
      if (attemptId !== undefined) search.set("attemptId", attemptId);
      const page = (await list("/spans", search)).map((span) => decodeSpan<StoredSpan>(span, `store ${baseUrl}: a span`));
      yield* page;
      if (page.length < SPANS_A_PAGE) return;
      seq = page.at(-1)?.seq as number;
    }
  }

  type SentResource = Omit<Resource, "files"> & { readonly files: unknown };
  const received = (resource: SentResource): Promise<Resource> =>
    withManifest({ ...resource, files: decodeFiles(resource.files, `store ${baseUrl}: resource ${resource.name}`) }, `store ${baseUrl}`);

  return {
    enqueue: async (tasks) => {
      const checked = listIn(tasks, "tasks").map((task) => redactedTask(checkedTask(task, newId), redact));
      return (await post<{ rollouts: Rollout[] }>("/rollouts", { tasks: checked })).rollouts;
    },
    claim: async (workerId, limit = 1, claimId = requestId()) => {
      const json = {
        workerId: text(workerId, "claim: workerId"),
        limit: whole(limit, 0, "claim: limit"),
        claimId: text(claimId, "claim: claimId"),
      };
      return (await post<{ claims: Claim[] }>("/claim", json)).claims;
    },
    append: async (given) => {
      const kept = redactedSpans(given, redact);
      // a span that is redacted away is still its attempt's heartbeat
      const refs = new Map(given.map(({ rolloutId, attemptId }) => [JSON.stringify([rolloutId, attemptId]), { rolloutId, id: attemptId }]));
      for (const { rolloutId, attemptId } of kept) refs.delete(JSON.stringify([rolloutId, attemptId]));
      const sent = kept.map(encodeSpan);
      await inTurn([...new Set(given.map(({ rolloutId }) => aboutRollout(rolloutId)))], async () => {
        for (const attempt of refs.values()) await post("/heartbeat", { attempt });
        if (sent.length > 0 || given.length === 0) await post("/spans", { spans: sent });
      });
      redacted += given.length - kept.length;
    },
    heartbeat: async (attempt) => {
      guardRef(attempt);
      const { rolloutId, id } = attempt;
      await inTurn([aboutRollout(rolloutId)], () => post("/heartbeat", { attempt: { rolloutId, id } }));
    },
    finish: async (attempt, given, last = []) => {
      guardRef(attempt);
      const { rolloutId, id } = attempt;
      const outcome = redactedOutcome(given, { rolloutId, id }, redact);
      const kept = redactedSpans(last, redact);
      guardOwn({ rolloutId, id }, last);
      const sent = { attempt: { rolloutId, id }, outcome, ...(kept.length > 0 && { spans: kept.map(encodeSpan) }) };
      return inTurn([aboutRollout(rolloutId)], async () => {
        const { rollout } = await post<{ rollout: Rollout }>("/finish", sent);
        redacted += last.length - kept.length;
        return rollout;
      });
    },
    cancel: async (rolloutId) =>
      inTurn([aboutRollout(idIn(rolloutId))], async () => (await post<{ rollout: Rollout }>("/cancel", { rolloutId })).rollout),
    forget: async (rolloutId, only) =>
      inTurn([aboutRollout(idIn(rolloutId))], async () => {
        guardOpen();
        // meant is the one that is there now: asked again, perhaps of a server that was restarted, nothing newer is deleted
        const [there] = (await list("/rollouts", rolloutSearch({ ids: [rolloutId] }))) as Rollout[];
        if (there === undefined || there.seq !== (only?.seq ?? there.seq)) return false;
        return (await post<{ forgotten: boolean }>("/forget", { rolloutId, seq: there.seq })).forgotten;
      }),
    requeueStale: async (beforeMs) => {
      const instant = instantIn(beforeMs, "requeueStale: beforeMs");
      const json = { beforeMs: Math.max(-Number.MAX_VALUE, Math.min(instant, Number.MAX_VALUE)) }; // JSON has no infinity
      return (await post<{ count: number }>("/requeue-stale", json)).count;
    },
    rollouts,
    attempts: async (rolloutId) => (await list("/attempts", new URLSearchParams({ rolloutId: idIn(rolloutId) }))) as Attempt[],
    spans,
    publish: async (resource) => {
      const checked = checkedResource(resource);
      const json = { resource: { ...checked, files: encodeFiles(checked.files) } };
      return received((await post<{ resource: SentResource }>("/resources", json)).resource);
    },
    resource: async (name, version) => {
      const search = new URLSearchParams({ name: nameIn(name, "resource") });
      if (version !== undefined) search.set("version", String(whole(version, 0, "version")));
      const { resource } = await get<{ resource: SentResource | null }>("/resource", search);
      return resource === null ? undefined : received(resource);
    },
    unpublish: async (name, version) => {
      const json = { name: nameIn(name, "resource"), version: whole(version, 0, "version") };
      return (await post<{ unpublished: boolean }>("/unpublish", json)).unpublished;
    },
    async *resources() {
      yield* (await list("/resources")) as ResourceEntry[];
    },
    putState: async (name, bytes) => {
      guardOpen();
      const copy = new Uint8Array(bytesIn(bytes, "state"));
      await inTurn([`state ${nameIn(name, "state")}`], () => call("PUT", "/state", { search: new URLSearchParams({ name }), bytes: copy }));
    },
    getState: async (name) => {
      const { status, bytes } = await call("GET", "/state", { search: new URLSearchParams({ name: nameIn(name, "state") }) });
      return status === 204 ? undefined : bytes;
    },
    states: async () => (await get<{ names: string[] }>("/states")).names,
    adopt: async (items) => {
      const checked = redactedItems(items, redact);
      const sent = checked.filter((item): item is StoreItem => item !== null);
      const { outcomes } = await post<{ outcomes: Adopted[] }>("/adopt", { items: sent.map(encodeItem) });
      redacted += checked.length - sent.length;
      let next = 0;
      return checked.map((item): Adopted => (item === null ? "redacted" : (outcomes[next++] as Adopted)));
    },
    waitFor,
    watch,
    stats: async () => {
      const stats = await get<StoreStats>("/stats");
      return { ...stats, redacted: stats.redacted + redacted };
    },
    close: async () => {
      if (closing.signal.aborted) return;
      closing.abort(new TraceError("closed", `store ${baseUrl}: it must be open, got a call after close(); open it again`));
      listeners.clear();
      watching?.stop();
    },
  };
};

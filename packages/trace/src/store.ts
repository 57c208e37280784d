// A Store over any way of keeping rows: checks what comes in, runs the commands in transactions, pages the queries, tells
// listeners, waits. It keeps nothing itself but the listeners.

import * as commands from "./commands.ts";
import { TraceError } from "./errors.ts";
import { mintId } from "./ids.ts";
import { manifestOf, withManifest } from "./manifest.ts";
import { applyRecord } from "./records.ts";
import { type Redact, redactedItems, redactedOutcome, redactedSpans, redactedTask } from "./redact.ts";
import { rolloutsOf } from "./rolloutPages.ts";
import type { AppendRequest, Backend, Durability, Rows, RunAppends, Transaction } from "./rows.ts";
import {
  bytesIn,
  checkedResource,
  checkedTask,
  copyFiles,
  copySpan,
  finite,
  functionIn,
  guardOwn,
  guardRef,
  idIn,
  instantIn,
  listIn,
  nameIn,
  text,
  whole,
} from "./values.ts";
import type { Resource, Store, StoreEvent, StoreItem } from "./vocabulary.ts";
import { platformTimer } from "./waitBounds.ts";
import { createWaitFor } from "./waiting.ts";

export interface StoreOptions {
  /** Milliseconds since 1970. Default: Date.now. */
  readonly clock?: () => number;
  /** Default: 26 characters of base-32 from the clock and crypto.getRandomValues. */
  readonly newId?: () => string;
  /** Runs `act` once after `ms`; returns the way to stop it. Default: setTimeout. */
  readonly timer?: (act: () => void, ms: number) => () => void;
  /** What is kept of spans, tasks and errors. Dropped spans are counted in stats().redacted. Default: everything but secret headers. */
  readonly redact?: Redact;
}

const SPANS_A_PAGE = 128;
const RESOURCES_A_PAGE = 64;

/** The listeners' half, for what happens elsewhere: hints from other tabs go in by `emit`; `announce` sends ours out. */
export interface Hints {
  readonly hasOtherWriters?: boolean;
  announce?(events: readonly StoreEvent[]): void;
  /** Called once: gives the ways to tell this store's listeners, and to end the store: every call and wait then rejects with that error. */
  connect?(emit: (events: readonly StoreEvent[]) => void, end: (error: TraceError) => void): void;
}

/** @throws TraceError "corrupt" for a resource whose files are not those of the manifest that came with it. */
const digestedItems = (items: readonly (StoreItem | null)[]): Promise<(StoreItem | null)[]> =>
  Promise.all(
    items.map(async (item) => (item?.kind === "resource" ? { kind: "resource", data: await withManifest(item.data, "adopt") } : item)),
  );

const copyResource = (resource: Resource): Resource => Object.freeze({ ...resource, files: copyFiles(resource.files) });

/** One event per rollout for a batch of spans; a rollout's changes stay in order. */
const merged = (events: readonly StoreEvent[]): StoreEvent[] => {
  const spans = new Map<string, number>();
  for (const event of events) if (event.kind === "spans") spans.set(event.rolloutId, (spans.get(event.rolloutId) ?? 0) + event.count);
  return [
    ...events.filter((event) => event.kind !== "spans"),
    ...[...spans].map(([rolloutId, count]) => ({ kind: "spans", rolloutId, count }) as const),
  ];
};

export const createStore = (name: string, backend: Backend, options: StoreOptions = {}, hints: Hints = {}): Store => {
  const { timer = platformTimer } = options;
  const clock = (): number => finite((options.clock ?? Date.now)(), "clock");
  const newId = options.newId ?? (() => mintId(clock()));
  const listeners = new Set<(event: StoreEvent) => void>();
  const closing = new AbortController();
  let redacted = 0;
  let lastDigest: Promise<unknown> = Promise.resolve(); // never rejects
  let isClosed = false;
  const guardOpen = () => closing.signal.throwIfAborted();

  // each call in a microtask of its own: a listener that throws is the platform's uncaught error, and harms nobody else
  const emit = (events: readonly StoreEvent[]): void => {
    for (const event of events)
      for (const listener of listeners)
        queueMicrotask(() => {
          if (listeners.has(listener)) listener(event);
        });
  };
  const end = (error: TraceError): void => {
    closing.abort(error); // the first is what everybody hears
    listeners.clear();
  };
  hints.connect?.(emit, end);

  const read = async <T>(body: (rows: Rows) => Promise<T>): Promise<T> => {
    guardOpen();
    return backend.transact("read", body);
  };

  const tell = (events: readonly StoreEvent[]): void => {
    if (events.length === 0 || (listeners.size === 0 && hints.announce === undefined)) return;
    const all = merged(events);
    emit(all);
    hints.announce?.(all);
  };

  const commitTo =
    (transaction: Transaction, events: StoreEvent[]): commands.Commit =>
    async (records) => {
      if (records.length === 0) return;
      await transaction.log?.(records);
      for (const record of records) {
        const applied = applyRecord(transaction, record);
        const told = applied instanceof Promise ? await applied : applied;
        if (told !== undefined) events.push(...told);
      }
    };

  const write = async <T>(durability: Durability, command: (rows: Rows, commit: commands.Commit) => Promise<T>): Promise<T> => {
    guardOpen();
    let events: StoreEvent[] = [];
    const answer = await backend.transact(durability, async (transaction) => {
      events = [];
      return command(transaction, commitTo(transaction, events));
    });
    tell(events);
    return answer;
  };

  const runAppends: RunAppends = async (transaction, requests) => {
    const events: StoreEvent[] = [];
    return { broken: await commands.append(transaction, commitTo(transaction, events), requests, clock()), events };
  };

  const appendAlone = async (request: AppendRequest): Promise<void> => {
    const { broken, events } = await backend.transact("relaxed", (transaction) => runAppends(transaction, [request]));
    if (broken[0] !== undefined) throw broken[0];
    tell(events);
  };

  const watch = (listener: (event: StoreEvent) => void): (() => void) => {
    functionIn(listener, "watch: listener");
    const own = (event: StoreEvent) => listener(event); // the same function may be registered twice
    listeners.add(own);
    return () => void listeners.delete(own);
  };

  return {
    enqueue: async (tasks) => {
      const checked = listIn(tasks, "tasks").map((task) => redactedTask(checkedTask(task, newId), options.redact));
      return write("relaxed", (rows, commit) => commands.enqueue(rows, commit, checked, clock()));
    },
    claim: async (workerId, limit = 1, claimId = undefined) => {
      whole(limit, 0, "claim: limit"); // more than IndexedDB can be asked for is all that there is
      if (claimId !== undefined) text(claimId, "claim: claimId");
      const ids: string[] = [];
      const request = {
        workerId: text(workerId, "claim: workerId"),
        limit: Math.min(limit, 1e9),
        newIdAt: (place: number) => (ids[place] ??= newId()),
        claimId,
      };
      return write("strict", (rows, commit) => commands.claim(rows, commit, request, clock()));
    },
    append: async (spans) => {
      const kept = redactedSpans(spans, options.redact, backend.copyArray);
      const count = spans.length - kept.length;
      const dropped = count === 0 ? [] : spans.map(({ rolloutId, attemptId }) => ({ rolloutId, attemptId }));
      guardOpen();
      const request = { spans: kept, dropped };
      await (backend.gather?.(request, runAppends, tell) ?? appendAlone(request));
      redacted += count;
    },
    heartbeat: async (attempt) => {
      guardRef(attempt);
      return write("relaxed", (rows, commit) => commands.heartbeat(rows, commit, attempt, clock()));
    },
    finish: async (attempt, outcome, spans = []) => {
      guardRef(attempt);
      const kept = redactedOutcome(outcome, attempt, options.redact);
      const last = redactedSpans(spans, options.redact, backend.copyArray);
      guardOwn(attempt, spans);
      const rollout = await write("strict", (rows, commit) => commands.finish(rows, commit, attempt, kept, last, clock()));
      redacted += spans.length - last.length;
      return rollout;
    },
    cancel: async (rolloutId) => write("strict", (rows, commit) => commands.cancel(rows, commit, idIn(rolloutId), clock())),
    forget: async (rolloutId, only) => write("strict", (rows, commit) => commands.forget(rows, commit, idIn(rolloutId), only?.seq)),
    requeueStale: async (beforeMs) =>
      write("strict", (rows, commit) => commands.requeueStale(rows, commit, instantIn(beforeMs, "requeueStale: beforeMs"), clock())),
    rollouts: (query) => rolloutsOf(read, query),
    attempts: async (rolloutId) => read((rows) => rows.attempts(idIn(rolloutId))),
    async *spans(query) {
      idIn(query?.rolloutId);
      const pageAfter = (seq: number) => {
        const page = read((rows) => rows.spans(query, seq, SPANS_A_PAGE));
        page.catch(() => {}); // whoever stops before it comes does not hear of its failure
        return page;
      };
      for (let next = pageAfter(finite(query.after ?? 0, "spans.after")); ; ) {
        const page = await next;
        const isLast = page.length < SPANS_A_PAGE;
        if (!isLast) next = pageAfter(page.at(-1)?.seq as number); // read while this one is used
        for (const span of page) yield backend.givesOwnSpans ? span : copySpan(span);
        if (isLast) return;
      }
    },
    publish: async (resource) => {
      const checked = checkedResource(resource);
      guardOpen();
      // hashing takes its time: who publishes first gets the lower version all the same
      const digested = Promise.all([manifestOf(checked.files), lastDigest]).then(([manifest]) => ({ ...checked, manifest }));
      lastDigest = digested.catch(() => {});
      const input = await digested;
      return copyResource(await write("strict", (rows, commit) => commands.publish(rows, commit, input, clock())));
    },
    unpublish: async (resourceName, version) =>
      write("strict", (rows, commit) => commands.unpublish(rows, commit, nameIn(resourceName, "resource"), whole(version, 0, "version"))),
    resource: async (resourceName, version) => {
      const found = await read((rows) =>
        rows.resource(nameIn(resourceName, "resource"), version === undefined ? version : whole(version, 0, "version")),
      );
      return found && copyResource(backend.checksFiles ? found : await withManifest(found, `store ${name}`));
    },
    async *resources() {
      let after: readonly [string, number] | undefined;
      for (;;) {
        const page = await read((rows) => rows.resources(after, RESOURCES_A_PAGE));
        yield* page;
        const last = page.at(-1);
        if (last === undefined || page.length < RESOURCES_A_PAGE) return;
        after = [last.name, last.version];
      }
    },
    putState: async (stateName, bytes) => {
      guardOpen();
      return backend.putState(nameIn(stateName, "state"), new Uint8Array(bytesIn(bytes, "state")));
    },
    getState: async (stateName) => {
      guardOpen();
      const bytes = await backend.getState(nameIn(stateName, "state"));
      return bytes && new Uint8Array(bytes);
    },
    states: async () => {
      guardOpen();
      return (await backend.states()).sort();
    },
    adopt: async (items) => {
      const checked = await digestedItems(redactedItems(items, options.redact));
      const outcomes = await write("strict", (rows, commit) => commands.adopt(rows, commit, checked));
      redacted += outcomes.filter((outcome) => outcome === "redacted").length;
      return outcomes;
    },
    waitFor: createWaitFor({
      name,
      read,
      watch,
      timer,
      closing: closing.signal,
      hasOtherWriters: hints.hasOtherWriters ?? false,
    }),
    watch,
    stats: async () => ({ ...(await read((rows) => rows.stats())), redacted }),
    close: async () => {
      if (isClosed) return;
      isClosed = true;
      end(new TraceError("closed", `store ${name}: it must be open, got a call after close(); open it again`));
      await backend.close();
    },
  };
};

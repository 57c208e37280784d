// What a store must be able to hold: the door between the logic, written once (commands.ts, records.ts, store.ts), and the
// ways of keeping it (memory, IndexedDB, files). Types only.

import type {
  Attempt,
  AttemptRef,
  Resource,
  ResourceEntry,
  Rollout,
  Span,
  SpanQuery,
  StoredSpan,
  StoreEvent,
  StoreItem,
  StoreStats,
} from "./vocabulary.ts";

/** At once where it is at hand: a promise and the wait for it are most of the price of asking a map. */
export type Soon<T> = T | Promise<T>;

/** The rows as one transaction sees them. Nothing but these methods may be awaited inside it: IndexedDB would commit early. */
export interface Rows {
  rollout(id: string): Soon<Rollout | undefined>;
  /** Many in that order, where that costs less than one by one. */
  rolloutsOf?(ids: readonly string[]): Promise<(Rollout | undefined)[]>;
  /** The next `limit` rollouts after (or, newest first, before) a seq, in that order. Absent seq: from the end that comes first. */
  rollouts(order: "oldest" | "newest", fromSeq: number | undefined, limit: number): Promise<Rollout[]>;
  /** Queued rollouts by seq. */
  queued(limit: number): Promise<Rollout[]>;
  attempt(ref: AttemptRef): Soon<Attempt | undefined>;
  /** By sequence. */
  attempts(rolloutId: string): Promise<Attempt[]>;
  /** Running attempts whose last heartbeat is before then. */
  silentSince(beforeMs: number): Promise<Attempt[]>;
  hasSpan(rolloutId: string, attemptId: string, id: string): Soon<boolean>;
  /** By seq, beyond `afterSeq`. */
  spans(query: SpanQuery, afterSeq: number, limit: number): Promise<StoredSpan[]>;
  /** 0 when there is none. */
  lastRolloutSeq(): Promise<number>;
  lastSpanSeq(): Soon<number>;
  /** Absent version: the latest. */
  resource(name: string, version?: number): Promise<Resource | undefined>;
  resourceEntry(name: string, version?: number): Promise<ResourceEntry | undefined>;
  /** By name and version, beyond `after`. */
  resources(after: readonly [name: string, version: number] | undefined, limit: number): Promise<ResourceEntry[]>;
  stats(): Promise<Omit<StoreStats, "redacted">>;

  /** Insert or replace, by key. */
  putRollout(rollout: Rollout): Promise<void>;
  putAttempt(attempt: Attempt): Promise<void>;
  putSpan(span: StoredSpan): Soon<void>;
  putResource(resource: Resource): Promise<void>;
  /** With its attempts and spans; their seqs are never given again. */
  removeRollout(id: string): Promise<void>;
  removeResource(name: string, version: number): Promise<void>;
}

/** One fact, whole by itself: after a crash any prefix of the records is a valid history. */
export type StoreRecord =
  | StoreItem
  | { readonly kind: "gone"; readonly data: { readonly rolloutId: string } }
  | { readonly kind: "unpublished"; readonly data: { readonly name: string; readonly version: number } };

export interface Transaction extends Rows {
  /** Where there is a log: written before the rows change. Called at most once a command, after every check. */
  log?(records: readonly StoreRecord[]): Soon<void>;
}

/** "strict": on disk when resolved, if the platform can say so; "relaxed": handed to the operating system. */
export type Durability = "relaxed" | "strict";

/** What one append asks for. A span that was redacted away still proves that its attempt exists and lives. */
export interface AppendRequest {
  readonly spans: readonly Span[];
  readonly dropped: readonly Pick<Span, "rolloutId" | "attemptId">[];
}

/** Appends that shared a transaction, each all or nothing. */
export interface Appended {
  /** The rule that each broke. */
  readonly broken: readonly (Error | undefined)[];
  /** For listeners, once it is committed. */
  readonly events: readonly StoreEvent[];
}

/** The same elements in other memory. */
export type CopyArray = <T extends Int32Array | Float32Array>(array: T) => T;

export type RunAppends = (transaction: Transaction, requests: readonly AppendRequest[]) => Promise<Appended>;

export interface Backend {
  /** Its rows check a resource's bytes as they read them. */
  readonly checksFiles?: boolean;
  /** All or nothing, one after the other. A body may run a second time when the connection was lost under it. */
  transact<T>(mode: "read" | Durability, body: (transaction: Transaction) => Promise<T>): Promise<T>;
  /** Where appends are gathered to one command: those of a transaction are run at once, and `tell` is told once they are committed. */
  gather?(request: AppendRequest, run: RunAppends, tell: (events: readonly StoreEvent[]) => void): Promise<void>;
  /** Its spans are made for whoever reads them: they need no copy. */
  readonly givesOwnSpans?: boolean;
  /** For arrays that it keeps only until they are written. Default: each is copied into a buffer of its own. */
  readonly copyArray?: CopyArray;
  putState(name: string, bytes: Uint8Array): Promise<void>;
  getState(name: string): Promise<Uint8Array | undefined>;
  /** In any order. */
  states(): Promise<string[]>;
  close(): Promise<void>;
}

// What an agent did, as plain immutable data. Types only. Times are milliseconds since 1970; order is the store's sequence, never the clock's.

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export type Mode = "train" | "val";

export type RolloutStatus = "queued" | "running" | "succeeded" | "failed" | "cancelled";
export type AttemptStatus = "running" | "succeeded" | "failed" | "timeout" | "unresponsive" | "cancelled";
export type AttemptEnd = Exclude<AttemptStatus, "running">;

export interface RolloutConfig {
  readonly timeoutMs: number;
  /** Executions in all, ≥ 1. */
  readonly maxAttempts: number;
  /** Ends after which another attempt may follow. */
  readonly retryOn: readonly AttemptEnd[];
}

export interface TaskInput {
  /** Caller-supplied id makes enqueue idempotent; absent: one is minted. */
  readonly id?: string;
  readonly input: Json;
  readonly mode?: Mode; // "train"
  readonly config?: Partial<RolloutConfig>;
  readonly metadata?: Readonly<Record<string, Json>>;
}

/** One agent on one task. */
export interface Rollout {
  readonly id: string;
  /** Position in the store's order of enqueueing, from 1. */
  readonly seq: number;
  readonly input: Json;
  readonly mode: Mode;
  readonly status: RolloutStatus;
  readonly config: RolloutConfig;
  readonly metadata: Readonly<Record<string, Json>>;
  readonly attempts: number;
  readonly createdAtMs: number;
  readonly endedAtMs?: number;
}

export interface AttemptError {
  readonly name: string;
  readonly message: string;
  readonly stack?: string;
}

/** One execution of a rollout; retries make more. */
export interface Attempt {
  readonly rolloutId: string;
  readonly id: string;
  /** From 1 within the rollout. */
  readonly sequence: number;
  readonly status: AttemptStatus;
  readonly workerId: string;
  /** Of the request that claimed it, where it gave one. */
  readonly claimId?: string;
  readonly startedAtMs: number;
  readonly lastHeartbeatMs: number;
  readonly endedAtMs?: number;
  readonly error?: AttemptError;
}

export interface AttemptRef {
  readonly rolloutId: string;
  readonly id: string;
}

/** What claim hands out: the attempt and what it is to run. */
export interface Claim {
  readonly rollout: Rollout;
  readonly attempt: Attempt;
}

export interface Outcome {
  readonly status: AttemptEnd;
  readonly error?: AttemptError;
}

export type AttributeValue = Json | Int32Array | Float32Array;
export type Attributes = Readonly<Record<string, AttributeValue>>;

/** One timed record inside an attempt: a model call, a tool call, a reward. OpenTelemetry's shape; names in attributes.ts. */
export interface Span {
  readonly rolloutId: string;
  readonly attemptId: string;
  /** 16 hex digits. */
  readonly id: string;
  readonly parentId?: string;
  readonly name: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly status: "ok" | "error";
  readonly attributes: Attributes;
}

/** As stored: `seq` is its position in the store's order, from 1. */
export interface StoredSpan extends Span {
  readonly seq: number;
}

export type ResourceKind = "lora" | "prompt" | "model";

/** A named, versioned thing that rollouts run against. Immutable once published; versions of a name only grow. */
export interface ResourceInput {
  readonly name: string;
  readonly kind: ResourceKind;
  /** Absent: latest + 1 (the first is 1). Publishing an existing version again with the same content is a no-op, with other content an error. */
  readonly version?: number;
  readonly metadata?: Readonly<Record<string, Json>>;
  readonly files: Readonly<Record<string, Uint8Array>>;
}

export interface FileDigest {
  /** 64 hex digits, lower-case. */
  readonly sha256: string;
  readonly byteLength: number;
}

/** What the files of a resource are, by path. */
export type Manifest = Readonly<Record<string, FileDigest>>;

export interface Resource extends Required<ResourceInput> {
  readonly manifest: Manifest;
  readonly createdAtMs: number;
}

/** A resource without its bytes. */
export type ResourceEntry = Omit<Resource, "files">;

/** One thing that a store holds, as it is told to another store. */
export type StoreItem =
  | { readonly kind: "rollout"; readonly data: Rollout }
  | { readonly kind: "attempt"; readonly data: Attempt }
  | { readonly kind: "span"; readonly data: StoredSpan }
  | { readonly kind: "resource"; readonly data: Resource };

/** What became of it: added; known, for it was there; different, for something else has its name and stays; or dropped by `redact`. */
export type Adopted = "added" | "known" | "different" | "redacted";

/** One model call, ready for training (Agent Lightning's triplet). */
export interface Transition {
  readonly rolloutId: string;
  readonly attemptId: string;
  readonly spanId: string;
  /** From 0 within the attempt. */
  readonly turn: number;
  readonly agent?: string;
  /** Exactly the ids that were fed to the sampler, [P]. */
  readonly promptTokens: Int32Array;
  /** Exactly the ids that were sampled, [R]. */
  readonly responseTokens: Int32Array;
  /** [R], under softmax(logits/τ): of the distribution that was sampled from, but for what a grammar forbade. */
  readonly samplerLogprobs: Float32Array;
  /** Places in responseTokens that a grammar left no choice, ascending: not trained. */
  readonly forcedTokens?: Int32Array;
  /** The sum of the rewards that belong to this call: those that name it, and those without an address that followed it before the next call. */
  readonly reward?: number;
  readonly policyVersion: number;
  readonly temperature: number;
  readonly finishReason: "stop" | "length" | "tool_calls" | "aborted";
}

export interface RolloutQuery {
  readonly ids?: readonly string[];
  readonly status?: readonly RolloutStatus[];
  readonly mode?: Mode;
  /** Only rollouts whose metadata has these values. */
  readonly metadata?: Readonly<Record<string, Json>>;
  readonly order?: "oldest" | "newest"; // "oldest", by seq
  /** Only rollouts beyond this seq, in that order: where an earlier answer ended. */
  readonly after?: number;
  readonly limit?: number;
}

export interface SpanQuery {
  readonly rolloutId: string;
  readonly attemptId?: string;
  /** Only spans beyond this seq. */
  readonly after?: number;
}

export interface StoreStats {
  readonly rollouts: Readonly<Record<RolloutStatus, number>>;
  readonly attempts: number;
  readonly spans: number;
  readonly resources: number;
  /** Spans that `redact` dropped since this object was opened. */
  readonly redacted: number;
}

export type StoreEvent =
  | { readonly kind: "rollout"; readonly id: string; readonly status: RolloutStatus }
  | { readonly kind: "spans"; readonly rolloutId: string; readonly count: number }
  | { readonly kind: "resource"; readonly name: string; readonly version: number }
  | { readonly kind: "unpublished"; readonly name: string; readonly version: number }
  | { readonly kind: "gone"; readonly id: string };

/** Memory is the reference; every store passes one conformance suite (tests/conformance). */
export interface Store {
  /** Same order as given. A known id returns the stored rollout unchanged. Input is copied. */
  enqueue(tasks: readonly TaskInput[]): Promise<Rollout[]>;
  /**
   * Oldest queued first. Atomic: no rollout is claimed twice at once. Resolves with [] when nothing is queued.
   * Asked again with the same claimId (because the answer was lost, with the server or without) it gives those attempts of the first
   * time that still run; new ones only when none does.
   */
  claim(workerId: string, limit?: number, claimId?: string): Promise<Claim[]>;
  /**
   * Idempotent by (rollout, attempt, span id). Also the attempt's heartbeat, when the last is 100 ms old. Rejects for an unknown attempt;
   * accepts late spans of ended ones.
   */
  append(spans: readonly Span[]): Promise<void>;
  heartbeat(attempt: AttemptRef): Promise<void>;
  /**
   * Guarded by the status tables; finishing again with the same status is a no-op, with another an error. Decides whether the rollout is
   * queued again. `spans`: the attempt's last, appended before its end: both or neither.
   */
  finish(attempt: AttemptRef, outcome: Outcome, spans?: readonly Span[]): Promise<Rollout>;
  /** Ends a queued or running rollout; terminal ones stay as they are. */
  cancel(rolloutId: string): Promise<Rollout>;
  /**
   * Deletes a rollout that is not running, with its attempts and spans: no method gives any of it back, in this store or a later
   * one. What stays on a disk, and until when, each store says. Resolves with whether it was there; its seq is never given again.
   * `only.seq`: only the one with that seq: asked again, it never deletes what was enqueued under the id since.
   */
  forget(rolloutId: string, only?: { readonly seq: number }): Promise<boolean>;
  /** Running attempts without a heartbeat since `beforeMs` become unresponsive (their rollout is retried or fails). Returns how many. After a crash: requeueStale(now). */
  requeueStale(beforeMs: number): Promise<number>;
  rollouts(query?: RolloutQuery): AsyncIterable<Rollout>;
  attempts(rolloutId: string): Promise<Attempt[]>;
  /** In order of seq. */
  spans(query: SpanQuery): AsyncIterable<StoredSpan>;
  publish(resource: ResourceInput): Promise<Resource>;
  /** Absent version: the latest. Rejects with "corrupt" when the bytes are not those of its manifest. */
  resource(name: string, version?: number): Promise<Resource | undefined>;
  /**
   * Deletes one version with its files; the latest of a name stays, so that no version is ever given twice. Resolves with whether
   * it was there. Which ones nothing needs any more: collectGarbage.
   */
  unpublish(name: string, version: number): Promise<boolean>;
  /** All versions of all names, by name and version. */
  resources(): AsyncIterable<ResourceEntry>;
  /** Small named records of the training loop (cursor, checkpoint): last write wins, atomic, durable when resolved. */
  putState(name: string, bytes: Uint8Array): Promise<void>;
  getState(name: string): Promise<Uint8Array | undefined>;
  /** The names of all states, sorted. */
  states(): Promise<string[]>;
  /**
   * Takes over what another store held, times and ids as they were, seqs anew. All or nothing, and only what is absent:
   * an attempt only in the same call as its new rollout, a span where its attempt is, a resource beyond the latest version.
   */
  adopt(items: readonly StoreItem[]): Promise<Adopted[]>;
  /** Resolves when all are terminal, with them in the given order; rejects when aborted or after timeoutMs. */
  waitFor(rolloutIds: readonly string[], options?: { signal?: AbortSignal; timeoutMs?: number }): Promise<Rollout[]>;
  /** Hints, in this process (and other tabs where the store can). Returns the way to stop. */
  watch(listener: (event: StoreEvent) => void): () => void;
  stats(): Promise<StoreStats>;
  close(): Promise<void>;
}

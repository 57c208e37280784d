// What each write of a store means: read rows, check everything, then commit the records that make it so. The only copy of
// this logic; every store runs it inside one transaction.

import { TraceError } from "./errors.ts";
import type { AppendRequest, Rows, StoreRecord } from "./rows.ts";
import { guardAttempt, isTerminal } from "./status.ts";
import { type CheckedResource, type CheckedTask, sameContent, sameJson } from "./values.ts";
import type {
  Adopted,
  Attempt,
  AttemptError,
  AttemptRef,
  Claim,
  Manifest,
  Outcome,
  Resource,
  ResourceEntry,
  Rollout,
  Span,
  StoredSpan,
  StoreItem,
} from "./vocabulary.ts";

/** Called at most once a command, after the last check. */
export type Commit = (records: readonly StoreRecord[]) => Promise<void>;

const unknown = (what: string): TraceError =>
  new TraceError("unknown", `${what}: it must be in this store, got none; enqueue and claim first`);

const rolloutOf = async (rows: Rows, id: string): Promise<Rollout> => {
  const rollout = await rows.rollout(id);
  if (rollout === undefined) throw unknown(`rollout ${id}`);
  return rollout;
};

const unknownAttempt = (ref: AttemptRef): TraceError => unknown(`attempt ${ref.id} of rollout ${ref.rolloutId}`);

const attemptOf = async (rows: Rows, ref: AttemptRef): Promise<Attempt> => {
  const attempt = await rows.attempt(ref);
  if (attempt === undefined) throw unknownAttempt(ref);
  return attempt;
};

export const enqueue = async (rows: Rows, commit: Commit, tasks: readonly CheckedTask[], nowMs: number): Promise<Rollout[]> => {
  const made = new Map<string, Rollout>();
  const answer: Rollout[] = [];
  let seq = await rows.lastRolloutSeq();
  for (const task of tasks) {
    let rollout = made.get(task.id) ?? (await rows.rollout(task.id));
    if (rollout === undefined) {
      seq += 1;
      rollout = Object.freeze({ ...task, seq, status: "queued", attempts: 0, createdAtMs: nowMs } satisfies Rollout);
      made.set(task.id, rollout);
    }
    answer.push(rollout);
  }
  await commit([...made.values()].map((data) => ({ kind: "rollout", data })));
  return answer;
};

export interface ClaimRequest {
  readonly workerId: string;
  readonly limit: number;
  /** The same for the same place, so that a transaction that is repeated gives the same. */
  readonly newIdAt: (place: number) => string;
  readonly claimId: string | undefined;
}

/** Those of an earlier claim of this id that still run, in the order of the first time. */
const claimedBefore = async (rows: Rows, claimId: string): Promise<Claim[]> => {
  const claims: Claim[] = [];
  for (const attempt of await rows.silentSince(Number.POSITIVE_INFINITY))
    if (attempt.claimId === claimId) claims.push(Object.freeze({ rollout: await rolloutOf(rows, attempt.rolloutId), attempt }));
  return claims.sort((a, b) => a.rollout.seq - b.rollout.seq);
};

export const claim = async (rows: Rows, commit: Commit, request: ClaimRequest, nowMs: number): Promise<Claim[]> => {
  const { workerId, limit, newIdAt, claimId } = request;
  const before = claimId === undefined ? [] : await claimedBefore(rows, claimId);
  if (before.length > 0) return before;
  const queued = await rows.queued(limit);
  const attempts = queued.map((rollout, index): Attempt => {
    return Object.freeze({
      rolloutId: rollout.id,
      id: newIdAt(index),
      sequence: rollout.attempts + 1,
      status: "running",
      workerId,
      ...(claimId === undefined ? {} : { claimId }),
      startedAtMs: nowMs,
      lastHeartbeatMs: nowMs,
    });
  });
  await commit(attempts.map((data) => ({ kind: "attempt", data })));
  const claims: Claim[] = [];
  for (const attempt of attempts) claims.push(Object.freeze({ rollout: await rolloutOf(rows, attempt.rolloutId), attempt }));
  return claims;
};

/** An append sooner after its attempt's last heartbeat is none: a busy agent would write as many heartbeats as spans. */
const SOON_MS = 100;

/** 0 for one that has ended. A clock that went backwards never makes a living attempt look older. */
const silentMs = ({ status, lastHeartbeatMs }: Attempt, nowMs: number): number => (status === "running" ? nowMs - lastHeartbeatMs : 0);

const beat = (attempt: Attempt, nowMs: number): StoreRecord => ({
  kind: "attempt",
  data: Object.freeze({ ...attempt, lastHeartbeatMs: nowMs }),
});

/** One text for all: the lengths stand before, so that no two lists are alike. */
export const keyOf = (rolloutId: string, attemptId: string, id = ""): string =>
  `${rolloutId.length} ${attemptId.length} ${rolloutId}${attemptId}${id}`;

/** Those that are not there yet, once. */
const newSpans = async (rows: Rows, spans: readonly Span[]): Promise<StoreRecord[]> => {
  if (spans.length === 0) return [];
  const records: StoreRecord[] = [];
  const byId = new Map<string, Span>(); // few ids are alike: only for those a key is spelt
  const alike = new Set<string>();
  let seq = await rows.lastSpanSeq();
  for (const span of spans) {
    const before = byId.get(span.id);
    if (before === undefined) byId.set(span.id, span);
    else {
      const key = keyOf(span.rolloutId, span.attemptId, span.id);
      if (alike.add(keyOf(before.rolloutId, before.attemptId, before.id)).has(key)) continue;
      alike.add(key);
    }
    const found = rows.hasSpan(span.rolloutId, span.attemptId, span.id);
    if (found === true || (found !== false && (await found))) continue;
    seq += 1;
    records.push({ kind: "span", data: Object.freeze({ ...span, seq }) });
  }
  return records;
};

/** In their order, each all or nothing, in one commit. Returns the rule that each broke. */
export const append = async (
  rows: Rows,
  commit: Commit,
  requests: readonly AppendRequest[],
  nowMs: number,
): Promise<(TraceError | undefined)[]> => {
  const due = new Set<Attempt>();
  const kept: Span[] = [];
  const broken: (TraceError | undefined)[] = [];
  const own: Attempt[] = [];
  let last: Attempt | undefined; // most spans are of the attempt that the one before was of
  for (const { spans, dropped } of requests) {
    let rule: TraceError | undefined;
    own.length = 0;
    for (const list of [spans, dropped])
      for (const { rolloutId, attemptId: id } of list) {
        if (last?.id !== id || last.rolloutId !== rolloutId) {
          const found = rows.attempt({ rolloutId, id });
          last = found instanceof Promise ? await found : found;
        }
        if (last !== undefined) own.push(last);
        else rule ??= unknownAttempt({ rolloutId, id });
      }
    broken.push(rule);
    if (rule !== undefined) continue;
    for (const span of spans) kept.push(span);
    for (const attempt of own) if (silentMs(attempt, nowMs) >= SOON_MS) due.add(attempt);
  }
  const records = await newSpans(rows, kept);
  for (const attempt of due) records.push(beat(attempt, nowMs));
  await commit(records);
  return broken;
};

export const heartbeat = async (rows: Rows, commit: Commit, ref: AttemptRef, nowMs: number): Promise<void> => {
  const attempt = await attemptOf(rows, ref);
  await commit(silentMs(attempt, nowMs) > 0 ? [beat(attempt, nowMs)] : []);
};

const ended = (attempt: Attempt, outcome: Outcome, nowMs: number): StoreRecord => ({
  kind: "attempt",
  data: Object.freeze({
    ...attempt,
    status: outcome.status,
    endedAtMs: nowMs,
    ...(outcome.error === undefined ? {} : { error: outcome.error }),
  }),
});

/** The attempt's last spans come before its end: both or neither. */
export const finish = async (
  rows: Rows,
  commit: Commit,
  ref: AttemptRef,
  outcome: Outcome,
  last: readonly Span[],
  nowMs: number,
): Promise<Rollout> => {
  const attempt = await attemptOf(rows, ref);
  const isNew = attempt.status === "running" || attempt.status !== outcome.status;
  if (isNew) guardAttempt(attempt, outcome.status);
  const records = await newSpans(rows, last);
  if (isNew) records.push(ended(attempt, outcome, nowMs));
  if (records.length > 0) await commit(records);
  return rolloutOf(rows, ref.rolloutId);
};

export const cancel = async (rows: Rows, commit: Commit, rolloutId: string, nowMs: number): Promise<Rollout> => {
  const rollout = await rolloutOf(rows, rolloutId);
  if (isTerminal(rollout.status)) return rollout;
  const data: Rollout = Object.freeze({ ...rollout, status: "cancelled", endedAtMs: nowMs });
  await commit([{ kind: "rollout", data }]);
  return data;
};

export const forget = async (rows: Rows, commit: Commit, rolloutId: string, seq?: number): Promise<boolean> => {
  const rollout = await rows.rollout(rolloutId);
  if (rollout === undefined || rollout.seq !== (seq ?? rollout.seq)) return false;
  if (rollout.status === "running")
    throw new TraceError("status", `rollout ${rolloutId}: only what is queued or ended is forgotten, got running; cancel it first`);
  await commit([{ kind: "gone", data: { rolloutId } }]);
  return true;
};

export const requeueStale = async (rows: Rows, commit: Commit, beforeMs: number, nowMs: number): Promise<number> => {
  const silent = await rows.silentSince(beforeMs);
  const error = (attempt: Attempt): AttemptError => ({
    name: "Unresponsive",
    message: `worker ${attempt.workerId}: a heartbeat at or after ${beforeMs} ms was due, got the last at ${attempt.lastHeartbeatMs} ms`,
  });
  await commit(silent.map((attempt) => ended(attempt, { status: "unresponsive", error: error(attempt) }, nowMs)));
  return silent.length;
};

export type DigestedResource = CheckedResource & { readonly manifest: Manifest };

export const publish = async (rows: Rows, commit: Commit, input: DigestedResource, nowMs: number): Promise<Resource> => {
  const latest = await rows.resourceEntry(input.name);
  const version = input.version ?? (latest?.version ?? 0) + 1;
  if (latest !== undefined && version <= latest.version) {
    const stored = version === latest.version ? latest : await rows.resourceEntry(input.name, version);
    if (stored !== undefined && sameContent(stored, input)) return Object.freeze({ ...stored, files: input.files });
    throw new TraceError(
      "conflict",
      stored === undefined
        ? `resource ${input.name}: versions only grow, got ${version} after ${latest.version}; publish ${latest.version + 1} or leave the version out`
        : `resource ${input.name}: version ${version} is published and immutable, got other content; publish ${latest.version + 1} or leave the version out`,
    );
  }
  const resource: Resource = Object.freeze({ ...input, version, createdAtMs: nowMs });
  await commit([{ kind: "resource", data: resource }]);
  return resource;
};

export const unpublish = async (rows: Rows, commit: Commit, name: string, version: number): Promise<boolean> => {
  if ((await rows.resourceEntry(name, version)) === undefined) return false;
  if ((await rows.resourceEntry(name))?.version === version)
    throw new TraceError(
      "conflict",
      `resource ${name}: the latest version stays, so that its number is not given again, got ${version}; publish another first`,
    );
  await commit([{ kind: "unpublished", data: { name, version } }]);
  return true;
};

/** Of a rollout that the store lacks, its attempts come in the same call; without the one it says is running it would run for ever. */
const guardWhole = (rollout: Rollout, attempts: readonly Attempt[]): void => {
  const sequences = attempts.map(({ sequence }) => sequence);
  const rule =
    new Set(sequences).size < sequences.length
      ? "its attempts have sequences of their own"
      : rollout.status === "running" && !sequences.some((sequence) => sequence >= rollout.attempts)
        ? `running, it comes with attempt ${rollout.attempts}`
        : undefined;
  if (rule !== undefined)
    throw new TraceError(
      "bad-input",
      `adopt: rollout ${rollout.id}: ${rule}, got sequences ${sequences.join(", ") || "none"}; give it whole`,
    );
};

export const adopt = async (rows: Rows, commit: Commit, items: readonly (StoreItem | null)[]): Promise<Adopted[]> => {
  const records: StoreItem[] = [];
  const answer: Adopted[] = [];
  const newRollouts = new Map<string, { rollout: Rollout; attempts: Attempt[] }>();
  const newSpans = new Set<string>();
  const newResources = new Map<string, ResourceEntry>(); // the latest of each name
  let rolloutSeq = await rows.lastRolloutSeq();
  let spanSeq = await rows.lastSpanSeq();

  const judge = async (item: StoreItem): Promise<Adopted> => {
    switch (item.kind) {
      case "rollout": {
        const stored = newRollouts.get(item.data.id)?.rollout ?? (await rows.rollout(item.data.id));
        if (stored !== undefined)
          return stored.createdAtMs === item.data.createdAtMs && sameJson(stored.input, item.data.input) ? "known" : "different";
        rolloutSeq += 1;
        const rollout: Rollout = Object.freeze({ ...item.data, seq: rolloutSeq });
        newRollouts.set(rollout.id, { rollout, attempts: [] });
        records.push({ kind: "rollout", data: rollout });
        return "added";
      }
      case "attempt": {
        const { rolloutId, id } = item.data;
        const fresh = newRollouts.get(rolloutId);
        const stored = fresh?.attempts.find((attempt) => attempt.id === id) ?? (await rows.attempt({ rolloutId, id }));
        if (stored !== undefined)
          return stored.sequence === item.data.sequence && stored.startedAtMs === item.data.startedAtMs ? "known" : "different";
        if (fresh === undefined) return "different";
        fresh.attempts.push(item.data);
        records.push(item);
        return "added";
      }
      case "span": {
        const { rolloutId, attemptId, id } = item.data;
        const at = keyOf(rolloutId, attemptId, id);
        const isFresh = newRollouts.get(rolloutId)?.attempts.some((attempt) => attempt.id === attemptId) ?? false;
        if (!isFresh && (await rows.attempt({ rolloutId, id: attemptId })) === undefined) return "different";
        if (newSpans.has(at) || (!isFresh && (await rows.hasSpan(rolloutId, attemptId, id)))) return "known";
        newSpans.add(at);
        spanSeq += 1;
        const data: StoredSpan = Object.freeze({ ...item.data, seq: spanSeq });
        records.push({ kind: "span", data });
        return "added";
      }
      case "resource": {
        const { name, version } = item.data;
        const stored = await rows.resourceEntry(name, version);
        if (stored !== undefined) return sameContent(stored, item.data) ? "known" : "different";
        const latest = newResources.get(name) ?? (await rows.resourceEntry(name));
        if (latest !== undefined && version <= latest.version) return "different";
        newResources.set(name, item.data);
        records.push(item);
        return "added";
      }
    }
  };
  for (const item of items) answer.push(item === null ? "redacted" : await judge(item));
  for (const { rollout, attempts } of newRollouts.values()) guardWhole(rollout, attempts);
  await commit(records);
  return answer;
};

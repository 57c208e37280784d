// Between spans and transitions: the builders write the attributes, toTransitions and rewardOf read them. Nothing else does,
// so a misspelt name or a bad number is caught here. Pure.

import { mapped } from "./attributeCodec.ts";
import { ATTRIBUTES } from "./attributes.ts";
import { TraceError } from "./errors.ts";
import type { AttemptRef, Attributes, AttributeValue, Json, Mode, Span, StoredSpan, Transition } from "./vocabulary.ts";

export type FinishReason = Transition["finishReason"];
/** How the prompt's ids came about: as recorded, recorded although the client rewrote the text, or tokenised afresh. */
export type Fidelity = "exact" | "repaired" | "retokenised";

/** The three arrays come together, or the call is shown and never trained (an upstream without ids, a failure). */
export type CallTokens =
  | {
      readonly promptTokens: Int32Array /* [P] */;
      readonly responseTokens: Int32Array /* [R] */;
      readonly samplerLogprobs: Float32Array /* [R] */;
      /** [R], where top-p, top-k, a bias or a grammar restricted the distribution. */
      readonly drawnLogprobs?: Float32Array;
      /** Places in the response of tokens that a grammar left no choice, ascending. */
      readonly forcedTokens?: Int32Array;
    }
  | {
      readonly promptTokens?: Int32Array;
      readonly responseTokens?: never;
      readonly samplerLogprobs?: never;
      readonly drawnLogprobs?: never;
      readonly forcedTokens?: never;
    };

export type ModelCall = CallTokens & {
  readonly attempt: AttemptRef;
  /** 16 hex digits: mintSpanId(). */
  readonly id: string;
  readonly parentId?: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly operation?: "chat" | "text_completion"; // "chat"
  readonly provider?: string; // "fulgurite"
  readonly model: string;
  readonly responseId: string;
  /** Every call, item and response id of the answer. */
  readonly keys?: readonly string[];
  readonly agent?: string;
  /** From 0 within the attempt. */
  readonly turn: number;
  readonly mode: Mode;
  readonly policyVersion: number;
  readonly fidelity: Fidelity;
  readonly temperature: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly maxTokens?: number;
  readonly seed?: number;
  readonly finishReason: FinishReason;
  readonly request?: Json;
  readonly response?: Json;
  /** Its presence makes the span's status "error", and the call untrainable. */
  readonly errorType?: string;
  /** The call ended after its attempt did. */
  readonly late?: boolean;
};

export interface Reward {
  readonly attempt: AttemptRef;
  readonly id: string;
  readonly parentId?: string;
  readonly atMs: number;
  readonly value: number;
  readonly name?: string; // "reward"
  readonly reason?: string;
  readonly source?: string; // "agent"
  /** The call it is for: its response id, or any of its keys. Absent: the latest call before it. */
  readonly responseId?: string;
}

const defined = (attributes: Readonly<Record<string, AttributeValue | undefined>>): Attributes => mapped(attributes, (value) => value);

const nameOf = (span: Pick<Span, "rolloutId" | "attemptId" | "id">): string =>
  `span ${span.id} of rollout ${span.rolloutId}, attempt ${span.attemptId}`;

const refuse = (span: Pick<Span, "rolloutId" | "attemptId" | "id">, rule: string, got: unknown): never => {
  throw new TraceError(
    "bad-span",
    `${nameOf(span)}: ${rule}, got ${typeof got === "string" ? JSON.stringify(got) : String(got)}; the span was not made by modelCallSpan or rewardSpan, or its numbers are broken`,
  );
};

/** A model call as a span. @throws TraceError "bad-span" for mismatched arrays or non-finite numbers. */
export const modelCallSpan = (call: ModelCall): Span => {
  const operation = call.operation ?? "chat";
  const span: Span = {
    rolloutId: call.attempt.rolloutId,
    attemptId: call.attempt.id,
    id: call.id,
    ...(call.parentId === undefined ? {} : { parentId: call.parentId }),
    name: `${operation} ${call.model}`,
    startMs: call.startMs,
    endMs: call.endMs,
    status: call.errorType === undefined ? "ok" : "error",
    attributes: defined({
      [ATTRIBUTES.operation]: operation,
      [ATTRIBUTES.provider]: call.provider ?? "fulgurite",
      [ATTRIBUTES.requestModel]: call.model,
      [ATTRIBUTES.requestTemperature]: call.temperature,
      [ATTRIBUTES.requestTopP]: call.topP,
      [ATTRIBUTES.requestTopK]: call.topK,
      [ATTRIBUTES.requestMaxTokens]: call.maxTokens,
      [ATTRIBUTES.requestSeed]: call.seed,
      [ATTRIBUTES.responseId]: call.responseId,
      [ATTRIBUTES.finishReasons]: [call.finishReason],
      [ATTRIBUTES.inputTokens]: call.promptTokens?.length,
      [ATTRIBUTES.outputTokens]: call.responseTokens?.length,
      [ATTRIBUTES.agentName]: call.agent,
      [ATTRIBUTES.mode]: call.mode,
      [ATTRIBUTES.turn]: call.turn,
      [ATTRIBUTES.keys]: [...new Set([call.responseId, ...(call.keys ?? [])])],
      [ATTRIBUTES.policyVersion]: call.policyVersion,
      [ATTRIBUTES.fidelity]: call.fidelity,
      [ATTRIBUTES.late]: call.late || undefined,
      [ATTRIBUTES.promptTokens]: call.promptTokens,
      [ATTRIBUTES.responseTokens]: call.responseTokens,
      [ATTRIBUTES.samplerLogprobs]: call.samplerLogprobs,
      [ATTRIBUTES.drawnLogprobs]: call.drawnLogprobs,
      [ATTRIBUTES.forcedTokens]: call.forcedTokens?.length ? call.forcedTokens : undefined,
      [ATTRIBUTES.request]: call.request,
      [ATTRIBUTES.response]: call.response,
      [ATTRIBUTES.errorType]: call.errorType,
    }),
  };
  if (isTrainable(span)) readCall(span); // what could not be read back is refused before it is stored
  return span;
};

/** A reward as a span without duration. @throws TraceError "bad-span" for a value that is not finite. */
export const rewardSpan = (reward: Reward): Span => {
  const span: Span = {
    rolloutId: reward.attempt.rolloutId,
    attemptId: reward.attempt.id,
    id: reward.id,
    ...(reward.parentId === undefined ? {} : { parentId: reward.parentId }),
    name: "reward",
    startMs: reward.atMs,
    endMs: reward.atMs,
    status: "ok",
    attributes: defined({
      [ATTRIBUTES.rewardName]: reward.name ?? "reward",
      [ATTRIBUTES.rewardValue]: reward.value,
      [ATTRIBUTES.rewardReason]: reward.reason,
      [ATTRIBUTES.rewardSource]: reward.source ?? "agent",
      [ATTRIBUTES.responseId]: reward.responseId,
    }),
  };
  readReward(span);
  return span;
};

const isReward = (span: Span): boolean => ATTRIBUTES.rewardValue in span.attributes;

/** Failures, late calls and calls without response ids are shown, never trained. */
const isTrainable = (span: Span): boolean => {
  const response = span.attributes[ATTRIBUTES.responseTokens];
  if (span.status === "error" || span.attributes[ATTRIBUTES.late] === true || response === undefined) return false;
  return !(response instanceof Int32Array && response.length === 0);
};

const readReward = (span: Span): number => {
  const value = span.attributes[ATTRIBUTES.rewardValue];
  return typeof value === "number" && Number.isFinite(value) ? value : refuse(span, "a reward is a finite number", value);
};

const FINISH_REASONS = { stop: true, length: true, tool_calls: true, aborted: true } as const satisfies Record<FinishReason, true>;
const isFinishReason = (value: unknown): value is FinishReason => typeof value === "string" && Object.hasOwn(FINISH_REASONS, value);

const integer = (span: Span, name: string, minimum: number): number => {
  const value = span.attributes[name];
  return Number.isSafeInteger(value) && (value as number) >= minimum
    ? (value as number)
    : refuse(span, `${name} is an integer ≥ ${minimum}`, value);
};

const ids = (span: Span, name: string): Int32Array => {
  const value = span.attributes[name];
  if (!(value instanceof Int32Array)) return refuse(span, `${name} is an Int32Array`, value);
  const bad = value.findIndex((id) => id < 0);
  return bad < 0 ? value : refuse(span, `${name} holds token ids ≥ 0`, `${value[bad]} at ${bad}`);
};

const readCall = (span: Span): Omit<Transition, "reward"> => {
  const responseTokens = ids(span, ATTRIBUTES.responseTokens);
  const samplerLogprobs = span.attributes[ATTRIBUTES.samplerLogprobs];
  if (!(samplerLogprobs instanceof Float32Array)) return refuse(span, `${ATTRIBUTES.samplerLogprobs} is a Float32Array`, samplerLogprobs);
  if (samplerLogprobs.length !== responseTokens.length)
    return refuse(span, "as many log-probs as response tokens", `${samplerLogprobs.length} for ${responseTokens.length}`);
  const bad = samplerLogprobs.findIndex((logprob) => !Number.isFinite(logprob));
  if (bad >= 0) return refuse(span, "log-probs are finite", `${samplerLogprobs[bad]} at ${bad}`);
  const temperature = span.attributes[ATTRIBUTES.requestTemperature];
  if (typeof temperature !== "number" || !Number.isFinite(temperature) || temperature < 0)
    return refuse(span, `${ATTRIBUTES.requestTemperature} is a finite number ≥ 0`, temperature);
  const reasons = span.attributes[ATTRIBUTES.finishReasons];
  const finishReason = Array.isArray(reasons) ? reasons[0] : undefined;
  if (!isFinishReason(finishReason))
    return refuse(span, `${ATTRIBUTES.finishReasons} starts with one of ${Object.keys(FINISH_REASONS).join(", ")}`, finishReason);
  const forcedTokens = span.attributes[ATTRIBUTES.forcedTokens] === undefined ? undefined : ids(span, ATTRIBUTES.forcedTokens);
  const stray = forcedTokens?.find((place) => place >= responseTokens.length);
  if (stray !== undefined) return refuse(span, "forced tokens are places in the response", `${stray} of ${responseTokens.length} tokens`);
  const agent = span.attributes[ATTRIBUTES.agentName];
  return {
    rolloutId: span.rolloutId,
    attemptId: span.attemptId,
    spanId: span.id,
    turn: integer(span, ATTRIBUTES.turn, 0),
    ...(typeof agent === "string" ? { agent } : {}),
    promptTokens: ids(span, ATTRIBUTES.promptTokens),
    responseTokens,
    samplerLogprobs,
    ...(forcedTokens && { forcedTokens }),
    policyVersion: integer(span, ATTRIBUTES.policyVersion, 0),
    temperature,
    finishReason,
  };
};

const keysOf = (span: Span): readonly Json[] => {
  const keys = span.attributes[ATTRIBUTES.keys];
  return [span.attributes[ATTRIBUTES.responseId] as Json, ...(Array.isArray(keys) ? keys : [])].filter((key) => typeof key === "string");
};

const attemptOf = (span: Span): string => `${span.rolloutId}\n${span.attemptId}`;

/**
 * The trainable model calls, in the store's order within each attempt (attempts as first seen), each with its reward.
 *
 * A reward that names a call goes to that call, wherever it stands; one that names none goes to the latest trainable call
 * before it. A reward that belongs to no trainable call (it came first, or its call failed or was never captured) changes
 * no transition; it still counts in rewardOf. Example, by seq: call A, reward .5, call B, reward 1, reward .25 for A
 * → A .75, B 1.
 *
 * @throws TraceError "bad-span" naming rollout, attempt and span: arrays that do not match, numbers that are not finite.
 */
export const toTransitions = (spans: Iterable<StoredSpan>): Transition[] => {
  const attempts = new Map<string, StoredSpan[]>();
  for (const span of spans) {
    const known = attempts.get(attemptOf(span));
    if (known) known.push(span);
    else attempts.set(attemptOf(span), [span]);
  }
  return [...attempts.values()].flatMap((attempt) => transitionsOf(attempt.sort((a, b) => a.seq - b.seq)));
};

const transitionsOf = (spans: readonly StoredSpan[]): Transition[] => {
  const calls = spans.filter(isTrainable);
  const byKey = new Map(calls.flatMap((span) => keysOf(span).map((key) => [key, span.id])));
  const rewards = new Map<string, number>();
  let latest: string | undefined;
  for (const span of spans) {
    if (isReward(span)) {
      const value = readReward(span);
      const address = span.attributes[ATTRIBUTES.responseId];
      const call = address === undefined ? latest : byKey.get(address as Json);
      if (call !== undefined) rewards.set(call, (rewards.get(call) ?? 0) + value);
    } else if (isTrainable(span)) latest = span.id;
  }
  return calls.map((span) => {
    const reward = rewards.get(span.id);
    return reward === undefined ? readCall(span) : { ...readCall(span), reward };
  });
};

/**
 * The outcome of one attempt: in the store's order its last reward that names no call (those are for the whole attempt), or,
 * if every reward names a call, the last of them; undefined if there is none. @throws as toTransitions.
 */
export const rewardOf = (spans: Iterable<StoredSpan>): number | undefined => {
  let outcome: StoredSpan | undefined;
  for (const span of spans) if (isReward(span) && (outcome === undefined || outranks(span, outcome))) outcome = span;
  return outcome && readReward(outcome);
};

const outranks = (span: StoredSpan, other: StoredSpan): boolean => {
  const whole = (s: StoredSpan) => s.attributes[ATTRIBUTES.responseId] === undefined;
  return whole(span) === whole(other) ? span.seq > other.seq : whole(span);
};

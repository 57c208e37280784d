// A rollout and its spans as Agent Lightning v1.0 tells them (rollout object and events), and back. Pure.
//
// Lossless in both directions, each by one rule:
//   - ours out and in again: what their fields cannot carry travels beside them in one more key, `fulgurite`, which their
//     readers ignore. It holds only the difference, so that a field which somebody edited on the way counts.
//   - theirs in and out again: what our spans have no place for stays on them as the attribute `agentlightning.event`
//     (on the rollout: metadata `agentlightning`), and request and response stay whole.
// Times are float seconds there and milliseconds here. Of several choices, the first is the one that is trained on.
// Not here: attempts as rows (v1.0 has none but their ids), and the triplet projection, which is a view of these events.

import { decodeAttributes, encodeAttributes, webBase64 } from "../attributeCodec.ts";
import { ATTRIBUTES } from "../attributes.ts";
import { DEFAULT_CONFIG, isTerminal } from "../status.ts";
import { sameJson } from "../values.ts";
import type { Attributes, AttributeValue, Json, Rollout, RolloutStatus, StoredSpan } from "../vocabulary.ts";

type JsonObject = Readonly<Record<string, Json>>;

export interface AgentLightningEvent {
  readonly event_type: string;
  readonly rollout_id: string;
  readonly attempt_id: string;
  /** Seconds since 1970. */
  readonly timestamp: number;
  readonly data: JsonObject;
}

export interface AgentLightningRollout {
  readonly rollout_id: string;
  readonly input: Json;
  readonly is_train: boolean;
  readonly config: JsonObject & { readonly timeout_seconds: number };
  readonly metadata: JsonObject;
  readonly status: JsonObject & {
    readonly state: "queuing" | "running" | "succeeded" | "failed";
    readonly last_attempt_id: string | null;
    readonly error_message: string | null;
    readonly version: number;
    readonly created_at: number;
    readonly updated_at: number;
  };
  readonly fulgurite?: JsonObject;
}

export interface AgentLightningTrace {
  readonly rollout: AgentLightningRollout;
  /** In the order of the store; of all attempts. */
  readonly events: readonly AgentLightningEvent[];
}

const OURS = "fulgurite";
const THEIRS = "agentlightning.event";
const THEIRS_OF_ROLLOUT = "agentlightning";
const PROMPT_IDS = "prompt_token_ids";

const isObject = (value: unknown): value is JsonObject => typeof value === "object" && value !== null && !Array.isArray(value);
const objectOf = (value: unknown): JsonObject => (isObject(value) ? value : {});
const without = (object: JsonObject, ...names: readonly string[]): JsonObject =>
  Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name)));
const present = (object: Readonly<Record<string, Json | undefined>>): JsonObject =>
  Object.fromEntries(Object.entries(object).filter((entry): entry is [string, Json] => entry[1] !== undefined));
const numberOf = (value: unknown): number | undefined => (typeof value === "number" && Number.isFinite(value) ? value : undefined);

/** What must be set and dropped to make `wanted` of `got`. */
const difference = (wanted: JsonObject, got: JsonObject): JsonObject | undefined => {
  const set = Object.fromEntries(
    Object.entries(wanted).filter(([name, value]) => !(Object.hasOwn(got, name) && sameJson(value, got[name]))),
  );
  const drop = Object.keys(got).filter((name) => !Object.hasOwn(wanted, name));
  return Object.keys(set).length + drop.length === 0 ? undefined : { set, drop };
};

const patched = (got: JsonObject, patch: Json | undefined): JsonObject => {
  const { set, drop } = objectOf(patch);
  return { ...without(got, ...(Array.isArray(drop) ? (drop as string[]) : [])), ...objectOf(set) };
};

// ---- model calls ----------------------------------------------------------------------------------------------------------

const firstChoice = (response: JsonObject): JsonObject => objectOf(Array.isArray(response.choices) ? response.choices[0] : undefined);

const withFirstChoice = (response: JsonObject, choice: JsonObject): JsonObject => ({
  ...response,
  choices: [choice, ...(Array.isArray(response.choices) ? response.choices.slice(1) : [])],
});

const idsOf = (value: Json | undefined): Int32Array | undefined =>
  Array.isArray(value) && value.length > 0 ? Int32Array.from(value as number[]) : undefined;

/** One that is missing or no number makes the list no list. */
const logprobsOf = (choice: JsonObject): Float32Array | undefined => {
  const { content, token_logprobs } = objectOf(choice.logprobs);
  const list = Array.isArray(content) ? content.map((entry) => objectOf(entry).logprob) : token_logprobs;
  if (!Array.isArray(list) || list.length === 0) return undefined;
  return list.every((value) => numberOf(value) !== undefined) ? Float32Array.from(list as number[]) : undefined;
};

/** The response with the arrays in their places, where it has none of its own there. */
const withTokens = (attributes: Attributes): JsonObject => {
  const response = objectOf(attributes[ATTRIBUTES.response]);
  const prompt = attributes[ATTRIBUTES.promptTokens];
  const ids = attributes[ATTRIBUTES.responseTokens];
  const logprobs = attributes[ATTRIBUTES.samplerLogprobs];
  const choice = present({
    token_ids: ids instanceof Int32Array ? [...ids] : undefined,
    logprobs:
      logprobs instanceof Float32Array
        ? { content: Array.from(logprobs, (logprob) => ({ logprob: Number.isFinite(logprob) ? logprob : null })) }
        : undefined,
  });
  return withFirstChoice(
    { ...(prompt instanceof Int32Array ? { [PROMPT_IDS]: [...prompt] } : {}), ...response },
    {
      ...choice,
      ...firstChoice(response),
    },
  );
};

const withoutTokens = (response: JsonObject): JsonObject =>
  without(withFirstChoice(response, without(firstChoice(response), "token_ids", "logprobs")), PROMPT_IDS);

const toModelRequest = ({ attributes, startMs, endMs, status }: StoredSpan): JsonObject => {
  const text = (name: string): string => (typeof attributes[name] === "string" ? (attributes[name] as string) : "");
  const model = text(ATTRIBUTES.requestModel);
  const version = numberOf(attributes[ATTRIBUTES.policyVersion]) ?? 0;
  const reasons = attributes[ATTRIBUTES.finishReasons];
  return present({
    model,
    model_version: version,
    request: (attributes[ATTRIBUTES.request] ??
      present({
        model,
        temperature: numberOf(attributes[ATTRIBUTES.requestTemperature]),
        max_tokens: numberOf(attributes[ATTRIBUTES.requestMaxTokens]),
        seed: numberOf(attributes[ATTRIBUTES.requestSeed]),
      })) as Json,
    response: withTokens(attributes),
    server: { model, endpoint: "", version },
    latency_ms: endMs - startMs,
    http_status: status === "ok" ? 200 : 500,
    status,
    retry_count: 0,
    usage: null,
    finish_reason: Array.isArray(reasons) ? ((reasons[0] as Json | undefined) ?? null) : null,
    error: status === "ok" ? undefined : { message: text(ATTRIBUTES.errorType) },
  });
};

/** `isWhole`: the response stays as it came, arrays included. */
const fromModelRequest = (data: JsonObject, mode: Rollout["mode"], turn: number, isWhole: boolean): Attributes => {
  const request = objectOf(data.request);
  const response = objectOf(data.response);
  const choice = firstChoice(response);
  const prompt = idsOf(response[PROMPT_IDS]) ?? idsOf(choice[PROMPT_IDS]);
  const ids = idsOf(choice.token_ids);
  const id = typeof response.id === "string" && response.id !== "" ? response.id : undefined;
  const finish = choice.finish_reason ?? data.finish_reason;
  const attributes: Record<string, AttributeValue | undefined> = {
    [ATTRIBUTES.operation]: response.object === "text_completion" ? "text_completion" : "chat",
    [ATTRIBUTES.provider]: "agentlightning",
    [ATTRIBUTES.requestModel]: typeof data.model === "string" ? data.model : undefined,
    [ATTRIBUTES.requestTemperature]: numberOf(request.temperature),
    [ATTRIBUTES.requestMaxTokens]: numberOf(request.max_tokens),
    [ATTRIBUTES.requestSeed]: numberOf(request.seed),
    [ATTRIBUTES.responseId]: id,
    [ATTRIBUTES.finishReasons]: typeof finish === "string" ? [finish] : undefined,
    [ATTRIBUTES.inputTokens]: prompt?.length,
    [ATTRIBUTES.outputTokens]: ids?.length,
    [ATTRIBUTES.mode]: mode,
    [ATTRIBUTES.turn]: turn,
    [ATTRIBUTES.keys]: id === undefined ? undefined : [id],
    [ATTRIBUTES.policyVersion]: numberOf(objectOf(data.server).version) ?? numberOf(data.model_version),
    [ATTRIBUTES.fidelity]: "exact",
    [ATTRIBUTES.promptTokens]: prompt,
    [ATTRIBUTES.responseTokens]: ids,
    [ATTRIBUTES.samplerLogprobs]: logprobsOf(choice),
    [ATTRIBUTES.request]: data.request,
    [ATTRIBUTES.response]: isWhole || !isObject(data.response) ? data.response : withoutTokens(data.response),
    [ATTRIBUTES.errorType]: data.status === "error" ? String(objectOf(data.error).message ?? data.http_status ?? "error") : undefined,
  };
  return Object.fromEntries(Object.entries(attributes).filter((entry): entry is [string, AttributeValue] => entry[1] !== undefined));
};

// ---- events ---------------------------------------------------------------------------------------------------------------

const isCall = ({ attributes }: StoredSpan): boolean => ATTRIBUTES.operation in attributes && ATTRIBUTES.requestModel in attributes;
const isReward = ({ attributes }: StoredSpan): boolean => ATTRIBUTES.rewardValue in attributes;

const toReward = ({ attributes }: StoredSpan): JsonObject =>
  present({
    value: attributes[ATTRIBUTES.rewardValue] as Json,
    source: attributes[ATTRIBUTES.rewardSource] as Json | undefined,
    reason: attributes[ATTRIBUTES.rewardReason] as Json | undefined,
  });

const fromReward = (data: JsonObject): Attributes =>
  present({
    [ATTRIBUTES.rewardName]: "reward",
    [ATTRIBUTES.rewardValue]: data.value,
    [ATTRIBUTES.rewardSource]: data.source,
    [ATTRIBUTES.rewardReason]: data.reason,
  });

/** What their fields alone say. */
const toPlainEvent = (span: StoredSpan): AgentLightningEvent => {
  const type = isCall(span) ? "model_request" : isReward(span) ? "reward" : span.name;
  return {
    event_type: type,
    rollout_id: span.rolloutId,
    attempt_id: span.attemptId,
    timestamp: span.endMs / 1_000,
    data: isCall(span)
      ? toModelRequest(span)
      : isReward(span)
        ? toReward(span)
        : without(encodeAttributes(span.attributes, webBase64), OURS),
  };
};

/** An event that was theirs, as it was, with whatever its span has left of request, response or data. */
const toTheirEvent = (span: StoredSpan): AgentLightningEvent => {
  const { type, timestamp, data } = objectOf(span.attributes[THEIRS]);
  const { [ATTRIBUTES.request]: request, [ATTRIBUTES.response]: response } = span.attributes as JsonObject;
  return {
    event_type: String(type),
    rollout_id: span.rolloutId,
    attempt_id: span.attemptId,
    timestamp: numberOf(timestamp) ?? span.endMs / 1_000,
    data: isObject(data)
      ? present({
          ...data,
          request: type === "model_request" ? request : data.request,
          response: type === "model_request" ? response : data.response,
        })
      : without(span.attributes as JsonObject, THEIRS),
  };
};

const fromEvents = (
  mode: Rollout["mode"],
  events: readonly AgentLightningEvent[],
  isOurs: (event: AgentLightningEvent) => boolean,
): StoredSpan[] => {
  const turns = new Map<string, number>();
  return events.map((event, index): StoredSpan => {
    const { event_type: type, data, attempt_id: attemptId } = event;
    const ours = isOurs(event);
    const turn = turns.get(attemptId) ?? 0;
    if (type === "model_request") turns.set(attemptId, turn + 1);
    const plain = without(data, OURS);
    const attributes =
      type === "model_request" ? fromModelRequest(plain, mode, turn, !ours) : type === "reward" ? fromReward(plain) : (plain as Attributes);
    const isKnown = type === "model_request" || type === "reward";
    const theirs = present({
      type,
      timestamp: event.timestamp,
      data: isKnown ? (type === "reward" ? data : without(data, "request", "response")) : undefined,
    });
    const endMs = event.timestamp * 1_000;
    return {
      rolloutId: event.rollout_id,
      attemptId,
      id: (index + 1).toString(16).padStart(16, "0"),
      seq: index + 1,
      name: type === "model_request" ? `${attributes[ATTRIBUTES.operation]} ${plain.model}` : type,
      startMs: endMs - (type === "model_request" ? (numberOf(plain.latency_ms) ?? 0) : 0),
      endMs,
      status: plain.status === "error" ? "error" : "ok",
      attributes: ours ? attributes : { ...attributes, [THEIRS]: theirs },
    };
  });
};

const encodedAttributes = ({ attributes }: StoredSpan): JsonObject => encodeAttributes(attributes, webBase64);
const fieldsOf = ({ attributes: _, ...fields }: StoredSpan): JsonObject => fields as unknown as JsonObject;

// ---- rollouts -------------------------------------------------------------------------------------------------------------

const STATES = {
  queued: "queuing",
  running: "running",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "failed",
} as const satisfies Readonly<Record<RolloutStatus, string>>;
const STATUSES = { queuing: "queued", running: "running", succeeded: "succeeded", failed: "failed" } as const;

const toPlainRollout = (rollout: Rollout, spans: readonly StoredSpan[]): AgentLightningRollout => {
  const kept = objectOf(rollout.metadata[THEIRS_OF_ROLLOUT]);
  const state = STATES[rollout.status];
  const was = objectOf(kept.status);
  const status = {
    state,
    k8s_job_name: null,
    last_attempt_id: spans.at(-1)?.attemptId ?? null,
    error_message: rollout.status === "cancelled" ? "cancelled" : null,
    version: 1,
    created_at: rollout.createdAtMs / 1_000,
    updated_at: (rollout.endedAtMs ?? rollout.createdAtMs) / 1_000,
  };
  return {
    rollout_id: rollout.id,
    input: rollout.input,
    is_train: rollout.mode === "train",
    config: {
      local: null,
      k8s: null,
      timeout_seconds: Math.max(1, Math.ceil(Math.min(rollout.config.timeoutMs, Number.MAX_SAFE_INTEGER) / 1_000)),
      ...objectOf(kept.config),
    },
    metadata: {
      ...("status" in kept ? {} : { batch_idx: null, sample_idx_in_batch: null }),
      ...without(rollout.metadata, THEIRS_OF_ROLLOUT),
    },
    // as it was, unless it has moved on since
    status: was.state === state ? { ...status, ...was } : { ...status, version: (numberOf(was.version) ?? 0) + 1 },
  };
};

const fromPlainRollout = (rollout: AgentLightningRollout, isOurs: boolean): Rollout => {
  const { status, config } = rollout;
  const mine = STATUSES[status.state];
  return {
    id: rollout.rollout_id,
    seq: 1,
    input: rollout.input,
    mode: rollout.is_train ? "train" : "val",
    status: mine,
    config: { ...DEFAULT_CONFIG, timeoutMs: config.timeout_seconds * 1_000 },
    metadata: isOurs ? rollout.metadata : { ...rollout.metadata, [THEIRS_OF_ROLLOUT]: { status, config } },
    attempts: mine === "queued" ? 0 : 1,
    createdAtMs: status.created_at * 1_000,
    ...(isTerminal(mine) ? { endedAtMs: status.updated_at * 1_000 } : {}),
  };
};

/** A rollout and its spans, by seq, as v1.0's rollout object and events. Typed arrays become number lists where v1.0 has them. */
export const toAgentLightning = (rollout: Rollout, spans: readonly StoredSpan[]): AgentLightningTrace => {
  const isTheirs = (span: StoredSpan): boolean => THEIRS in span.attributes;
  const plain = spans.map((span) => (isTheirs(span) ? toTheirEvent(span) : toPlainEvent(span)));
  const understood = fromEvents(rollout.mode, plain, () => true);
  const events = plain.map((event, index): AgentLightningEvent => {
    const span = spans[index] as StoredSpan;
    const got = understood[index] as StoredSpan;
    if (isTheirs(span)) return event;
    const attributes = difference(
      encodedAttributes(span),
      event.event_type === got.name ? (got.attributes as JsonObject) : encodedAttributes(got),
    );
    const fields = difference(fieldsOf(span), fieldsOf(got));
    return { ...event, data: { ...event.data, [OURS]: present({ attributes, fields }) } };
  });
  const told = toPlainRollout(rollout, spans);
  if (THEIRS_OF_ROLLOUT in rollout.metadata) return { rollout: told, events };
  const patch = difference(rollout as unknown as JsonObject, fromPlainRollout(told, true) as unknown as JsonObject);
  return { rollout: { ...told, fulgurite: patch ?? {} }, events };
};

/**
 * What toAgentLightning told, or what Agent Lightning itself recorded. Foreign spans get ids and seqs by their position.
 * @throws TraceError "corrupt" for typed arrays that are not whole.
 */
export const fromAgentLightning = ({ rollout, events }: AgentLightningTrace): { rollout: Rollout; spans: StoredSpan[] } => {
  const patch = rollout.fulgurite;
  const plain = fromPlainRollout(rollout, patch !== undefined);
  const mine = patch === undefined ? plain : (patched(plain as unknown as JsonObject, patch) as unknown as Rollout);
  const isOurs = ({ data }: AgentLightningEvent): boolean => isObject(data[OURS]);
  const spans = fromEvents(mine.mode, events, isOurs).map((span, index): StoredSpan => {
    const event = events[index] as AgentLightningEvent;
    if (!isOurs(event)) return span;
    const { attributes, fields } = objectOf(event.data[OURS]);
    // of an event that is only its attributes, data has them encoded already
    const encoded = event.event_type === span.name ? (span.attributes as JsonObject) : encodedAttributes(span);
    return {
      ...(patched(fieldsOf(span), fields) as unknown as StoredSpan),
      attributes: decodeAttributes(patched(encoded, attributes), webBase64, `event ${index}`),
    };
  });
  return { rollout: mine, spans };
};

// Spans as events and events as spans: model calls, rewards, and all others as their attributes.

import { encodeAttributes, webBase64 } from "../attributeCodec.ts";
import { ATTRIBUTES } from "../attributes.ts";
import type { Attributes, Rollout, StoredSpan } from "../vocabulary.ts";
import { fromModelRequest, toModelRequest } from "./modelCall.ts";
import { isObject, jsonOf, numberOf, objectOf, present, without } from "./objects.ts";
import { type AgentLightningEvent, type JsonObject, OURS, THEIRS } from "./shapes.ts";

const isCall = ({ attributes }: StoredSpan): boolean => ATTRIBUTES.operation in attributes && ATTRIBUTES.requestModel in attributes;
const isReward = ({ attributes }: StoredSpan): boolean => ATTRIBUTES.rewardValue in attributes;

const toReward = ({ attributes }: StoredSpan): JsonObject =>
  present({
    value: jsonOf(attributes[ATTRIBUTES.rewardValue]),
    source: jsonOf(attributes[ATTRIBUTES.rewardSource]),
    reason: jsonOf(attributes[ATTRIBUTES.rewardReason]),
  });

const fromReward = (data: JsonObject): Attributes =>
  present({
    [ATTRIBUTES.rewardName]: "reward",
    [ATTRIBUTES.rewardValue]: data.value,
    [ATTRIBUTES.rewardSource]: data.source,
    [ATTRIBUTES.rewardReason]: data.reason,
  });

/** What their fields alone say. */
export const toPlainEvent = (span: StoredSpan): AgentLightningEvent => {
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
export const toTheirEvent = (span: StoredSpan): AgentLightningEvent => {
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

export const fromEvents = (
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
    // whole, where our attributes have another form, or a name of ours is in it
    const isKnown = type === "model_request" || type === "reward" || (!ours && (OURS in data || THEIRS in data));
    const theirs = present({
      type,
      timestamp: event.timestamp,
      data: isKnown ? (type === "model_request" ? without(data, "request", "response") : data) : undefined,
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

// A rollout and its spans as Agent Lightning v1.0 tells them (rollout object and events), and back. Pure.
//
// Lossless in both directions, each by one rule:
//   - ours out and in again: what their fields cannot carry travels beside them in one more key, `fulgurite`, which their
//     readers ignore. It holds only the difference, so that a field which somebody edited on the way counts.
//   - theirs in and out again: what our spans have no place for stays on them as the attribute `agentlightning.event`
//     (on the rollout: metadata `agentlightning`), and request and response stay whole.
// Times are float seconds there and milliseconds here. Of several choices, the first is the one that is trained on.
// Attempts as rows, of which v1.0 has the ids only, are made anew for a store (items.ts). Not here: the triplet projection, which is a view of these events.

import { decodeAttributes, encodeAttributes, webBase64 } from "../attributeCodec.ts";
import type { Rollout, StoredSpan } from "../vocabulary.ts";
import { fromEvents, toPlainEvent, toTheirEvent } from "./events.ts";
import { guardTrace } from "./guard.ts";
import { difference, isObject, objectOf, patched, present } from "./objects.ts";
import { fromPlainRollout, toPlainRollout } from "./rollouts.ts";
import { type AgentLightningEvent, type AgentLightningTrace, type JsonObject, OURS, THEIRS, THEIRS_OF_ROLLOUT } from "./shapes.ts";

export { toStoreItems } from "./items.ts";
export type { AgentLightningEvent, AgentLightningRollout, AgentLightningTrace } from "./shapes.ts";

const encodedAttributes = ({ attributes }: StoredSpan): JsonObject => encodeAttributes(attributes, webBase64);
const fieldsOf = ({ attributes: _, ...fields }: StoredSpan): JsonObject => fields as unknown as JsonObject;

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
 * @throws TraceError "bad-input" naming the field that is not as v1.0 has it; "corrupt" for typed arrays that are not whole.
 */
export const fromAgentLightning = (trace: AgentLightningTrace): { rollout: Rollout; spans: StoredSpan[] } => {
  guardTrace(trace);
  const { rollout, events } = trace;
  const patch = rollout.fulgurite;
  const plain = fromPlainRollout(rollout, patch !== undefined);
  const mine = patch === undefined ? plain : (patched(plain as unknown as JsonObject, patch) as unknown as Rollout);
  const isOurs = ({ data }: AgentLightningEvent): boolean =>
    isObject(data[OURS]) && Object.keys(data[OURS]).every((name) => name === "attributes" || name === "fields");
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

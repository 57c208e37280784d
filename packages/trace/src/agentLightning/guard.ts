// What comes from outside, as far as it is read: the fields that make a rollout and its events. All else may be any JSON.

import { finite, isObject as isAny, refuse, text } from "../values.ts";
import { isObject } from "./objects.ts";
import { STATUSES } from "./rollouts.ts";
import type { AgentLightningTrace } from "./shapes.ts";

const objectAt = (value: unknown, where: string): Readonly<Record<string, unknown>> =>
  isObject(value) ? value : refuse(where, "an object", value);

/** @throws TraceError "bad-input" naming the field. */
export const guardTrace = (trace: AgentLightningTrace): void => {
  if (!isAny(trace)) refuse("agent lightning", "an object of rollout and events", trace);
  const rollout = objectAt(trace.rollout, "rollout");
  text(rollout.rollout_id, "rollout.rollout_id");
  finite(objectAt(rollout.config, "rollout.config").timeout_seconds, "rollout.config.timeout_seconds");
  objectAt(rollout.metadata, "rollout.metadata");
  const status = objectAt(rollout.status, "rollout.status");
  if (!Object.hasOwn(STATUSES, String(status.state)))
    refuse("rollout.status.state", `one of ${Object.keys(STATUSES).join(", ")}`, status.state);
  finite(status.created_at, "rollout.status.created_at");
  finite(status.updated_at, "rollout.status.updated_at");
  if (!Array.isArray(trace.events)) refuse("events", "a list", trace.events);
  for (const [index, event] of trace.events.entries()) {
    const given = objectAt(event, `events[${index}]`);
    for (const name of ["event_type", "rollout_id", "attempt_id"]) text(given[name], `events[${index}].${name}`);
    finite(given.timestamp, `events[${index}].timestamp`);
    objectAt(given.data, `events[${index}].data`);
  }
};

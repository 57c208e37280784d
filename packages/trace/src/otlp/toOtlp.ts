// Spans out, as the body of an OTLP request.

import { ATTRIBUTES } from "../attributes.ts";
import type { Attributes, AttributeValue, Json, Span } from "../vocabulary.ts";
import { type Arrays, toKeyValues } from "./anyValue.ts";
import {
  EVENTS,
  HEX_SPAN,
  KIND,
  type OtlpBody,
  type OtlpEvent,
  type OtlpSpan,
  OUR_SCOPE,
  SCOPE_NAME,
  SCOPE_VERSION,
  SERVICE_NAME,
  SPAN_ID,
  STATUS_CODE,
  STATUS_DESCRIPTION,
} from "./shapes.ts";

export interface ToOtlpOptions {
  /** The token ids and log-probs of model calls. Their counts always travel. */
  readonly arrays?: Arrays; // "omit"
  /** Whether the raw requests and answers of model calls travel: they hold what people wrote. */
  readonly content?: boolean; // false
  readonly serviceName?: string; // "fulgurite"
}

/** 32 hex digits that are the same for the same text, and not all zero: cyrb128 (public domain, bryc). For telling apart, not for secrets. */
const digits = (text: string): string => {
  let [a, b, c, d] = [1779033703, 3144134277, 1013904242, 2773480762];
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    a = b ^ Math.imul(a ^ unit, 597399067);
    b = c ^ Math.imul(b ^ unit, 2869860233);
    c = d ^ Math.imul(c ^ unit, 951274213);
    d = a ^ Math.imul(d ^ unit, 2716044179);
  }
  const [e, f, g, h] = [
    Math.imul(c ^ (a >>> 18), 597399067),
    Math.imul(d ^ (b >>> 22), 2869860233),
    Math.imul(a ^ (c >>> 17), 951274213),
    Math.imul(b ^ (d >>> 19), 2716044179),
  ];
  const hex = [e ^ f ^ g ^ h, f ^ e, g ^ e, h ^ e].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  return /^0{16}/.test(hex) ? `1${hex.slice(1)}` : hex;
};

const toHexSpan = (id: string): string => (HEX_SPAN.test(id) ? id : digits(id).slice(0, 16));

/** Exact for what a double of milliseconds can say; a time before 1970 is 0. */
const toNano = (ms: number): string => {
  const whole = Math.floor(Math.max(0, ms));
  return String(BigInt(whole) * 1_000_000n + BigInt(Math.round((Math.max(0, ms) - whole) * 1e6)));
};

const CALLS: readonly unknown[] = ["chat", "text_completion"];

export const kindOf = (attributes: Attributes): number =>
  CALLS.includes(attributes[ATTRIBUTES.operation]) && attributes[ATTRIBUTES.provider] !== "fulgurite" ? 3 : 1;

const toSpan = (span: Span, { arrays = "omit", content = false }: ToOtlpOptions): OtlpSpan => {
  const {
    [EVENTS]: events,
    [STATUS_DESCRIPTION]: description,
    [SCOPE_NAME]: _name,
    [SCOPE_VERSION]: _version,
    [SERVICE_NAME]: _service,
    [STATUS_CODE]: code,
    [KIND]: kind,
    [ATTRIBUTES.request]: request,
    [ATTRIBUTES.response]: response,
    ...rest
  } = span.attributes as Record<string, AttributeValue>;
  const message = description ?? span.attributes[ATTRIBUTES.errorType];
  const attributes: Record<string, AttributeValue> = {
    ...rest,
    ...(content && request !== undefined && { [ATTRIBUTES.request]: request }),
    ...(content && response !== undefined && { [ATTRIBUTES.response]: response }),
    [ATTRIBUTES.rolloutId]: span.rolloutId,
    [ATTRIBUTES.attemptId]: span.attemptId,
    ...(HEX_SPAN.test(span.id) ? {} : { [SPAN_ID]: span.id }),
  };
  return {
    traceId: digits(JSON.stringify([span.rolloutId, span.attemptId])),
    spanId: toHexSpan(span.id),
    ...(span.parentId === undefined ? {} : { parentSpanId: toHexSpan(span.parentId) }),
    name: span.name,
    kind: typeof kind === "number" ? kind : kindOf(span.attributes),
    startTimeUnixNano: toNano(span.startMs),
    endTimeUnixNano: toNano(span.endMs),
    attributes: toKeyValues(attributes, arrays),
    events: Array.isArray(events) ? events.map(toEvent) : [],
    // OpenTelemetry leaves "ok" to people: what did not fail is unset
    status: span.status === "error" ? { code: 2, ...(typeof message === "string" && { message }) } : { code: code === "OK" ? 1 : 0 },
  };
};

const toEvent = (event: Json): OtlpEvent => {
  const { name, timeMs, attributes } = (event ?? {}) as { name?: Json; timeMs?: Json; attributes?: Attributes };
  return { name: String(name), timeUnixNano: toNano(Number(timeMs) || 0), attributes: toKeyValues(attributes ?? {}, "omit") };
};

/** A request's body for spans, those of one service and scope together, in the order of their first. */
export const toOtlp = (spans: Iterable<Span>, options: ToOtlpOptions = {}): OtlpBody => {
  const groups = new Map<string, { service: string; name: string; version: string | undefined; spans: OtlpSpan[] }>();
  for (const span of spans) {
    const text = (name: string): string | undefined => {
      const value = span.attributes[name];
      return typeof value === "string" ? value : undefined;
    };
    const [service, name, version] = [
      text(SERVICE_NAME) ?? options.serviceName ?? "fulgurite",
      text(SCOPE_NAME) ?? OUR_SCOPE,
      text(SCOPE_VERSION),
    ];
    const key = JSON.stringify([service, name, version ?? null]);
    const group = groups.get(key) ?? { service, name, version, spans: [] };
    groups.set(key, group);
    group.spans.push(toSpan(span, options));
  }
  return {
    resourceSpans: [...groups.values()].map(({ service, name, version, spans }) => ({
      resource: { attributes: toKeyValues({ [SERVICE_NAME]: service }, "omit") },
      scopeSpans: [{ scope: { name, ...(version === undefined ? {} : { version }) }, spans }],
    })),
  };
};

// Spans as OTLP/HTTP in JSON (POST …/v1/traces) and back; opentelemetry-proto 1.x, no SDK. Only the bodies: sending, retrying
// and partial success are the caller's.
//
// An attempt is a trace: its id is made of the two ids, which also travel as fulgurite.rollout.id and fulgurite.attempt.id.
// Left out: links, dropped counts, trace state, and resource attributes but service.name.

import { webBase64 } from "../attributeCodec.ts";
import { ATTRIBUTES } from "../attributes.ts";
import { TraceError } from "../errors.ts";
import type { AttemptRef, Attributes, AttributeValue, Json, Span } from "../vocabulary.ts";
import { type Arrays, fromKeyValues, type KeyValue, toKeyValues } from "./anyValue.ts";

export type { AnyValue, Arrays, KeyValue } from "./anyValue.ts";

export interface OtlpEvent {
  /** Decimal text. */
  readonly timeUnixNano?: string | number;
  readonly name?: string;
  readonly attributes?: readonly KeyValue[];
}

export interface OtlpSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  /** 1 internal, 3 client. */
  readonly kind?: number;
  readonly startTimeUnixNano: string | number;
  readonly endTimeUnixNano: string | number;
  readonly attributes?: readonly KeyValue[];
  readonly events?: readonly OtlpEvent[];
  /** 0 unset, 1 ok, 2 error. */
  readonly status?: { readonly code?: number; readonly message?: string };
}

/** ExportTraceServiceRequest. */
export interface OtlpBody {
  readonly resourceSpans: readonly {
    readonly resource?: { readonly attributes?: readonly KeyValue[] };
    readonly scopeSpans: readonly {
      readonly scope?: { readonly name?: string; readonly version?: string };
      readonly spans: readonly OtlpSpan[];
    }[];
  }[];
}

export interface ToOtlpOptions {
  /** The token ids and log-probs of model calls. Their counts always travel. */
  readonly arrays?: Arrays; // "omit"
  /** Whether the raw requests and answers of model calls travel: they hold what people wrote. */
  readonly content?: boolean; // false
  readonly serviceName?: string; // "fulgurite"
}

/** Names of OpenTelemetry's for what a span of ours has no field for. */
const SCOPE_NAME = "otel.scope.name";
const SCOPE_VERSION = "otel.scope.version";
const STATUS_DESCRIPTION = "otel.status_description";
const SERVICE_NAME = "service.name";
/** Ours, where OpenTelemetry has none: a list of { name, timeMs, attributes }. */
const EVENTS = "fulgurite.otel.events";
/** A span's own id, where it is not 16 hex digits. */
const SPAN_ID = "fulgurite.span.id";
/** Where Agent Lightning 0.3 says whose a span is, often on the resource. */
const ROLLOUT_IDS = [ATTRIBUTES.rolloutId, "agentlightning.rollout_id"];
const ATTEMPT_IDS = [ATTRIBUTES.attemptId, "agentlightning.attempt_id"];

const OUR_SCOPE = "@fulgurite/trace";
const HEX_SPAN = /^[0-9a-f]{16}$/;
const HEX_TRACE = /^[0-9a-f]{32}$/;

// ---- out ------------------------------------------------------------------------------------------------------------------

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

const kindOf = ({ attributes }: Span): number =>
  CALLS.includes(attributes[ATTRIBUTES.operation]) && attributes[ATTRIBUTES.provider] !== "fulgurite" ? 3 : 1;

const toSpan = (span: Span, { arrays = "omit", content = false }: ToOtlpOptions): OtlpSpan => {
  const {
    [EVENTS]: events,
    [STATUS_DESCRIPTION]: description,
    [SCOPE_NAME]: _name,
    [SCOPE_VERSION]: _version,
    [SERVICE_NAME]: _service,
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
    kind: kindOf(span),
    startTimeUnixNano: toNano(span.startMs),
    endTimeUnixNano: toNano(span.endMs),
    attributes: toKeyValues(attributes, arrays),
    events: Array.isArray(events) ? events.map(toEvent) : [],
    // OpenTelemetry leaves "ok" to people: what did not fail is unset
    status: span.status === "error" ? { code: 2, ...(typeof message === "string" && { message }) } : { code: 0 },
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

// ---- in -------------------------------------------------------------------------------------------------------------------

export interface FromOtlpOptions {
  /** Whose a span is that does not say so itself. Absent or undefined: it is rejected. */
  readonly attemptOf?: (span: { readonly traceId: string; readonly attributes: Attributes }) => AttemptRef | undefined;
}

/** What an answer's partialSuccess says, beside the spans. */
export interface FromOtlp {
  readonly spans: Span[];
  readonly rejectedSpans: number;
  /** Why the first ones were rejected; "" if none was. */
  readonly errorMessage: string;
}

const MESSAGES = 3;

const bad = (where: string, rule: string, got: unknown): never => {
  throw new TraceError("bad-input", `${where}: ${rule}, got ${String(JSON.stringify(got)).slice(0, 60)}; correct the exporter`);
};

const listIn = (value: unknown, where: string): readonly unknown[] =>
  value === undefined || value === null ? [] : Array.isArray(value) ? value : bad(where, "a list", value);

/** Hex, as OTLP says, or base64, as protobuf's own mapping has it. */
const fromId = (value: unknown, hex: RegExp, byteLength: number, where: string): string => {
  if (typeof value === "string") {
    const lower = value.toLowerCase();
    if (hex.test(lower)) return lower;
    if (value.length === Math.ceil(byteLength / 3) * 4)
      try {
        const bytes = webBase64.decode(value);
        if (bytes.length === byteLength) return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
      } catch {
        // told below
      }
  }
  return bad(where, `${byteLength} bytes in hex or base64`, value);
};

/** Milliseconds. Numbers have lost their last digits already, and are taken as they are. */
const fromNano = (value: unknown, where: string): number => {
  if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value / 1e6;
  if (typeof value !== "string" || !/^\d{1,20}$/.test(value)) return bad(where, "nanoseconds since 1970 as decimal text", value);
  const nano = BigInt(value);
  return Number(nano / 1_000_000n) + Number(nano % 1_000_000n) / 1e6;
};

const isSet = (value: unknown): boolean => value !== undefined && value !== null && value !== "";

const firstText = (names: readonly string[], ...places: readonly Attributes[]): string | undefined => {
  for (const place of places)
    for (const name of names) {
      const value = place[name];
      if (typeof value === "string" && value !== "") return value;
    }
  return undefined;
};

const fromEvent = (value: unknown, where: string): Json => {
  const event = (value ?? {}) as OtlpEvent;
  const attributes = fromKeyValues(event.attributes, `${where}.attributes`) as Record<string, Json>;
  return { name: String(event.name ?? ""), timeMs: isSet(event.timeUnixNano) ? fromNano(event.timeUnixNano, where) : 0, attributes };
};

interface Received {
  readonly span: Span;
  readonly spanId: string;
}

const fromSpan = (
  value: unknown,
  resource: Attributes,
  scope: { name?: unknown; version?: unknown },
  options: FromOtlpOptions,
): Received => {
  if (typeof value !== "object" || value === null) return bad("otlp span", "an object", value);
  const given = value as Partial<OtlpSpan>;
  const spanId = fromId(given.spanId, HEX_SPAN, 8, "otlp span: spanId");
  const where = `otlp span ${spanId}`;
  const traceId = fromId(given.traceId, HEX_TRACE, 16, `${where}: traceId`);
  const attributes = { ...fromKeyValues(given.attributes, `${where}: attributes`) };
  const [rolloutId, attemptId] = [firstText(ROLLOUT_IDS, attributes, resource), firstText(ATTEMPT_IDS, attributes, resource)];
  const attempt =
    rolloutId !== undefined && attemptId !== undefined ? { rolloutId, id: attemptId } : options.attemptOf?.({ traceId, attributes });
  if (attempt === undefined)
    return bad(where, `it says whose it is by ${ATTRIBUTES.rolloutId} and ${ATTRIBUTES.attemptId}`, Object.keys(attributes).slice(0, 5));
  const id = firstText([SPAN_ID], attributes) ?? spanId;
  for (const name of [...ROLLOUT_IDS, ...ATTEMPT_IDS, SPAN_ID]) delete attributes[name];
  const service = firstText([SERVICE_NAME], resource);
  const events = listIn(given.events, `${where}: events`).map((event) => fromEvent(event, `${where}: event`));
  const message = given.status?.message;
  const status = given.status?.code === 2 || (given.status?.code as unknown) === "STATUS_CODE_ERROR" ? "error" : "ok";
  const startMs = fromNano(given.startTimeUnixNano, `${where}: startTimeUnixNano`);
  return {
    spanId,
    span: {
      rolloutId: attempt.rolloutId,
      attemptId: attempt.id,
      id,
      ...(isSet(given.parentSpanId) && { parentId: fromId(given.parentSpanId, HEX_SPAN, 8, `${where}: parentSpanId`) }),
      name: typeof given.name === "string" && given.name !== "" ? given.name : bad(where, "a name", given.name),
      startMs,
      endMs: isSet(given.endTimeUnixNano) ? fromNano(given.endTimeUnixNano, `${where}: endTimeUnixNano`) : startMs,
      status,
      attributes: {
        ...attributes,
        ...(service !== undefined && service !== "fulgurite" && { [SERVICE_NAME]: service }),
        ...(typeof scope.name === "string" && scope.name !== "" && scope.name !== OUR_SCOPE && { [SCOPE_NAME]: scope.name }),
        ...(typeof scope.version === "string" && scope.version !== "" && { [SCOPE_VERSION]: scope.version }),
        ...(events.length > 0 && { [EVENTS]: events }),
        ...(status === "error" &&
          typeof message === "string" &&
          message !== attributes[ATTRIBUTES.errorType] && { [STATUS_DESCRIPTION]: message }),
      },
    },
  };
};

/**
 * The spans of a request's body, in its order, ready for Store.append. A span that cannot be read or says not whose it is
 * rejects only itself.
 * @throws TraceError "bad-input" for a body that is none.
 */
export const fromOtlp = (body: unknown, options: FromOtlpOptions = {}): FromOtlp => {
  const resourceSpans = (body as Partial<OtlpBody> | null | undefined)?.resourceSpans;
  if (!Array.isArray(resourceSpans)) return bad("otlp body", "an object with a list resourceSpans", body);
  const received: Received[] = [];
  const messages: string[] = [];
  let rejectedSpans = 0;
  const reject = (error: unknown, count: number): void => {
    if (!(error instanceof TraceError)) throw error;
    rejectedSpans += count;
    if (messages.length < MESSAGES) messages.push(error.message);
  };
  for (const group of resourceSpans as readonly (Partial<OtlpBody["resourceSpans"][number]> | null)[])
    for (const scoped of listIn(group?.scopeSpans, "otlp body: scopeSpans")) {
      const { scope, spans } = (scoped ?? {}) as { scope?: { name?: unknown; version?: unknown }; spans?: unknown };
      const listed = listIn(spans, "otlp body: spans");
      let resource: Attributes;
      try {
        resource = fromKeyValues(group?.resource?.attributes, "otlp resource");
      } catch (error) {
        reject(error, listed.length);
        continue;
      }
      for (const span of listed)
        try {
          received.push(fromSpan(span, resource, scope ?? {}, options));
        } catch (error) {
          reject(error, 1);
        }
    }
  // a parent that had another id than its hex digits is found by them
  const idOf = new Map(received.filter(({ span, spanId }) => span.id !== spanId).map(({ span, spanId }) => [spanId, span.id]));
  const spans = received.map(({ span }): Span => {
    const parent = span.parentId === undefined ? undefined : idOf.get(span.parentId);
    return parent === undefined ? span : { ...span, parentId: parent };
  });
  return { spans, rejectedSpans, errorMessage: messages.join("; ") };
};

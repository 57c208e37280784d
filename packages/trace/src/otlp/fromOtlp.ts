// The spans of an OTLP request, checked one by one.

import { webBase64 } from "../attributeCodec.ts";
import { ATTRIBUTES } from "../attributes.ts";
import { TraceError } from "../errors.ts";
import type { AttemptRef, Attributes, Json, Span } from "../vocabulary.ts";
import { fromKeyValues } from "./anyValue.ts";
import {
  ATTEMPT_IDS,
  EVENTS,
  HEX_SPAN,
  HEX_TRACE,
  KIND,
  type OtlpBody,
  type OtlpEvent,
  type OtlpSpan,
  OUR_SCOPE,
  ROLLOUT_IDS,
  SCOPE_NAME,
  SCOPE_VERSION,
  SERVICE_NAME,
  SPAN_ID,
  STATUS_CODE,
  STATUS_DESCRIPTION,
} from "./shapes.ts";
import { kindOf } from "./toOtlp.ts";

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
  const code: unknown = given.status?.code;
  const status = code === 2 || code === "STATUS_CODE_ERROR" ? "error" : "ok";
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
        ...(isSet(given.kind) && given.kind !== kindOf(attributes) && { [KIND]: given.kind as Json }),
        ...(code === 1 || code === "STATUS_CODE_OK" ? { [STATUS_CODE]: "OK" } : {}),
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

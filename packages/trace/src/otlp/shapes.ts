// OTLP/HTTP's JSON, as far as it is read and written here, and the attribute names that carry what one side has no field for.

import { ATTRIBUTES } from "../attributes.ts";
import type { KeyValue } from "./anyValue.ts";

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

/** Names of OpenTelemetry's for what a span of ours has no field for. */
export const SCOPE_NAME = "otel.scope.name";
export const SCOPE_VERSION = "otel.scope.version";
export const STATUS_DESCRIPTION = "otel.status_description";
/** "OK" where somebody said so: what is merely no error is unset. */
export const STATUS_CODE = "otel.status_code";
export const SERVICE_NAME = "service.name";
/** Ours, where OpenTelemetry has none: a list of { name, timeMs, attributes }. */
export const EVENTS = "fulgurite.otel.events";
/** Of a span, where it is not the one that its attributes make of it. */
export const KIND = "fulgurite.otel.kind";
/** A span's own id, where it is not 16 hex digits. */
export const SPAN_ID = "fulgurite.span.id";
/** Where Agent Lightning 0.3 says whose a span is, often on the resource. */
export const ROLLOUT_IDS: readonly string[] = [ATTRIBUTES.rolloutId, "agentlightning.rollout_id"];
export const ATTEMPT_IDS: readonly string[] = [ATTRIBUTES.attemptId, "agentlightning.attempt_id"];

export const OUR_SCOPE = "@fulgurite/trace";
export const HEX_SPAN: RegExp = /^[0-9a-f]{16}$/;
export const HEX_TRACE: RegExp = /^[0-9a-f]{32}$/;

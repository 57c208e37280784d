// Spans as OTLP/HTTP in JSON (POST …/v1/traces) and back; opentelemetry-proto 1.x, no SDK. Only the bodies: sending, retrying
// and partial success are the caller's.
//
// An attempt is a trace: its id is made of the two ids, which also travel as fulgurite.rollout.id and fulgurite.attempt.id.
// Left out: links, dropped counts, trace state, and resource attributes but service.name.

export type { AnyValue, Arrays, KeyValue } from "./anyValue.ts";
export { type FromOtlp, type FromOtlpOptions, fromOtlp } from "./fromOtlp.ts";
export type { OtlpBody, OtlpEvent, OtlpSpan } from "./shapes.ts";
export { type ToOtlpOptions, toOtlp } from "./toOtlp.ts";

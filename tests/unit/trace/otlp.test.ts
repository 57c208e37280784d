// Spans as OTLP/HTTP in JSON: ours out and back, and what other exporters really send in.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  type AttributeValue,
  createMemoryStore,
  exportStore,
  modelCallSpan,
  rewardSpan,
  type Span,
  TraceError,
  toTransitions,
} from "@fulgurite/trace";
import { fromOtlp, type OtlpBody, type OtlpSpan, type ToOtlpOptions, toOtlp } from "@fulgurite/trace/otlp";
import * as fc from "fast-check";
import { expect, test } from "vitest";

const attempt = { rolloutId: "task-1", id: "attempt-1" };

const call: Span = modelCallSpan({
  attempt,
  id: "00000000000000a1",
  parentId: "00000000000000a0",
  startMs: 1_795_331_747_276.25,
  endMs: 1_795_331_747_300,
  model: "spark",
  responseId: "chatcmpl-1",
  keys: ["call_1"],
  agent: "solver",
  turn: 0,
  mode: "train",
  policyVersion: 3,
  fidelity: "exact",
  temperature: 0.7,
  finishReason: "stop",
  promptTokens: Int32Array.of(1, 2, 3),
  responseTokens: Int32Array.of(4, 5),
  samplerLogprobs: Float32Array.of(-0.1, -2.5),
  request: { messages: [{ role: "user", content: "a secret" }] },
  response: { ok: true },
});
const reward: Span = rewardSpan({ attempt, id: "00000000000000a2", atMs: 1_795_331_747_301, value: 1, responseId: "chatcmpl-1" });

/** As a wire would do it: only what JSON can say arrives. */
const sent = (spans: readonly Span[], options?: ToOtlpOptions): OtlpBody => JSON.parse(JSON.stringify(toOtlp(spans, options)));

const onlySpan = (body: OtlpBody): OtlpSpan => body.resourceSpans[0]!.scopeSpans[0]!.spans[0]!;

test("a model call goes out as OTLP says, counts and names only unless more is asked for", () => {
  const body = sent([call, reward]);
  const span = onlySpan(body);
  expect(body.resourceSpans.length).toBe(1);
  expect(body.resourceSpans[0]!.resource).toEqual({ attributes: [{ key: "service.name", value: { stringValue: "fulgurite" } }] });
  expect(span).toMatchObject({
    spanId: "00000000000000a1",
    parentSpanId: "00000000000000a0",
    name: "chat spark",
    kind: 1,
    startTimeUnixNano: "1795331747276250000",
    endTimeUnixNano: "1795331747300000000",
    status: { code: 0 },
  });
  expect(span.traceId).toMatch(/^[0-9a-f]{32}$/);
  expect(body.resourceSpans[0]!.scopeSpans[0]!.spans[1]!.traceId).toBe(span.traceId);
  const values = Object.fromEntries(span.attributes!.map(({ key, value }) => [key, value]));
  expect(values["gen_ai.usage.input_tokens"]).toEqual({ intValue: "3" });
  expect(values["gen_ai.request.temperature"]).toEqual({ doubleValue: 0.7 });
  expect(values["gen_ai.response.finish_reasons"]).toEqual({ arrayValue: { values: [{ stringValue: "stop" }] } });
  expect(values["fulgurite.rollout.id"]).toEqual({ stringValue: "task-1" });
  expect(JSON.stringify(body)).not.toContain("secret");
  expect(Object.keys(values).filter((name) => /tokens$|logprobs$|request$|response$/.test(name))).toEqual([
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
  ]);
  const full = Object.fromEntries(
    onlySpan(sent([call], { arrays: "bytes", content: true })).attributes!.map(({ key, value }) => [key, value]),
  );
  expect(full["fulgurite.prompt.tokens"]).toEqual({ bytesValue: Buffer.from(Int32Array.of(1, 2, 3).buffer).toString("base64") });
  expect(full["fulgurite.response"]).toEqual({ kvlistValue: { values: [{ key: "ok", value: { boolValue: true } }] } });
});

test.each(["bytes", "lists"] as const)("with arrays as %s and content, everything comes back, and trains the same", async (arrays) => {
  const failed = { ...call, id: "00000000000000a3", status: "error", attributes: { "error.type": "rate_limited", "http.n": 429 } } as const;
  const { spans, rejectedSpans, errorMessage } = fromOtlp(sent([call, reward, failed], { arrays, content: true }));
  expect([spans, rejectedSpans, errorMessage]).toEqual([[call, reward, failed], 0, ""]);
  expect(spans[0]!.attributes["fulgurite.sampler.logprobs"]).toBeInstanceOf(Float32Array);
  const numbered = (all: readonly Span[]) => all.map((span, index) => ({ ...span, seq: index + 1 }));
  expect(toTransitions(numbered(spans))).toEqual(toTransitions(numbered([call, reward, failed])));
  const store = createMemoryStore();
  await store.enqueue([{ id: "task-1", input: 0 }]);
  const [claim] = await store.claim("w");
  await store.append(spans.map((span) => ({ ...span, attemptId: claim!.attempt.id })));
  expect((await store.stats()).spans).toBe(3);
});

test("without arrays a call is shown and never trained", () => {
  const { spans } = fromOtlp(sent([call]));
  expect(toTransitions(spans.map((span) => ({ ...span, seq: 1 })))).toEqual([]);
  expect(spans[0]!.attributes["gen_ai.usage.output_tokens"]).toBe(2);
});

const text = fc.string({ unit: "grapheme" });
const attribute: fc.Arbitrary<AttributeValue> = fc.oneof(
  // an object is a kvlist and JSON has no -0: fast-check's own JSON may hold both, so it goes through JSON once
  fc.jsonValue().map((value) => JSON.parse(JSON.stringify(value))),
  fc.int32Array({ maxLength: 5 }),
  fc.float32Array({ maxLength: 5 }),
);
const anySpan: fc.Arbitrary<Span> = fc.record({
  rolloutId: fc.string({ minLength: 1 }),
  attemptId: fc.string({ minLength: 1 }),
  id: fc.oneof(
    fc.string({ minLength: 1 }),
    fc.bigInt({ min: 1n, max: 2n ** 64n - 1n }).map((id) => id.toString(16).padStart(16, "0")),
  ),
  name: fc.string({ minLength: 1 }),
  startMs: fc.integer({ min: 0, max: 2 ** 42 }),
  endMs: fc.integer({ min: 0, max: 2 ** 42 }).map((ms) => ms + 0.25),
  status: fc.constantFrom("ok" as const, "error" as const),
  attributes: fc.dictionary(text, attribute, { maxKeys: 5 }),
});

test("any span comes back as it was, whatever its ids and attributes", () => {
  fc.assert(
    fc.property(anySpan, (span) => {
      const child = { ...span, id: "child", parentId: span.id };
      const { spans, errorMessage } = fromOtlp(sent([span, child], { arrays: "bytes", content: true }));
      expect(errorMessage).toBe("");
      expect(spans).toEqual([span, child]);
    }),
    { numRuns: 300, seed: 20261122 },
  );
});

test("ids that are not hex are told apart", () => {
  const ids = Array.from({ length: 2_000 }, (_, index) => `attempt-${index}`);
  const bodies = sent(ids.map((id) => ({ ...reward, attemptId: id, id })));
  const spans = bodies.resourceSpans[0]!.scopeSpans[0]!.spans;
  expect(new Set(spans.map(({ traceId }) => traceId)).size).toBe(2_000);
  expect(new Set(spans.map(({ spanId }) => spanId)).size).toBe(2_000);
  // no half of the digits follows from another
  for (let at = 0; at < 32; at += 8) expect(new Set(spans.map(({ traceId }) => traceId.slice(at, at + 8))).size).toBeGreaterThan(1_990);
});

test("what OpenTelemetry's exporter for browsers posts is read whole, and belongs to whom the caller says", () => {
  const capture = JSON.parse(readFileSync(join(import.meta.dirname, "../../captures/otlp-http-json-browser.json"), "utf8"));
  const homeless = fromOtlp(capture.body);
  expect([homeless.spans, homeless.rejectedSpans]).toEqual([[], 1]);
  expect(homeless.errorMessage).toContain("otlp span a4a60706e101912b: it says whose it is by fulgurite.rollout.id");
  const asked: string[] = [];
  const { spans, rejectedSpans } = fromOtlp(capture.body, {
    attemptOf: ({ traceId }) => {
      asked.push(traceId);
      return attempt;
    },
  });
  expect([asked, rejectedSpans]).toEqual([["6c04324ab5023ce406086359464e5e4c"], 0]);
  expect(spans).toEqual([
    {
      rolloutId: "task-1",
      attemptId: "attempt-1",
      id: "a4a60706e101912b",
      name: "chat m",
      startMs: 1_795_331_747_276,
      endMs: 1_795_331_747_276.3,
      status: "ok",
      attributes: {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 3,
        arr: [1, 2],
        "service.name": "unknown_service",
        "otel.scope.name": "x",
        "fulgurite.otel.events": [{ name: "e", timeMs: 1_795_331_747_276.3, attributes: { a: 1 } }],
      },
    },
  ]);
  // and out again: the same service, scope, times, event, and kind (a call to somebody else's model)
  const out = sent(spans);
  expect(out.resourceSpans[0]!.resource!.attributes![0]!.value).toEqual({ stringValue: "unknown_service" });
  expect(out.resourceSpans[0]!.scopeSpans[0]!.scope).toEqual({ name: "x" });
  expect(onlySpan(out)).toMatchObject({
    spanId: "a4a60706e101912b",
    kind: 3,
    startTimeUnixNano: "1795331747276000000",
    endTimeUnixNano: "1795331747276300049", // what a double of milliseconds can say of …300000
    events: [{ name: "e", attributes: [{ key: "a", value: { intValue: "1" } }] }],
  });
  expect(fromOtlp(out).spans).toEqual(spans);
});

const foreign = (more: object, resource: object[] = []): unknown => ({
  resourceSpans: [
    {
      resource: { attributes: resource },
      scopeSpans: [
        {
          spans: [
            {
              traceId: "0af7651916cd43dd8448eb211c80319c",
              spanId: "b7ad6b7169203331",
              name: "n",
              startTimeUnixNano: "1",
              endTimeUnixNano: "2",
              ...more,
            },
          ],
        },
      ],
    },
  ],
});

test("other exporters' ways are read: base64 ids, upper-case hex, numbers as text and text as numbers, ids on the resource", () => {
  const one = (more: object, resource?: object[]) => {
    const { spans, errorMessage } = fromOtlp(foreign(more, resource), { attemptOf: () => attempt });
    expect(errorMessage).toBe("");
    return spans[0]!;
  };
  expect(
    one({ spanId: Buffer.from("b7ad6b7169203331", "hex").toString("base64"), traceId: Buffer.alloc(16, 7).toString("base64") }).id,
  ).toBe("b7ad6b7169203331");
  expect(one({ spanId: "B7AD6B7169203331", parentSpanId: "" })).not.toHaveProperty("parentId");
  expect(one({ startTimeUnixNano: 5_000_000, endTimeUnixNano: undefined })).toMatchObject({ startMs: 5, endMs: 5 });
  const value = (any: unknown) => one({ attributes: [{ key: "k", value: any }] }).attributes.k;
  expect(value({ intValue: "-7" })).toBe(-7);
  expect(value({ intValue: 7 })).toBe(7);
  expect(value({ intValue: "9223372036854775807" })).toBe("9223372036854775807");
  expect(value({ doubleValue: "NaN" })).toBe("NaN");
  expect(value({ doubleValue: 1.5 })).toBe(1.5);
  expect(value({ arrayValue: {} })).toEqual([]);
  expect(value({ bytesValue: "AAE=" })).toEqual({ $bytes: "AAE=" });
  expect(value({})).toBe(null);
  expect(one({ status: { code: "STATUS_CODE_ERROR", message: "m" } })).toMatchObject({
    status: "error",
    attributes: { "otel.status_description": "m" },
  });
  const pair = (key: string, stringValue: string) => ({ key, value: { stringValue } });
  expect(one({}, [pair("agentlightning.rollout_id", "r7"), pair("agentlightning.attempt_id", "a7")])).toMatchObject({
    rolloutId: "r7",
    attemptId: "a7",
  });
  const tokens = one({ attributes: [{ key: "fulgurite.prompt.tokens", value: { arrayValue: { values: [{ intValue: 5 }] } } }] });
  expect(tokens.attributes["fulgurite.prompt.tokens"]).toEqual(Int32Array.of(5));
});

test("what we have no field for goes out as it came: kind, an explicit ok, bytes", () => {
  const attributes = [
    { key: "raw", value: { bytesValue: "AQI=" } },
    { key: "list", value: { arrayValue: { values: [{ bytesValue: "AA==" }] } } },
  ];
  for (const kind of [0, 1, 2, 3, 4, 5])
    for (const code of [0, 1, 2]) {
      const [span] = fromOtlp(foreign({ kind, status: { code }, attributes }), { attemptOf: () => attempt }).spans;
      const out = onlySpan(sent([span!]));
      expect([out.kind, out.status!.code]).toEqual([kind, code]);
      expect(out.attributes).toEqual(expect.arrayContaining(attributes));
      expect(out.attributes!.some(({ key }) => key.startsWith("otel.") || key.startsWith("fulgurite.otel."))).toBe(false);
    }
});

test("a span that cannot be read rejects itself alone; a body that is none is refused", () => {
  let deep: object = { stringValue: "x" };
  for (let level = 0; level < 1_000; level++) deep = { arrayValue: { values: [deep] } };
  const wrong: object[] = [
    { traceId: "xyz" },
    { spanId: "b7ad" },
    { spanId: "b7ad6b7169!=" },
    { startTimeUnixNano: "yesterday" },
    { name: "" },
    { attributes: "x" },
    { attributes: [{ value: {} }] },
    { attributes: [null] },
    { attributes: [{ key: "k", value: 3 }] },
    { attributes: [{ key: "k", value: { intValue: "1.5" } }] },
    { attributes: [{ key: "k", value: { arrayValue: { values: 3 } } }] },
    { attributes: [{ key: "k", value: deep }] },
    { attributes: [{ key: "fulgurite.prompt.tokens", value: { bytesValue: "AAA=" } }] },
    { attributes: [{ key: "fulgurite.prompt.tokens", value: { bytesValue: "%" } }] },
    { attributes: [{ key: "fulgurite.prompt.tokens", value: { arrayValue: { values: [{ doubleValue: 0.5 }] } } }] },
    { events: 3 },
  ];
  for (const more of wrong) {
    const body = foreign(more) as { resourceSpans: { scopeSpans: { spans: object[] }[] }[] };
    const good = (foreign({}) as typeof body).resourceSpans[0]!.scopeSpans[0]!.spans[0]!;
    body.resourceSpans[0]!.scopeSpans[0]!.spans.push(good, null as never);
    const { spans, rejectedSpans, errorMessage } = fromOtlp(body, { attemptOf: () => attempt });
    expect([spans.length, rejectedSpans], JSON.stringify(more).slice(0, 100)).toEqual([1, 2]);
    expect(errorMessage).toContain("got");
  }
  for (const body of [null, 3, "x", [], {}, { resourceSpans: {} }, { resourceSpans: [{ scopeSpans: 3 }] }])
    expect(() => fromOtlp(body)).toThrow(TraceError);
  expect(fromOtlp({ resourceSpans: [] })).toEqual({ spans: [], rejectedSpans: 0, errorMessage: "" });
  expect(fromOtlp({ resourceSpans: [null, { scopeSpans: [null] }] }).rejectedSpans).toBe(0);
});

test("headers that let somebody in come by OTLP as OpenTelemetry records them, and are not stored", async () => {
  const secret = "s3cr3t0123456789";
  const text = (key: string, stringValue: string) => ({ key, value: { stringValue } });
  const list = (key: string, ...values: string[]) => ({
    key,
    value: { arrayValue: { values: values.map((stringValue) => ({ stringValue })) } },
  });
  const store = createMemoryStore();
  await store.enqueue([{ id: "r", input: 0 }]);
  const [claim] = await store.claim("w");
  const { spans, rejectedSpans } = fromOtlp(
    {
      resourceSpans: [
        {
          resource: { attributes: [text("service.name", "svc"), text("http.request.header.authorization", `Bearer ${secret}`)] },
          scopeSpans: [
            {
              spans: [
                {
                  traceId: "1".repeat(32),
                  spanId: "2".repeat(16),
                  name: "POST",
                  startTimeUnixNano: "1",
                  endTimeUnixNano: "2",
                  status: { code: 2, message: `401: Authorization: Bearer ${secret}` },
                  attributes: [
                    list("http.request.header.authorization", `Bearer ${secret}`),
                    list("http.request.header.x-api-key", secret),
                    list("http.response.header.set-cookie", secret),
                    list("http.request.header.accept", "*/*"),
                    { key: "headers", value: { kvlistValue: { values: [text("Cookie", secret), text("Authorization", secret)] } } },
                    text("error.type", `Basic ${secret}`),
                  ],
                  events: [
                    { timeUnixNano: "1", name: "exception", attributes: [text("exception.message", `authorization=Bearer ${secret}`)] },
                  ],
                },
              ],
            },
          ],
        },
      ],
    },
    { attemptOf: () => ({ rolloutId: "r", id: claim!.attempt.id }) },
  );
  expect([spans.length, rejectedSpans]).toEqual([1, 0]);
  await store.append(spans);
  const kept = await new Response(exportStore(store)).text();
  expect(kept).not.toContain(secret);
  expect(kept).toContain("http.request.header.accept");
  expect(kept.match(/\[removed\]/g)!.length).toBe(8);
});

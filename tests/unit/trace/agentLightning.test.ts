// Ours out and in again, theirs in and out again: nothing may be lost either way.
import {
  ATTRIBUTES,
  createMemoryStore,
  exportStore,
  importStore,
  type Json,
  modelCallSpan,
  type Rollout,
  rewardSpan,
  type StoredSpan,
  toTransitions,
} from "@fulgurite/trace";
import { type AgentLightningTrace, fromAgentLightning, toAgentLightning, toStoreItems } from "@fulgurite/trace/agentLightning";
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { collect } from "../../outcomes.ts";

const attempt = { rolloutId: "r", id: "0" };

const ours = async (): Promise<{ rollout: Rollout; spans: StoredSpan[] }> => {
  let ids = 0;
  const store = createMemoryStore({ clock: () => 1_700_000_000_123.25, newId: () => `${ids++}` });
  await store.enqueue([
    { id: "r", input: { q: "1+1" }, mode: "val", metadata: { set: "x" }, config: { timeoutMs: 1_500, maxAttempts: 2 } },
  ]);
  const [claim] = await store.claim("w");
  const call = {
    attempt: claim!.attempt,
    startMs: 1.1,
    endMs: 1_234.567,
    model: "M",
    mode: "val",
    policyVersion: 3,
    fidelity: "repaired",
    temperature: 0.7,
    finishReason: "stop",
  } as const;
  await store.append([
    modelCallSpan({
      ...call,
      id: "00000000000000aa",
      responseId: "c1",
      keys: ["c1", "call_1"],
      turn: 0,
      promptTokens: Int32Array.of(1, 2),
      responseTokens: Int32Array.of(3, 4),
      samplerLogprobs: Float32Array.of(-0.1, -2.5),
      request: { model: "M", messages: [{ role: "user", content: "1+1" }], temperature: 0.7 },
      response: { id: "c1", choices: [{ finish_reason: "stop", message: { content: "2" } }], usage: null },
    }),
    modelCallSpan({ ...call, id: "00000000000000ab", parentId: "00000000000000aa", responseId: "c2", turn: 1, errorType: "timeout" }),
    rewardSpan({ attempt: claim!.attempt, id: "00000000000000ac", atMs: 2_000.1, value: 0.5, reason: "near", responseId: "call_1" }),
    {
      rolloutId: "r",
      attemptId: claim!.attempt.id,
      id: "00000000000000ad",
      name: "tool",
      startMs: 1,
      endMs: 2,
      status: "error",
      attributes: { tokens: Int32Array.of(7), look: { $i32: "AAAA" }, fulgurite: { set: 1 }, text: "é" },
    },
  ]);
  await store.finish(claim!.attempt, { status: "failed" });
  const [rollout] = await collect(store.rollouts());
  return { rollout: rollout!, spans: await collect(store.spans({ rolloutId: "r" })) };
};

const overTheWire = <T>(value: T): T => JSON.parse(JSON.stringify(value)) as T;

test("what is ours comes back equal, typed arrays and times included", async () => {
  const { rollout, spans } = await ours();
  const told = overTheWire(toAgentLightning(rollout, spans));
  expect(fromAgentLightning(told)).toEqual({ rollout, spans });
});

test("their readers find ids, log-probs, rewards and states where v1.0 has them", async () => {
  const { rollout, spans } = await ours();
  const told = toAgentLightning(rollout, spans);
  expect(told.rollout).toMatchObject({ rollout_id: "r", is_train: false, config: { timeout_seconds: 2 }, metadata: { set: "x" } });
  expect(told.events.map(({ event_type, attempt_id }) => [event_type, attempt_id])).toEqual(
    ["model_request", "model_request", "reward", "tool"].map((type) => [type, spans[0]!.attemptId]),
  );
  expect(told.events[0]).toMatchObject({
    timestamp: 1.234567,
    data: {
      model: "M",
      status: "ok",
      http_status: 200,
      server: { model: "M", version: 3 },
      response: { prompt_token_ids: [1, 2], choices: [{ token_ids: [3, 4], message: { content: "2" } }] },
    },
  });
  const choice = (told.events[0]!.data.response as { choices: { logprobs: { content: { logprob: number }[] } }[] }).choices[0]!;
  expect(choice.logprobs.content.map(({ logprob }) => Math.fround(logprob))).toEqual([Math.fround(-0.1), -2.5]);
  expect(told.events[1]).toMatchObject({ data: { status: "error", error: { message: "timeout" } } });
  expect(told.events[2]).toMatchObject({ data: { value: 0.5, source: "agent", reason: "near" } });
});

test("a field that somebody edited on the way counts", async () => {
  const { rollout, spans } = await ours();
  const told = overTheWire(toAgentLightning(rollout, spans));
  (told.events[2]!.data as { value: number }).value = 1;
  expect(fromAgentLightning(told).spans[2]!.attributes["gen_ai.evaluation.score.value"]).toBe(1);
});

const theirs: AgentLightningTrace = {
  rollout: {
    rollout_id: "r",
    input: null,
    is_train: true,
    config: { timeout_seconds: 3600, local: { agent_class: "A", env_map: {} }, k8s: null },
    metadata: { batch_idx: 4, sample_idx_in_batch: null, extra: [1] },
    status: {
      state: "succeeded",
      k8s_job_name: "job",
      last_attempt_id: "0",
      error_message: null,
      version: 3,
      created_at: 1_700_000_000.123456,
      updated_at: 1_700_000_001.7,
    },
  },
  events: [
    {
      event_type: "model_request",
      rollout_id: "r",
      attempt_id: "0",
      timestamp: 1_700_000_000.654321,
      data: {
        model: "M",
        model_version: 0,
        request: { model: "M", temperature: 1, logprobs: true, messages: [] },
        response: {
          id: "x",
          prompt_token_ids: [1, 2],
          choices: [
            {
              finish_reason: "stop",
              token_ids: [3, 4],
              logprobs: {
                content: [
                  { token: "a", logprob: -0.1 },
                  { token: "b", logprob: -0.2 },
                ],
              },
            },
          ],
        },
        server: { model: "M", endpoint: "http://u/v1/", version: 2 },
        latency_ms: 12.3,
        http_status: 200,
        status: "ok",
        retry_count: 1,
        usage: null,
        finish_reason: "stop",
      },
    },
    {
      event_type: "reward",
      rollout_id: "r",
      attempt_id: "0",
      timestamp: 1_700_000_001.5,
      data: { value: 1, source: "fallback", unknown: { a: 1 } },
    },
    { event_type: "note", rollout_id: "r", attempt_id: "unknown", timestamp: 0.1, data: { $i32: "AAAA", status: "error", request: 1 } },
  ],
};

test("what is theirs goes back equal to the last digit", () => {
  const { rollout, spans } = fromAgentLightning(overTheWire(theirs));
  expect(overTheWire(toAgentLightning(rollout, spans))).toEqual(theirs);
});

test("what is theirs can be trained on", () => {
  const { spans } = fromAgentLightning(theirs);
  expect(toTransitions(spans.filter(({ attemptId }) => attemptId === attempt.id))).toMatchObject([
    {
      turn: 0,
      promptTokens: Int32Array.of(1, 2),
      responseTokens: Int32Array.of(3, 4),
      samplerLogprobs: Float32Array.of(-0.1, -0.2),
      reward: 1,
      policyVersion: 2,
      temperature: 1,
    },
  ]);
});

test("a rollout that moved on since tells its new state with the next version", () => {
  const { rollout, spans } = fromAgentLightning({
    ...theirs,
    rollout: { ...theirs.rollout, status: { ...theirs.rollout.status, state: "running" } },
  });
  const told = toAgentLightning({ ...rollout, status: "cancelled", endedAtMs: 5_000 }, spans);
  expect(told.rollout.status).toMatchObject({ state: "failed", error_message: "cancelled", version: 4, updated_at: 5 });
});

const names = fc.constantFrom(...Object.values(ATTRIBUTES), "fulgurite", "agentlightning", "status", "request", "value", "$i32", "data");
const json = fc.jsonValue({ maxDepth: 2 }).map((value) => JSON.parse(JSON.stringify(value)) as Json); // -0 is not JSON's
const typed = fc.oneof(
  fc.array(fc.integer({ min: -5, max: 99 }), { maxLength: 3 }).map((ids) => Int32Array.from(ids)),
  fc.array(fc.float(), { maxLength: 3 }).map((values) => Float32Array.from(values)),
);

test("whatever a span of ours holds, it comes back", () => {
  const span = fc.record({
    id: fc.stringMatching(/^[0-9a-f]{16}$/),
    name: fc.constantFrom("reward", "model_request", "chat M", "tool"),
    attemptId: fc.constantFrom("0", "1"),
    startMs: fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0),
    endMs: fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0),
    status: fc.constantFrom("ok" as const, "error" as const),
    attributes: fc.dictionary(names, fc.oneof(json, typed)),
  });
  fc.assert(
    fc.property(fc.array(span, { maxLength: 4 }), (spans) => {
      const stored = spans.map((one, index) => ({ ...one, rolloutId: "r", seq: index * 3 + 1 }));
      const { rollout } = fromAgentLightning(theirs);
      expect(fromAgentLightning(overTheWire(toAgentLightning(rollout, stored))).spans).toEqual(stored);
    }),
    { seed: 1, numRuns: 400 },
  );
});

test("typed arrays where nobody expects them come back too", () => {
  const { rollout } = fromAgentLightning(theirs);
  const base = { rolloutId: "r", attemptId: "0", name: "n", startMs: 0, endMs: 1, status: "ok" } as const;
  const call = { [ATTRIBUTES.operation]: "chat", [ATTRIBUTES.requestModel]: "m" };
  const spans = [
    { ...base, id: "a", seq: 1, attributes: { ...call, [ATTRIBUTES.request]: new Int32Array(0) } },
    { ...base, id: "b", seq: 2, attributes: { ...call, [ATTRIBUTES.response]: Float32Array.of(Number.NaN) } },
    {
      ...base,
      id: "c",
      seq: 3,
      attributes: { [ATTRIBUTES.rewardValue]: Int32Array.of(1), [ATTRIBUTES.rewardReason]: Float32Array.of(0.5) },
    },
  ];
  expect(fromAgentLightning(overTheWire(toAgentLightning(rollout, spans))).spans).toEqual(spans);
});

test("whatever an event of theirs holds, it goes back", () => {
  const event = fc.record({
    event_type: fc.constantFrom("model_request", "reward", "note"),
    rollout_id: fc.constant("r"),
    attempt_id: fc.constantFrom("0", "unknown"),
    timestamp: fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0),
    data: fc.dictionary(
      fc.constantFrom(
        ...["model", "request", "response", "status", "latency_ms", "value", "error", "server", "x", "agentlightning.event", "__proto__"],
      ),
      fc.oneof(
        json,
        fc.record({ choices: fc.array(fc.record({ token_ids: json, logprobs: json })) }).map((value) => value as Json),
      ),
    ),
  });
  fc.assert(
    fc.property(fc.array(event, { maxLength: 4 }), (events) => {
      const { rollout, spans } = fromAgentLightning(overTheWire({ ...theirs, events }));
      expect(overTheWire(toAgentLightning(rollout, spans))).toEqual(overTheWire({ ...theirs, events }));
    }),
    { seed: 1, numRuns: 400 },
  );
});

test("names of ours in what is theirs go back too", () => {
  const event = (data: Record<string, Json>) => ({ event_type: "note", rollout_id: "r", attempt_id: "0", timestamp: 1, data });
  const events = [
    event({ fulgurite: "a stone" }),
    event({ fulgurite: [1], x: 2 }),
    event({ fulgurite: { set: 1 } }),
    event({ "agentlightning.event": { type: "reward" } }),
  ];
  const metadata = { ...theirs.rollout.metadata, agentlightning: { status: "mine" } };
  const given = { rollout: { ...theirs.rollout, metadata }, events };
  const { rollout, spans } = fromAgentLightning(overTheWire(given));
  expect(overTheWire(toAgentLightning(rollout, spans))).toEqual(overTheWire(given));
});

test("what is no trace is refused by the name of its field", () => {
  const bad: [unknown, string][] = [
    [null, "agent lightning"],
    [{ rollout: null, events: [] }, "rollout:"],
    [{ ...theirs, rollout: { ...theirs.rollout, config: {} } }, "rollout.config.timeout_seconds"],
    [{ ...theirs, rollout: { ...theirs.rollout, metadata: [] } }, "rollout.metadata"],
    [{ ...theirs, rollout: { ...theirs.rollout, status: { ...theirs.rollout.status, state: "constructor" } } }, "rollout.status.state"],
    [{ ...theirs, events: {} }, "events: a list"],
    [{ ...theirs, events: [null] }, "events[0]"],
    [{ ...theirs, events: [{ ...theirs.events[0], data: null }] }, "events[0].data"],
    [{ ...theirs, events: [{ ...theirs.events[0], timestamp: "now" }] }, "events[0].timestamp"],
  ];
  for (const [trace, field] of bad) {
    const act = () => fromAgentLightning(trace as AgentLightningTrace);
    expect(act).toThrow(field);
    expect(act).toThrow(expect.objectContaining({ code: "bad-input" }));
  }
});

test("a store takes what is theirs, in every state, and tells it again as it was", async () => {
  for (const state of ["queuing", "running", "succeeded", "failed"] as const)
    for (const events of [theirs.events, []]) {
      const given = { rollout: { ...theirs.rollout, status: { ...theirs.rollout.status, state } }, events };
      const store = createMemoryStore();
      expect(new Set(await store.adopt(toStoreItems(overTheWire(given))))).toEqual(new Set(["added"]));
      const id = given.rollout.rollout_id;
      const rollouts: Rollout[] = [];
      for await (const rollout of store.rollouts()) rollouts.push(rollout);
      const spans: StoredSpan[] = [];
      for await (const span of store.spans({ rolloutId: id })) spans.push(span);
      expect(overTheWire(toAgentLightning(rollouts[0]!, spans))).toEqual(overTheWire(given));
      const taken = createMemoryStore();
      await importStore(taken, exportStore(store));
      expect((await taken.attempts(id)).map(({ status }) => status)).toEqual((await store.attempts(id)).map(({ status }) => status));
    }
});

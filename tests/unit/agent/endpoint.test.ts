import { createEndpoint, type EndpointOptions, type Sampling, seedOfTurn } from "@fulgurite/agent";
import { ATTRIBUTES, createMemoryStore, type Store, type StoredSpan, toTransitions } from "@fulgurite/trace";
import { expect, test, vi } from "vitest";
import { callText, counting, type Line, logprobAt, ScriptedSampler, TRAIN, tinyFormat, WEATHER } from "./scripted.ts";

type Fields = Record<string, unknown>;
const messages = [{ role: "user", content: "hi" }];

const setUp = async (
  script: ConstructorParameters<typeof ScriptedSampler>[1],
  { sampling = TRAIN, maxContext = 4096, ...options }: Partial<EndpointOptions> & { sampling?: Sampling; maxContext?: number } = {},
) => {
  const format = tinyFormat();
  const sampler = new ScriptedSampler(format, script, maxContext);
  const store = options.store ?? createMemoryStore();
  await store.enqueue([{ id: "r", input: null }]);
  const id = (await store.claim("w"))[0]?.attempt.id ?? "";
  const controller = new AbortController();
  const endpoint = createEndpoint({ sampler, format, store, ...counting(), ...options });
  const attempt = endpoint.open({ rolloutId: "r", id }, sampling, controller.signal);
  const post = (body: Fields, init: RequestInit = {}): Promise<Response> =>
    attempt.openai.fetch(`${attempt.openai.baseURL}/chat/completions`, {
      method: "POST",
      body: JSON.stringify({ messages, ...body }),
      ...init,
    });
  const spans = async (): Promise<StoredSpan[]> => {
    const all: StoredSpan[] = [];
    for await (const span of store.spans({ rolloutId: "r" })) all.push(span);
    return all;
  };
  return { format, sampler, store, endpoint, attempt, post, spans, controller, id };
};

const eventsOf = (text: string): Fields[] =>
  text
    .split("\n\n")
    .filter((line) => line !== "" && line !== "data: [DONE]")
    .map((line) => JSON.parse(line.slice("data: ".length)) as Fields);
// biome-ignore lint/suspicious/noExplicitAny: answers are walked like a client walks them
const loose = (value: unknown): any => value;

test("a JSON answer has every key, token ids and log-probs in train", async () => {
  const { post, sampler, spans, attempt } = await setUp(["ok"]);
  const response = await post({});
  expect(response.status).toBe(200);
  expect(response.headers.get("x-request-id")).toMatch(/^req_[0-9a-z]{26}$/);
  const body = loose(await response.json());
  expect(body).toEqual({
    id: expect.stringMatching(/^chatcmpl-[0-9a-hjkmnp-tv-z]{26}$/),
    object: "chat.completion",
    created: 1_790_000_000,
    model: "policy",
    prompt_token_ids: [...(sampler.requests[0]?.prompt ?? [])],
    choices: [
      {
        index: 0,
        finish_reason: "stop",
        token_ids: [111, 107, 257],
        logprobs: {
          content: [
            { token: "o", logprob: -0.125, bytes: [111], top_logprobs: [] },
            { token: "k", logprob: -0.25, bytes: [107], top_logprobs: [] },
            { token: "<|im_end|>", logprob: -0.375, bytes: [..."<|im_end|>"].map((c) => c.charCodeAt(0)), top_logprobs: [] },
          ],
          refusal: null,
        },
        message: { role: "assistant", content: "ok", refusal: null },
      },
    ],
    usage: { prompt_tokens: 21, completion_tokens: 3, total_tokens: 24 },
  });
  expect(await attempt.close()).toMatchObject({ calls: 1, exact: 1, captureFailures: 0 });
  const recorded = await spans();
  expect(toTransitions(recorded)).toEqual([
    {
      rolloutId: "r",
      attemptId: recorded[0]?.attemptId,
      spanId: recorded[0]?.id,
      turn: 0,
      promptTokens: sampler.requests[0]?.prompt,
      responseTokens: Int32Array.of(111, 107, 257),
      samplerLogprobs: Float32Array.of(-0.125, -0.25, -0.375),
      policyVersion: 1,
      temperature: 1,
      finishReason: "stop",
    },
  ]);
  expect(recorded[0]?.attributes[ATTRIBUTES.keys]).toEqual([body.id]);
});

test("in val ids and log-probs are sent to who asks, and recorded always", async () => {
  const { post, spans, attempt } = await setUp(["ok", "ok"], { sampling: { ...TRAIN, mode: "val", temperature: 0 } });
  const plain = loose(await (await post({})).json());
  expect(plain.prompt_token_ids).toBeUndefined();
  expect(plain.choices[0].token_ids).toBeUndefined();
  expect(plain.choices[0].logprobs).toBeNull();
  const asked = loose(await (await post({ return_token_ids: true, logprobs: true })).json());
  expect(asked.choices[0].token_ids).toHaveLength(3);
  expect(asked.choices[0].logprobs.content).toHaveLength(3);
  await attempt.close();
  expect(toTransitions(await spans()).map(({ responseTokens }) => responseTokens.length)).toEqual([3, 3]);
});

test("tool calls get our ids, and the ids are the keys of the span", async () => {
  const { post, spans, attempt } = await setUp([`One.\n${callText("get_weather", '{"city": "Paris"}')}${callText("nope", "{}")}`]);
  const { choices, id } = loose(await (await post({ tools: [WEATHER] })).json());
  expect(choices[0].finish_reason).toBe("tool_calls");
  expect(choices[0].message.content).toBe("One.");
  const calls = choices[0].message.tool_calls;
  expect(calls.map((call: Fields) => call.function)).toEqual([
    { name: "get_weather", arguments: '{"city": "Paris"}' },
    { name: "nope", arguments: "{}" },
  ]);
  for (const call of calls) expect(call.id).toMatch(/^call_[0-9a-z]{26}$/);
  expect(calls[0].id).not.toBe(calls[1].id);
  await attempt.close();
  expect((await spans())[0]?.attributes[ATTRIBUTES.keys]).toEqual([id, calls[0].id, calls[1].id]);
});

test("a call alone has null content; without tools it is text", async () => {
  const line = callText("get_weather", "{}");
  const { post, attempt } = await setUp([line, line, "<tool_call>{bad}</tool_call>"]);
  expect(loose(await (await post({ tools: [WEATHER] })).json()).choices[0].message.content).toBeNull();
  expect(loose(await (await post({})).json()).choices[0]).toMatchObject({ finish_reason: "stop", message: { content: line } });
  expect(loose(await (await post({ tools: [WEATHER] })).json()).choices[0]).toMatchObject({ finish_reason: "stop" });
  expect(await attempt.close()).toMatchObject({ malformedCalls: 1 });
});

test("the run decides temperature, cap and seed; the client lowers the cap", async () => {
  const { post, sampler } = await setUp(["abcdef", "abcdef", "abcdef"], { sampling: { ...TRAIN, temperature: 0.7, maxTokens: 4 } });
  const body = loose(await (await post({ temperature: 0, seed: 5, max_tokens: 2 })).json());
  expect(body.choices[0]).toMatchObject({ finish_reason: "length", message: { content: "ab" } });
  await post({ max_completion_tokens: 100 });
  expect(sampler.requests.map(({ temperature, maxTokens, seed }) => ({ temperature, maxTokens, seed }))).toEqual([
    { temperature: 0.7, maxTokens: 2, seed: seedOfTurn(7, 0) },
    { temperature: 0.7, maxTokens: 4, seed: seedOfTurn(7, 1) },
  ]);
  expect(seedOfTurn(7, 0)).not.toBe(seedOfTurn(7, 1));
  const val = await setUp(["a"], { sampling: { ...TRAIN, mode: "val", temperature: 0 } });
  await val.post({ seed: 5, temperature: 1 });
  expect(val.sampler.requests[0]).toMatchObject({ seed: 5, temperature: 0 });
});

test("the cap shrinks to what the context still holds, and a prompt without room is refused with both numbers", async () => {
  const { post, sampler } = await setUp(["abcdef"], { maxContext: 24 });
  await post({});
  expect(sampler.requests[0]?.maxTokens).toBe(3);
  const refused = await post({ messages: [{ role: "user", content: "hello!" }] });
  expect(refused.status).toBe(400);
  const { error } = loose(await refused.json());
  expect(error).toMatchObject({ code: "context_length_exceeded", type: "invalid_request_error", param: "messages" });
  expect(error.message).toContain("24");
  expect(error.message).toContain("25");
  expect(sampler.requests).toHaveLength(1);
});

test("a stop string ends the answer before it and keeps the tokens that were sampled", async () => {
  for (const stream of [false, true]) {
    const { post, spans, attempt, format } = await setUp(["one\nObservation: two"]);
    const response = await post({ stop: ["\nObs", "zzz"], stream });
    if (stream) {
      const text = eventsOf(await response.text()).map((event) => loose(event).choices[0].delta.content ?? "");
      expect(text.join("")).toBe("one");
    } else expect(loose(await response.json()).choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "one" } });
    await attempt.close();
    const [transition] = toTransitions(await spans());
    expect(transition?.finishReason).toBe("stop");
    expect(format.decode(transition?.responseTokens ?? [])).toBe("one\nObs");
  }
});

test("a stream begins with the role, carries every id once and ends with [DONE]", async () => {
  const { post, sampler } = await setUp(["Hi é!"]);
  const response = await post({ stream: true, stream_options: { include_usage: true } });
  expect(response.headers.get("content-type")).toContain("text/event-stream");
  const text = await response.text();
  expect(text.endsWith("data: [DONE]\n\n")).toBe(true);
  const events = eventsOf(text).map(loose);
  expect(events[0]).toMatchObject({ object: "chat.completion.chunk", prompt_token_ids: [...(sampler.requests[0]?.prompt ?? [])] });
  expect(events[0].choices[0]).toMatchObject({ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null, logprobs: null });
  expect(events.slice(1, -2).map((event) => event.choices[0].delta.content)).toEqual(["H", "i", " ", "é", "!"]);
  expect(events.at(-2).choices[0]).toMatchObject({ delta: {}, finish_reason: "stop" });
  expect(events.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 21, completion_tokens: 7, total_tokens: 28 } });
  const choices = events.slice(0, -1).map((event) => event.choices[0]);
  expect(choices.flatMap((choice) => choice.token_ids)).toEqual([72, 105, 32, 195, 169, 33, 257]);
  expect(choices.flatMap((choice) => choice.logprobs?.content.map((entry: Fields) => entry.logprob) ?? [])).toEqual(
    [0, 1, 2, 3, 4, 5, 6].map(logprobAt),
  );
  expect(new Set(events.map((event) => event.id)).size).toBe(1);
});

test("streamed and whole answers say the same", async () => {
  const line = ` A <b> \n${callText("get_weather", '{"city":  "Pa"}')}\n${callText("x", "{}")} end <tool_call>{`;
  const { post } = await setUp([line, line]);
  const whole = loose(await (await post({ tools: [WEATHER] })).json()).choices[0];
  const events = eventsOf(await (await post({ tools: [WEATHER], stream: true })).text()).map((event) => loose(event).choices[0]);
  expect(events.map(({ delta }) => delta.content ?? "").join("")).toBe(whole.message.content);
  const calls: { id: string; type: string; function: { name: string; arguments: string } }[] = [];
  for (const { delta } of events) {
    for (const { index, ...piece } of delta.tool_calls ?? []) {
      const known = calls[index];
      if (known) known.function.arguments += piece.function.arguments;
      else calls[index] = piece;
    }
  }
  expect(calls.map(({ function: called, type }) => ({ ...called, type }))).toEqual(
    whole.message.tool_calls.map((call: Fields) => ({ ...loose(call).function, type: "function" })),
  );
  expect(events.at(-1)).toMatchObject({ finish_reason: whole.finish_reason });
});

test("a first chunk that is a call has role and call at once", async () => {
  const { post } = await setUp([callText("get_weather", "{}")]);
  const [first, second] = eventsOf(await (await post({ tools: [WEATHER], stream: true })).text()).map(
    (event) => loose(event).choices[0].delta,
  );
  expect(first).toEqual({
    role: "assistant",
    content: null,
    tool_calls: [{ index: 0, id: expect.stringMatching(/^call_/), type: "function", function: { name: "get_weather", arguments: "" } }],
  });
  expect(second).toEqual({ tool_calls: [{ index: 0, function: { arguments: "{}" } }] });
});

test("text arrives while it is sampled", async () => {
  let release = (): void => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const { post, sampler } = await setUp(["ab"]);
  sampler.beforeToken = (index) => (index === 1 ? gate : undefined);
  const reader = loose((await post({ stream: true })).body).getReader();
  const first = new TextDecoder().decode((await reader.read()).value) + new TextDecoder().decode((await reader.read()).value);
  expect(first).toContain('"content":"a"');
  release();
  let rest = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) rest += new TextDecoder().decode(read.value);
  expect(rest).toContain("[DONE]");
});

test("a character is sent whole, wherever its bytes are split over tokens", async () => {
  const characters = ["é", "日", "🦊", "👩‍👩‍👧"];
  for (const character of characters) {
    const bytes = [...new TextEncoder().encode(`a${character}b`)];
    // cut after n bytes: what was sampled so far may never be half a character
    for (let cut = 1; cut <= bytes.length; cut++) {
      const { post } = await setUp([bytes.slice(0, cut)]);
      const response = await post({ stream: true });
      const pieces = eventsOf(await response.text()).map((event) => loose(event).choices[0]?.delta.content ?? "");
      expect(pieces.join("")).toBe(new TextDecoder().decode(Uint8Array.from(bytes.slice(0, cut))));
      const whole = pieces.filter((piece: string) => !piece.includes("\ufffd")).join("");
      expect(`a${character}b`.startsWith(whole)).toBe(true);
      for (const piece of pieces.slice(0, -2)) expect(piece).not.toContain("\ufffd");
    }
  }
});

const wrong: [string, Line[], Fields, number, string, string | null][] = [
  ["an image", [], { messages: [{ role: "user", content: [{ type: "image_url" }] }] }, 400, "invalid_value", "messages[0].content[0].type"],
  ["several choices", [], { n: 3 }, 400, "invalid_value", "n"],
  ["a failing sampler", [new Error("device lost")], {}, 500, "sampler_failed", null],
];
test.each(wrong)("%s is an OpenAI error object", async (_, script, body, status, code, param) => {
  const { post, attempt, spans } = await setUp(script);
  const response = await post(body);
  expect(response.status).toBe(status);
  expect(response.headers.get("x-request-id")).toMatch(/^req_/);
  expect(loose(await response.json()).error).toEqual({ message: expect.any(String), type: expect.any(String), code, param });
  await attempt.close();
  expect(toTransitions(await spans())).toEqual([]);
});

test("a body that is no JSON is refused", async () => {
  const { attempt } = await setUp([]);
  const response = await attempt.openai.fetch(`${attempt.openai.baseURL}/chat/completions`, { method: "POST", body: "{" });
  expect(response.status).toBe(400);
});

test("an error after the first byte is an error event without [DONE], and a span that is not trained on", async () => {
  const { post, sampler, attempt, spans } = await setUp(["abc"]);
  sampler.beforeToken = (index) => {
    if (index === 2) throw new Error("device lost");
  };
  const text = await (await post({ stream: true })).text();
  expect(text).not.toContain("[DONE]");
  expect(loose(eventsOf(text).at(-1)).error.message).toContain("device lost");
  await attempt.close();
  const recorded = await spans();
  expect(recorded.map(({ status }) => status)).toEqual(["error"]);
  expect(toTransitions(recorded)).toEqual([]);
});

test("other paths say what exists", async () => {
  const { attempt, endpoint } = await setUp([]);
  for (const path of ["responses", "completions", "embeddings"]) {
    const response = await attempt.openai.fetch(`${attempt.openai.baseURL}/${path}`, { method: "POST", body: "{}" });
    expect(response.status).toBe(404);
    expect(loose(await response.json()).error.message).toContain("POST …/chat/completions");
  }
  const models = loose(await (await endpoint.handle(new Request("http://any.host/v1/models"))).json());
  expect(models.data[0]).toMatchObject({ id: "policy", object: "model", policy_version: 1 });
  expect((await endpoint.handle(new Request("http://any.host/v1/models/policy"))).status).toBe(200);
  expect((await endpoint.handle(new Request("http://any.host/v1/models/gpt-5"))).status).toBe(404);
});

test("who asks for completions or responses is told how to ask for chat", async () => {
  const { attempt, endpoint, sampler } = await setUp(["a"]);
  const post = { method: "POST", body: JSON.stringify({ model: "policy", prompt: "hi", input: "hi" }) };
  for (const [path, told] of [
    ["completions", /POST …\/chat\/completions.*got POST .*\/v1\/completions; send the prompt as messages/],
    ["responses", /POST …\/chat\/completions.*got POST .*\/v1\/responses; .*client\.chat\.completions.*setOpenAIAPI\("chat_completions"\)/],
  ] as const) {
    const url = `${attempt.openai.baseURL}/${path}`;
    for (const response of [await attempt.openai.fetch(url, post), await endpoint.handle(new Request(url, post))]) {
      expect(response.status).toBe(404);
      expect(response.headers.get("content-type")).toBe("application/json");
      expect(response.headers.get("x-request-id")).toMatch(/^req_/);
      const { error } = loose(await response.json());
      expect(error).toEqual({ message: expect.stringMatching(told), type: "invalid_request_error", code: "not_found", param: null });
    }
  }
  expect(sampler.requests).toEqual([]);
});

test("a model that names a loaded adapter is that adapter; every other name is the policy that is trained", async () => {
  const lines = ["a", "b", "c", "d", "e"];
  const { post, sampler, endpoint, attempt, spans } = await setUp(lines);
  const asked = async (model?: string): Promise<string> => loose(await (await post({ ...(model && { model }) })).json()).model;
  expect(await asked("support")).toBe("policy"); // not loaded yet: an agent may call its model what it likes
  sampler.adapters.push("support", "policy");
  expect(await asked("support")).toBe("support");
  expect(await asked("policy:support")).toBe("support");
  expect(await asked("gpt-4o")).toBe("policy");
  expect(await asked("policy")).toBe("policy");
  expect(sampler.requests.map(({ adapter }) => adapter)).toEqual([undefined, "support", "support", undefined, undefined]);
  const refused = await post({ model: "policy:sales" });
  expect(refused.status).toBe(404);
  expect(loose(await refused.json()).error).toMatchObject({ code: "not_found", param: "model" });

  const get = async (path: string) => loose(await (await endpoint.handle(new Request(`http://any.host/v1/${path}`))).json());
  expect((await get("models")).data).toEqual([
    { id: "policy", object: "model", created: 0, owned_by: "fulgurite", policy_version: 1 },
    { id: "support", object: "model", created: 0, owned_by: "fulgurite", parent: "policy" },
  ]);
  expect(await get("models/support")).toMatchObject({ id: "support", parent: "policy" });
  expect((await get("models/sales")).error.message).toContain("one of policy, support, got sales");

  // what another adapter said is shown, and trains nobody; a reward goes to the policy's call before it
  expect(await attempt.close()).toMatchObject({ calls: 5, captureFailures: 0 });
  const recorded = await spans();
  expect(
    recorded.map(({ name, attributes }) => [name, ATTRIBUTES.responseTokens in attributes, ATTRIBUTES.promptTokens in attributes]),
  ).toEqual([
    ["chat policy", true, true],
    ["chat support", false, true],
    ["chat support", false, true],
    ["chat policy", true, true],
    ["chat policy", true, true],
  ]);
  expect(loose(recorded[1]?.attributes[ATTRIBUTES.response]).choices[0].message.content).toBe("b");
  expect(toTransitions(recorded).map(({ turn }) => turn)).toEqual([0, 3, 4]);
});

test("a streamed answer of an adapter says whose it is", async () => {
  const { post, sampler } = await setUp(["ab"]);
  sampler.adapters.push("support");
  const events = eventsOf(await (await post({ model: "support", stream: true })).text());
  expect(new Set(events.map(({ model }) => model))).toEqual(new Set(["support"]));
  expect(sampler.requests[0]?.adapter).toBe("support");
});

test("an answer is read once, in whichever way, and only once", async () => {
  const { post } = await setUp(() => "ok");
  const want = loose(JSON.parse(await (await post({})).text()));
  const contentOf = (body: unknown): string => loose(body).choices[0].message.content;
  expect(want.choices[0].message.content).toBe("ok");
  const text = await post({});
  expect(text).toBeInstanceOf(Response);
  expect(text.bodyUsed).toBe(false);
  const twin = text.clone();
  expect(contentOf(await text.json())).toBe("ok");
  expect(text.bodyUsed).toBe(true);
  for (const again of [() => text.text(), () => text.json(), () => text.arrayBuffer(), () => text.blob(), () => text.formData()])
    await expect(again()).rejects.toThrow(TypeError);
  expect(() => text.clone()).toThrow(TypeError);
  expect(contentOf(JSON.parse(await twin.text()))).toBe("ok");
  const bytes = await post({});
  expect(contentOf(JSON.parse(new TextDecoder().decode(await bytes.arrayBuffer())))).toBe("ok");
  await expect(bytes.text()).rejects.toThrow(TypeError);
  const streamed = await post({});
  const reader = loose(streamed.body).getReader();
  await expect(streamed.json()).rejects.toThrow(TypeError);
  const first = (await reader.read()).value;
  expect(contentOf(JSON.parse(new TextDecoder().decode(first)))).toBe("ok");
  const handedOn = new Response((await post({})).body);
  expect(contentOf(await handedOn.json())).toBe("ok");
});

test("the attempt's fetch takes what any fetch takes: an address, a Request, headers in every shape, bytes", async () => {
  const { post, attempt, spans } = await setUp(() => "ok");
  const url = `${attempt.openai.baseURL}/chat/completions`;
  const body = JSON.stringify({ messages });
  const { fetch } = attempt.openai;
  const off = "x-fulgurite-record";
  const answers = [
    await fetch(new URL(url), { method: "POST", body }),
    await fetch(new Request(url, { method: "POST", body })),
    await fetch(url, { method: "post", body: new TextEncoder().encode(body) }),
    await fetch(url, { method: "post", body: `\ufeff${body}` }),
    await fetch(url, { method: "POST", body, headers: [["content-type", "application/json"]] }),
    await fetch(url, { method: "POST", body, headers: new Headers({ [off]: "off" }) }),
    await fetch(url, { method: "POST", body, headers: { "X-Fulgurite-Record": "off" } }),
    await fetch(new Request(url, { method: "POST", body, headers: { [off]: "off" } })),
  ];
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
  await expect(fetch(url, { method: "POST", body, headers: { "bad name": "x" } })).rejects.toThrow(TypeError);
  expect((await fetch(url)).status).toBe(404); // a GET
  await post({});
  await attempt.close();
  expect(await spans()).toHaveLength(6);
});

test("log-probs and characters of every kind survive the way to the client", async () => {
  const { post, sampler } = await setUp(() => new Error("unused"));
  const tokens = Int32Array.of(34, 92, 10, 0, 195, 169, 257);
  const logprobs = Float32Array.of(-0, -1e-7, -123456.7, -0.1, Number.NEGATIVE_INFINITY, -3, -1);
  sampler.generate = async () => ({ tokens, logprobs, finishReason: "stop", policyVersion: 1 });
  const { choices } = loose(await (await post({})).json());
  const entries = choices[0].logprobs.content;
  expect(choices[0].token_ids).toEqual([...tokens]);
  expect(choices[0].message.content).toBe('"\\\n\u0000é');
  expect(entries.map((entry: Fields) => entry.logprob)).toEqual([
    0,
    Math.fround(-1e-7),
    Math.fround(-123456.7),
    Math.fround(-0.1),
    null,
    -3,
    -1,
  ]);
  expect(entries.map((entry: Fields) => entry.token)).toEqual(['"', "\\", "\n", "\u0000", "\ufffd", "\ufffd", "<|im_end|>"]);
  expect(entries.map((entry: Fields) => entry.bytes)).toEqual([[34], [92], [10], [0], null, null, expect.any(Array)]);
});

test("a call is attributed by path or by key, and by nothing else", async () => {
  const { endpoint, attempt, id, spans, store } = await setUp(["a", "b"]);
  await store.enqueue([{ id: "r2", input: null }]);
  const other = endpoint.open({ rolloutId: "r2", id: "a2" }, TRAIN);
  const call = (url: string, key?: string): Promise<Response> =>
    endpoint.handle(
      new Request(url, { method: "POST", body: JSON.stringify({ messages }), headers: key ? { authorization: `Bearer ${key}` } : {} }),
    );
  expect(attempt.openai.baseURL).toBe(`http://fulgurite.local/rollout/r/attempt/${id}/v1`);
  expect((await call(`http://gateway:8080/rollout/r/attempt/${id}/mode/train/v1/chat/completions`, "sk-test")).status).toBe(200);
  expect((await call("http://gateway:8080/v1/chat/completions", attempt.openai.apiKey)).status).toBe(200);
  expect((await call("http://gateway:8080/v1/chat/completions", "fg_guess")).status).toBe(401);
  expect((await call("http://gateway:8080/v1/chat/completions")).status).toBe(401);
  expect((await call("http://gateway:8080/rollout/r/attempt/none/v1/chat/completions")).status).toBe(404);
  expect((await call(`${attempt.openai.baseURL}/chat/completions`, other.openai.apiKey)).status).toBe(401);
  expect((await attempt.close()).calls).toBe(2);
  expect((await call(`${attempt.openai.baseURL}/chat/completions`)).status).toBe(404);
  expect((await call("http://gateway:8080/v1/chat/completions", attempt.openai.apiKey)).status).toBe(401);
  const own = await attempt.openai.fetch(`${attempt.openai.baseURL}/chat/completions`, {
    method: "POST",
    body: JSON.stringify({ messages }),
  });
  expect(own.status).toBe(401);
  expect(loose(await own.json()).error.code).toBe("attempt_closed");
  expect(await spans()).toHaveLength(2);
});

test("the key is stored nowhere, and a call can opt out of being recorded", async () => {
  const { post, attempt, spans } = await setUp(["a", "b"]);
  await post({}, { headers: { authorization: `Bearer ${attempt.openai.apiKey}` } });
  await post({}, { headers: { "x-fulgurite-record": "off" } });
  expect((await attempt.close()).calls).toBe(2);
  const recorded = await spans();
  expect(recorded).toHaveLength(1);
  expect(JSON.stringify(recorded)).not.toContain(attempt.openai.apiKey);
  expect(JSON.stringify(recorded)).not.toContain("authorization");
});

test("spans are in the order of the answers, and a span that the store refuses is counted, not thrown, and costs no other", async () => {
  const inner = createMemoryStore();
  const together: number[] = [];
  let letGo = (): void => {};
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  const store: Store = {
    ...inner,
    append: async (spans) => {
      together.push(spans.length);
      if (spans.some((span) => span.attributes[ATTRIBUTES.turn] === 1)) throw new Error("quota");
      if (together.length === 1) await held;
      return inner.append(spans);
    },
  };
  const { post, attempt, spans } = await setUp(["a", "b", "c"], { store });
  for (let call = 0; call < 3; call++) expect((await post({})).status).toBe(200);
  letGo();
  expect(await attempt.close()).toMatchObject({ calls: 3, captureFailures: 1 });
  expect((await spans()).map((span) => span.attributes[ATTRIBUTES.turn])).toEqual([0, 2]);
  expect(together).toEqual([1, 2, 1, 1]); // what came during the first went together, then one by one
});

test("a body that nobody reads, or that is cancelled at [DONE], is recorded once", async () => {
  const { post, attempt, spans } = await setUp(["abc", "def"]);
  await post({ stream: true }); // never read
  const reader = loose((await post({ stream: true })).body).getReader();
  for (let text = ""; !text.includes("[DONE]"); ) text += new TextDecoder().decode((await reader.read()).value);
  await reader.cancel();
  await attempt.close();
  expect(toTransitions(await spans()).map(({ finishReason }) => finishReason)).toEqual(["stop", "stop"]);
});

test("cancelling the body midway frees the sampler and keeps the partial answer as aborted", async () => {
  const { post, sampler, attempt, spans } = await setUp(["abcdef"]);
  let sampledTwo = (): void => {};
  const two = new Promise<void>((resolve) => {
    sampledTwo = resolve;
  });
  let release = (): void => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  sampler.beforeToken = (index) => {
    if (index !== 2) return;
    sampledTwo();
    return gate;
  };
  const response = await post({ stream: true });
  await two;
  await response.body?.cancel();
  release();
  await vi.waitFor(() => expect(sampler.running).toBe(0));
  await attempt.close();
  const [transition, ...others] = toTransitions(await spans());
  expect(others).toEqual([]);
  expect(transition).toMatchObject({ finishReason: "aborted", responseTokens: Int32Array.of(97, 98) });
  expect(sampler.requests[0]?.signal?.aborted).toBe(true);
});

test("the client's abort rejects its fetch with the client's reason, before the first byte and before the call", async () => {
  const { post, sampler, attempt, spans } = await setUp(["abc", "abc"]);
  const controller = new AbortController();
  sampler.beforeToken = (index) => {
    if (index === 1) controller.abort(new Error("enough"));
  };
  await expect(post({}, { signal: controller.signal })).rejects.toThrow("enough");
  await expect(post({}, { signal: controller.signal })).rejects.toThrow("enough");
  await attempt.close();
  expect(toTransitions(await spans()).map(({ finishReason }) => finishReason)).toEqual(["aborted"]);
  expect(sampler.requests).toHaveLength(1);
});

test("the attempt's abort ends its calls with an answer that no client repeats, and breaks its streams", async () => {
  for (const stream of [false, true]) {
    const { post, sampler, controller, attempt } = await setUp(["abc"]);
    sampler.beforeToken = (index) => {
      if (index === 1) controller.abort(new Error("timeout"));
    };
    const response = await post({ stream });
    if (stream) await expect(response.text()).rejects.toThrow("timeout");
    else expect(response.status).toBe(499);
    await attempt.close();
  }
});

test("close ends what still runs, marks it late and waits for its span", async () => {
  const { post, sampler, attempt, spans } = await setUp(["abc"]);
  let begun = (): void => {};
  const started = new Promise<void>((resolve) => {
    begun = resolve;
  });
  let release = (): void => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  sampler.beforeToken = () => {
    begun();
    return gate;
  };
  const answer = post({});
  await started;
  const closing = attempt.close();
  release();
  await closing;
  expect((await answer).status).toBe(401);
  const recorded = await spans();
  expect(recorded).toHaveLength(1);
  expect(recorded[0]?.attributes[ATTRIBUTES.finishReasons]).toEqual(["aborted"]);
  expect(toTransitions(recorded)).toEqual([]);
});

test("a tokenizer that is larger than the model is refused at once", () => {
  const format = tinyFormat();
  const sampler = new ScriptedSampler(format, []);
  sampler.limits.vocabSize = 100;
  expect(() => createEndpoint({ sampler, format, store: createMemoryStore() })).toThrow(/vocabulary of 100, got 261/);
});

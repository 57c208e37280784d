import { readFile } from "node:fs/promises";
import { createEndpoint, loadChatFormat } from "@fulgurite/agent";
import { createPolicy, type Policy } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import { ATTRIBUTES, createMemoryStore, type StoredSpan, toTransitions } from "@fulgurite/trace";
import { afterAll, beforeAll, expect, test } from "vitest";
import { mergeCalls } from "../../../packages/rl/src/rows.ts";

// The built-in policy was never taught these shapes: whatever holds here, the grammar did.
const folder = new URL("../../../packages/spark/model/", import.meta.url);
const read = (name: string): Promise<Buffer> => readFile(new URL(name, folder));
let policy: Policy;
beforeAll(async () => {
  policy = await createPolicy({
    backend: await createBackend("wasm"),
    model: { config: await read("config.json"), weights: await read("model.safetensors") },
    maxContext: 256,
    slots: 2,
  });
});
afterAll(() => policy.dispose());

// biome-ignore lint/suspicious/noExplicitAny: answers are read by path
type Loose = any;

const ask = async (
  body: Record<string, unknown>,
  { mode = "train" as "train" | "val", temperature = 1 } = {},
): Promise<{ status: number; body: Loose; spans: StoredSpan[] }> => {
  const format = loadChatFormat({
    tokenizer: String(await read("tokenizer.json")),
    tokenizerConfig: String(await read("tokenizer_config.json")),
    chatTemplate: String(await read("chat_template.jinja")),
    config: String(await read("config.json")),
  });
  const store = createMemoryStore();
  await store.enqueue([{ id: "r", input: null }]);
  const [claim] = await store.claim("w");
  const endpoint = createEndpoint({ sampler: policy.sampler, format, store });
  const attempt = endpoint.open({ rolloutId: "r", id: claim!.attempt.id }, { mode, temperature, maxTokens: 60, seed: 3 });
  const response = await attempt.openai.fetch(`${attempt.openai.baseURL}/chat/completions`, {
    method: "POST",
    body: JSON.stringify({ model: "policy", messages: [{ role: "user", content: "Where does Ann live?" }], ...body }),
  });
  const answer = await response.json();
  await attempt.close();
  const spans: StoredSpan[] = [];
  for await (const span of store.spans({ rolloutId: "r" })) spans.push(span);
  return { status: response.status, body: answer, spans };
};

const CITY = {
  type: "object",
  properties: { city: { type: "string", maxLength: 4 }, big: { type: "boolean" }, kind: { enum: ["town", "village"] } },
  required: ["city", "big", "kind"],
  additionalProperties: false,
};

test("an answer is a value of its JSON Schema; what the grammar wrote itself is recorded and not trained", async () => {
  const { body, spans } = await ask({ response_format: { type: "json_schema", json_schema: { name: "city", schema: CITY } } });
  expect(body.choices[0].finish_reason).toBe("stop");
  const value = JSON.parse(body.choices[0].message.content);
  expect(Object.keys(value)).toEqual(["city", "big", "kind"]);
  expect(typeof value.city).toBe("string");
  expect(typeof value.big).toBe("boolean");
  expect(["town", "village"]).toContain(value.kind);

  const [transition] = toTransitions(spans);
  const forced = transition!.forcedTokens!;
  expect(forced.length).toBeGreaterThan(0);
  expect(forced.length).toBeLessThan(transition!.responseTokens.length);
  const drawn = spans[0]!.attributes[ATTRIBUTES.drawnLogprobs] as Float32Array;
  expect(drawn).toHaveLength(transition!.responseTokens.length);
  for (const place of forced) expect(drawn[place]).toBeCloseTo(0, 6);
  const [row] = mergeCalls([transition!], {}).rows;
  expect(Array.from(row!.mask.keys()).filter((place) => row!.mask[place] === 0)).toEqual([...forced]);

  // what is recorded is what the trainer finds for the same tokens
  const tokens = Int32Array.from([...transition!.promptTokens, ...transition!.responseTokens]);
  const { logprobs } = await policy.trainer.forward([{ tokens, targetStart: transition!.promptTokens.length }]);
  for (const [place, logprob] of logprobs[0]!.entries()) expect(logprob).toBeCloseTo(transition!.samplerLogprobs[place]!, 3);
});

test("a regular expression, a choice and any JSON object are kept too", async () => {
  const pattern = "(yes|no), [0-9]{2}%";
  const regex = await ask({ structured_outputs: { regex: pattern } });
  expect(regex.body.choices[0].message.content).toMatch(new RegExp(`^${pattern}$`));
  const choice = await ask({ structured_outputs: { choice: ["red", "green"] } });
  expect(["red", "green"]).toContain(choice.body.choices[0].message.content);
  const object = await ask({ response_format: { type: "json_object" }, max_tokens: 40 });
  expect(object.body.choices[0].message.content.startsWith("{")).toBe(true);
});

test("with tools the answer is a call of one of them or the value asked for", async () => {
  const parameters = { type: "object", properties: { a: { enum: [1, 2] } }, required: ["a"] };
  const tools = [{ type: "function", function: { name: "add", description: "", parameters } }];
  const { body } = await ask({ tools, structured_outputs: { choice: ["no"] } });
  const [answer] = body.choices;
  if (answer.finish_reason === "tool_calls") {
    expect(answer.message.tool_calls[0].function.name).toBe("add");
    expect([1, 2]).toContain(JSON.parse(answer.message.tool_calls[0].function.arguments).a);
  } else expect(answer.message.content).toBe("no");
});

test("what cannot be kept is refused by its field before anything is sampled", async () => {
  const cases: readonly [Record<string, unknown>, string][] = [
    [{ response_format: { type: "json_schema", json_schema: { schema: { type: "integer", minimum: 1 } } } }, "json_schema.schema.minimum"],
    [{ response_format: { type: "json_schema" } }, "response_format.json_schema.schema: must be a JSON Schema"],
    [{ response_format: { type: "xml" } }, "response_format.type: must be text, json_object or json_schema"],
    [{ structured_outputs: { regex: "(" } }, "structured_outputs.regex: must be a regular expression"],
    [{ structured_outputs: { json: "{" } }, "structured_outputs.json"],
    [{ logit_bias: { x: 1 } }, "logit_bias"],
    [{ top_p: 2 }, "top_p"],
  ];
  for (const [body, message] of cases) {
    const { status, body: answer, spans } = await ask(body);
    expect(status, message).toBe(400);
    expect(answer.error.message).toContain(message);
    expect(spans).toEqual([]);
  }
});

test("top_p, top_k and logit_bias are a validation's; a training answer comes from the whole distribution", async () => {
  const restricted = { top_p: 0.5, top_k: 5, logit_bias: { "20": -100 } };
  const val = await ask(restricted, { mode: "val" });
  expect(val.spans[0]!.attributes).toMatchObject({ "gen_ai.request.top_p": 0.5, "gen_ai.request.top_k": 5 });
  expect(val.spans[0]!.attributes[ATTRIBUTES.drawnLogprobs]).toBeInstanceOf(Float32Array);
  const train = await ask(restricted);
  expect(train.spans[0]!.attributes).not.toHaveProperty(ATTRIBUTES.drawnLogprobs);
  expect(train.spans[0]!.attributes).not.toHaveProperty("gen_ai.request.top_p");
});

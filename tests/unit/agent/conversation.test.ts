import { AgentError, parseChatRequest } from "@fulgurite/agent";
import { expect, test } from "vitest";
import { WEATHER } from "./scripted.ts";

const user = { role: "user", content: "hi" };

test("content may be null, text or parts, and foreign keys are ignored", () => {
  const contents = [
    null,
    "",
    "ab",
    [
      { type: "text", text: "a", cache: 1 },
      { type: "input_text", text: "b" },
    ],
    ["a", { type: "output_text", text: "b" }],
  ];
  const texts = contents.map(
    (content) => parseChatRequest({ messages: [{ role: "user", content, foreign: true }] }).conversation.messages[0]?.text,
  );
  expect(texts).toEqual(["", "", "ab", "ab", "ab"]);
});

test("developer is system, function is tool, and a tool's answer knows the name of its call", () => {
  const { messages } = parseChatRequest({
    messages: [
      { role: "developer", content: "d" },
      { role: "assistant", content: null, tool_calls: [{ id: "call_1", type: "function", function: { name: "f", arguments: "{}" } }] },
      { role: "tool", tool_call_id: "call_1", content: "r" },
      { role: "assistant", function_call: { name: "g", arguments: "{}" } },
      { role: "function", name: "g", content: "s" },
    ],
  }).conversation;
  expect(messages).toEqual([
    { role: "system", text: "d" },
    { role: "assistant", text: "", calls: [{ id: "call_1", name: "f", arguments: "{}" }] },
    { role: "tool", text: "r", callId: "call_1", name: "f" },
    { role: "assistant", text: "", calls: [{ id: "", name: "g", arguments: "{}" }] },
    { role: "tool", text: "s", name: "g" },
  ]);
});

test("tools nested or flat are the same tool, without $schema and strict", () => {
  const { name, description, parameters } = WEATHER.function;
  const flat = { type: "function", name, description, parameters: { $schema: "x", ...parameters }, strict: true };
  const tools = (tool: object): unknown => parseChatRequest({ messages: [user], tools: [tool] }).conversation.tools;
  expect(tools(flat)).toEqual(tools(WEATHER));
  expect(tools(WEATHER)).toEqual([{ name, description, parameters }]);
});

test("options are read, and what changes no meaning is let through", () => {
  const { options, conversation } = parseChatRequest({
    messages: [user],
    tools: [WEATHER],
    tool_choice: "none",
    max_tokens: 5,
    max_completion_tokens: 5,
    stop: "x",
    seed: -1,
    stream: true,
    stream_options: { include_usage: true },
    top_p: 0.5,
    frequency_penalty: 1,
    response_format: { type: "text" },
    n: 1,
    logit_bias: {},
    store: true,
    metadata: { a: 1 },
    unknown: [],
  });
  expect(options).toEqual({
    stream: true,
    includeUsage: true,
    maxTokens: 5,
    seed: 4294967295,
    topP: 0.5,
    stop: ["x"],
    logprobs: false,
    returnTokenIds: false,
  });
  expect(conversation.tools).toEqual([]);
});

test.each([
  ["messages", {}],
  ["messages", { messages: [] }],
  ["messages[0].role", { messages: [{ role: "robot", content: "" }] }],
  ["messages[1].content[0].type", { messages: [user, { role: "user", content: [{ type: "image_url", image_url: { url: "data:" } }] }] }],
  [
    "messages[0].tool_calls[0].type",
    { messages: [{ role: "assistant", tool_calls: [{ id: "a", type: "custom", function: { name: "x" } }] }] },
  ],
  ["tools[0].type", { messages: [user], tools: [{ type: "web_search" }] }],
  ["tools[0].function", { messages: [user], tools: [{ type: "function" }] }],
  ["tool_choice.type", { messages: [user], tool_choice: { type: "file_search" } }],
  ["n", { messages: [user], n: 2 }],
  ["max_completion_tokens", { messages: [user], max_tokens: 4, max_completion_tokens: 5 }],
  ["max_tokens", { messages: [user], max_tokens: 0 }],
  ["response_format.json_schema.schema", { messages: [user], response_format: { type: "json_schema", json_schema: {} } }],
  ["response_format.type", { messages: [user], response_format: { type: "xml" } }],
  ["logit_bias.x", { messages: [user], logit_bias: { x: -100 } }],
  ["modalities", { messages: [user], modalities: ["text", "audio"] }],
  ["functions", { messages: [user], functions: [{ name: "f" }] }],
  ["body", "text"],
])("%s is refused by its name", (param, body) => {
  let error: unknown;
  try {
    parseChatRequest(body);
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(AgentError);
  expect(error).toMatchObject({ code: "bad-request", param });
  expect((error as Error).message).toContain(param);
});

import { parseToolCalls } from "@fulgurite/agent";
import { expect, test } from "vitest";
// the incremental parser is what the endpoint runs; it has no other door
import { createCallParser } from "../../../packages/agent/src/toolCalls.ts";

const tools = new Set(["get_weather", "add"]);
const parse = (text: string): ReturnType<typeof parseToolCalls> => parseToolCalls(text, tools);

test("a Hermes call is found, its arguments the model's own characters", () => {
  const written = '{ "city" : "Par\\u0069s",  "n": 1.0, "u": "é", "deep": [{"a": "}"}] }';
  expect(parse(`\n Let me check. \n<tool_call>\n{"name": "get_weather", "arguments": ${written}}\n</tool_call>`)).toEqual({
    text: "\n Let me check.",
    calls: [{ name: "get_weather", arguments: written }],
    failed: 0,
  });
});

test("several calls, any whitespace, members in any order, text around them", () => {
  expect(
    parse('<tool_call>{"arguments":{"a":1},"name":"add"}</tool_call>\n\n<tool_call>  {"name":"add","arguments":{}}</tool_call> done.'),
  ).toEqual({
    text: " done.",
    calls: [
      { name: "add", arguments: '{"a":1}' },
      { name: "add", arguments: "{}" },
    ],
    failed: 0,
  });
});

test("a call without arguments has empty ones, and arguments in a string are its content", () => {
  expect(parse('<tool_call>{"name":"add"}</tool_call>').calls).toEqual([{ name: "add", arguments: "{}" }]);
  expect(parse('<tool_call>{"name":"add","arguments":"{\\"a\\":1}"}</tool_call>').calls).toEqual([{ name: "add", arguments: '{"a":1}' }]);
});

test("what does not parse stays text, word for word, and is counted", () => {
  for (const broken of [
    'x \n<tool_call>{"name": "add", "arguments": {</tool_call> y',
    "<tool_call>[]</tool_call>",
    '<tool_call>{"arguments":{}}</tool_call>',
    '<tool_call>{"name":"add","arguments":[1]}</tool_call>',
    '<tool_call>{"name":"add","arguments":{}',
    "<tool_call>",
  ]) {
    expect(parse(broken)).toEqual({ text: broken, calls: [], failed: 1 });
  }
});

test("a call that only lacks its closer at the end is a call", () => {
  expect(parse('<tool_call>{"name":"add","arguments":{}}')).toEqual({ text: "", calls: [{ name: "add", arguments: "{}" }], failed: 0 });
});

test("a broken call does not swallow the next", () => {
  expect(parse('<tool_call>{"name": "add</tool_call><tool_call>{"name":"add"}</tool_call>')).toEqual({
    text: '<tool_call>{"name": "add</tool_call>',
    calls: [{ name: "add", arguments: "{}" }],
    failed: 1,
  });
});

test("a closer inside a string does not end the call", () => {
  const written = '{"city":"</tool_call> \\" "}';
  expect(parse(`<tool_call>{"name":"get_weather","arguments":${written}}</tool_call>`).calls).toEqual([
    { name: "get_weather", arguments: written },
  ]);
});

test("Llama 3 writes the bare object, and only an offered tool makes it a call", () => {
  expect(parse('{"name": "add", "parameters": {"a": 1}}')).toEqual({
    text: "",
    calls: [{ name: "add", arguments: '{"a": 1}' }],
    failed: 0,
  });
  expect(parse('<|python_tag|>{"name": "add", "parameters": {}}').calls).toEqual([{ name: "add", arguments: "{}" }]);
  for (const answer of ['{"name": "other", "parameters": {}}', '{"name": "add", "price": 3}', '{"answer": 42}', "{oops"]) {
    expect(parse(answer)).toEqual({ text: answer, calls: [], failed: 0 });
  }
});

test("without tools nothing is a call", () => {
  const text = '<tool_call>{"name":"add"}</tool_call>';
  expect(parseToolCalls(text, new Set())).toEqual({ text, calls: [], failed: 0 });
});

test("cut at every place, the parts are the same, and no text that may open a call leaves early", () => {
  const answer =
    'a < b <tool_cat> \n<tool_call>{"name":"add","arguments":{"s":"<tool_call>"}}</tool_call> \n<tool_call>{bad}</tool_call> end ';
  const whole = parse(answer);
  for (let cut = 0; cut <= answer.length; cut++) {
    const parser = createCallParser(tools);
    const before = parser.push(answer.slice(0, cut));
    const early = before.map((part) => (part.kind === "text" ? part.text : "")).join("");
    expect(whole.text.startsWith(early)).toBe(true);
    const parts = [...before, ...parser.push(answer.slice(cut)), ...parser.end()];
    expect(parts.map((part) => (part.kind === "text" ? part.text : "")).join("")).toBe(whole.text);
    expect(parts.filter((part) => part.kind === "call")).toEqual(whole.calls.map((call) => ({ kind: "call", ...call })));
  }
  expect(whole).toEqual({
    text: "a < b <tool_cat> \n<tool_call>{bad}</tool_call> end ",
    calls: [{ name: "add", arguments: '{"s":"<tool_call>"}' }],
    failed: 1,
  });
});

// A real framework, unchanged but for its fetch, over the scripted sampler: two turns with a tool, whole and streamed.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { type Agent, createEndpoint, createRunner } from "@fulgurite/agent";
import { solve } from "@fulgurite/demo-calculator";
import { createMemoryStore, type Json, rewardOf, type StoredSpan, toTransitions } from "@fulgurite/trace";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { expect, test } from "vitest";
import { z } from "zod";
import { callText, ScriptedSampler, tinyFormat } from "./scripted.ts";

const weather = (seen: string[]) =>
  tool({
    description: "Weather of a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      seen.push(city);
      await new Promise((resolve) => setTimeout(resolve, 1));
      return `sunny in ${city}`;
    },
  });

/** Calls the tool for the city of the task, then says what the tool said. */
const policy = (prompt: string): string => {
  const city = /Weather in (\w+)\?/.exec(prompt)?.[1] ?? "";
  const told = /<tool_response>\n(.*)\n<\/tool_response>/.exec(prompt)?.[1];
  return told === undefined
    ? `Let me check.\n${callText("get_weather", `{ "city" : "${city}", "extra": 1.0 }`)}`
    : `It is ${told.replaceAll('"', "")}.`;
};

const collect = async (agent: Agent<{ city: string }>, cities: readonly string[], concurrency?: number, answer = policy) => {
  const format = tinyFormat();
  const sampler = new ScriptedSampler(format, answer);
  const store = createMemoryStore();
  await store.enqueue(cities.map((city) => ({ id: city, input: { city } as Json })));
  const endpoint = createEndpoint({ sampler, format, store });
  await createRunner({ store, endpoint, agent, ...(concurrency && { concurrency }) }).drain();
  const spansOf = async (rolloutId: string): Promise<StoredSpan[]> => {
    const spans: StoredSpan[] = [];
    for await (const span of store.spans({ rolloutId })) spans.push(span);
    return spans;
  };
  return { store, sampler, format, spansOf };
};

const modes: [string, Agent<{ city: string }>][] = [
  [
    "generateText",
    async ({ city }, { openai }) => {
      const seen: string[] = [];
      const { text, steps } = await generateText({
        model: createOpenAICompatible({ name: "fulgurite", ...openai })("policy"),
        tools: { get_weather: weather(seen) },
        stopWhen: stepCountIs(3),
        prompt: `Weather in ${city}?`,
      });
      expect(steps).toHaveLength(2);
      expect(seen).toEqual([city]);
      return text === `It is sunny in ${city}.` ? 1 : 0;
    },
  ],
  [
    "streamText",
    async ({ city }, { openai }) => {
      const seen: string[] = [];
      const result = streamText({
        model: createOpenAICompatible({ name: "fulgurite", ...openai, includeUsage: true })("policy"),
        tools: { get_weather: weather(seen) },
        stopWhen: stepCountIs(3),
        prompt: `Weather in ${city}?`,
      });
      let text = "";
      for await (const piece of result.textStream) text += piece;
      expect(seen).toEqual([city]);
      expect(await result.finishReason).toBe("stop");
      return text === `Let me check.It is sunny in ${city}.` ? 1 : 0;
    },
  ],
];

test.each(modes)("AI SDK's %s runs two turns with a tool, and each is recorded once with its very ids", async (_, agent) => {
  const { sampler, format, spansOf, store } = await collect(agent, ["Paris"]);
  const attempts = await store.attempts("Paris");
  expect(attempts.map(({ status, error }) => [status, error])).toEqual([["succeeded", undefined]]);
  const spans = await spansOf("Paris");
  const transitions = toTransitions(spans);
  expect(transitions.map(({ finishReason }) => finishReason)).toEqual(["tool_calls", "stop"]);
  expect(rewardOf(spans)).toBe(1);
  expect(transitions.map(({ reward }) => reward)).toEqual([undefined, 1]);
  // the schema dropped a key and rewrote the arguments: the second prompt continues the first all the same
  const [first, second] = transitions;
  const continued = [...(first?.promptTokens ?? []), ...(first?.responseTokens ?? [])];
  expect([...(second?.promptTokens ?? [])].slice(0, continued.length)).toEqual(continued);
  expect(format.decode(first?.responseTokens ?? [])).toContain('"extra": 1.0');
  expect(sampler.requests.map(({ prompt }) => prompt)).toEqual(transitions.map(({ promptTokens }) => promptTokens));
});

test("8 concurrent rollouts of one agent are told apart", async () => {
  const cities = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo", "Quito"];
  const { sampler, format, spansOf, store } = await collect(modes[0]?.[1] as Agent<{ city: string }>, cities, 8);
  expect(sampler.peak).toBeGreaterThan(1);
  for (const city of cities) {
    const spans = await spansOf(city);
    const transitions = toTransitions(spans);
    expect(transitions).toHaveLength(2);
    for (const { promptTokens } of transitions) expect(format.decode(promptTokens)).toContain(`Weather in ${city}?`);
    expect(rewardOf(spans)).toBe(1);
  }
  expect(await store.stats()).toMatchObject({ rollouts: { succeeded: 8 }, attempts: 8, spans: 24 });
});

test("a framework that is refused sees the reason", async () => {
  const { store } = await collect(
    async (_, { openai }) => {
      await generateText({
        model: createOpenAICompatible({ name: "fulgurite", ...openai })("policy"),
        messages: [{ role: "user", content: [{ type: "image", image: new Uint8Array([1]), mediaType: "image/png" }] }],
      });
    },
    ["Paris"],
  );
  const [attempt] = await store.attempts("Paris");
  expect(attempt?.status).toBe("failed");
  expect(attempt?.error?.message).toContain("messages[0].content[0].type: only text parts can be rendered");
});

test("a tool that does not exist is the framework's to answer: the rollout goes on and both calls are kept", async () => {
  const told: string[] = [];
  const answer = (prompt: string): string => {
    const response = /<tool_response>\n([\s\S]*?)\n<\/tool_response>/.exec(prompt)?.[1];
    if (response !== undefined) told.push(response);
    return response === undefined ? callText("abacus", '{"beads":3}') : "122";
  };
  const agent: Agent<{ city: string }> = async (_, { openai, signal }) =>
    (await solve("What is 37 plus 85?", openai, signal)) === "122" ? 1 : 0;
  const { store, spansOf } = await collect(agent, ["one"], 1, answer);
  expect(told.join()).toContain("abacus");
  expect(await store.stats()).toMatchObject({ rollouts: { succeeded: 1 }, spans: 3 });
  const spans = await spansOf("one");
  expect(toTransitions(spans).map(({ finishReason }) => finishReason)).toEqual(["tool_calls", "stop"]);
  expect(rewardOf(spans)).toBe(1);
});

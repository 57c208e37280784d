// The loop over the real endpoint and runner: an agent that knows only fetch is trained, and its rollouts sample as the run decided.
import { type ChatFormat, createEndpoint, createRunner } from "@fulgurite/agent";
import { evaluate, samplingOf, train } from "@fulgurite/rl";
import { createMemoryStore } from "@fulgurite/trace";
import { expect, test } from "vitest";
import { TASKS, VOCABULARY } from "./banditRun.ts";
import { createBigramPolicy } from "./bigramPolicy.ts";

/** One digit, one token. */
const digits: ChatFormat = {
  vocabSize: VOCABULARY,
  stopTokens: [],
  encode: (text) => Int32Array.from(text, Number),
  decode: (tokens) => Array.from(tokens).join(""),
  render: ({ messages }) => messages.map(({ text }) => text).join(""),
};

test("an agent behind the endpoint learns from its return values, and greedy evaluation sees it", async () => {
  const store = createMemoryStore();
  const policy = createBigramPolicy(VOCABULARY);
  const endpoint = createEndpoint({ sampler: policy.sampler, format: digits, store });
  const runner = createRunner<number>({
    store,
    endpoint,
    sampling: samplingOf,
    agent: async (task, { openai }) => {
      const response = await openai.fetch(`${openai.baseURL}/chat/completions`, {
        method: "POST",
        headers: { authorization: `Bearer ${openai.apiKey}`, "content-type": "application/json" },
        body: JSON.stringify({ model: "policy", messages: [{ role: "user", content: `7${task}` }] }),
      });
      const { choices } = (await response.json()) as { choices: { message: { content: string } }[] };
      return choices[0]!.message.content === `${task + 4}` ? 1 : 0;
    },
  });
  const settings = { policy, store, runner, tasks: TASKS, maxTokens: 1 };
  const rewards: number[] = [];
  for await (const { metrics, failures } of train({ ...settings, steps: 30, tasksPerStep: 4, groupSize: 8, adam: { learningRate: 0.1 } })) {
    rewards.push(metrics.reward!);
    expect(failures).toEqual([]);
    expect(metrics.samplerGapMax ?? 0).toBeLessThan(1e-6);
    expect(metrics).toMatchObject({ responseTokens: 1, turns: 1 });
  }
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  expect(mean(rewards.slice(0, 5))).toBeLessThan(0.4);
  expect(mean(rewards.slice(-5))).toBeGreaterThan(0.7);
  expect(await evaluate(settings)).toMatchObject({ version: 30, reward: 1, failed: 0 });
});

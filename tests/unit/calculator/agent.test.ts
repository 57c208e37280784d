// The agent, on a scripted OpenAI-compatible server that is only a fetch function.
import { calculatorDemo, calculatorTask, solve } from "@fulgurite/demo-calculator";
import { expect, test } from "vitest";

interface Body {
  messages: { role: string; content: string; tool_calls?: { id: string; function: { name: string; arguments: string } }[] }[];
  tools: { type: string; function: { name: string; parameters: { properties: object } } }[];
}

/** Answers the k-th request with the k-th message and keeps what it was sent. */
function createServer(answers: readonly (string | { expression: string })[]) {
  const requests: Body[] = [];
  const fetch = async (_url: unknown, init?: RequestInit): Promise<Response> => {
    init?.signal?.throwIfAborted();
    const answer = answers[requests.length];
    requests.push(JSON.parse(init!.body as string));
    if (answer === undefined) return new Response("no more answers", { status: 500 });
    const message =
      typeof answer === "string"
        ? { role: "assistant", content: answer }
        : {
            role: "assistant",
            content: null,
            tool_calls: [
              { id: `call_${requests.length}`, type: "function", function: { name: "calculator", arguments: JSON.stringify(answer) } },
            ],
          };
    const finish = typeof answer === "string" ? "stop" : "tool_calls";
    return Response.json({
      id: "r",
      object: "chat.completion",
      created: 0,
      model: "policy",
      choices: [{ index: 0, message, finish_reason: finish }],
    });
  };
  return { requests, openai: { baseURL: "http://policy.invalid/v1", apiKey: "key", fetch: fetch as typeof globalThis.fetch } };
}

const task = calculatorTask("val", 0, 0);
const signal = new AbortController().signal;

test("the model calls the calculator, reads its result and answers", async () => {
  const { requests, openai } = createServer([{ expression: task.expression }, `It is ${task.answer}.`]);
  expect(await calculatorDemo.agent(task, { openai, signal })).toBe(1);
  expect(requests).toHaveLength(2);
  expect(requests[0]!.messages).toEqual([{ role: "user", content: task.question }]);
  expect(requests[0]!.tools.map((t) => [t.function.name, Object.keys(t.function.parameters.properties)])).toEqual([
    ["calculator", ["expression"]],
  ]);
  expect(requests[1]!.messages.at(-1)).toMatchObject({ role: "tool", tool_call_id: "call_1", content: task.answer });
});

test("an answer without the tool earns 1 when it is right and 0 when it is wrong", async () => {
  expect(await calculatorDemo.agent(task, { openai: createServer([task.answer]).openai, signal })).toBe(1);
  expect(await calculatorDemo.agent(task, { openai: createServer([`${task.answer}1`]).openai, signal })).toBe(0);
});

test("a bad expression comes back to the model as text", async () => {
  const { requests, openai } = createServer([{ expression: "1/0" }, "sorry"]);
  expect(await solve("?", openai)).toBe("sorry");
  expect(requests[1]!.messages.at(-1)!.content).toBe("error: division by zero");
});

test("arguments that the schema refuses do not crash the agent", async () => {
  const { openai } = createServer([{ wrong: 1 } as unknown as { expression: string }, "0"]);
  expect(await calculatorDemo.agent(task, { openai, signal })).toBe(0);
});

test("after four steps of tool calls the agent stops with an empty answer", async () => {
  const { requests, openai } = createServer(Array.from({ length: 9 }, () => ({ expression: "1+1" })));
  expect(await solve("?", openai)).toBe("");
  expect(requests).toHaveLength(4);
});

test("a failing server is an error at once: nothing is retried", async () => {
  const { requests, openai } = createServer([]);
  await expect(solve("?", openai)).rejects.toThrow();
  expect(requests).toHaveLength(1);
});

test("an aborted signal ends the agent", async () => {
  const { openai } = createServer(["1"]);
  await expect(calculatorDemo.agent(task, { openai, signal: AbortSignal.abort(new Error("over")) })).rejects.toThrow();
});

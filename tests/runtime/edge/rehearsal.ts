// One agent on one scripted policy, the same in Node and in a worker, so that what one captures can be held against the other: a tool call,
// an answer as JSON, one as a stream, one that a grammar keeps, a reward on the way and one at the end.
import { type Agent, createEndpoint, createRunner, type Endpoint, type Runner } from "@fulgurite/agent";
import type { Completion, GenerateRequest } from "@fulgurite/engine";
import { type Json, type Store, type StoredSpan, type Transition, toTransitions } from "@fulgurite/trace";
import { callText, ScriptedSampler, tinyFormat, WEATHER } from "../../unit/agent/scripted.ts";

const LINES: readonly (readonly [ask: string, answer: string])[] = [
  ["Take your time", "One moment"],
  ["Say goodbye", "Bye, Łódź 🌩"],
  ["tool_response", "It is 7 °C there."],
  ["Which weather", callText("get_weather", '{"city": "Łódź"}')],
];

const line = (prompt: string): string => LINES.find(([ask]) => prompt.includes(ask))?.[1] ?? "What?";

/** The script, or, where a grammar says what may come, always the lowest token that may. A token takes a turn of the event loop. */
class RehearsedSampler extends ScriptedSampler {
  override async generate(request: GenerateRequest): Promise<Completion> {
    const { mask } = request;
    if (!mask) return super.generate(request);
    const tokens: number[] = [];
    const stop = new Set(request.stopTokens);
    while (tokens.length < request.maxTokens && !stop.has(tokens.at(-1) ?? -1)) {
      const words = await mask(tokens);
      tokens.push([...Array(this.limits.vocabSize).keys()].find((id) => ((words[id >> 5] as number) >> (id & 31)) & 1) as number);
    }
    const { policyVersion } = this;
    return { tokens: Int32Array.from(tokens), logprobs: new Float32Array(tokens.length).fill(-0.5), finishReason: "stop", policyVersion };
  }
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

export interface Rehearsal {
  readonly endpoint: Endpoint;
  /** Calls that are being sampled. */
  running(): number;
}

/** Asked to take its time, the policy says "One", and no more before it is aborted. */
export const rehearse = (store: Store): Rehearsal => {
  const format = tinyFormat();
  const sampler = new RehearsedSampler(format, line);
  sampler.beforeToken = async (index, { prompt, signal }) => {
    const waits = index === 3 && format.decode(prompt).includes("Take your time");
    do await nextTurn();
    while (waits && !signal?.aborted);
  };
  return { endpoint: createEndpoint({ sampler, format, store }), running: () => sampler.running };
};

/** A tool call answered, and a stream read to its end. */
export const converse = async (ask: (body: Record<string, unknown>) => Promise<Response>): Promise<string[]> => {
  const said: string[] = [];
  const messages: unknown[] = [{ role: "user", content: "Which weather?" }];
  const turn = async (body: Record<string, unknown>): Promise<{ tool_calls?: { id: string; function: { arguments: string } }[] }> => {
    const response = await ask({ model: "policy", messages, ...body });
    if (!response.ok) throw new Error(await response.text());
    const { message } = ((await response.json()) as { choices: { message: Json }[] }).choices[0] as { message: Record<string, Json> };
    messages.push(message);
    said.push(String(message.content));
    return message as never;
  };
  const [call] = (await turn({ tools: [WEATHER] })).tool_calls ?? [];
  said.push(String(call?.function.arguments));
  messages.push({ role: "tool", tool_call_id: call?.id, content: "7 °C" });
  await turn({ tools: [WEATHER] });
  messages.push({ role: "user", content: "Yes or no?" });
  await turn({ structured_outputs: { choice: ["yes", "no"] } });
  messages.push({ role: "user", content: "Say goodbye" });
  const stream = await ask({ model: "policy", messages, stream: true });
  const events = (await stream.text()).split("\n\n").filter((event) => event !== "");
  const deltas = events
    .slice(0, -1)
    .map((event) => JSON.parse(event.slice("data: ".length)) as { choices: { delta: { content?: string } }[] });
  said.push(deltas.map(({ choices }) => choices[0]?.delta.content ?? "").join(""), String(events.at(-1)));
  return said;
};

export const chatAt =
  (openai: { baseURL: string; apiKey: string; fetch?: typeof fetch }) =>
  (body: Record<string, unknown>): Promise<Response> =>
    (openai.fetch ?? fetch)(`${openai.baseURL}/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${openai.apiKey}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });

export const rehearsedAgent: Agent<string> = async (task, { openai, reward }) => {
  if (task === "hangs") await new Promise(() => {});
  const said = await converse(chatAt(openai));
  reward(0.25, { reason: "tool worked" });
  return said.join("\n") === SAID.join("\n") ? 1 : 0;
};

export const SAID: readonly string[] = ["null", '{"city": "Łódź"}', "It is 7 °C there.", "no", "Bye, Łódź 🌩", "data: [DONE]"];

export const rehearsedRunner = (store: Store): Runner => {
  const { endpoint } = rehearse(store);
  return createRunner<string>({ store, endpoint, agent: rehearsedAgent, concurrency: 4 });
};

export const drain = async (runner: Runner): Promise<string[]> => {
  const ended: string[] = [];
  await runner.drain({ onEnd: ({ id, status }) => ended.push(`${id} ${status}`) });
  return ended.sort();
};

export const spansOf = async (store: Store, rolloutId: string): Promise<StoredSpan[]> => {
  const spans: StoredSpan[] = [];
  for await (const span of store.spans({ rolloutId })) spans.push(span);
  return spans;
};

/** As JSON, without what is minted anew in each run. */
export const plainTransitions = (spans: readonly StoredSpan[]): Json =>
  toTransitions(spans).map(({ attemptId: _, spanId: __, ...transition }: Transition) => ({
    ...transition,
    promptTokens: [...transition.promptTokens],
    responseTokens: [...transition.responseTokens],
    samplerLogprobs: [...transition.samplerLogprobs],
    ...(transition.forcedTokens && { forcedTokens: [...transition.forcedTokens] }),
  })) as unknown as Json;

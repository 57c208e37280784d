// Every case is a round trip through the endpoint: turn 1 is sampled, turn 2 replays it as a client would.
import { createEndpoint, type EndpointStats, type OpenedAttempt } from "@fulgurite/agent";
import { createMemoryStore, type StoredSpan, toTransitions } from "@fulgurite/trace";
import { expect, test } from "vitest";
import replayFidelity from "../../captures/replay-fidelity.json" with { type: "json" };
import { CHATML, callText, type Line, ScriptedSampler, TRAIN, tinyFormat, WEATHER } from "./scripted.ts";

type Written = Record<string, unknown>;
interface Answered {
  choices: { message: { content: string | null; tool_calls?: { id: string; function: { name: string; arguments: string } }[] } }[];
}

const system = { role: "system", content: "You are helpful." };
const user = { role: "user", content: "Weather in Paris?" };

/** An attempt and what was fed and recorded in it. */
const begin = async (lines: readonly Line[], format = tinyFormat()) => {
  const sampler = new ScriptedSampler(format, lines);
  const store = createMemoryStore();
  await store.enqueue([{ id: "r", input: null }]);
  const [claim] = await store.claim("w");
  const endpoint = createEndpoint({ sampler, format, store });
  const attempt: OpenedAttempt = endpoint.open({ rolloutId: "r", id: claim?.attempt.id ?? "" }, TRAIN);
  const ask = async (messages: readonly Written[], more: Written = { tools: [WEATHER] }): Promise<Answered["choices"][0]["message"]> => {
    const response = await attempt.openai.fetch(`${attempt.openai.baseURL}/chat/completions`, {
      method: "POST",
      body: JSON.stringify({ model: "policy", messages, ...more }),
    });
    expect(response.status).toBe(200);
    return ((await response.json()) as Answered).choices[0]?.message as Answered["choices"][0]["message"];
  };
  const end = async (): Promise<{ stats: EndpointStats; spans: StoredSpan[] }> => {
    const stats = await attempt.close();
    const spans: StoredSpan[] = [];
    for await (const span of store.spans({ rolloutId: "r" })) spans.push(span);
    const transitions = toTransitions(spans);
    expect(transitions.map(({ promptTokens }) => [...promptTokens])).toEqual(sampler.requests.map(({ prompt }) => [...prompt]));
    return { stats, spans };
  };
  return { ask, end, sampler, format };
};

const { sent, ...clients } = replayFidelity as unknown as {
  sent: { content: string; arguments: string };
} & Record<string, { replayed: Written[] }>;
const chatClients = Object.entries(clients as Record<string, { replayed: Written[] }>).filter(([, { replayed }]) =>
  replayed.every((item) => "role" in item && "content" in item && !("type" in item)),
);
const turn1 = `${sent.content}${callText("get_weather", sent.arguments)}`;

/** The ids that a continuing prompt must begin with: what was fed and what was sampled in turn 1. */
const stored = (sampler: ScriptedSampler, format = tinyFormat(), line = turn1): number[] => [
  ...(sampler.requests[0]?.prompt ?? []),
  ...format.encode(line),
  257,
];

/** The replayed list, with the id that our answer minted. */
const withId = (replayed: readonly Written[], id: string): Written[] =>
  JSON.parse(JSON.stringify(replayed).replaceAll("call_1", id)) as Written[];

test("the captures hold ten chat replays", () => expect(chatClients.map(([name]) => name)).toHaveLength(10));

test.each(chatClients)("%s gets the stored ids", async (_, { replayed }) => {
  const { ask, end, sampler } = await begin([turn1, "Sunny."]);
  const first = await ask([system, user]);
  const call = first.tool_calls?.[0];
  expect(call?.function.arguments).toBe(sent.arguments);
  await ask([system, user, ...withId(replayed, call?.id ?? "")]);
  const { stats } = await end();
  expect([...(sampler.requests[1]?.prompt ?? [])].slice(0, stored(sampler).length)).toEqual(stored(sampler));
  const rest = tinyFormat().decode((sampler.requests[1]?.prompt ?? new Int32Array()).slice(stored(sampler).length));
  expect(rest).toBe("\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n");
  // the awkward spaces never survive the template, so the ids are always fed again
  expect(stats).toMatchObject({ calls: 2, exact: 1, repaired: 1, retokenised: 0, captureFailures: 0 });
});

const replay = (id: string, written: string, name = "get_weather", content: string | null = "Let me check."): Written => ({
  role: "assistant",
  content,
  tool_calls: [{ id, type: "function", function: { name, arguments: written } }],
});
const result = (id: string, content = "sunny"): Written => ({ role: "tool", tool_call_id: id, content });

test.each<[string, "edited" | "unknown", (id: string) => Written[], Written?]>([
  ["a changed argument value", "edited", (id) => [system, user, replay(id, '{"city":"Rome"}'), result(id)]],
  ["an added argument", "edited", (id) => [system, user, replay(id, '{"city":"Paris","new":1}'), result(id)]],
  ["arguments that are no JSON any more", "edited", (id) => [system, user, replay(id, "{"), result(id)]],
  ["another tool", "edited", (id) => [system, user, replay(id, sent.arguments, "get_time"), result(id)]],
  ["changed text", "edited", (id) => [system, user, replay(id, sent.arguments, "get_weather", "Let me think."), result(id)]],
  [
    "one character in another message",
    "edited",
    (id) => [system, { role: "user", content: "Weather in Paris!" }, replay(id, sent.arguments), result(id)],
  ],
  ["another system prompt", "edited", (id) => [{ role: "system", content: "Be brief." }, user, replay(id, sent.arguments), result(id)]],
  ["a pruned system prompt", "edited", (id) => [user, replay(id, sent.arguments), result(id)]],
  ["other tools", "edited", (id) => [system, user, replay(id, sent.arguments), result(id)], { tools: [] }],
  ["a call id that is not ours", "unknown", () => [system, user, replay("call_foreign", sent.arguments), result("call_foreign")]],
])("%s is tokenised afresh", async (_, because, messages, more) => {
  const { ask, end, sampler, format } = await begin([turn1, "Sunny."]);
  const first = await ask([system, user]);
  await ask(messages(first.tool_calls?.[0]?.id ?? ""), more);
  const { stats } = await end();
  expect(stats).toMatchObject({ exact: 1, repaired: 0, retokenised: 1, retokenisedBecause: { [because]: 1 } });
  expect([...format.encode(format.decode(sampler.requests[1]?.prompt ?? []))]).toEqual([...(sampler.requests[1]?.prompt ?? [])]);
});

test("what the template writes as the model did is exact", async () => {
  const line = `Let me check.\n${callText("get_weather", '{"city": "Paris"}')}`;
  const { ask, end, sampler, format } = await begin([line, "Sunny."]);
  const first = await ask([system, user]);
  const id = first.tool_calls?.[0]?.id ?? "";
  await ask([system, user, replay(id, '{"city":"Paris"}'), result(id)]);
  const { stats } = await end();
  expect(stats).toMatchObject({ exact: 2, repaired: 0 });
  expect([...(sampler.requests[1]?.prompt ?? [])].slice(0, stored(sampler, format, line).length)).toEqual(stored(sampler, format, line));
});

test("the same text in other ids is repaired", async () => {
  const format = tinyFormat({ merges: [["S", "u"]] });
  const bytes = [..."Sunny."].map((character) => character.charCodeAt(0));
  const end258 = format.stopTokens[0] as number;
  expect(format.encode("Sunny.")).toHaveLength(5); // the merge makes one id of "Su"; the policy sampled two
  const { ask, end, sampler } = await begin([[...bytes, end258], "Yes."], format);
  await ask([user]);
  await ask([user, { role: "assistant", content: "Sunny." }, { role: "user", content: "Sure?" }], {});
  const { stats } = await end();
  expect(stats).toMatchObject({ exact: 1, retokenised: 1, retokenisedBecause: { edited: 1 } }); // the tools went away
  const again = await begin([[...bytes, end258], "Yes."], format);
  await again.ask([user], {});
  await again.ask([user, { role: "assistant", content: " Sunny. " }, { role: "user", content: "Sure?" }], {});
  expect((await again.end()).stats).toMatchObject({ exact: 1, repaired: 1 });
  const first = [...(again.sampler.requests[0]?.prompt ?? [])];
  expect([...(again.sampler.requests[1]?.prompt ?? [])].slice(0, first.length + 7)).toEqual([...first, ...bytes, end258]);
  expect(sampler.requests).toHaveLength(2);
});

test("an answer that was cut off is continued with the token that ends its turn", async () => {
  const { ask, end, sampler, format } = await begin(["Sunny and warm.", "Yes."]);
  const first = await ask([user], { max_tokens: 5 });
  expect(first.content).toBe("Sunny");
  await ask([user, { role: "assistant", content: "Sunny" }, { role: "user", content: "And?" }], {});
  expect((await end()).stats).toMatchObject({ exact: 2 });
  expect(format.decode(sampler.requests[1]?.prompt ?? [])).toBe(
    "<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\nSunny<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
  );
  // and where it must be repaired, the token is put in
  const repaired = await begin(["Sunny  ", "Yes."]);
  await repaired.ask([user], { max_tokens: 7 });
  await repaired.ask([user, { role: "assistant", content: "Sunny" }, { role: "user", content: "And?" }], {});
  expect((await repaired.end()).stats).toMatchObject({ exact: 1, repaired: 1 });
  expect(format.decode(repaired.sampler.requests[1]?.prompt ?? [])).toContain("assistant\nSunny  <|im_end|>\n<|im_start|>user\nAnd?");
});

test("a template that rewrites history ends the row", async () => {
  // like Qwen 3, which strips earlier thinking: only the last message keeps what is in brackets
  const template = CHATML.replace(
    "'<|im_start|>assistant\\n' + message.content }}",
    "'<|im_start|>assistant\\n' + (message.content if loop.last else message.content.split(']')[-1]) }}",
  );
  expect(template).not.toBe(CHATML);
  const { ask, end } = await begin(["[hm]Sunny.", "Yes."], tinyFormat({ template }));
  await ask([user]);
  await ask([user, { role: "assistant", content: "[hm]Sunny." }, { role: "user", content: "Sure?" }]);
  expect((await end()).stats).toMatchObject({ exact: 1, retokenised: 1, retokenisedBecause: { template: 1, edited: 0, unknown: 0 } });
});

test("branches of a conversation, and three turns: the longest answer is continued", async () => {
  const { ask, end, sampler } = await begin([" A.", " B.", " C.", " D."]);
  await ask([user], {});
  await ask([user], {}); // a second answer to the same words
  const history = [user, { role: "assistant", content: "B." }, { role: "user", content: "more" }];
  await ask(history, {});
  await ask([...history, { role: "assistant", content: "C." }, { role: "user", content: "more" }], {});
  const { stats } = await end();
  expect(stats).toMatchObject({ calls: 4, exact: 2, repaired: 2 });
  const fed = tinyFormat().decode(sampler.requests[3]?.prompt ?? []);
  expect(fed).toContain("assistant\n B.<|im_end|>");
  expect(fed).toContain("assistant\n C.<|im_end|>");
});

test("a fresh conversation beside another one is exact", async () => {
  const { ask, end } = await begin(["A.", "B."]);
  await ask([user]);
  await ask([{ role: "user", content: "something else" }]);
  expect((await end()).stats).toMatchObject({ exact: 2 });
});

// The recorded clients against the endpoint: what they send is understood alike, what they need is answered.
// Nothing here looks at which client it was; runs in Node and in a browser.
/// <reference types="vite/client" />
import { createEndpoint, parseChatRequest } from "@fulgurite/agent";
import { createMemoryStore } from "@fulgurite/trace";
import { expect, test } from "vitest";
import { callText, ScriptedSampler, TRAIN, tinyFormat } from "../unit/agent/scripted.ts";

type Fields = Record<string, unknown>;
interface Exchange {
  method: string;
  url: string;
  headers: Record<string, string>;
  body: Fields & { messages: Fields[]; stream?: boolean };
  response: { json?: Fields; sse?: Fields[] };
}

const nameOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1, -".json".length);
const load = (files: Record<string, unknown>): [string, Fields][] =>
  Object.entries(files).map(([path, file]) => [nameOf(path), file as Fields]);
const runs = load(
  import.meta.glob(["../captures/*.json", "!../captures/replay-fidelity.json", "!../captures/otlp-*.json"], {
    eager: true,
    import: "default",
  }),
);
const minimal = load(import.meta.glob("../captures/minimal/*.json", { eager: true, import: "default" }));

const chats: [string, Exchange[]][] = runs.map(([name, run]) => [
  name,
  (run.exchanges as Exchange[]).filter(({ url }) => url.endsWith("/chat/completions")),
]);

const TURNS = [callText("get_weather", '{"city":"Paris"}'), "Sunny."];

/** What an endpoint answers to these exchanges, in one attempt. */
const play = async (exchanges: readonly Pick<Exchange, "method" | "headers" | "body">[], lines: readonly string[]) => {
  const format = tinyFormat();
  const sampler = new ScriptedSampler(format, lines);
  const endpoint = createEndpoint({ sampler, format, store: createMemoryStore() });
  const attempt = endpoint.open({ rolloutId: "r", id: "a" }, TRAIN);
  const answers: { json?: Fields; sse?: Fields[] }[] = [];
  for (const { method, headers, body } of exchanges) {
    const sent = { ...headers };
    for (const name of ["host", "connection", "content-length", "accept-encoding", "accept-language", "sec-fetch-mode"]) delete sent[name];
    // the recorded key is not ours: the path tells the attempt
    const response = await endpoint.handle(
      new Request(`${attempt.openai.baseURL}/chat/completions`, { method, headers: sent, body: JSON.stringify(body) }),
    );
    expect(response.status).toBe(200);
    expect(response.headers.get("x-request-id")).toMatch(/^req_/);
    const text = await response.text();
    if (!body.stream) {
      expect(response.headers.get("content-type")).toContain("application/json");
      answers.push({ json: JSON.parse(text) as Fields });
      continue;
    }
    expect(response.headers.get("content-type")).toContain("text/event-stream");
    const data = text.split("\n\n").filter(Boolean);
    expect(data.every((line) => line.startsWith("data: "))).toBe(true);
    expect(data.at(-1)).toBe("data: [DONE]");
    answers.push({ sse: data.slice(0, -1).map((line) => JSON.parse(line.slice("data: ".length)) as Fields) });
  }
  await attempt.close();
  return answers;
};

/** Paths of `wanted` that are absent in `got` or of another type; texts, ids and numbers are free, null is any. */
const missing = (wanted: unknown, got: unknown, path = ""): string[] => {
  if (wanted === null || got === null) return [];
  if (Array.isArray(wanted)) {
    if (!Array.isArray(got) || got.length < wanted.length) return [`${path}: ${JSON.stringify(got)}`];
    return wanted.flatMap((item, index) => missing(item, got[index], `${path}[${index}]`));
  }
  if (typeof wanted === "object") {
    if (typeof got !== "object") return [path];
    return Object.entries(wanted).flatMap(([key, value]) =>
      key === "system_fingerprint" ? [] : key in got ? missing(value, (got as Fields)[key], `${path}.${key}`) : [`${path}.${key}`],
    );
  }
  return typeof wanted === typeof got ? [] : [`${path}: ${typeof got}`];
};

const isScenario = (exchange: Exchange): boolean =>
  (exchange.body.messages[0]?.role === "system" || exchange.body.messages[0]?.role === "developer") && Array.isArray(exchange.body.tools);

/** Up to ids and the wording of arguments. */
const canonical = (body: Fields): unknown => {
  const { messages, tools } = parseChatRequest(body).conversation;
  const plain = messages.map((message) => ({
    ...message,
    ...(message.calls && { calls: message.calls.map((call) => ({ ...call, id: "", arguments: JSON.parse(call.arguments) as unknown })) }),
    ...(message.callId !== undefined && { callId: "" }),
  }));
  return { messages: plain, tools };
};

test("the captures are there", () => {
  expect(chats).toHaveLength(16);
  expect(minimal).toHaveLength(11);
  expect(chats.filter(([, exchanges]) => exchanges.every(isScenario))).toHaveLength(14);
});

test.each(chats.filter(([, exchanges]) => exchanges.every(isScenario)))("%s means what every other client means", (_, exchanges) => {
  expect(exchanges).toHaveLength(2);
  expect(exchanges.map(({ body }) => canonical(body))).toEqual((chats[0]?.[1] ?? []).map(({ body }) => canonical(body)));
});

test("canonical conversations that differ are told apart", () => {
  const [first, second] = chats[0]?.[1] ?? [];
  expect(canonical(first?.body ?? {})).not.toEqual(canonical(second?.body ?? {}));
});

test.each(chats)("%s gets every key that was recorded", async (_, exchanges) => {
  const lines = exchanges.map(({ body }) =>
    body.messages.some(({ role }) => role === "tool") || !body.tools ? "Sunny." : (TURNS[0] as string),
  );
  const answers = await play(exchanges, lines);
  for (const [index, { body, response }] of exchanges.entries()) {
    const asksUsage = (body.stream_options as { include_usage?: boolean } | undefined)?.include_usage === true;
    const ours = answers[index];
    if (response.json) expect(missing(response.json, ours?.json)).toEqual([]);
    for (const recorded of response.sse ?? []) {
      // the recording stub sent a chunk of usage alone to everyone; ours comes with the last choice unless it was asked for
      const event = "usage" in recorded && !asksUsage ? { usage: recorded.usage } : recorded;
      // our own cuts differ: the recorded event is found in one of ours
      expect(
        (ours?.sse ?? []).some((candidate) => missing(event, candidate).length === 0),
        JSON.stringify(event),
      ).toBe(true);
    }
  }
});

/** Words that steer a client must be equal, not only present. */
const STEERING = new Set(["finish_reason", "role", "type", "index", "name"]);
const isWithin = (wanted: unknown, got: unknown): boolean => {
  if (typeof wanted !== "object" || wanted === null) return typeof wanted === typeof got;
  if (typeof got !== "object" || got === null) return false;
  return Object.entries(wanted).every(([key, value]) => {
    const other = (got as Fields)[key];
    return STEERING.has(key) ? value === other : isWithin(value, other);
  });
};

test.each(minimal)("%s is a part of our answers", async (_, { kind, turn1, turn2 }) => {
  const [first, second] = (chats.find(([, exchanges]) => exchanges.every(isScenario))?.[1] ?? []) as [Exchange, Exchange];
  const stream = kind === "chatStream";
  const asked = [first, second].map((exchange) => ({
    ...exchange,
    body: { ...exchange.body, stream, stream_options: { include_usage: true } },
  }));
  const answers = await play(asked, TURNS);
  for (const [index, wanted] of [turn1, turn2].entries()) {
    const ours = answers[index];
    if (!stream) {
      expect(isWithin(wanted, ours?.json)).toBe(true);
      continue;
    }
    let from = 0;
    for (const event of wanted as Fields[]) {
      // text arrives in other pieces than the recorded two: look again from the same event
      const at = (ours?.sse ?? []).findIndex((candidate, place) => place >= from && isWithin(event, candidate));
      expect(at, JSON.stringify(event)).toBeGreaterThanOrEqual(0);
      from = at;
    }
  }
});

test("a missing key would be seen", () => {
  expect(missing({ a: [{ b: 1 }] }, { a: [{ c: 1 }] })).toEqual([".a[0].b"]);
  expect(missing({ a: 1 }, { a: "1" })).toEqual([".a: string"]);
  expect(isWithin({ choices: [{ finish_reason: "stop" }] }, { choices: [{ finish_reason: "length" }] })).toBe(false);
});

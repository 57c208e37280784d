// What lies between an agent and a file store: the price of capture, and rollouts end to end. The sampler says a line that is
// written down, so that nothing of a model is measured.
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { type Agent, createEndpoint, createRunner } from "@fulgurite/agent";
import type { Completion, Sampler } from "@fulgurite/engine";
import { createMemoryStore, type Store } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import { tinyFormat } from "../unit/agent/scripted.ts";
import { type Bench, inRounds, seconds } from "./figures.ts";
import { remove } from "./storeContestants.ts";

const format = tinyFormat();
const LINE = format.encode("The answer to the question is forty-two.");
const ANSWER: Completion = {
  tokens: Int32Array.of(...LINE, format.stopTokens[0] as number),
  logprobs: Float32Array.from({ length: LINE.length + 1 }, (_, index) => -(index + 1) / 8),
  finishReason: "stop",
  policyVersion: 1,
};
const sampler: Sampler = { limits: { maxContext: 4096, vocabSize: format.vocabSize }, policyVersion: 1, generate: async () => ANSWER };

let asked = 0;
/** Words that nobody said before. */
const newQuestion = (): string => `What is ${++asked} times seven? Answer with the number alone.`;

const ask = async (
  openai: { readonly baseURL: string; readonly fetch: typeof fetch },
  content = "What is six times seven? Answer with the number alone.",
): Promise<string> => {
  const response = await openai.fetch(`${openai.baseURL}/chat/completions`, {
    method: "POST",
    body: JSON.stringify({
      model: "policy",
      messages: [{ role: "user", content }],
    }),
  });
  return ((await response.json()) as { choices: { message: { content: string } }[] }).choices[0]!.message.content;
};

const ATTEMPTS = 64;

/** Microseconds of processor time: what others do on the machine changes them least. */
const cpuTime = async (act: () => Promise<unknown>): Promise<number> => {
  const before = process.cpuUsage();
  await act();
  const { user, system } = process.cpuUsage(before);
  return user + system;
};

/** Microseconds a call, of `calls` calls in 64 attempts at once, until every span was appended. */
const callTime = async (store: Store, calls: number, question?: () => string): Promise<number> => {
  const endpoint = createEndpoint({ sampler, format, store });
  await store.enqueue(Array.from({ length: ATTEMPTS }, () => ({ input: null })));
  const claims = await store.claim("bench", ATTEMPTS);
  const spent = await cpuTime(() =>
    Promise.all(
      claims.map(async ({ attempt }) => {
        const opened = endpoint.open(attempt, { mode: "train", temperature: 1, maxTokens: 256, seed: 1 });
        for (let call = 0; call < calls / ATTEMPTS; call++) await ask(opened.openai, question?.());
        const { captureFailures } = await opened.close();
        if (captureFailures > 0) throw new Error(`${captureFailures} calls were not captured; run it by hand`);
      }),
    ),
  );
  return spent / calls;
};

/** Takes spans and keeps nothing. */
const deaf = (): Store => ({ ...createMemoryStore(), append: async () => {} });

export const benchCapture = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("capture")) return;
  const calls = ATTEMPTS * (bench.isQuick ? 4 : 32);
  const folder = mkdtempSync(join(root, "capture-"));
  const store = await openFileStore(folder);
  await callTime(deaf(), calls); // the first calls are compiled
  const found = await inRounds(bench.isQuick ? 3 : 9, {
    files: () => callTime(store, calls),
    filesOfNew: () => callTime(store, calls, newQuestion),
    deaf: () => callTime(deaf(), calls),
    bare: async () => {
      const prompt = format.encode("What is six times seven?");
      const request = { prompt, maxTokens: 256, temperature: 1, stopTokens: format.stopTokens, seed: 1 };
      const spent = await cpuTime(async () => {
        for (let call = 0; call < calls; call++) format.decode((await sampler.generate(request)).tokens);
      });
      return spent / calls;
    },
  });
  bench.print({ name: "capture into files, a model call, CPU", ours: found.files - found.deaf, peer: null, peerName: null, unit: "µs" });
  bench.print({ name: "endpoint and capture, a model call, CPU", ours: found.files - found.bare, peer: null, peerName: null, unit: "µs" });
  bench.print({
    name: "endpoint and capture, each prompt new, CPU",
    ours: found.filesOfNew - found.bare,
    peer: null,
    peerName: null,
    unit: "µs",
  });
  await store.close();
  remove(folder);
};

/** The best that Agent Lightning 0.3 publishes for its own store, on its authors' machine. */
const AGENT_LIGHTNING = { peer: 57, peerName: "Agent Lightning 0.3, as published" };

export const benchRollouts = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("rollouts")) return;
  const count = bench.isQuick ? 200 : 4_000;
  const folder = mkdtempSync(join(root, "rollouts-"));
  const store = await openFileStore(folder);
  const endpoint = createEndpoint({ sampler, format, store });
  const rate = async (agent: Agent): Promise<number> => {
    const runner = createRunner({ store, endpoint, agent });
    const spent = await seconds(async () => {
      const rollouts = await store.enqueue(Array.from({ length: count }, (_, index) => ({ input: { question: index } })));
      await runner.drain();
      const ended = await store.waitFor(rollouts.map(({ id }) => id));
      if (ended.some(({ status }) => status !== "succeeded"))
        throw new Error("every rollout succeeds, got one that did not; run it by hand");
    });
    return count / spent;
  };
  const found = await inRounds(bench.isQuick ? 2 : 5, {
    trivial: () => rate(async () => 1),
    asking: () => rate(async (_, { openai }) => ((await ask(openai)).includes("forty-two") ? 1 : 0)),
    askingNew: () => rate(async (_, { openai }) => ((await ask(openai, newQuestion())).includes("forty-two") ? 1 : 0)),
  });
  bench.print({ name: "rollouts, an agent that only answers", ours: found.trivial, ...AGENT_LIGHTNING, unit: "rollouts/s" });
  bench.print({ name: "rollouts, an agent of one model call", ours: found.asking, ...AGENT_LIGHTNING, unit: "rollouts/s" });
  bench.print({ name: "rollouts, one model call, each prompt new", ours: found.askingNew, ...AGENT_LIGHTNING, unit: "rollouts/s" });
  await store.close();
  remove(folder);
};

// agent in the runtime of Cloudflare's workers: what agents in a worker and agents elsewhere say through it is captured as it is in Node.
import { createMemoryStore, type Json, type Store } from "@fulgurite/trace";
import { serveStore } from "@fulgurite/trace/http";
import { type Listener, listen } from "@fulgurite/trace/node";
import { afterAll, beforeAll, describe, expect } from "vitest";
import { chatAt, converse, drain, plainTransitions, rehearsedRunner, SAID, spansOf } from "./rehearsal.ts";
import { isWorkerdThere, type RunningWorker, scenario, startWorker } from "./workerd.ts";

let worker: RunningWorker;
let store: Store;
let served: Listener;

beforeAll(async () => {
  if (!isWorkerdThere) return;
  store = createMemoryStore();
  served = await listen(serveStore(store, { authorize: (asked) => asked.headers.get("authorization") === "Bearer edge-key" }));
  worker = await startWorker("agentWorker.ts", { bindings: { STORE: served.url, TOKEN: "edge-key" }, durableObjects: ["Rollouts"] });
  console.log(
    `gzip: ${Object.entries(worker.gzipBytes)
      .map((file) => file.join(" "))
      .join(", ")}`,
  );
}, 120_000);

afterAll(async () => {
  await worker?.stop();
  await served?.close(0);
});

const post = async <T>(path: string, body: unknown = {}, method = "POST"): Promise<T> => {
  const response = await fetch(`${worker.url}${path}`, { method, ...(method !== "GET" && { body: JSON.stringify(body) }) });
  const text = await response.text();
  if (!response.ok) throw new Error(`${path}: ${text}; ${worker.said()}`);
  return JSON.parse(text) as T;
};

/** What Node captures of the same rollout. */
const inNode = async (id: string): Promise<Json> => {
  const own = createMemoryStore();
  await own.enqueue([{ id, input: "ask" }]);
  await drain(rehearsedRunner(own));
  return plainTransitions(await spansOf(own, id));
};

scenario("the worker has nothing of Node or of a page", async () => {
  expect(await post("/about", undefined, "GET")).toEqual([]);
});

scenario("agents in the worker: the runner drains a queue, and the transitions are those of Node", async () => {
  const tasks = ["a", "b", "c", "d", "e"].map((id) => ({ id, input: "ask" }));
  const hanging = { id: "z", input: "hangs", config: { maxAttempts: 1, timeoutMs: 50 } };
  const { ended, transitions } = await post<{ ended: string[]; transitions: Record<string, Json> }>("/drain/memory", [...tasks, hanging]);
  expect(ended).toEqual([...tasks.map(({ id }) => `${id} succeeded`), "z failed"]);
  for (const { id } of tasks) expect(transitions[id]).toEqual(await inNode(id));
  const [call, answer, kept, stream] = transitions.a as { responseTokens: number[]; samplerLogprobs: number[]; reward?: number }[];
  expect(new TextDecoder().decode(Uint8Array.from(answer!.responseTokens.slice(0, -1)))).toBe("It is 7 °C there.");
  expect(answer!.samplerLogprobs.slice(0, 3)).toEqual([-0.125, -0.25, -0.375]);
  expect([call, answer, kept, stream].map((transition) => transition?.reward)).toEqual([undefined, undefined, undefined, 1.25]);
});

scenario("agents in the worker, the store outside of it", async () => {
  await store.enqueue(["f", "g"].map((id) => ({ id, input: "ask" })));
  expect(await post("/drain/http")).toEqual({ ended: ["f succeeded", "g succeeded"] });
  for (const id of ["f", "g"]) expect(plainTransitions(await spansOf(store, id))).toEqual(await inNode(id));
});

for (const place of ["module", "object"])
  for (const kind of ["memory", "http"])
    describe(`the endpoint served by a worker, kept by the ${place}, its spans in a ${kind} store`, () => {
      const base = `/${place}/${kind}`;
      const about = <T>(id: string, what: string) => post<T>(`${base}${what}?id=${id}`);
      const open = async (id: string) => {
        const { apiKey } = await about<{ apiKey: string }>(id, "/open");
        return chatAt({ baseURL: `${worker.url}${base}/v1`, apiKey });
      };
      const takeYourTime = { messages: [{ role: "user", content: "Take your time" }] };

      scenario("an agent elsewhere talks to it, each call a request of its own", async () => {
        const id = `${place}-${kind}`;
        const ask = await open(id);
        expect(await converse(ask)).toEqual(SAID);
        expect(await about(id, "/close")).toMatchObject({ calls: 4, exact: 2, captureFailures: 0 });
        const expected = (await inNode(id)) as { reward?: number }[];
        expect(await about(id, "/spans")).toEqual({
          transitions: expected.map(({ reward: _, ...transition }) => transition),
          reasons: ["tool_calls", "stop", "stop", "stop"],
        });
        expect((await ask(takeYourTime)).status).toBe(401);
      });

      scenario("a client that leaves in the middle of a stream is recorded, and its attempt closes", async () => {
        const id = `${place}-${kind}-leaves`;
        const ask = await open(id);
        const reader = (await ask({ ...takeYourTime, stream: true })).body!.getReader();
        await reader.read();
        await reader.cancel();
        expect(await about(id, "/close")).toMatchObject({ calls: 1, captureFailures: 0 });
        expect(await about(id, "/spans")).toMatchObject({ reasons: ["aborted"] });
      });

      scenario("an attempt that is closed in the middle of a call of another request ends that call", async () => {
        const id = `${place}-${kind}-closes`;
        const ask = await open(id);
        const answer = ask(takeYourTime);
        while ((await about(id, "/running")) === 0);
        expect(await about(id, "/close")).toMatchObject({ calls: 1, captureFailures: 0 });
        expect((await answer).status).toBe(401);
        expect(await about(id, "/spans")).toMatchObject({ reasons: ["aborted"] });
      });
    });

scenario("workerd complained of nothing but streams whose attempt was closed under them", async () => {
  const lines = worker.said().split("\n");
  expect(lines.filter((said) => said !== "" && !said.includes("AgentError: endpoint: the attempt must be open"))).toEqual([]);
});

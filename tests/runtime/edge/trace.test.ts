// trace in the runtime of Cloudflare's workers: a memory store, served over fetch by a worker, used from here as any other store.
import { createMemoryStore, exportStore, importStore, rewardOf, rewardSpan, type StoredSpan } from "@fulgurite/trace";
import { openHttpStore } from "@fulgurite/trace/http";
import { afterAll, beforeAll, expect } from "vitest";
import { isWorkerdThere, type RunningWorker, scenario, startWorker } from "./workerd.ts";

let worker: RunningWorker;

beforeAll(async () => {
  if (isWorkerdThere) worker = await startWorker("traceWorker.ts", { bindings: { TOKEN: "edge-key" } });
}, 120_000);

afterAll(() => worker?.stop());

scenario("the worker has nothing of Node or of a page, and trace loads in it", async () => {
  const { found, id } = (await (await fetch(`${worker.url}/about`)).json()) as { found: string[]; id: string };
  expect(found).toEqual([]);
  expect(id).toMatch(/^[0-9a-z]{26}$/);
});

scenario("a rollout lives its life in the worker's memory store, and the whole store comes out of it", async () => {
  await expect(openHttpStore(worker.url).stats()).rejects.toMatchObject({ code: "denied" });
  const store = openHttpStore(worker.url, { token: "edge-key" });
  await store.enqueue([
    { id: "a", input: { question: "1+1" } },
    { id: "b", input: 2 },
  ]);
  const [claim] = await store.claim("w", 1);
  expect(claim!.rollout.id).toBe("a");
  const attempt = { rolloutId: "a", id: claim!.attempt.id };
  await store.append([
    { ...rewardSpan({ attempt, id: "0000000000000001", atMs: 1, value: 0.5 }), name: "reward" },
    {
      rolloutId: "a",
      attemptId: attempt.id,
      id: "0000000000000002",
      name: "call",
      startMs: 1,
      endMs: 2,
      status: "ok",
      attributes: { tokens: Int32Array.of(1, -2) },
    },
  ]);
  expect((await store.finish(attempt, { status: "succeeded" })).status).toBe("succeeded");
  expect((await store.waitFor(["a"]))[0]!.status).toBe("succeeded");
  await store.publish({ name: "p", kind: "lora", files: { w: Uint8Array.of(1, 2, 3) } });
  expect((await store.resource("p"))?.manifest.w?.sha256).toMatch(/^039058c6/);
  const copy = createMemoryStore();
  await importStore(copy, exportStore(store));
  const spans: StoredSpan[] = [];
  for await (const span of copy.spans({ rolloutId: "a" })) spans.push(span);
  expect(rewardOf(spans)).toBe(0.5);
  expect(spans[1]!.attributes.tokens).toEqual(Int32Array.of(1, -2));
  expect(await copy.stats()).toEqual(await store.stats());
  await store.close();
  expect(worker.said()).toBe("");
});

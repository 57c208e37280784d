// A model folder in a page: Vite's server is the host, the Cache API of this Chromium the cache.

import { beforeEach, describe, expect, test } from "vitest";
import { openWebCache } from "../../packages/fulgurite/src/browser/webCache.ts";
import { openModelFolder } from "../../packages/fulgurite/src/modelFiles.ts";
import { modelCacheCases } from "../conformance/modelCacheCases.ts";

beforeEach(async () => {
  for (const name of await caches.keys()) await caches.delete(name);
});

const entries = async (): Promise<{ cache: Cache; requests: readonly Request[] }> => {
  const [name] = await caches.keys();
  const cache = await caches.open(name!);
  return { cache, requests: await cache.keys() };
};

describe("the cache", () => {
  modelCacheCases({
    open: async () => openWebCache(caches),
    damage: async () => {
      const { cache, requests } = await entries();
      const entry = (await cache.match(requests[0]!))!;
      const bytes = new Uint8Array(await entry.arrayBuffer());
      bytes[1000]! ^= 1;
      await cache.put(requests[0]!, new Response(bytes, { headers: entry.headers }));
    },
  });
});

const SOURCE = "/tests/golden/families/llama";

test("a folder beside the page is read, kept, and read again from the cache", async () => {
  const read = async (): Promise<{ size: number; absent: unknown; parts: number }> => {
    let parts = 0;
    const folder = await openModelFolder(SOURCE, {
      onProgress: ({ file, bytes }) => void (file === "model.safetensors" && bytes > 0 && parts++),
    });
    await folder.read("config.json");
    const absent = await folder.readOptional("chat_template.jinja");
    const weights = (await folder.readWeights()) as Uint8Array;
    return { size: weights.length, absent, parts };
  };
  const first = await read();
  expect(first.size).toBeGreaterThan(100_000);
  expect(first.absent).toBeUndefined();
  expect(first.parts).toBeGreaterThanOrEqual(2);
  expect((await entries()).requests).toHaveLength(2);
  // From the cache there is only the last report of a file.
  expect(await read()).toEqual({ ...first, parts: 1 });
});

test("a cache without room is reported once, and the files come all the same", async () => {
  const put = Cache.prototype.put;
  Cache.prototype.put = () => Promise.reject(new DOMException("full", "QuotaExceededError"));
  try {
    const reports: string[] = [];
    const folder = await openModelFolder(SOURCE, { onReport: (message) => void reports.push(message) });
    expect((await folder.read("config.json")).length).toBeGreaterThan(100);
    expect(((await folder.readWeights()) as Uint8Array).length).toBeGreaterThan(100_000);
    expect(reports).toEqual(['loadPolicy: the cache keeps model files, got "full"; they are loaded without it']);
  } finally {
    Cache.prototype.put = put;
  }
});

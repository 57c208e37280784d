// Converted weights in this Chromium: the private file system in workers, and the Cache API where there is none.

import { beforeEach, describe, expect, test } from "vitest";
import { openCachedFiles } from "../../packages/fulgurite/src/browser/convertedFiles.ts";
import type { WeightsAnswer, WeightsAsked } from "./weightsWorker.ts";

const SOURCE = new URL("/tests/golden/families/llama/", location.href).href;

beforeEach(async () => {
  for (const name of await caches.keys()) await caches.delete(name);
  const root = await navigator.storage.getDirectory();
  await root.removeEntry("fulgurite-weights", { recursive: true }).catch(() => {});
});

const load = async (damage?: WeightsAsked["damage"]): Promise<WeightsAnswer> => {
  const config = new Uint8Array(await (await fetch(`${SOURCE}config.json`)).arrayBuffer());
  const worker = new Worker(new URL("./weightsWorker.ts", import.meta.url), { type: "module" });
  try {
    return await new Promise<WeightsAnswer>((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage({ source: SOURCE, config, ...(damage && { damage }) } satisfies WeightsAsked);
    });
  } finally {
    worker.terminate();
  }
};

describe("the private file system", () => {
  test("keeps what was converted, and a second worker computes the same from it", async () => {
    const first = await load();
    expect(first.error).toBeUndefined();
    expect(first.reports).toEqual([]);
    expect(first.files).toEqual([expect.stringMatching(/^[0-9a-f]{64}\.fulg$/)]);
    expect(first.logprobs).toHaveLength(4);
    const again = await load();
    expect(again).toEqual({ ...first, requests: again.requests });
    // the server is asked which version it has, and no body is read
    expect(again.requests.filter((request) => request.endsWith("model.safetensors"))).toHaveLength(1);
  });

  test.each(["cut", "flip"] as const)("a file that was %s is a miss, and is mended", async (damage) => {
    const first = await load();
    const mended = await load(damage);
    expect(mended.logprobs).toEqual(first.logprobs);
    expect(mended.files).toEqual(first.files);
    expect((await load()).logprobs).toEqual(first.logprobs);
  });

  test("two tabs that load the same model at once leave one whole file", async () => {
    const [one, two] = await Promise.all([load(), load()]);
    expect([one.error, two.error]).toEqual([undefined, undefined]);
    expect(two.logprobs).toEqual(one.logprobs);
    const after = await load();
    expect(after.logprobs).toEqual(one.logprobs);
    expect(after.files).toHaveLength(1);
  });
});

describe("the Cache API in its place", () => {
  const part = (fill: number): Uint8Array => new Uint8Array(100_000).fill(fill);

  test("keeps a body that comes in parts, and replaces it at commit and not before", async () => {
    const entry = openCachedFiles(caches).entry("m", "m 1");
    expect(await entry.open()).toBeUndefined();
    const write = async (fill: number, end: "commit" | "abort"): Promise<void> => {
      const writer = await entry.create();
      await writer.write(part(fill));
      await writer.write(part(fill + 1));
      await writer[end]();
    };
    await write(1, "commit");
    await write(3, "abort");
    const file = (await entry.open())!;
    expect(file.byteLength).toBe(200_000);
    expect(await file.read(99_999, 2)).toEqual(Uint8Array.of(1, 2));
    await write(5, "commit");
    expect(await (await entry.open())!.read(0, 1)).toEqual(Uint8Array.of(5));
    await entry.remove();
    expect(await entry.open()).toBeUndefined();
  });
});

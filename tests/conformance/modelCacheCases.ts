// What every cache of model files does. node: folders; browser: the Cache API.

import { expect, test } from "vitest";
import type { ModelCache } from "../../packages/fulgurite/src/modelCache.ts";

/** `damage` changes one byte of the only entry where it is stored. */
export interface CacheUnderTest {
  readonly open: () => Promise<ModelCache>;
  readonly damage: () => Promise<void>;
}

const NAME = "https://hub.example/owner/repo@refs/pr/1/model.safetensors?é";
const VERSION = 'W/"ü 33a64df5"';
const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 31) % 251);

export const modelCacheCases = ({ open, damage }: CacheUnderTest): void => {
  test("an entry comes back whole, also to who opens the cache later", async () => {
    await (await open()).write(NAME, VERSION, bytes);
    expect(await (await open()).read(NAME, VERSION)).toEqual(bytes);
  });

  test("a view of a larger buffer is kept as the view; an empty entry is one", async () => {
    const cache = await open();
    await cache.write(NAME, VERSION, bytes.subarray(10, 20));
    expect(await cache.read(NAME, VERSION)).toEqual(bytes.slice(10, 20));
    await cache.write(NAME, VERSION, new Uint8Array(0));
    expect(await cache.read(NAME, VERSION)).toEqual(new Uint8Array(0));
  });

  test("another name or version is a miss", async () => {
    const cache = await open();
    await cache.write(NAME, VERSION, bytes);
    expect(await cache.read(`${NAME}x`, VERSION)).toBeUndefined();
    expect(await cache.read(NAME, '"33a64df5"')).toBeUndefined();
  });

  test("a new version takes the old one's place", async () => {
    const cache = await open();
    await cache.write(NAME, "1", bytes);
    await cache.write(NAME, "2", bytes.subarray(1));
    expect(await cache.read(NAME, "1")).toBeUndefined();
    expect((await cache.read(NAME, "2"))?.length).toBe(bytes.length - 1);
  });

  test("a changed byte is a miss, which the next write mends", async () => {
    const cache = await open();
    await cache.write(NAME, VERSION, bytes);
    await damage();
    expect(await cache.read(NAME, VERSION)).toBeUndefined();
    await cache.write(NAME, VERSION, bytes);
    expect(await cache.read(NAME, VERSION)).toEqual(bytes);
  });

  test("what was removed is a miss; removing what is not there is fine", async () => {
    const cache = await open();
    await cache.write(NAME, VERSION, bytes);
    await cache.remove(NAME);
    await cache.remove(NAME);
    expect(await cache.read(NAME, VERSION)).toBeUndefined();
  });

  test("writes at the same time leave one of them, or a miss, and no third thing", async () => {
    const cache = await open();
    const versions = ["1", "2", "3", "4", "5", "6", "7", "8"];
    await Promise.all(versions.map((version, i) => cache.write(NAME, version, bytes.subarray(i))));
    for (const [i, version] of versions.entries()) {
      const found = await cache.read(NAME, version);
      if (found) expect(found).toEqual(bytes.slice(i));
    }
    await cache.write(NAME, "9", bytes);
    expect(await cache.read(NAME, "9")).toEqual(bytes);
  });

  test("an aborted write leaves what was there", async () => {
    const cache = await open();
    await cache.write(NAME, VERSION, bytes);
    await expect(cache.write(NAME, VERSION, bytes.subarray(1), AbortSignal.abort())).rejects.toThrow();
    expect(await cache.read(NAME, VERSION)).toEqual(bytes);
  });
};

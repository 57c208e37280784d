import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openFolderCache } from "../../../packages/fulgurite/src/node/folderCache.ts";
import { modelCacheCases } from "../../conformance/modelCacheCases.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fulgurite-cache-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

modelCacheCases({
  open: async () => openFolderCache(join(folder, "deep/er")),
  damage: async () => {
    const place = join(folder, "deep/er");
    const path = join(place, readdirSync(place).find((name) => !name.endsWith(".json"))!);
    const bytes = readFileSync(path);
    bytes[1000]! ^= 1;
    writeFileSync(path, bytes);
  },
});

test("a failed or finished write leaves no temporary file", async () => {
  const cache = openFolderCache(folder);
  await cache.write("a", "1", new Uint8Array(10));
  await expect(cache.write("b", "1", new Uint8Array(10), AbortSignal.abort())).rejects.toThrow();
  expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
  expect(readdirSync(folder)).toHaveLength(2);
});

test("an abort ends a read", async () => {
  const cache = openFolderCache(folder);
  await cache.write("a", "1", new Uint8Array(10));
  await expect(cache.read("a", "1", AbortSignal.abort())).rejects.toThrow();
});

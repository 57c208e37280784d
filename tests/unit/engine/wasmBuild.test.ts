// The build of the kernels: it compiles when sources change, does nothing when they have not, and says what is wrong with them.

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, expect, test } from "vitest";

type BuildWasm = (options: { sourceFolder: string; target: string }) => Promise<boolean>;

let folder: string;
let build: () => Promise<boolean>;
const writeSource = (text: string): void => writeFileSync(join(folder, "index.ts"), text);

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "fulgurite-wasm-"));
  const path = new URL("../../../packages/engine/scripts/buildWasm.mjs", import.meta.url).href;
  const { buildWasm } = (await import(path)) as { buildWasm: BuildWasm };
  build = () => buildWasm({ sourceFolder: folder, target: join(folder, "out", "kernels.ts") });
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs the exported function of the single-thread build that the target holds. */
const answer = async (): Promise<unknown> => {
  const text = readFileSync(join(folder, "out", "kernels.ts"), "utf8");
  const bytes = Buffer.from(text.match(/single: "([^"]+)"/)![1]!, "base64");
  const { instance } = await WebAssembly.instantiate(bytes, { env: { memory: new WebAssembly.Memory({ initial: 1 }) } });
  return (instance.exports.answer as () => number)();
};

test("it compiles new and changed sources and skips unchanged ones", async () => {
  const target = join(folder, "out", "kernels.ts");
  writeSource("export function answer(): i32 { return 41; }");
  expect(await build()).toBe(true);
  expect(await answer()).toBe(41);
  const { mtimeMs } = statSync(target);
  expect(await build()).toBe(false);
  expect(statSync(target).mtimeMs).toBe(mtimeMs);
  writeSource("export function answer(): i32 { return 42; }");
  expect(await build()).toBe(true);
  expect(await answer()).toBe(42);
});

test("a source that does not compile is an error with the compiler's words, and the last good build stays", async () => {
  writeSource("export function answer(): i32 { return missing; }");
  await expect(build()).rejects.toThrow("Cannot find name 'missing'");
  expect(await answer()).toBe(42);
});

test("the kernels that everybody downloads are at most 60 kB, compressed", () => {
  const kernels = readFileSync(new URL("../../../packages/engine/src/wasm/kernels.ts", import.meta.url));
  expect(gzipSync(kernels).length).toBeLessThan(60_000);
});

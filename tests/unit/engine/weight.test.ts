// What the engine weighs in a page: its JavaScript with every executor and its dependencies, and its WASM kernels. 1 kB is 1000 bytes.
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { KERNELS } from "../../../packages/engine/src/wasm/kernels.ts";
import { bundle } from "../bundle.ts";

const gzip = (content: string | Uint8Array): number => gzipSync(content, { level: 9 }).length;

test("the engine weighs at most 80 kB of JavaScript and 60 kB of WASM", async () => {
  // the kernels are text inside a module: weighed as the binaries that they are, and left out of the JavaScript
  const stub = `export const KERNELS = { single: "", threaded: "" };`;
  const code = await bundle("engine", `export * from "./index.ts";`, { "wasm/kernels.ts": stub });
  const script = gzip(code);
  const wasm = [KERNELS.single, KERNELS.threaded].map((text) => gzip(Buffer.from(text, "base64")));
  console.log(`gzip: ${script} of JavaScript, ${wasm.join(" and ")} of WASM`);
  expect(code).toContain("@workgroup_size"); // the shaders are in it
  expect(script).toBeGreaterThan(30_000); // it measures something
  expect(script).toBeLessThanOrEqual(80_000);
  expect(wasm.reduce((sum, size) => sum + size, 0)).toBeLessThanOrEqual(60_000);
  // a package that only Node has, and a graph format that only exports need
  expect(code).not.toMatch(/["']node:/);
  expect(code).not.toContain("past_key_values");
});

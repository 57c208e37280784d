// The core of trace loads where there is nothing but the language: no Node, no DOM, no timers.
import { join } from "node:path";
import { createContext, runInContext } from "node:vm";
import { build } from "vite";
import { expect, test } from "vitest";

test("importing the core touches no global", async () => {
  const built = await build({
    configFile: false,
    logLevel: "silent",
    build: {
      write: false,
      minify: false,
      lib: { entry: join(import.meta.dirname, "../../../packages/trace/src/index.ts"), name: "trace", formats: ["iife"] },
    },
  });
  const { output } = (Array.isArray(built) ? built[0] : built) as { output: { code: string }[] };
  const code = output[0]!.code;
  expect(code).not.toMatch(/node:|require\(/);
  const context = createContext({}, { codeGeneration: { strings: false, wasm: false } });
  runInContext(code, context);
  expect(runInContext("Object.keys(trace).sort().join()", context)).toContain("createMemoryStore");
  expect(runInContext("[typeof process, typeof setTimeout, typeof crypto, typeof indexedDB].join()", context)).toBe(
    "undefined,undefined,undefined,undefined",
  );
});

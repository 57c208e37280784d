// What trace weighs in a page or an edge worker, and that it runs on nothing but web standards. 1 kB is 1000 bytes.
import { createContext, runInContext } from "node:vm";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { bundle } from "../bundle.ts";

const weigh = async (code: string): Promise<number> => gzipSync(await bundle("trace", code), { level: 9 }).length;

test("everything of trace's main entry weighs at most 12 kB without a store, and 20 kB with IndexedDB", async () => {
  const names = Object.keys(await import("@fulgurite/trace")).filter((name) => name !== "createMemoryStore");
  const withoutStore = `export { ${names.join(", ")} } from "./index.ts";`;
  const without = await weigh(withoutStore);
  const withMemory = await weigh(`export * from "./index.ts";`);
  const withIndexedDb = await weigh(`${withoutStore} export * from "./indexedDb/index.ts";`);
  const withBoth = await weigh(`export * from "./index.ts"; export * from "./indexedDb/index.ts";`);
  const http = await weigh(`export * from "./http/index.ts";`);
  console.log(
    `gzip: ${without} without a store, ${withMemory} with memory, ${withIndexedDb} with IndexedDB, ${withBoth} with both; ${http} HTTP alone`,
  );
  expect(without).toBeGreaterThan(3_000); // it measures something
  expect(without).toBeLessThanOrEqual(12_000);
  expect(withIndexedDb).toBeLessThanOrEqual(20_000);
});

test("with web standards alone it stores, serves over fetch and asks itself", async () => {
  const code = await bundle(
    "trace",
    `
    import { createMemoryStore, TraceError, exportStore } from "./index.ts";
    import { openHttpStore, serveStore } from "./http/index.ts";
    globalThis.tried = async () => {
      const serve = serveStore(createMemoryStore());
      const store = openHttpStore("http://edge.test", { fetch: (url, init) => serve(new Request(url, init)) });
      await store.enqueue([{ id: "a", input: { question: "1+1" } }]);
      const [{ attempt }] = await store.claim("w");
      const span = { rolloutId: "a", attemptId: attempt.id, id: "s", name: "n", startMs: 0, endMs: 1, status: "ok" };
      await store.append([{ ...span, attributes: { tokens: Int32Array.of(1, 2), authorization: "Bearer secret" } }]);
      await store.publish({ name: "p", kind: "lora", files: { w: new Uint8Array(5) } });
      const { status } = await store.finish(attempt, { status: "succeeded" });
      const text = await new Response(exportStore(store)).text();
      const { manifest } = await store.resource("p");
      return JSON.stringify({ status, isSecretGone: !text.includes("secret"), lines: text.split("\\n").length, sha256: manifest.w.sha256.slice(0, 8) });
    };
  `,
  );
  expect(code).not.toMatch(/\brequire\(|["']node:|\bprocess\b|\bBuffer\b|\bwindow\b|\bdocument\b/);
  const web = { Request, Response, Headers, URL, URLSearchParams, TextEncoder, TextDecoder, ReadableStream, AbortController, AbortSignal };
  const rest = { crypto, setTimeout, clearTimeout, queueMicrotask, btoa, atob, fetch: undefined, DOMException };
  const views = { Uint8Array, Int32Array, Float32Array, ArrayBuffer }; // the realm of what they are given to
  const context = createContext({ ...web, ...rest, ...views });
  runInContext(code, context);
  const tried = (await runInContext("tried()", context)) as string;
  expect(JSON.parse(tried)).toEqual({ status: "succeeded", isSecretGone: true, lines: 7, sha256: "8855508a" });
});

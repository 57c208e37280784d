// trace in the runtime of Cloudflare's workers: a memory store, served over fetch by a worker, used from here as any other store.
// workerd weighs 130 MB, so it is a peer: npm ci --prefix tests/peers/edge.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createMemoryStore, exportStore, importStore, rewardOf, rewardSpan, type StoredSpan } from "@fulgurite/trace";
import { openHttpStore } from "@fulgurite/trace/http";
import { build } from "vite";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");
const workerd = process.env.WORKERD_PATH ?? join(root, "tests/peers/edge/node_modules/workerd/bin/workerd");
const isThere = existsSync(workerd);
const scenario = isThere
  ? test
  : (title: string, _body: () => unknown) => test.skip(`${title} (workerd is not installed: npm ci --prefix tests/peers/edge)`, () => {});

const WORKER = `
import { createMemoryStore, mintId } from "@fulgurite/trace";
import { serveStore } from "@fulgurite/trace/http";

const missing = ["process", "Buffer", "require", "indexedDB", "document"].filter((name) => name in globalThis);
let serve; // made with the first request: a worker may not ask for randomness before
export default {
  async fetch(request, env) {
    if (new URL(request.url).pathname === "/about") return Response.json({ found: missing, id: mintId(Date.now()) });
    serve ??= serveStore(createMemoryStore(), { authorize: (asked) => asked.headers.get("authorization") === "Bearer " + env.TOKEN });
    return serve(request);
  },
};
`;

const CONFIG = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .trace)],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
const trace :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  bindings = [(name = "TOKEN", text = "edge-key")],
  compatibilityDate = "2026-01-01",
);
`;

const folder = mkdtempSync(join(tmpdir(), "fulgurite-workerd-"));
let child: ChildProcess | undefined;
let url = "";
let said = "";

beforeAll(async () => {
  if (!isThere) return;
  const entry = join(root, "packages/trace/src/worker.ts"); // is nowhere: its text is WORKER
  await build({
    configFile: false,
    logLevel: "silent",
    resolve: { conditions: ["@fulgurite/source", "workerd", "module", "import", "default"] },
    plugins: [
      { name: "worker", enforce: "pre", resolveId: (id) => (id === entry ? entry : null), load: (id) => (id === entry ? WORKER : null) },
    ],
    build: {
      outDir: folder,
      emptyOutDir: false,
      target: "es2022",
      modulePreload: false,
      rolldownOptions: { input: entry, preserveEntrySignatures: "strict", output: { format: "esm", entryFileNames: "worker.js" } },
    },
  });
  writeFileSync(join(folder, "config.capnp"), CONFIG);
  const started = spawn(workerd, ["serve", join(folder, "config.capnp"), "--control-fd=3"], { stdio: ["ignore", "pipe", "pipe", "pipe"] });
  child = started;
  for (const stream of [started.stdout, started.stderr]) stream?.on("data", (chunk) => (said += chunk));
  url = await new Promise<string>((resolve, reject) => {
    let events = "";
    started.stdio[3]?.on("data", (chunk) => {
      events += chunk;
      const port = /"event":"listen","socket":"http","port":(\d+)/.exec(events)?.[1];
      if (port !== undefined) resolve(`http://127.0.0.1:${port}`);
    });
    started.on("close", (code) => reject(new Error(`workerd must serve, got exit ${code}: ${said}`)));
    started.on("error", reject);
  });
}, 120_000);

afterAll(async () => {
  if (child !== undefined && child.exitCode === null) {
    const gone = new Promise((resolve) => child?.on("close", resolve));
    child.kill();
    await gone;
  }
  rmSync(folder, { recursive: true, force: true });
});

scenario("the worker has nothing of Node or of a page, and trace loads in it", async () => {
  const { found, id } = (await (await fetch(`${url}/about`)).json()) as { found: string[]; id: string };
  expect(found).toEqual([]);
  expect(id).toMatch(/^[0-9a-z]{26}$/);
});

scenario("a rollout lives its life in the worker's memory store, and the whole store comes out of it", async () => {
  await expect(openHttpStore(url).stats()).rejects.toMatchObject({ code: "denied" });
  const store = openHttpStore(url, { token: "edge-key" });
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
  expect(said).toBe("");
});

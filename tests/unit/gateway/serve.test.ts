// `fulgurite store serve`: a folder over HTTP behind a key, supervised, ended without losing anything.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openHttpStore } from "@fulgurite/trace/http";
import { openFileStore } from "@fulgurite/trace/node";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { type ServeFolderOptions, serveFolder } from "../../../apps/gateway/src/store/serve.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-serve-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  vi.restoreAllMocks();
});

let folders = 0;
const serve = async (more: Partial<ServeFolderOptions> = {}, folder = join(root, String(++folders))) => {
  const served = await serveFolder(folder, { port: 0, host: "127.0.0.1", token: "key", origins: [], staleAfterMs: 150_000, ...more });
  closers.push(served.close);
  return { ...served, folder };
};
const open = (url: string, token?: string) => {
  const atOnce = (act: () => void, ms: number) => {
    const timer = setTimeout(act, ms > 10_000 ? ms : 0); // pauses last no time, limits do
    return () => clearTimeout(timer);
  };
  const store = openHttpStore(url, { timer: atOnce, ...(token === undefined ? {} : { token }) });
  closers.push(store.close);
  return store;
};

test("who has the key works in the folder, who has not is refused, and what was done is there after the end", async () => {
  const { url, folder, close } = await serve();
  await expect(open(url).stats()).rejects.toMatchObject({ code: "denied" });
  await expect(open(url, "ke").stats()).rejects.toMatchObject({ code: "denied" });
  const store = open(url, "key");
  await store.enqueue([{ id: "a", input: 1 }]);
  await expect(openFileStore(folder)).rejects.toMatchObject({ code: "locked" });
  const waiting = store.waitFor(["a"]).catch((error) => error.code);
  await close();
  expect(await waiting).toBe("storage"); // nobody answers there any more
  const inner = await openFileStore(folder);
  expect((await inner.stats()).rollouts.queued).toBe(1);
  await inner.close();
});

test("a page of a named origin is told that it may ask", async () => {
  const { url } = await serve({ origins: ["https://app.test"] });
  const headers = { origin: "https://app.test", "access-control-request-method": "POST" };
  const answer = await fetch(`${url}/fulgurite/v1/store/claim`, { method: "OPTIONS", headers });
  expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([204, "https://app.test"]);
});

test("an attempt whose worker was gone before the server came is ended by it, and tried again as its config says", async () => {
  const folder = join(root, String(++folders));
  const before = await openFileStore(folder, { clock: () => Date.now() - 3_600_000 });
  await before.enqueue([
    { id: "again", input: 0, config: { maxAttempts: 2 } },
    { id: "once", input: 0 },
  ]);
  await before.claim("w", 2);
  await before.close();
  const said: string[] = [];
  vi.spyOn(process.stderr, "write").mockImplementation((text) => said.push(String(text)) > 0);
  const { url } = await serve({}, folder);
  const store = open(url, "key");
  expect((await store.waitFor(["once"]))[0]!.status).toBe("failed");
  expect((await store.claim("w2")).map(({ rollout, attempt }) => [rollout.id, attempt.sequence])).toEqual([["again", 2]]);
  expect(said.join("")).toContain("2 attempts were silent");
});

test("a port that is taken is the platform's error, and leaves the folder free", async () => {
  const { url } = await serve();
  const folder = join(root, String(++folders));
  await expect(serve({ port: Number(new URL(url).port) }, folder)).rejects.toMatchObject({ code: "EADDRINUSE" });
  await (await openFileStore(folder)).close();
});

// What stands or happens between a client and a served store: restarts, proxies with pages of their own, answers cut without a
// word, requests that come twice, keys that cannot be had. Each refusal is named, and nothing is taken for stored that is not.
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { createMemoryStore, type Store } from "@fulgurite/trace";
import { type HttpStoreOptions, openHttpStore, serveStore } from "@fulgurite/trace/http";
import { openFileStore } from "@fulgurite/trace/node";
import { afterEach, expect, test } from "vitest";
import { collect, errorOf } from "../../outcomes.ts";

type Serve = (request: Request) => Promise<Response>;
const BASE = "http://store.test";
const PATH = "/fulgurite/v1/store";

const closers: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Pauses last no time; limits pass when `pass` is called. */
const createTimer = () => {
  const limits: (() => void)[] = [];
  const timer: NonNullable<HttpStoreOptions["timer"]> = (act, ms) => {
    if (ms > 30_000) {
      limits.push(act);
      return () => void limits.splice(limits.indexOf(act), 1);
    }
    const id = setTimeout(act, 0);
    return () => clearTimeout(id);
  };
  return { timer, pass: () => limits.at(-1)?.() };
};

const open = (serve: Serve, options: HttpStoreOptions = {}): Store => {
  const store = openHttpStore(BASE, {
    timer: createTimer().timer,
    fetch: async (url, init) => serve(new Request(url, init)),
    ...options,
  });
  closers.push(() => store.close());
  return store;
};

const pathOf = (request: Request): string => new URL(request.url).pathname.slice(PATH.length);

const span = (rolloutId: string, attemptId: string, id: string) =>
  ({ rolloutId, attemptId, id, name: "n", startMs: 0, endMs: 0, status: "ok", attributes: { t: Int32Array.of(1) } }) as const;

// ---- a server that is restarted between the work and the answer ----------------------------------------------------------------

/** A folder's store behind a server that goes down after its work at each path of `crashing`, once, and comes back; `meanwhile` happens then. */
const openCrashing = async (meanwhile: (inner: Store) => Promise<unknown> = async () => {}) => {
  const folder = mkdtempSync(join(tmpdir(), "fulgurite-between-"));
  closers.push(() => rmSync(folder, { recursive: true }));
  const openInner = () => openFileStore(folder, { onReport: () => {} });
  let inner = await openInner();
  closers.push(() => inner.close());
  let serve = serveStore(inner);
  const crashing = new Set<string>();
  const store = open(async (request) => {
    const response = await serve(request);
    if (!crashing.delete(pathOf(request))) return response;
    await inner.close();
    inner = await openInner();
    serve = serveStore(inner);
    await meanwhile(inner);
    throw new TypeError("fetch failed");
  });
  return { store, crashing, inner: () => inner };
};

test("forgetting that is asked again of a restarted server says the same, and deletes nothing that came since", async () => {
  const { store, crashing, inner } = await openCrashing((inner) => inner.enqueue([{ id: "a", input: "new" }]));
  await store.enqueue([{ id: "a", input: "old" }]);
  crashing.add("/forget");
  expect(await store.forget("a")).toBe(true);
  const [rollout] = await inner().enqueue([{ id: "a", input: "newer" }]);
  expect(rollout).toMatchObject({ input: "new", seq: 2 }); // what another was acknowledged meanwhile
  crashing.add("/forget");
  expect(await store.forget("nobody")).toBe(false);
  expect(crashing.size).toBe(1); // it was not even asked
});

test("requeuing that is asked again of a restarted server ends each attempt once; the count is of the second time", async () => {
  const { store, crashing, inner } = await openCrashing();
  await store.enqueue(["a", "b"].map((id) => ({ id, input: 0, config: { maxAttempts: 2, retryOn: ["unresponsive"] } })));
  await store.claim("w", 2);
  crashing.add("/requeue-stale");
  expect(await store.requeueStale(Number.POSITIVE_INFINITY)).toBe(0);
  for (const id of ["a", "b"]) expect((await inner().attempts(id)).map(({ status }) => status)).toEqual(["unresponsive"]);
  expect((await inner().stats()).rollouts).toMatchObject({ queued: 2, failed: 0 });
});

test("unpublishing that is asked again of a restarted server is done; whether it was there is of the second time", async () => {
  const { store, crashing, inner } = await openCrashing();
  for (const version of [1, 2]) await store.publish({ name: "p", version, kind: "prompt", files: { f: Uint8Array.of(version) } });
  crashing.add("/unpublish");
  expect(await store.unpublish("p", 1)).toBe(false);
  expect((await inner().stats()).resources).toBe(1);
});

// ---- answers that are none ----------------------------------------------------------------------------------------------------

const begun = async () => {
  const inner = createMemoryStore();
  await inner.enqueue(["a", "b"].map((id) => ({ id, input: 0 })));
  const [claim] = await inner.claim("w");
  await inner.putState("s", Uint8Array.of(1, 2, 3));
  return { inner, attempt: claim!.attempt };
};

const callsOf = (store: Store, attempt: { rolloutId: string; id: string }): Record<string, () => Promise<unknown>> => ({
  enqueue: () => store.enqueue([{ id: "c", input: 1 }]),
  claim: () => store.claim("w"),
  append: () => store.append([span("a", attempt.id, "x")]),
  heartbeat: () => store.heartbeat(attempt),
  finish: () => store.finish(attempt, { status: "succeeded" }),
  cancel: () => store.cancel("a"),
  forget: () => store.forget("b"),
  requeueStale: () => store.requeueStale(0),
  rollouts: () => collect(store.rollouts()),
  attempts: () => store.attempts("a"),
  spans: () => collect(store.spans({ rolloutId: "a" })),
  publish: () => store.publish({ name: "p", kind: "prompt", files: {} }),
  resource: () => store.resource("p"),
  unpublish: () => store.unpublish("p", 1),
  resources: () => collect(store.resources()),
  putState: () => store.putState("s", Uint8Array.of(9)),
  getState: () => store.getState("s"),
  states: () => store.states(),
  adopt: () => store.adopt([]),
  waitFor: () => store.waitFor(["a"]),
  stats: () => store.stats(),
});

const PAGES: Readonly<Record<string, () => Response>> = {
  "a page of HTML": () => new Response("<html>Sign in to the network", { headers: { "content-type": "text/html" } }),
  "nothing at all": () => new Response(null, { status: 204 }),
  "other JSON": () => Response.json({ ok: true }),
  "an empty page": () => new Response(""),
};

for (const [what, page] of Object.entries(PAGES))
  test(`a proxy that answers ${what} with success is taken for no store: every call is refused, and one that comes right is tried again`, async () => {
    const { inner, attempt } = await begun();
    let asked = 0;
    const store = open(async () => {
      asked += 1;
      return page();
    });
    for (const [name, call] of Object.entries(callsOf(store, attempt))) {
      asked = 0;
      const error = await errorOf(call());
      expect([name, error.code]).toEqual([name, "storage"]);
      expect(error.message).toMatch(/store http:\/\/store.test: a server that serves a store, got 20\d/);
      expect(asked, name).toBe(4);
    }
    const serve = serveStore(inner);
    let passing = true;
    const better = open(async (request) => {
      passing = !passing;
      return passing ? serve(request) : page();
    });
    await better.append([span("a", attempt.id, "x")]);
    await better.putState("s", Uint8Array.of(7));
    expect(await inner.getState("s")).toEqual(Uint8Array.of(7));
    expect((await collect(better.spans({ rolloutId: "a" }))).length).toBe(1);
  });

test("a page that is cut between two lines, and bytes that are cut, are not taken for whole", async () => {
  const inner = createMemoryStore();
  await inner.enqueue(Array.from({ length: 600 }, (_, index) => ({ id: `r${index}`, input: index })));
  await inner.putState("s", new Uint8Array(1_000));
  const serve = serveStore(inner);
  let cuts = Number.POSITIVE_INFINITY;
  const store = open(async (request) => {
    const response = await serve(request);
    if (cuts-- <= 0) return response;
    const bytes = new Uint8Array(await response.arrayBuffer());
    const half = bytes.slice(0, Math.max(bytes.lastIndexOf(10, bytes.length >> 1) + 1, bytes[0] === 0 ? 500 : 0));
    return new Response(half, response);
  });
  expect((await errorOf(collect(store.rollouts()))).code).toBe("storage");
  expect((await errorOf(store.getState("s"))).code).toBe("storage");
  cuts = 3;
  expect((await collect(store.rollouts())).length).toBe(600);
  cuts = 1;
  expect((await store.getState("s"))!.length).toBe(1_000);
});

test("what stands before a store refuses in its own words: keys and sizes are told by code, and not asked again", async () => {
  for (const [status, code] of [
    [401, "denied"],
    [403, "denied"],
    [407, "denied"],
    [413, "too-large"],
  ] as const) {
    let asked = 0;
    const store = open(async () => {
      asked += 1;
      return new Response("<html>Request Entity Refused", { status });
    });
    const error = await errorOf(store.enqueue([{ input: "x" }]));
    expect([error.code, asked]).toEqual([code, 1]);
    expect(error.message).toContain(`got ${status} <html>Request Entity Refused`);
  }
});

test("a body that trickles for ever is given up after the limit of a try", async () => {
  const { timer, pass } = createTimer();
  let asked = 0;
  const store = open(
    async (request) => {
      asked += 1;
      setTimeout(pass, 5);
      return new Response(
        new ReadableStream({
          start: (controller) => request.signal.addEventListener("abort", () => controller.error(request.signal.reason)),
          pull: async (controller) => {
            controller.enqueue(Uint8Array.of(123));
            await new Promise((resolve) => setTimeout(resolve, 1));
          },
        }),
      );
    },
    { timer },
  );
  const error = await errorOf(store.stats());
  expect([error.code, asked]).toEqual(["storage", 4]);
  expect(error.message).toContain("no whole answer within 120000 ms");
});

test("answers that a proxy compresses are read as they were", async () => {
  const { inner, attempt } = await begun();
  const serve = serveStore(inner);
  const proxy = createServer(async (incoming, outgoing) => {
    const parts: Buffer[] = [];
    for await (const part of incoming) parts.push(part as Buffer);
    const { method = "GET", headers } = incoming;
    const body = parts.length === 0 ? {} : { body: Buffer.concat(parts) };
    const response = await serve(new Request(`${BASE}${incoming.url}`, { method, headers: headers as Record<string, string>, ...body }));
    const bytes = Buffer.from(await response.arrayBuffer());
    const isEmpty = response.status === 204;
    outgoing.writeHead(response.status, { ...Object.fromEntries(response.headers), ...(!isEmpty && { "content-encoding": "gzip" }) });
    outgoing.end(isEmpty ? undefined : gzipSync(bytes));
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  closers.push(() => proxy.close());
  const store = openHttpStore(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}`);
  closers.push(() => store.close());
  await store.append([span("a", attempt.id, "x")]);
  expect((await collect(store.spans({ rolloutId: "a" })))[0]!.attributes.t).toEqual(Int32Array.of(1));
  expect(await store.getState("s")).toEqual(Uint8Array.of(1, 2, 3));
  expect((await store.finish(attempt, { status: "succeeded" })).status).toBe("succeeded");
});

test("answers are nobody's to cache", async () => {
  const serve = serveStore(createMemoryStore());
  for (const path of ["/stats", "/rollouts", "/state?name=s", "/nothing"])
    expect((await serve(new Request(`${BASE}${PATH}${path}`))).headers.get("cache-control"), path).toBe("no-store");
});

// ---- requests that come twice -------------------------------------------------------------------------------------------------

test("what a proxy sends once more, later, is done once: no state goes back, nothing forgotten returns, no second claim or version", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const late: Request[] = [];
  const store = open(async (request) => {
    if (request.method !== "GET") late.push(request.clone() as Request);
    return serve(request);
  });
  const sendAgain = async () => {
    for (const request of late.splice(0)) expect((await serve(request)).ok).toBe(true);
  };
  await store.putState("s", Uint8Array.of(1));
  const [old] = late.splice(0);
  await store.putState("s", Uint8Array.of(2));
  late.push(old!);
  await sendAgain();
  expect(await inner.getState("s")).toEqual(Uint8Array.of(2));

  await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: 0 })));
  await store.forget("c");
  await sendAgain();
  const [claim] = await store.claim("w");
  await store.finish(claim!.attempt, { status: "succeeded" });
  await store.publish({ name: "p", kind: "prompt", files: {} });
  await sendAgain();
  expect(await inner.stats()).toMatchObject({ rollouts: { queued: 1, running: 0, succeeded: 1 }, attempts: 1, resources: 1 });
});

test("a server remembers the last thousand answers, and none of what failed", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const enqueue = async (id: string, task: object): Promise<number> => {
    const headers = { "content-type": "application/json", "fulgurite-request": id };
    const response = await serve(
      new Request(`${BASE}${PATH}/rollouts`, { method: "POST", headers, body: JSON.stringify({ tasks: [task] }) }),
    );
    return response.ok ? (await response.json()).rollouts[0].seq : response.status;
  };
  expect(await enqueue("one", { input: 1, mode: "odd" })).toBe(400);
  expect(await enqueue("one", { input: 1 })).toBe(1);
  expect(await enqueue("one", { input: 1 })).toBe(1);
  for (let index = 0; index < 999; index++) await enqueue(`other ${index}`, { input: index });
  expect(await enqueue("one", { input: 1 })).toBe(1);
  await enqueue("last", { input: 0 });
  expect(await enqueue("one", { input: 1 })).toBe(1_002);
  const big = "x".repeat(9 * 2 ** 20);
  expect(await enqueue("big", { input: big })).toBe(1_003);
  expect(await enqueue("big", { input: big })).toBe(1_003);
  await enqueue("bigger", { input: big }); // together more than 16 MiB
  expect(await enqueue("big", { input: big })).toBe(1_005);
});

// ---- keys, clocks, callers ------------------------------------------------------------------------------------------------------

test("a token that cannot be had is told as such, and asked for again; what it is stays out of every message", async () => {
  const { inner } = await begun();
  const serve = serveStore(inner);
  let failing = 2;
  const token = async () => {
    if (failing-- > 0) throw new Error("the key server is down");
    return "key";
  };
  expect((await open(serve, { token }).stats()).attempts).toBe(1);
  failing = 9;
  const error = await errorOf(open(serve, { token }).append([]));
  expect([error.code, error.message]).toEqual([
    "denied",
    expect.stringContaining("a token of visible ASCII, got Error: the key server is down"),
  ]);
  expect((error.cause as Error).message).toBe("the key server is down");
  expect(failing).toBe(5);
  for (const secret of ["hidden\nkey", "hidden\u{1f511}", "hidden\r\n"]) {
    const odd = await errorOf(open(serve, { token: secret }).stats());
    expect(odd.code).toBe("denied");
    expect(`${odd.message}${odd.cause}${odd.stack}`).not.toContain("hidden");
  }
  const { timer, pass } = createTimer();
  const hanging = errorOf(open(serve, { token: () => new Promise<string>(() => {}), timer }).stats());
  const passing = setInterval(pass, 2);
  expect((await hanging).message).toContain("no whole answer within 120000 ms");
  clearInterval(passing);
});

test("an authorize that throws lets nobody in, is heard by the server, and refused to the client", async () => {
  const { inner } = await begun();
  const failures: unknown[] = [];
  const serve = serveStore(inner, {
    authorize: () => {
      throw new Error("no key file");
    },
    onError: (error) => failures.push(String(error)),
  });
  const error = await errorOf(open(serve).cancel("a"));
  expect([error.code, error.message]).toEqual(["storage", expect.stringContaining("its authorize, failed; its log says why")]);
  expect(failures).toEqual(["Error: no key file"]);
  expect((await inner.stats()).rollouts.cancelled).toBe(0);
});

test("a client whose clock is years away works as any other", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  for (const years of [-30, 30]) {
    const store = open(serve, { clock: () => Date.now() + years * 365 * 86_400_000 });
    const [rollout] = await store.enqueue([{ input: years }]);
    const [claim] = await store.claim("w");
    await store.append([span(rollout!.id, claim!.attempt.id, "s")]);
    await store.finish(claim!.attempt, { status: "succeeded" });
    expect((await store.waitFor([rollout!.id], { timeoutMs: 40_000 }))[0]!.status).toBe("succeeded");
    expect(Math.abs(rollout!.createdAtMs - Date.now())).toBeLessThan(86_400_000); // the store's clock
  }
});

test("a caller who stops waiting is told by its own reason, and the server is asked no more", async () => {
  const { inner } = await begun();
  const serve = serveStore(inner);
  let asked = 0;
  let down = false;
  const store = open(async (request) => {
    asked += 1;
    if (down) throw new TypeError("fetch failed");
    return serve(request);
  });
  for (const isDown of [false, true]) {
    down = isDown;
    const stop = new AbortController();
    const waiting = store.waitFor(["a"], { signal: stop.signal });
    await Promise.resolve();
    const reason = new Error("enough");
    stop.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    await new Promise((resolve) => setTimeout(resolve, 10));
    const before = asked;
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(asked).toBe(before);
  }
});

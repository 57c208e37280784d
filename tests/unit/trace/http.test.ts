// The store over HTTP where it differs from one that is here: lost answers, refusals, servers that are no store, a real socket.
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createMemoryStore, exportStore, importStore, type Store, type StoreEvent } from "@fulgurite/trace";
import { type HttpStoreOptions, openHttpStore, type ServeOptions, serveStore } from "@fulgurite/trace/http";
import { type Listener, listen, openFileStore } from "@fulgurite/trace/node";
import { afterEach, expect, test } from "vitest";
import { collect, errorOf } from "../../outcomes.ts";

type Fetch = typeof fetch;
const BASE = "http://store.test/behind/a/proxy";
const JSON_BODY = { "content-type": "application/json" };
const PATH = "/fulgurite/v1/store";

const closers: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const settle = () => new Promise((resolve) => setTimeout(resolve, 20));

const pauses: number[] = [];
/** Pauses last no time, and are written down; limits never pass. */
const timer: NonNullable<HttpStoreOptions["timer"]> = (act, ms) => {
  if (ms > 30_000) return () => {};
  pauses.push(ms);
  const id = setTimeout(act, 0);
  return () => clearTimeout(id);
};

/** Takes off what the proxy took off. */
const through =
  (
    serve: (request: Request) => Promise<Response>,
    around: (send: () => Promise<Response>) => Promise<Response> = (send) => send(),
  ): Fetch =>
  (url, init) =>
    around(() => serve(new Request(String(url).replace("/behind/a/proxy", ""), init)));

const open = (serve: (request: Request) => Promise<Response>, options: HttpStoreOptions = {}): Store => {
  pauses.length = 0;
  const store = openHttpStore(BASE, { timer, fetch: through(serve), ...options });
  closers.push(() => store.close());
  return store;
};

const span = (rolloutId: string, attemptId: string, id: string) =>
  ({ rolloutId, attemptId, id, name: "n", startMs: 0, endMs: 0, status: "ok", attributes: { t: Int32Array.of(1) } }) as const;

test("an answer that is lost is asked for again, and no work is done twice", async () => {
  const inner = createMemoryStore();
  let calls = 0;
  const store = open(async () => new Response(), {
    fetch: through(serveStore(inner), async (send) => {
      const response = await send();
      calls += 1;
      if (calls % 3 !== 0) {
        await response.arrayBuffer();
        throw new TypeError("fetch failed"); // the work is done, and nobody heard
      }
      return response;
    }),
  });
  const [rollout] = await store.enqueue([{ input: 1 }]); // without an id of its own
  await store.enqueue([{ id: "b", input: 2 }]);
  const [claim] = await store.claim("w");
  expect(claim!.rollout.id).toBe(rollout!.id);
  await store.append([span(rollout!.id, claim!.attempt.id, "s")]);
  expect((await store.publish({ name: "p", kind: "prompt", files: {} })).version).toBe(1);
  expect(await store.requeueStale(Number.POSITIVE_INFINITY)).toBe(1);
  expect(await store.forget("b")).toBe(true);
  expect(await inner.stats()).toMatchObject({
    rollouts: { queued: 0, running: 0, failed: 1 },
    attempts: 1,
    spans: 1,
    resources: 1,
  });
  expect(calls).toBe(24); // forgetting asks first what is there
  expect(pauses).toEqual(Array.from({ length: 8 }, () => [250, 750]).flat());
});

test("claims and publications whose answers went down with the server are answered by the next one, from the folder", async () => {
  const folder = mkdtempSync(join(tmpdir(), "fulgurite-restart-"));
  closers.push(() => rmSync(folder, { recursive: true }));
  let inner = await openFileStore(folder);
  closers.push(() => inner.close());
  let serve = serveStore(inner);
  const crashing = new Set(["/claim", "/resources"]);
  const store = open(async () => new Response(), {
    fetch: async (url, init) => {
      const request = new Request(String(url).replace("/behind/a/proxy", ""), init);
      const response = await serve(request);
      if (!crashing.delete(new URL(request.url).pathname.slice(PATH.length))) return response;
      await inner.close(); // the work is done and on the disk; the server is not there to say so
      inner = await openFileStore(folder);
      serve = serveStore(inner);
      throw new TypeError("fetch failed");
    },
  });
  await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: 0 })));
  const claims = await store.claim("w", 2);
  expect(claims.map(({ rollout, attempt }) => [rollout.id, attempt.sequence])).toEqual([
    ["a", 1],
    ["b", 1],
  ]);
  expect(await inner.stats()).toMatchObject({ attempts: 2, rollouts: { queued: 1, running: 2 } });
  expect((await store.claim("w", 2)).map(({ rollout }) => rollout.id)).toEqual(["c"]);
  for (const { attempt } of claims) expect((await store.finish(attempt, { status: "succeeded" })).status).toBe("succeeded");
  const adapter = { name: "p", kind: "lora", metadata: { step: 1 }, files: { w: Uint8Array.of(1) } } as const;
  expect((await store.publish(adapter)).version).toBe(1); // without a version of its own, and once
  expect((await inner.stats()).resources).toBe(1);
  expect((await store.publish(adapter)).version).toBe(2); // wanted twice
  crashing.add("/resources");
  expect((await store.publish({ ...adapter, metadata: { step: 2 } })).version).toBe(3);
  expect((await inner.stats()).resources).toBe(3);
});

test("files that arrive changed are an error", async () => {
  const inner = createMemoryStore();
  const store = open(serveStore(inner), {
    fetch: through(serveStore(inner), async (send) => {
      const response = await send();
      const text = await response.text();
      return new Response(text.replaceAll('"AQID"', '"AQIE"'), response); // 1 2 3 → 1 2 4
    }),
  });
  await inner.publish({ name: "p", kind: "lora", files: { w: Uint8Array.of(1, 2, 3), v: Uint8Array.of(1) } });
  const error = await errorOf(store.resource("p"));
  expect([error.code, error.message]).toEqual(["corrupt", expect.stringMatching(/store http:\/\/store.test.*resource p 1: w is 3 bytes/)]);
});

test("the key is sent and never stored, nor are headers that a client tells of itself", async () => {
  const inner = createMemoryStore();
  const token = "k3y-0123456789abcdef";
  const serve = serveStore(inner, { authorize: (request) => request.headers.get("authorization") === `Bearer ${token}` });
  const ask = async (path: string, body: object) => {
    const headers = { ...JSON_BODY, authorization: `Bearer ${token}`, cookie: token, "x-api-key": token };
    const response = await serve(new Request(`http://store.test${PATH}${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
    expect(response.status, path).toBeLessThan(300);
    return response.status === 204 ? undefined : response.json();
  };
  const headers = { authorization: `Bearer ${token}`, "set-cookie": [token] };
  await ask("/rollouts", { tasks: [{ id: "a", input: { headers }, metadata: { headers } }] });
  const { claims } = await ask("/claim", { workerId: "w" });
  const attempt = { rolloutId: "a", id: claims[0].attempt.id };
  await ask("/spans", {
    spans: [{ ...span("a", attempt.id, "s"), attributes: { headers, "http.request.header.authorization": [`Bearer ${token}`] } }],
  });
  await ask("/finish", { attempt, outcome: { status: "failed", error: { name: "E", message: `Authorization: Bearer ${token}` } } });
  await ask("/resources", { resource: { name: "p", kind: "prompt", metadata: { headers }, files: {} } });
  const rollout = { ...claims[0].rollout, id: "b", seq: 2, input: { headers }, attempts: 0, status: "queued" };
  await ask("/adopt", { items: [{ kind: "rollout", data: rollout }] });
  const kept = new TextDecoder().decode(await new Response(exportStore(inner)).arrayBuffer());
  expect(kept).toContain('"id":"b"');
  expect(kept).not.toContain(token);
});

test("two claims are two claims, also from one worker", async () => {
  const store = open(serveStore(createMemoryStore()));
  await store.enqueue([
    { id: "a", input: 1 },
    { id: "b", input: 1 },
  ]);
  const claims = [await store.claim("w"), await store.claim("w"), await store.claim("w")];
  expect(claims.map((all) => all.map(({ rollout }) => rollout.id))).toEqual([["a"], ["b"], []]);
});

test("a server that passes is tried again; one that stays away, or is no store, is told with its answer", async () => {
  const serve = serveStore(createMemoryStore());
  let left = 2;
  const passing = open(serve, {
    fetch: through(serve, async (send) => (left-- > 0 ? new Response("<html>Bad Gateway", { status: 502 }) : send())),
  });
  expect((await passing.stats()).attempts).toBe(0);
  const away = open(() => Promise.reject(new TypeError("connect ECONNREFUSED")));
  const error = await errorOf(away.stats());
  expect([error.code, error.message]).toEqual(["storage", expect.stringContaining("connect ECONNREFUSED")]);
  expect(pauses).toEqual([250, 750, 2_250]);
  const other = await errorOf(open(async () => new Response("<html>hello", { status: 404 })).stats());
  expect([other.code, other.message]).toEqual(["storage", expect.stringMatching(/store http:\/\/store.test.*got 404 <html>hello/)]);
  expect(
    (await errorOf(open(async () => Response.json({ error: { code: "no-route", message: "m" } }, { status: 404 })).stats())).code,
  ).toBe("storage");
});

test("a server that does not answer is given up after the limit of a try, and asked again", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const limits: { act: () => void; ms: number }[] = [];
  let hanging = 2;
  const store = open(serve, {
    timeoutMs: 40_000,
    timer: (act, ms) => {
      if (ms === 40_000) limits.push({ act, ms });
      return ms === 40_000 ? () => {} : timer(act, ms);
    },
    fetch: (url, init) => {
      if (hanging-- <= 0) return through(serve)(url, init);
      const hung = new Promise<Response>((_, reject) => {
        init?.signal?.addEventListener("abort", () => reject(init.signal?.reason));
      });
      queueMicrotask(() => limits.at(-1)!.act());
      return hung;
    },
  });
  expect((await store.enqueue([{ id: "a", input: 0 }])).length).toBe(1);
  expect(limits.length).toBe(3);
  hanging = 9;
  const error = await errorOf(store.stats());
  expect([error.code, error.message]).toEqual(["storage", expect.stringContaining("no whole answer within 40000 ms")]);
});

test("a listener whose line falls silent without an end opens another", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const silences: (() => void)[] = [];
  let connections = 0;
  const store = open(serve, {
    timer: (act, ms) => {
      if (ms === 45_000) silences.push(act);
      return timer(act, ms);
    },
    fetch: (url, init) => {
      if (String(url).endsWith("/watch")) connections += 1;
      return through(serve)(url, init);
    },
  });
  const heard: StoreEvent[] = [];
  store.watch((event) => void heard.push(event));
  await store.enqueue([{ id: "a", input: 0 }]);
  await expect.poll(() => silences.length).toBe(3); // at its beginning, after `ready`, after the event
  expect(connections).toBe(1);
  silences.at(-1)!();
  await expect.poll(() => connections).toBe(2);
  await store.cancel("a");
  await expect.poll(() => heard.length).toBe(2);
  expect(heard).toEqual([
    { kind: "rollout", id: "a", status: "queued" },
    { kind: "rollout", id: "a", status: "cancelled" },
  ]);
});

test("a rule that is broken over there is not tried again", async () => {
  let calls = 0;
  const inner = createMemoryStore();
  const store = open(async () => new Response(), {
    fetch: through(serveStore(inner), (send) => {
      calls += 1;
      return send();
    }),
  });
  expect((await errorOf(store.cancel("nobody"))).code).toBe("unknown");
  await inner.close();
  expect((await errorOf(store.stats())).code).toBe("closed");
  expect(calls).toBe(2);
});

test("without its key nobody learns anything; the token may change between requests", async () => {
  let key = "one";
  const options: ServeOptions = { authorize: (request) => request.headers.get("authorization") === `Bearer ${key}` };
  const serve = serveStore(createMemoryStore(), options);
  for (const path of ["/stats", "/no-such-path"]) {
    const response = await serve(new Request(`http://store.test${PATH}${path}`));
    expect([response.status, (await response.json()).error.code]).toEqual([401, "denied"]);
  }
  expect((await errorOf(open(serve, { token: "two" }).enqueue([{ input: 1 }]))).code).toBe("denied");
  const store = open(serve, { token: async () => key });
  expect((await store.stats()).rollouts.queued).toBe(0);
  key = "two";
  expect((await store.stats()).rollouts.queued).toBe(0);
});

test("pages of known origins may ask, and are told so before they send their key; others learn nothing", async () => {
  const authorize = (request: Request) => request.headers.get("authorization") === "Bearer k";
  const serve = serveStore(createMemoryStore(), { authorize, origins: ["https://app.test", "http://localhost:5173"] });
  const ask = (method: string, path: string, headers: Record<string, string>) =>
    serve(new Request(`http://store.test${PATH}${path}`, { method, headers }));
  const allowed = (response: Response) => response.headers.get("access-control-allow-origin");
  const preflight = { "access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type" };

  const asked = await ask("OPTIONS", "/claim", { ...preflight, origin: "https://app.test" });
  expect([asked.status, allowed(asked), asked.headers.get("vary")]).toEqual([204, "https://app.test", "origin"]);
  expect(asked.headers.get("access-control-allow-methods")).toBe("GET, POST, PUT");
  expect(asked.headers.get("access-control-allow-headers")).toBe(
    "authorization, content-type, last-event-id, fulgurite-request, fulgurite-again",
  );
  expect(asked.headers.get("access-control-allow-private-network")).toBeNull();
  const near = await ask("OPTIONS", "/claim", {
    ...preflight,
    origin: "https://app.test",
    "access-control-request-private-network": "true",
  });
  expect(near.headers.get("access-control-allow-private-network")).toBe("true");
  const stranger = await ask("OPTIONS", "/claim", { ...preflight, origin: "https://evil.test" });
  expect([stranger.status, allowed(stranger)]).toEqual([204, null]);

  const good = await ask("GET", "/stats", { origin: "http://localhost:5173", authorization: "Bearer k" });
  expect([good.status, allowed(good)]).toEqual([200, "http://localhost:5173"]);
  expect(good.headers.get("access-control-expose-headers")).toBe("fulgurite-length"); // else a page takes no answer for whole
  const keyless = await ask("GET", "/stats", { origin: "https://app.test" });
  expect([keyless.status, allowed(keyless)]).toEqual([401, "https://app.test"]); // the page may read why
  const evil = await ask("GET", "/stats", { origin: "https://evil.test", authorization: "Bearer k" });
  expect([evil.status, allowed(evil), (await evil.json()).error.code]).toEqual([403, null, "origin"]);
  expect((await ask("GET", "/stats", { authorization: "Bearer k" })).status).toBe(200); // a program
  expect((await ask("OPTIONS", "/stats", { authorization: "Bearer k" })).status).toBe(405);

  const open = serveStore(createMemoryStore(), { origins: "*" });
  const anyone = await open(new Request(`http://store.test${PATH}/watch`, { headers: { origin: "https://evil.test" } }));
  expect([anyone.status, allowed(anyone), anyone.headers.get("vary")]).toEqual([200, "*", null]);
  await anyone.body?.cancel();
  const none = serveStore(createMemoryStore());
  const silent = await none(new Request(`http://store.test${PATH}/stats`, { headers: { origin: "https://app.test" } }));
  expect([silent.status, allowed(silent)]).toEqual([200, null]);
});

test("what a browser lets any page send changes nothing", async () => {
  const inner = createMemoryStore();
  await inner.enqueue([{ id: "a", input: 0 }]);
  const serve = serveStore(inner);
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain; application/json", ""]) {
    const headers = { origin: "https://elsewhere.test", ...(type !== "" && { "content-type": type }) };
    const body = new TextEncoder().encode('{"rolloutId":"a"}'); // bytes bring no type of their own
    const response = await serve(new Request(`http://store.test${PATH}/forget`, { method: "POST", headers, body }));
    expect([response.status, (await response.json()).error.message], type).toEqual([400, expect.stringContaining("application/json")]);
  }
  expect((await inner.stats()).rollouts.queued).toBe(1);
});

test("many ids, and long ones, go in addresses that are short enough", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const addresses: string[] = [];
  const store = openHttpStore("http://store.test", {
    fetch: async (url, init) => {
      addresses.push(String(url));
      return serve(new Request(url as string, init));
    },
  });
  const ids = Array.from({ length: 300 }, (_, index) => `${"é".repeat(index)}${index}`);
  await store.enqueue(ids.map((id) => ({ id, input: 0 })));
  addresses.length = 0;
  const found: string[] = [];
  for await (const { id } of store.rollouts({ ids: [...ids, "nobody"], order: "newest" })) found.push(id);
  expect(found).toEqual([...ids].reverse());
  expect(Math.max(...addresses.map(({ length }) => length))).toBeLessThan(6_000);
});

test("a body beyond the limit is refused with both numbers, also when it does not say how long it is", async () => {
  const serve = serveStore(createMemoryStore(), { maxBodyBytes: 1_000 });
  const url = `http://store.test${PATH}/rollouts`;
  const headers = { ...JSON_BODY, "content-length": "1001" };
  const declared = await serve(new Request(url, { method: "POST", body: "x".repeat(1_001), headers }));
  expect([declared.status, (await declared.json()).error]).toEqual([
    413,
    { code: "too-large", message: expect.stringContaining("at most 1000 bytes, got 1001") },
  ]);
  let read = 0;
  const endless = new ReadableStream<Uint8Array>({
    pull: (controller) => {
      read += 1;
      controller.enqueue(new Uint8Array(400));
    },
  });
  const streamed = await serve(new Request(url, { method: "POST", body: endless, headers: JSON_BODY, duplex: "half" } as RequestInit));
  expect([streamed.status, (await streamed.json()).error.message]).toEqual([
    413,
    expect.stringContaining("at most 1000 bytes, got at least 1200"),
  ]);
  expect(read).toBeLessThan(6);
  expect((await errorOf(open(serve).enqueue([{ input: "x".repeat(2_000) }]))).code).toBe("too-large");
});

test("unknown paths are 404, other methods 405, and no body makes the server fail", async () => {
  const failures: unknown[] = [];
  const serve = serveStore(createMemoryStore(), { onError: (error) => failures.push(error) });
  const ask = async (method: string, path: string, body?: string) => {
    const response = await serve(new Request(`http://store.test${path}`, { method, ...(body === undefined ? {} : { body }) }));
    return { status: response.status, code: (await response.json()).error?.code, allow: response.headers.get("allow") };
  };
  for (const path of ["/", PATH, `${PATH}/`, `${PATH}/nothing`, `${PATH}/toString`, `${PATH}/stats/`, "/x/fulgurite/v1/store/stats"])
    expect(await ask("GET", path), path).toMatchObject({ status: 404, code: "no-route" });
  expect(await ask("DELETE", `${PATH}/rollouts`)).toEqual({ status: 405, code: "method", allow: "POST, GET" });
  expect(await ask("toString", `${PATH}/stats`)).toMatchObject({ status: 405 });
  const posts = ["rollouts", "claim", "spans", "heartbeat", "finish", "cancel", "forget", "requeue-stale", "wait", "resources", "adopt"];
  const bodies = [
    "",
    "{",
    "null",
    "[]",
    "3",
    "{}",
    '{"tasks":[null]}',
    '{"tasks":[{"input":1,"config":{"retryOn":3}}]}',
    '{"tasks":[{"input":1,"config":7,"metadata":[]}]}',
    '{"spans":[{}],"items":[{}],"tasks":{},"attempt":{},"outcome":{}}',
    '{"spans":[{"attributes":{"a":{"$i32":"A"}}}],"items":[{"kind":"span","data":{"attributes":{"a":{"$f32":3}}}}]}',
    '{"spans":[{"attributes":{"a":{"$i32":"%%%%"}}}],"items":[{"kind":"rollout","data":{"id":"x","input":1}}]}',
    '{"attempt":{"rolloutId":"a","id":"b"},"outcome":{"status":"toString","error":null}}',
    '{"resource":{"files":{"f":{"$u8":"*"}},"name":"p","kind":"lora"}}',
    '{"resource":{"files":{},"name":"p","kind":"odd"},"workerId":"w","limit":1.5}',
    '{"rolloutId":7,"beforeMs":"x","rolloutIds":[1],"timeoutMs":-1}',
    '{"items":[{"kind":"resource","data":{"name":"p"}}]}',
    '{"items":[{"kind":"odd","data":{}}]}',
  ];
  for (const path of posts)
    for (const body of bodies) expect((await ask("POST", `${PATH}/${path}`, body)).status, `${path} ${body}`).toBeOneOf([400, 404]);
  const searches = ["status=odd", "mode=odd", "order=odd", "after=-1", "limit=x", "metadata={", "metadata=3"];
  for (const search of searches) expect((await ask("GET", `${PATH}/rollouts?${search}`)).status, search).toBe(400);
  for (const path of ["attempts", "spans", "resource", "state", "resource?name=p&version=-1", "spans?rolloutId=a&after=1e3"])
    expect((await ask("GET", `${PATH}/${path}`)).status, path).toBe(400);
  expect(failures).toEqual([]);
});

test("a listener that was cut off hears what it missed", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  let cut = (): void => {};
  let connections = 0;
  const store = open(serve, {
    fetch: async (url, init) => {
      const request = new Request(String(url).replace("/behind/a/proxy", ""), init);
      if (!request.url.endsWith("/watch")) return serve(request);
      connections += 1;
      if (connections === 2) await inner.enqueue([{ id: "meanwhile", input: 0 }]);
      const response = await serve(request);
      const reader = response.body!.getReader();
      return new Response(
        new ReadableStream({
          pull: async (controller) => {
            const { done, value } = await reader.read();
            if (done) return;
            controller.enqueue(value);
          },
          start: (controller) => {
            cut = () => {
              void reader.cancel();
              controller.error(new TypeError("terminated"));
            };
          },
        }),
      );
    },
  });
  const heard: StoreEvent[] = [];
  store.watch((event) => void heard.push(event));
  await store.enqueue([{ id: "a", input: 0 }]);
  await settle();
  expect(heard).toEqual([{ kind: "rollout", id: "a", status: "queued" }]);
  cut();
  await settle();
  await store.cancel("a");
  await settle();
  expect(connections).toBe(2);
  expect(heard.slice(1)).toEqual([
    { kind: "rollout", id: "meanwhile", status: "queued" },
    { kind: "rollout", id: "a", status: "cancelled" },
  ]);
});

// ---- a real socket --------------------------------------------------------------------------------------------------------

/** On a free port, or on the one that another left. */
const serveAt = async (serve: (request: Request) => Promise<Response>, port = 0): Promise<Listener> => {
  const listener = await listen(serve, { port });
  closers.push(() => listener.close(0));
  return listener;
};

test("through a socket: a worker and a trainer share a store, wait, listen, move it, and the server may go and come back", async () => {
  const inner = createMemoryStore();
  const serve = serveStore(inner);
  const listener = await serveAt(serve);
  const { url } = listener;
  const [worker, trainer] = [openHttpStore(url), openHttpStore(`${url}/`)];
  closers.push(
    () => worker.close(),
    () => trainer.close(),
  );

  const heard: string[] = [];
  trainer.watch((event) => void heard.push(event.kind === "rollout" ? `${event.id} ${event.status}` : event.kind));
  await trainer.enqueue(Array.from({ length: 300 }, (_, index) => ({ id: `r${index}`, input: index })));
  const waiting = trainer.waitFor(["r0", "r1"]);
  const stopped = trainer.waitFor(["r299"], { signal: AbortSignal.timeout(50) }).catch((error) => error.name);
  const claims = await worker.claim("w", 2);
  for (const { rollout, attempt } of claims) {
    await worker.append([span(rollout.id, attempt.id, "s")]);
    await worker.finish(attempt, { status: "succeeded" });
  }
  expect((await waiting).map(({ id, status }) => `${id} ${status}`)).toEqual(["r0 succeeded", "r1 succeeded"]);
  expect(await stopped).toBe("TimeoutError");
  expect((await collect(trainer.rollouts())).length).toBe(300);
  expect((await collect(trainer.spans({ rolloutId: "r1" })))[0]!.attributes.t).toEqual(Int32Array.of(1));
  const bytes = Uint8Array.from({ length: 3_000_000 }, (_, index) => index % 251);
  await worker.putState("checkpoint", bytes);
  const isWhole = (other: Uint8Array | undefined) => other !== undefined && Buffer.compare(other, bytes) === 0;
  expect(isWhole(await trainer.getState("checkpoint"))).toBe(true);
  await worker.publish({ name: "policy", kind: "lora", files: { weights: bytes } });
  expect(isWhole((await trainer.resource("policy"))?.files.weights)).toBe(true);
  expect(heard).toEqual(expect.arrayContaining(["r0 running", "r1 succeeded", "spans", "resource"]));

  const copy = createMemoryStore();
  await importStore(copy, exportStore(trainer));
  expect(await copy.stats()).toEqual(await inner.stats());

  // every connection is cut under them: the next call makes another
  await listener.close(0);
  await serveAt(serve, Number(new URL(url).port));
  expect(await trainer.forget("r1")).toBe(true);
  expect((await worker.stats()).rollouts).toMatchObject({ queued: 298, succeeded: 1 });
});

test("a server that ends takes nothing new, finishes what is under way, and ends streams and waits", async () => {
  const inner = createMemoryStore();
  const closing = new AbortController();
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const serve = serveStore({ ...inner, stats: () => held.then(() => inner.stats()) }, { closing: closing.signal });
  let seen = 0;
  const listener = await serveAt((request) => {
    seen += 1;
    return serve(request);
  });
  const ask = (path: string, init: RequestInit = {}) => fetch(`${listener.url}${PATH}${path}`, init);
  await inner.enqueue([{ id: "a", input: 0 }]);
  const events = (await ask("/watch")).text();
  const waiting = ask("/wait", { method: "POST", headers: JSON_BODY, body: JSON.stringify({ rolloutIds: ["a"], timeoutMs: 20_000 }) }).then(
    (response) => response.json(),
  );
  const slow = ask("/stats").then((response) => response.json());
  while (seen < 3) await settle();
  closing.abort();
  let isClosed = false;
  const closed = listener.close().then(() => {
    isClosed = true;
  });
  expect(await events).toContain("event: ready");
  expect(await waiting).toEqual({ rollouts: null });
  await expect(ask("/states")).rejects.toThrow("fetch failed");
  expect(isClosed).toBe(false);
  release();
  expect((await slow).rollouts.queued).toBe(1);
  await closed;
});

test("what is no request of the web is refused, and the server lives", async () => {
  const listener = await serveAt(serveStore(createMemoryStore(), { onError: () => {} }));
  const port = Number(new URL(listener.url).port);
  const say = (text: string) =>
    new Promise<string>((resolve, reject) => {
      let heard = "";
      const socket = connect(port, "127.0.0.1", () => socket.end(text));
      socket.on("data", (chunk) => {
        heard += chunk;
      });
      socket.on("close", () => resolve(heard.split("\r\n")[0]!));
      socket.on("error", reject);
    });
  expect(await say("nonsense\r\n\r\n")).toContain("400");
  expect(await say("TRACE / HTTP/1.1\r\nhost: x\r\n\r\n")).toContain("400"); // a method that Request refuses
  expect(await say("GET /fulgurite/v1/store/stats HTTP/1.1\r\nhost: a b c\r\n\r\n")).toContain("400");
  expect(await say(`POST ${PATH}/claim HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{`)).toMatch(/^$|400/); // cut in its body
  expect((await fetch(`${listener.url}${PATH}/stats`)).status).toBe(200);
});

// What a Store promises about rollouts, attempts, spans and states, on every store. Long, because it is the whole contract: one
// file to read beside the interface. Resources are in resources.test.ts, what is not to be stored in privacy.test.ts.
import { type Claim, DEFAULT_CONFIG, type Rollout, type Store, type StoredSpan, type StoreEvent } from "@fulgurite/trace";
import { expect } from "vitest";
import { codeOf, collect } from "../outcomes.ts";
import { begin, describeStores, openWorld, settle, span } from "./world.ts";

describeStores((storeCase, test_, where) => {
  test_("enqueue keeps the order given, fills defaults, and copies its input", async () => {
    const { store } = await openWorld(storeCase);
    const input = { question: "1+1", list: [1, { deep: true }] };
    const [a, b] = await store.enqueue([
      { id: "b", input },
      { input: null, mode: "val", metadata: { set: "x" }, config: { maxAttempts: 3 } },
    ]);
    input.question = "changed";
    (input.list[1] as { deep: boolean }).deep = false;
    expect(a).toEqual({
      id: "b",
      seq: 1,
      input: { question: "1+1", list: [1, { deep: true }] },
      mode: "train",
      status: "queued",
      config: DEFAULT_CONFIG,
      metadata: {},
      attempts: 0,
      createdAtMs: 1_000,
    });
    expect(b).toMatchObject({ id: "id-0001", seq: 2, mode: "val", metadata: { set: "x" }, config: { ...DEFAULT_CONFIG, maxAttempts: 3 } });
    expect(await collect(store.rollouts())).toEqual([a, b]);
  });

  test_("enqueue of a known id gives the stored rollout unchanged, also within one call", async () => {
    const { store } = await openWorld(storeCase);
    const [first] = await store.enqueue([{ id: "a", input: 1 }]);
    const again = await store.enqueue([
      { id: "a", input: 2 },
      { id: "b", input: 3 },
      { id: "b", input: 4 },
    ]);
    expect(again.map((rollout) => [rollout.id, rollout.seq, rollout.input])).toEqual([
      ["a", 1, 1],
      ["b", 2, 3],
      ["b", 2, 3],
    ]);
    expect(again[0]).toEqual(first);
    expect((await store.stats()).rollouts.queued).toBe(2);
  });

  test_("what a method does not take is refused by code, and nothing of it is kept", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    await store.publish({ name: "p", kind: "lora", files: {} });
    const itself: unknown[] = [];
    itself.push(itself);
    let deep: unknown = 1;
    for (let depth = 0; depth < 20_000; depth++) deep = depth % 2 ? [deep] : { deep };
    const given = (value: unknown) => value as never; // what JavaScript lets through
    const here = { rolloutId: "a", attemptId: attempt.id, id: "s", name: "n", startMs: 0, endMs: 0, status: "ok", attributes: {} };
    const wrong: (() => Promise<unknown>)[] = [
      ...[undefined, null, 5, "ab", {}, [null], ["a"]].flatMap((value) => [
        () => store.enqueue(given(value)),
        () => store.append(given(value)),
        () => store.adopt(given(value)),
      ]),
      ...[undefined, null, 5, Number.NaN, "", {}, Object.create(null), Symbol("a")].flatMap((value) => [
        () => store.claim(given(value)),
        () => store.cancel(given(value)),
        () => store.forget(given(value)),
        () => store.attempts(given(value)),
        () => collect(store.spans(given({ rolloutId: value }))),
        () => store.heartbeat(given(value)),
        () => store.heartbeat(given({ rolloutId: "a", id: value })),
        () => store.finish(given({ rolloutId: value, id: "b" }), { status: "failed" }),
        () => store.finish(attempt, given(value)),
        () => store.finish(attempt, given({ status: value })),
        () => store.resource(given(value)),
        () => store.unpublish(given(value), 1),
        () => store.unpublish("p", given(value === 5 ? 1.5 : value)),
        () => store.putState(given(value), Uint8Array.of(1)),
        () => store.putState("s", given(value)),
        () => store.getState(given(value)),
        () => store.waitFor(given(value)),
        () => store.requeueStale(given(value === 5 || value === null || value === "" ? Number.NaN : value)),
        () => store.publish(given(value)),
        () => store.publish(given({ name: value, kind: "lora", files: {} })),
        () => store.publish(given({ name: "p", kind: "lora", files: { f: value } })),
      ]),
      ...[
        { ids: "ab" },
        { status: "queued" },
        { status: ["ended"] },
        { mode: "odd" },
        { order: "up" },
        { metadata: [1] },
        { limit: "1" },
        5,
      ].map((query) => () => collect(store.rollouts(given(query)))),
      ...[Number.NaN, Number.POSITIVE_INFINITY, "1"].flatMap((after) => [
        () => collect(store.rollouts(given({ after }))),
        () => collect(store.spans(given({ rolloutId: "a", after }))),
      ]),
      ...[itself, deep, new Map([["a", 1]]), new Date(0)].flatMap((value) => [
        () => store.enqueue([{ input: given(value) }]),
        () => store.append([given({ ...here, attributes: { value } })]),
        () => store.append([given({ ...here, attributes: value })]),
      ]),
      ...["\ud800", "a\udc00"].flatMap((half) => [
        () => store.enqueue([{ id: half, input: 1 }]),
        () => store.publish({ name: half, kind: "lora", files: {} }),
        () => store.putState(half, Uint8Array.of(1)),
      ]),
    ];
    const before = await store.stats();
    for (const act of wrong) expect(await codeOf(act()), String(act)).toBe("bad-input");
    expect(() => store.watch(given("no function"))).toThrow("watch: listener: a function");
    expect(await store.stats()).toEqual(before);
    expect(await store.states()).toEqual([]);
    expect(await collect(store.spans({ rolloutId: "a" }))).toEqual([]);
  });

  const clockHere = where(!storeCase.isFarAway, "its clock is its server's");
  clockHere("a clock that says no time is refused before anything is kept", async () => {
    const { store, time } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    time.now = Number.NaN;
    expect(await codeOf(store.enqueue([{ id: "b", input: 1 }]))).toBe("bad-input");
    expect(await codeOf(store.heartbeat(attempt))).toBe("bad-input");
    expect(await codeOf(store.finish(attempt, { status: "succeeded" }, [span("a", attempt.id, "s")]))).toBe("bad-input");
    time.now = 500; // back in time
    await store.heartbeat(attempt);
    expect((await store.attempts("a"))[0]).toMatchObject({ status: "running", lastHeartbeatMs: 1_000 });
    expect(await store.stats()).toMatchObject({ spans: 0, rollouts: { queued: 0, running: 1 } });
    expect(await store.requeueStale(1_001)).toBe(1);
  });

  test_("whoever asks for more than there is gets what there is, however much was asked for", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: id })));
    const claims = await store.claim("w", Number.MAX_SAFE_INTEGER);
    expect(claims.map(({ rollout }) => rollout.id)).toEqual(["a", "b", "c"]);
    expect(new Set(claims.map(({ attempt }) => attempt.id)).size).toBe(3);
    expect(await store.claim("w", 2 ** 33)).toEqual([]);
  });

  test_(
    "names and texts of any kind come back as they were: slashes, zeros, names of prototypes, long ones, halves of pairs in texts",
    async () => {
      const { store } = await openWorld(storeCase);
      const names = ["a/../b", "\u0000", "__proto__", "constructor", "😀", "%2e&?#=", "x".repeat(2_000), " ", "toString"];
      await store.enqueue(names.map((id) => ({ id, input: JSON.parse('{"__proto__":{"a":1},"half":"\\ud800"}') })));
      const claims = await store.claim("w", 99);
      expect(claims.map(({ rollout }) => rollout.id)).toEqual(names);
      for (const { rollout, attempt } of claims) {
        const attributes = JSON.parse('{"__proto__":1,"constructor":"c","half":"\\udc00"}');
        await store.append(names.map((id) => span(rollout.id, attempt.id, id, { attributes })));
        const found = await collect(store.spans({ rolloutId: rollout.id, attemptId: attempt.id }));
        expect(found.map(({ id }) => id)).toEqual(names);
        expect(Object.entries(found[0]!.attributes)).toEqual(Object.entries(attributes));
        expect(Object.entries(rollout.input as object)).toEqual([
          ["__proto__", { a: 1 }],
          ["half", "\ud800"],
        ]);
        await store.publish({ name: rollout.id, kind: "prompt", files: Object.fromEntries(names.map((path) => [path, Uint8Array.of(1)])) });
        expect(Object.keys((await store.resource(rollout.id))!.files).sort()).toEqual([...names].sort());
        await store.putState(rollout.id, new TextEncoder().encode(rollout.id));
        expect(new TextDecoder().decode(await store.getState(rollout.id))).toBe(rollout.id);
        expect((await collect(store.rollouts({ ids: [rollout.id] }))).length).toBe(1);
      }
      expect(await store.states()).toEqual([...names].sort());
      expect(await store.forget("nobody/../..")).toBe(false);
    },
  );

  test_("what is handed out cannot change what is stored", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const tokens = Int32Array.of(1, 2);
    await store.append([span("a", attempt.id, "s1", { attributes: { tokens, list: [1] } })]);
    tokens[0] = 99;
    const spoil = (value: unknown): void => {
      if (value === null || typeof value !== "object") return;
      if (value instanceof Int32Array || value instanceof Uint8Array) return void value.fill(77);
      for (const [key, item] of Object.entries(value)) {
        spoil(item);
        Reflect.set(value, key, "spoiled");
      }
    };
    const bytes = Uint8Array.of(1, 2);
    spoil(await store.publish({ name: "p", kind: "prompt", files: { f: bytes }, metadata: { m: [1] } }));
    bytes[0] = 99;
    await store.putState("s", bytes);
    bytes[1] = 99;
    for (let round = 0; round < 2; round++) {
      const seen = [
        await collect(store.rollouts()),
        await store.attempts("a"),
        await collect(store.spans({ rolloutId: "a" })),
        await store.resource("p"),
        await store.getState("s"),
      ];
      expect(seen[0]).toMatchObject([{ id: "a", input: "a", status: "running", config: DEFAULT_CONFIG }]);
      expect(seen[1]).toMatchObject([{ id: attempt.id, status: "running" }]);
      expect(seen[2]).toMatchObject([{ attributes: { tokens: Int32Array.of(1, 2), list: [1] } }]);
      expect(seen[3]).toMatchObject({ files: { f: Uint8Array.of(1, 2) }, metadata: { m: [1] } });
      expect(seen[4]).toEqual(Uint8Array.of(99, 2));
      for (const value of seen) spoil(value);
    }
  });

  test_("what no store could give back is refused with its path", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    expect(await codeOf(store.enqueue([{ input: Number.NaN }]))).toBe("bad-input");
    expect(await codeOf(store.enqueue([{ id: "", input: 1 }]))).toBe("bad-input");
    expect(await codeOf(store.enqueue([{ input: 1, config: { maxAttempts: 0 } }]))).toBe("bad-input");
    expect(await codeOf(store.enqueue([{ input: 1, config: { retryOn: ["succeeded"] } }]))).toBe("bad-input");
    await expect(store.enqueue([{ id: "x", input: { at: new Date(0) } as never }])).rejects.toThrow("task x.input.at");
    await expect(store.append([span("a", attempt.id, "s1", { attributes: { deep: [Number.POSITIVE_INFINITY] } })])).rejects.toThrow(
      "span s1.attributes.deep[0]",
    );
    expect(await codeOf(store.publish({ name: "p", kind: "lora", version: 0, files: {} }))).toBe("bad-input");
    expect(await store.stats()).toMatchObject({ rollouts: { queued: 0, running: 1 }, spans: 0, resources: 0 });
  });

  test_("claim hands out the oldest queued, in order, and nothing when nothing is queued", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue(["c", "a", "b"].map((id) => ({ id, input: id })));
    const claims = await store.claim("w1", 2);
    expect(
      claims.map(({ rollout, attempt }) => [rollout.id, rollout.status, rollout.attempts, attempt.rolloutId, attempt.sequence]),
    ).toEqual([
      ["c", "running", 1, "c", 1],
      ["a", "running", 1, "a", 1],
    ]);
    expect(claims[0]!.attempt).toMatchObject({ status: "running", workerId: "w1", startedAtMs: 1_000, lastHeartbeatMs: 1_000 });
    expect(await store.claim("w2", 0)).toEqual([]);
    expect((await store.claim("w2", 5)).map(({ rollout }) => rollout.id)).toEqual(["b"]);
    expect(await store.claim("w2", 5)).toEqual([]);
    expect(await codeOf(store.claim("w2", -1))).toBe("bad-input");
  });

  test_("a claim that is repeated with its id gives what still runs of the first, and new work only when nothing does", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue(["a", "b", "c", "d"].map((id) => ({ id, input: 0 })));
    const first = await store.claim("w", 2, "request-1");
    expect(first.map(({ attempt }) => attempt.claimId)).toEqual(["request-1", "request-1"]);
    expect(await store.claim("w", 2, "request-1")).toEqual(first);
    expect((await store.claim("w", 1, "request-2")).map(({ rollout }) => rollout.id)).toEqual(["c"]);
    await store.cancel("a");
    expect((await store.claim("w", 2, "request-1")).map(({ rollout }) => rollout.id)).toEqual(["b"]);
    await store.finish(first[1]!.attempt, { status: "succeeded" });
    expect((await store.claim("w", 2, "request-1")).map(({ rollout }) => rollout.id)).toEqual(["d"]);
    expect(await store.claim("w", 2, "request-3")).toEqual([]);
    expect(await codeOf(store.claim("w", 1, ""))).toBe("bad-input");
    expect(await store.stats()).toMatchObject({ attempts: 4 });
  });

  test_("20 claimers at once never get one rollout twice", async () => {
    const world = await openWorld(storeCase);
    const stores = storeCase.shared ? [world.store, await world.again()] : [world.store];
    await world.store.enqueue(Array.from({ length: 50 }, (_, index) => ({ id: `r${index}`, input: index })));
    const claims = (
      await Promise.all(Array.from({ length: 20 }, (_, index) => stores[index % stores.length]!.claim(`w${index}`, 3)))
    ).flat();
    expect(claims.length).toBe(50);
    expect(new Set(claims.map(({ rollout }) => rollout.id)).size).toBe(50);
    expect(new Set(claims.map(({ attempt }) => attempt.id)).size).toBe(50);
    expect(await world.store.stats()).toMatchObject({ rollouts: { queued: 0, running: 50 }, attempts: 50 });
  });

  test_("append twice is once, in the store's order, also when both are under way", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const spans = ["s2", "s1"].map((id) => span("a", attempt.id, id));
    await Promise.all([store.append(spans), store.append(spans), store.append([...spans, spans[0]!])]);
    await store.append([span("a", attempt.id, "s2", { name: "other" }), span("a", attempt.id, "s3")]);
    const stored = await collect(store.spans({ rolloutId: "a" }));
    expect(stored.map(({ id, seq, name }) => [id, seq, name])).toEqual([
      ["s2", 1, "step"],
      ["s1", 2, "step"],
      ["s3", 3, "step"],
    ]);
    expect((await store.stats()).spans).toBe(3);
  });

  test_("span ids of different attempts do not meet, and queries tell them apart", async () => {
    const { store } = await openWorld(storeCase);
    const first = await begin(store, "a", { maxAttempts: 2, retryOn: ["failed"] });
    await store.append([span("a", first.id, "s1")]);
    await store.finish(first, { status: "failed" });
    const [second] = await store.claim("w");
    const other = await begin(store, "b");
    await store.append([span("b", other.id, "s1"), span("a", second!.attempt.id, "s1"), span("a", first.id, "s9")]);
    const seqs = async (rolloutId: string, attemptId?: string) =>
      (await collect(store.spans({ rolloutId, ...(attemptId === undefined ? {} : { attemptId }) }))).map(({ id, seq }) => `${id}@${seq}`);
    expect(await seqs("a")).toEqual(["s1@1", "s1@3", "s9@4"]);
    expect(await seqs("a", first.id)).toEqual(["s1@1", "s9@4"]);
    expect(await seqs("b")).toEqual(["s1@2"]);
    expect(await seqs("nobody")).toEqual([]);
  });

  test_("typed arrays come back typed and equal, and look-alikes stay what they were", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const odd = new Int32Array(new ArrayBuffer(16), 4, 2); // a view that is not its whole buffer
    odd.set([-(2 ** 31), 2 ** 31 - 1]);
    const attributes = {
      odd,
      empty: new Int32Array(0),
      logprobs: Float32Array.of(-0.1, Number.NEGATIVE_INFINITY, Number.NaN, 1e-45),
      lookAlike: { $i32: "AAAA" },
      nested: { $json: { $f32: "x" } },
      text: "𝄞 \u2028 \n \u0000 \ud800",
      json: [null, true, -0, 1e308, { "": {}, __proto__: null, constructor: [] }],
    };
    const own = JSON.parse('{"__proto__": {"polluted": true}}');
    await store.append([span("a", attempt.id, "s1", { attributes: { ...attributes, own }, parentId: "p", status: "error" })]);
    const [stored] = await collect(store.spans({ rolloutId: "a" }));
    expect(stored).toEqual({
      ...span("a", attempt.id, "s1", { parentId: "p", status: "error" }),
      seq: 1,
      attributes: { ...attributes, own, json: [null, true, 0, 1e308, { "": {}, constructor: [] }] },
    });
    expect(stored!.attributes.logprobs).toBeInstanceOf(Float32Array);
    expect(stored!.attributes.empty).toBeInstanceOf(Int32Array);
    expect(Object.hasOwn(stored!.attributes.own as object, "__proto__")).toBe(true);
  });

  test_("more spans and rollouts than a page come back whole and in order", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "r000");
    for (let at = 0; at < 150; at += 50)
      await store.append(Array.from({ length: 50 }, (_, index) => span("r000", attempt.id, `s${at + index}`)));
    expect((await collect(store.spans({ rolloutId: "r000" }))).map(({ seq }) => seq)).toEqual(
      Array.from({ length: 150 }, (_, index) => index + 1),
    );
    expect((await collect(store.spans({ rolloutId: "r000", attemptId: attempt.id }))).length).toBe(150);
    await store.enqueue(Array.from({ length: 599 }, (_, index) => ({ id: `r${index + 1}`, input: 0 })));
    const oldest = (await collect(store.rollouts())).map(({ seq }) => seq);
    expect(oldest).toEqual(Array.from({ length: 600 }, (_, index) => index + 1));
    expect((await collect(store.rollouts({ order: "newest" }))).map(({ seq }) => seq)).toEqual(oldest.reverse());
  });

  test_("append rejects an unknown attempt and stores nothing of the call; late spans of ended attempts are stored", async () => {
    const { store, time } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    expect(await codeOf(store.append([span("a", attempt.id, "s1"), span("a", "nobody", "s2")]))).toBe("unknown");
    expect(await codeOf(store.heartbeat({ rolloutId: "a", id: "nobody" }))).toBe("unknown");
    expect((await store.stats()).spans).toBe(0);
    await store.finish(attempt, { status: "succeeded" });
    time.now = 9_000;
    await store.append([span("a", attempt.id, "s1")]);
    expect((await store.stats()).spans).toBe(1);
    expect((await store.attempts("a"))[0]).toMatchObject({ status: "succeeded", lastHeartbeatMs: 1_000, endedAtMs: 1_000 });
  });

  test_("finish ends the attempt and its rollout once; another status afterwards is an error", async () => {
    const { store, time } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    time.now = 2_000;
    const ended = await store.finish(attempt, { status: "succeeded" });
    expect(ended).toMatchObject({ id: "a", status: "succeeded", attempts: 1, endedAtMs: 2_000 });
    time.now = 3_000;
    expect(await store.finish(attempt, { status: "succeeded" })).toEqual(ended);
    expect(await codeOf(store.finish(attempt, { status: "failed" }))).toBe("status");
    expect(await codeOf(store.finish(attempt, { status: "running" as never }))).toBe("status");
    expect(await codeOf(store.finish({ rolloutId: "a", id: "nobody" }, { status: "failed" }))).toBe("unknown");
    expect(await store.attempts("a")).toMatchObject([{ status: "succeeded", endedAtMs: 2_000 }]);
  });

  test_("finish takes the attempt's last spans with it: they are there when its rollout has ended, once", async () => {
    const { store, time } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    await store.append([span("a", attempt.id, "s1")]);
    time.now = 2_000;
    const last = [span("a", attempt.id, "s1"), span("a", attempt.id, "s2"), span("a", attempt.id, "s2"), span("a", attempt.id, "s3")];
    expect(await store.finish(attempt, { status: "succeeded" }, last)).toMatchObject({ status: "succeeded", endedAtMs: 2_000 });
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, seq }) => [id, seq])).toEqual([
      ["s1", 1],
      ["s2", 2],
      ["s3", 3],
    ]);
    await store.finish(attempt, { status: "succeeded" }, [...last, span("a", attempt.id, "s4")]); // asked again: what is new is late
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id }) => id)).toEqual(["s1", "s2", "s3", "s4"]);
    expect((await store.stats()).spans).toBe(4);
  });

  test_("an end that is refused keeps no span, and a span that is refused keeps the attempt running", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const other = await begin(store, "b");
    const bad = span("a", attempt.id, "s2", { attributes: { n: Number.NaN } });
    expect(await codeOf(store.finish(attempt, { status: "running" as never }, [span("a", attempt.id, "s1")]))).toBe("status");
    expect(await codeOf(store.finish(attempt, { status: "succeeded" }, [span("a", attempt.id, "s1"), bad]))).toBe("bad-input");
    expect(await codeOf(store.finish(attempt, { status: "succeeded" }, [span("b", other.id, "s1")]))).toBe("bad-input");
    expect(await codeOf(store.finish({ rolloutId: "a", id: "nobody" }, { status: "failed" }, [span("a", "nobody", "s1")]))).toBe("unknown");
    expect(await store.stats()).toMatchObject({ rollouts: { running: 2 }, spans: 0 });
    expect(await store.finish(attempt, { status: "succeeded" }, [span("a", attempt.id, "s1")])).toMatchObject({ status: "succeeded" });
  });

  test_("a failed attempt keeps its error, and is retried as its rollout's config says", async () => {
    const { store } = await openWorld(storeCase);
    const first = await begin(store, "a", { maxAttempts: 3, retryOn: ["failed", "timeout"] });
    await store.enqueue([{ id: "b", input: 0 }]);
    const error = { name: "TypeError", message: "x is undefined", stack: "at y" };
    expect(await store.finish(first, { status: "failed", error })).toMatchObject({ status: "queued", attempts: 1 });
    const [second] = await store.claim("w2"); // before b: its place in the order is kept
    expect(second).toMatchObject({ rollout: { id: "a", attempts: 2, status: "running" }, attempt: { sequence: 2, workerId: "w2" } });
    expect(await codeOf(store.finish(first, { status: "succeeded" }))).toBe("status");
    expect(await store.finish(second!.attempt, { status: "unresponsive" })).toMatchObject({ status: "failed", attempts: 2 });
    expect(await store.attempts("a")).toMatchObject([
      { sequence: 1, status: "failed", error },
      { sequence: 2, status: "unresponsive" },
    ]);
  });

  test_("attempts run out", async () => {
    const { store } = await openWorld(storeCase);
    let attempt = await begin(store, "a", { maxAttempts: 2, retryOn: ["timeout"] });
    expect((await store.finish(attempt, { status: "timeout" })).status).toBe("queued");
    attempt = (await store.claim("w"))[0]!.attempt;
    expect((await store.finish(attempt, { status: "timeout" })).status).toBe("failed");
    expect(await store.claim("w")).toEqual([]);
  });

  test_("cancel ends what is queued or running, with its attempt, and leaves the rest as it is", async () => {
    const { store, time } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    await store.enqueue([{ id: "b", input: 0 }]);
    time.now = 5_000;
    expect(await store.cancel("a")).toMatchObject({ status: "cancelled", endedAtMs: 5_000 });
    expect(await store.cancel("b")).toMatchObject({ status: "cancelled", attempts: 0 });
    expect(await store.attempts("a")).toMatchObject([{ status: "cancelled", endedAtMs: 5_000 }]);
    expect(await store.claim("w")).toEqual([]);
    expect(await codeOf(store.finish(attempt, { status: "succeeded" }))).toBe("status");
    expect((await store.finish(attempt, { status: "cancelled" })).status).toBe("cancelled");
    const done = await begin(store, "c");
    const ended = await store.finish(done, { status: "succeeded" });
    expect(await store.cancel("c")).toEqual(ended);
    expect(await codeOf(store.cancel("nobody"))).toBe("unknown");
  });

  test_("an attempt that its worker cancels cancels the rollout", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a", { maxAttempts: 5 });
    expect((await store.finish(attempt, { status: "cancelled" })).status).toBe("cancelled");
  });

  test_("requeueStale ends what has been silent, and only that", async () => {
    const { store, time } = await openWorld(storeCase);
    const silent = await begin(store, "silent", { maxAttempts: 2 });
    await begin(store, "beating");
    const talking = await begin(store, "talking");
    await begin(store, "once");
    time.now = 2_000;
    await store.heartbeat((await store.attempts("beating"))[0]!);
    await store.append([span("talking", talking.id, "s1")]);
    expect(await store.requeueStale(1_000)).toBe(0);
    expect(await store.requeueStale(2_000)).toBe(2);
    expect(await store.requeueStale(2_000)).toBe(0);
    const statuses = (await collect(store.rollouts())).map(({ id, status }) => `${id} ${status}`);
    expect(statuses).toEqual(["silent queued", "beating running", "talking running", "once failed"]);
    expect((await store.attempts("silent"))[0]).toMatchObject({
      status: "unresponsive",
      endedAtMs: 2_000,
      error: { name: "Unresponsive" },
    });
    expect((await store.claim("w2"))[0]).toMatchObject({ rollout: { id: "silent" }, attempt: { sequence: 2 } });
    expect(await codeOf(store.finish(silent, { status: "succeeded" }))).toBe("status");
  });

  test_("a clock that goes backwards changes no order and silences no one", async () => {
    const { store, time } = await openWorld(storeCase);
    time.now = 5_000;
    await store.enqueue([{ id: "a", input: 0 }]);
    time.now = 1_000;
    await store.enqueue([{ id: "b", input: 0 }]);
    time.now = 4_000;
    const claims = await store.claim("w", 2);
    expect(claims.map(({ rollout }) => rollout.id)).toEqual(["a", "b"]);
    const { attempt } = claims[0]!;
    await store.append([span("a", attempt.id, "s1", { startMs: 900, endMs: 901 })]);
    time.now = 500;
    await store.heartbeat(attempt);
    await store.append([span("a", attempt.id, "s2", { startMs: 100, endMs: 101 })]);
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id }) => id)).toEqual(["s1", "s2"]);
    expect((await store.attempts("a"))[0]!.lastHeartbeatMs).toBe(4_000);
    expect(await store.requeueStale(4_000)).toBe(0);
  });

  test_("an append is its attempts' heartbeat when the last is a tenth of a second old; a heartbeat always is one", async () => {
    const { store, time } = await openWorld(storeCase);
    await store.enqueue([{ id: "a", input: 0 }]);
    time.now = 1_000;
    const [claim] = await store.claim("w");
    const { attempt } = claim!;
    const lastOf = async (): Promise<number> => (await store.attempts("a"))[0]!.lastHeartbeatMs;
    for (const [now, last] of [
      [1_099, 1_000],
      [1_100, 1_100],
      [1_199, 1_100],
      [5_000, 5_000],
    ] as const) {
      time.now = now;
      await store.append([span("a", attempt.id, `s${now}`)]);
      expect(await lastOf()).toBe(last);
    }
    time.now = 5_001;
    await store.heartbeat(attempt);
    expect(await lastOf()).toBe(5_001);
  });

  test_("rollouts are found by id, status, mode and metadata, in both orders, up to a limit", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue([
      { id: "a", input: 0, metadata: { set: "x", tags: { k: [1] } } },
      { id: "b", input: 0, mode: "val", metadata: { set: "x" } },
      { id: "c", input: 0, metadata: { set: "y" } },
      { id: "d", input: 0, mode: "val" },
    ]);
    await store.cancel("c");
    const ids = async (query?: Parameters<Store["rollouts"]>[0]) => (await collect(store.rollouts(query))).map(({ id }) => id).join("");
    expect(await ids()).toBe("abcd");
    expect(await ids({ order: "newest" })).toBe("dcba");
    expect(await ids({ limit: 2 })).toBe("ab");
    expect(await ids({ limit: 0 })).toBe("");
    expect(await ids({ order: "newest", limit: 1, mode: "train" })).toBe("c");
    expect(await ids({ status: ["queued"] })).toBe("abd");
    expect(await ids({ status: ["cancelled", "queued"], mode: "train" })).toBe("ac");
    expect(await ids({ status: [] })).toBe("");
    expect(await ids({ metadata: { set: "x" } })).toBe("ab");
    expect(await ids({ metadata: { tags: { k: [1] } } })).toBe("a");
    expect(await ids({ metadata: { tags: { k: [2] } } })).toBe("");
    expect(await ids({ metadata: { missing: null } })).toBe("");
    expect(await ids({ ids: ["d", "nobody", "a", "a"] })).toBe("ad");
    expect(await ids({ ids: ["d", "a", "b"], order: "newest", mode: "val", limit: 1 })).toBe("d");
    expect(await ids({ ids: [] })).toBe("");
  });

  test_("state is the last write, and names do not meet", async () => {
    const { store } = await openWorld(storeCase);
    expect(await store.getState("cursor")).toBeUndefined();
    await store.putState("cursor", Uint8Array.of(1));
    await Promise.all([2, 3, 4].map((value) => store.putState("cursor", Uint8Array.of(value, value))));
    await store.putState("../Cursor/é", new Uint8Array(0));
    expect(await store.getState("cursor")).toEqual(Uint8Array.of(4, 4));
    expect(await store.getState("../Cursor/é")).toEqual(new Uint8Array(0));
    expect(await store.getState("Cursor")).toBeUndefined();
  });

  test_("waitFor resolves when all are terminal, in the order asked", async () => {
    const { store, timers } = await openWorld(storeCase);
    expect(await store.waitFor([])).toEqual([]);
    const a = await begin(store, "a", { maxAttempts: 2, retryOn: ["failed"] });
    await store.enqueue([{ id: "b", input: 0 }]);
    let done: Rollout[] | undefined;
    const waiting = store.waitFor(["b", "a", "b"], { timeoutMs: 7 }).then((rollouts) => {
      done = rollouts;
    });
    await store.cancel("b");
    await store.finish(a, { status: "failed" });
    await settle();
    expect(done).toBeUndefined();
    await store.finish((await store.claim("w"))[0]!.attempt, { status: "succeeded" });
    await waiting;
    expect(done!.map(({ id, status }) => `${id} ${status}`)).toEqual(["b cancelled", "a succeeded", "b cancelled"]);
    expect(timers.length).toBeGreaterThan(0);
    expect(timers.every(({ stopped }) => stopped)).toBe(true);
    expect((await store.waitFor(["a"])).length).toBe(1);
  });

  test_("waitFor rejects when aborted, timed out, closed or asked for the unknown", async () => {
    const { store, timers } = await openWorld(storeCase);
    await begin(store, "a");
    const reason = new Error("enough");
    await expect(store.waitFor(["a"], { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const controller = new AbortController();
    const aborted = store.waitFor(["a"], { signal: controller.signal });
    controller.abort(reason);
    await expect(aborted).rejects.toBe(reason);
    const late = codeOf(store.waitFor(["a"], { timeoutMs: 1_234 }));
    await settle();
    timers.find(({ ms, stopped }) => ms === 1_234 && !stopped)!.act();
    expect(await late).toBe("timeout");
    expect(await codeOf(store.waitFor(["a", "nobody"]))).toBe("unknown");
    const closing = codeOf(store.waitFor(["a"]));
    await settle();
    await store.close();
    expect(await closing).toBe("closed");
  });

  test_("watch hears every change after it is stored, until stopped", async () => {
    const { store } = await openWorld(storeCase);
    const heard: StoreEvent[] = [];
    const listener = (event: StoreEvent) => void heard.push(event);
    const stop = store.watch(listener);
    const attempt = await begin(store, "a", { maxAttempts: 2, retryOn: ["failed"] });
    await store.append([span("a", attempt.id, "s1"), span("a", attempt.id, "s2")]);
    await store.append([span("a", attempt.id, "s1")]); // nothing new, nothing heard
    await store.finish(attempt, { status: "failed" });
    await store.cancel("a");
    await store.publish({ name: "p", kind: "prompt", files: {} });
    await settle();
    expect(heard).toEqual([
      { kind: "rollout", id: "a", status: "queued" },
      { kind: "rollout", id: "a", status: "running" },
      { kind: "spans", rolloutId: "a", count: 2 },
      { kind: "rollout", id: "a", status: "queued" },
      { kind: "rollout", id: "a", status: "cancelled" },
      { kind: "resource", name: "p", version: 1 },
    ]);
    stop();
    await store.enqueue([{ id: "b", input: 0 }]);
    await settle();
    expect(heard.length).toBe(6);
  });

  test_("forget deletes a rollout with its attempts and spans, says so, and gives no seq again", async () => {
    const { store } = await openWorld(storeCase);
    const first = await begin(store, "a", { maxAttempts: 2, retryOn: ["failed"] });
    await store.append([span("a", first.id, "s1")]);
    await store.finish(first, { status: "failed" });
    const [second] = await store.claim("w");
    const other = await begin(store, "ab"); // a name that begins with the other's
    await store.append([span("ab", other.id, "s1"), span("a", second!.attempt.id, "s1"), span("a", second!.attempt.id, "s2")]);
    await expect(store.forget("a")).rejects.toThrow(/rollout a: .* got running; cancel it first/);
    expect(await codeOf(store.forget("a"))).toBe("status");
    await store.finish(second!.attempt, { status: "succeeded" });
    const heard: StoreEvent[] = [];
    store.watch((event) => void heard.push(event));
    expect(await store.forget("a")).toBe(true);
    expect(await store.forget("a")).toBe(false);
    expect(await store.forget("nobody")).toBe(false);
    await settle();
    expect(heard).toEqual([{ kind: "gone", id: "a" }]);
    expect((await collect(store.rollouts())).map(({ id }) => id)).toEqual(["ab"]);
    expect(await collect(store.rollouts({ ids: ["a"] }))).toEqual([]);
    expect(await store.attempts("a")).toEqual([]);
    expect(await collect(store.spans({ rolloutId: "a" }))).toEqual([]);
    expect(await collect(store.spans({ rolloutId: "a", attemptId: first.id }))).toEqual([]);
    expect((await collect(store.spans({ rolloutId: "ab" }))).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["s1@2"]);
    expect(await store.stats()).toMatchObject({ rollouts: { running: 1, succeeded: 0 }, attempts: 1, spans: 1 });
    expect(await codeOf(store.append([span("a", first.id, "s9")]))).toBe("unknown");
    expect(await codeOf(store.heartbeat(second!.attempt))).toBe("unknown");
    expect(await codeOf(store.cancel("a"))).toBe("unknown");
    // a new one of that name has nothing of the old one, and the seqs go on
    const [again] = await store.enqueue([{ id: "a", input: "new" }]);
    expect(again).toMatchObject({ seq: 3, input: "new", status: "queued", attempts: 0 });
    const [claim] = await store.claim("w");
    await store.append([span("a", claim!.attempt.id, "s1")]);
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ seq }) => seq)).toEqual([5]);
  });

  test_("forgetting the newest gives its seqs to nobody; the queue and a wait for it know that it is gone", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: 0 })));
    const waiting = codeOf(store.waitFor(["c"]));
    await settle();
    expect(await store.forget("c")).toBe(true);
    expect(await waiting).toBe("unknown");
    expect(await store.forget("a")).toBe(true);
    expect((await store.enqueue([{ id: "d", input: 0 }]))[0]!.seq).toBe(4);
    expect((await collect(store.rollouts({ order: "newest" }))).map(({ id }) => id)).toEqual(["d", "b"]);
    expect((await store.claim("w", 9)).map(({ rollout }) => rollout.id)).toEqual(["b", "d"]);
  });

  test_("forget with a seq deletes that one only, and not what has its id now", async () => {
    const { store } = await openWorld(storeCase);
    await store.enqueue([{ id: "a", input: 1 }]);
    expect(await store.forget("a", { seq: 2 })).toBe(false);
    expect(await store.forget("a", { seq: 1 })).toBe(true);
    await begin(store, "a"); // it runs: that is not what is asked for
    expect(await store.forget("a", { seq: 1 })).toBe(false);
    await store.cancel("a");
    expect(await store.forget("a", { seq: 1 })).toBe(false);
    expect((await collect(store.rollouts())).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["a@2"]);
    expect(await store.forget("a", { seq: 2 })).toBe(true);
  });

  test_("queries go on after a seq", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    await store.enqueue(["b", "c", "d"].map((id) => ({ id, input: 0 })));
    await store.append(["s1", "s2", "s3"].map((id) => span("a", attempt.id, id)));
    const ids = async (query: Parameters<Store["rollouts"]>[0]) => (await collect(store.rollouts(query))).map(({ id }) => id).join("");
    expect(await ids({ after: 0 })).toBe("abcd");
    expect(await ids({ after: 2 })).toBe("cd");
    expect(await ids({ after: 3, order: "newest" })).toBe("ba");
    expect(await ids({ after: 1, ids: ["a", "b", "d"], limit: 1 })).toBe("b");
    expect(await ids({ after: 3, ids: ["a", "d"], order: "newest" })).toBe("a");
    expect((await collect(store.spans({ rolloutId: "a", after: 1 }))).map(({ seq }) => seq)).toEqual([2, 3]);
    expect(await collect(store.spans({ rolloutId: "a", attemptId: attempt.id, after: 3 }))).toEqual([]);
  });

  const ordered = where(!storeCase.isFarAway, "calls overtake each other on their way");

  ordered("what was asked for first is done first, whatever shares a transaction with what", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const first = store.append([span("a", attempt.id, "x")]);
    const ended = store.finish(attempt, { status: "succeeded" });
    const second = store.append([span("a", attempt.id, "y")]);
    const stats = store.stats();
    const forgotten = store.forget("a");
    const late = codeOf(store.append([span("a", attempt.id, "z")]));
    expect((await stats).spans).toBe(2);
    expect(await Promise.all([first, second])).toEqual([undefined, undefined]);
    expect((await ended).status).toBe("succeeded");
    expect(await forgotten).toBe(true);
    expect(await late).toBe("unknown");
  });

  test_("a closed store says so, and closing twice is closing", async () => {
    const { store } = await openWorld(storeCase);
    await store.close();
    await store.close();
    expect(await codeOf(store.enqueue([]))).toBe("closed");
    expect(await codeOf(store.stats())).toBe("closed");
    expect(await codeOf(collect(store.rollouts()))).toBe("closed");
    expect(await codeOf(collect(store.spans({ rolloutId: "a" })))).toBe("closed");
    expect(await codeOf(store.getState("x"))).toBe("closed");
    expect(await codeOf(store.waitFor([]))).toBe("closed");
  });

  const persisted = where(storeCase.persists, "it does not persist");

  persisted("reopening finds everything, and goes on where it was", async () => {
    const world = await openWorld(storeCase);
    const { store } = world;
    const attempt = await begin(store, "a", { maxAttempts: 2, retryOn: ["failed"] });
    await store.append([
      span("a", attempt.id, "s1", { attributes: { t: Int32Array.of(1, -1), big: "x".repeat(3_000) } }),
      span("a", attempt.id, "s2"),
    ]);
    await store.finish(attempt, { status: "failed", error: { name: "E", message: "m" } });
    await store.enqueue([
      { id: "b", input: { q: [1] }, metadata: { m: 1 } },
      { id: "c", input: 0 },
    ]);
    await store.claim("w");
    world.time.now = 3_000;
    await store.cancel("c");
    await store.publish({ name: "p", kind: "lora", files: { f: Uint8Array.of(1) } });
    await store.publish({ name: "p", kind: "lora", files: { f: Uint8Array.of(2) } });
    await store.putState("s", Uint8Array.of(5));
    const look = async (store: Store) => ({
      rollouts: await collect(store.rollouts()),
      attempts: [await store.attempts("a"), await store.attempts("b")],
      spans: await collect(store.spans({ rolloutId: "a" })),
      resources: [await store.resource("p", 1), await store.resource("p")],
      state: await store.getState("s"),
      stats: await store.stats(),
    });
    const before = await look(store);
    await store.close();
    const again = await world.again();
    expect(await look(again)).toEqual(before);
    expect((await again.enqueue([{ id: "d", input: 0 }]))[0]!.seq).toBe(4);
    await again.append([span("a", attempt.id, "s2"), span("a", attempt.id, "s3")]);
    expect((await collect(again.spans({ rolloutId: "a" }))).map(({ id, seq }: StoredSpan) => `${id}@${seq}`)).toEqual([
      "s1@1",
      "s2@2",
      "s3@3",
    ]);
    expect((await again.publish({ name: "p", kind: "lora", files: {} })).version).toBe(3);
    expect(await again.requeueStale(world.time.now + 1)).toBe(1);
    expect((await again.claim("w2", 9)).map(({ rollout }) => rollout.id)).toEqual(["b", "d"]);
  });

  persisted("what was forgotten stays so after reopening", async () => {
    const world = await openWorld(storeCase);
    const attempt = await begin(world.store, "a");
    const other = await begin(world.store, "b");
    await world.store.append([
      span("a", attempt.id, "s1", { attributes: { big: "x".repeat(3_000) } }),
      span("b", other.id, "s1", { attributes: { big: "y".repeat(3_000) } }),
      span("a", attempt.id, "s2"),
    ]);
    await world.store.finish(attempt, { status: "failed" });
    await world.store.enqueue([{ id: "c", input: 0 }]);
    await world.store.forget("a");
    await world.store.forget("c");
    await world.store.enqueue([{ id: "d", input: 0 }]);
    await world.store.forget("d");
    await world.store.close();
    for (let round = 0; round < 2; round++) {
      const store = await world.again();
      expect((await collect(store.rollouts())).map(({ id }) => id)).toEqual(["b"]);
      expect([await store.attempts("a"), await collect(store.spans({ rolloutId: "a" }))]).toEqual([[], []]);
      expect((await collect(store.spans({ rolloutId: "b" }))).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["s1@2"]);
      expect(await store.stats()).toMatchObject({ rollouts: { running: 1, queued: 0 }, attempts: 1, spans: 1 });
      await store.close();
    }
    const store = await world.again();
    expect((await store.enqueue([{ id: "e", input: 0 }]))[0]!.seq).toBe(5);
    await store.append([span("b", other.id, "s2")]);
    expect((await collect(store.spans({ rolloutId: "b" }))).map(({ seq }) => seq)).toEqual([2, 4]);
  });

  const filled = where(storeCase.fillDisk, "it has no disk of its own");

  filled("on a full disk every write is refused as full and half of none is done; with room again each goes through", async () => {
    const { store, time, name } = await openWorld(storeCase);
    await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: 0 })));
    const [{ attempt }] = (await store.claim("w")) as [Claim];
    await store.append([span("a", attempt.id, "s1")]);
    const look = async () => ({
      rollouts: await collect(store.rollouts()),
      attempts: await Promise.all(["a", "b", "c"].map((id) => store.attempts(id))),
      spans: await collect(store.spans({ rolloutId: "a" })),
      stats: await store.stats(),
    });
    const before = await look();
    const heard: StoreEvent[] = [];
    store.watch((event) => void heard.push(event));
    time.now = 2_000;
    const writes: (() => Promise<unknown>)[] = [
      () => store.claim("w2", 2),
      () => store.finish(attempt, { status: "succeeded" }),
      () => store.cancel("a"),
      () => store.cancel("b"),
      () => store.heartbeat(attempt),
      () => store.append([span("a", attempt.id, "s2")]),
      () => store.enqueue([{ id: "d", input: 0 }]),
      () => store.requeueStale(2_000),
    ];
    const empty = storeCase.fillDisk!(name);
    try {
      for (const write of writes) expect(await codeOf(write()), String(write)).toBe("full");
      expect(await look()).toEqual(before);
      expect(await Promise.all(writes.map((write) => codeOf(write())))).toEqual(writes.map(() => "full"));
      expect(await look()).toEqual(before);
    } finally {
      empty();
    }
    await settle();
    expect(heard).toEqual([]);
    expect((await store.claim("w2")).map(({ rollout, attempt }) => [rollout.id, attempt.sequence])).toEqual([["b", 1]]);
    await store.append([span("a", attempt.id, "s2")]);
    expect((await store.finish(attempt, { status: "succeeded" })).status).toBe("succeeded");
    expect((await store.cancel("c")).status).toBe("cancelled");
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["s1@1", "s2@2"]);
    expect((await store.enqueue([{ id: "d", input: 0 }]))[0]!.seq).toBe(4);
  });

  const shared = where(storeCase.shared, "one object holds it at a time");

  shared("two objects see one store, and hear of each other", async () => {
    const world = await openWorld(storeCase);
    const other = await world.again();
    const heard: StoreEvent[] = [];
    const first = new Promise<void>((resolve) => {
      other.watch((event) => {
        heard.push(event);
        resolve();
      });
    });
    const [rollout] = await world.store.enqueue([{ id: "a", input: 1 }]);
    expect(await collect(other.rollouts())).toEqual([rollout]);
    await first;
    expect(heard).toEqual([{ kind: "rollout", id: "a", status: "queued" }]);
    const waiting = other.waitFor(["a"]);
    await settle();
    await world.store.cancel("a");
    expect((await waiting)[0]!.status).toBe("cancelled");
  });
});

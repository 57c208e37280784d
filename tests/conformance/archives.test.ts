// A whole store as a stream: out of any store, into any store, whole or not at all.
import {
  createMemoryStore,
  exportStore,
  type ImportReport,
  importStore,
  type Span,
  type Store,
  toJsonl,
  toTransitions,
} from "@fulgurite/trace";
import { afterEach, describe, expect, test } from "vitest";
import { collect, errorOf } from "../outcomes.ts";
import { storeCases } from "./storeCases.ts";

const read = async (stream: ReadableStream<Uint8Array>): Promise<Uint8Array> => new Uint8Array(await new Response(stream).arrayBuffer());

/** In chunks of a size, so that lines cross them. */
const streamOf = (bytes: Uint8Array, size = 1_000): ReadableStream<Uint8Array> => {
  let at = 0;
  return new ReadableStream({
    pull: (controller) => {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
    },
  });
};

const span = (rolloutId: string, attemptId: string, id: string, attributes: Span["attributes"] = {}): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "step",
  startMs: 1,
  endMs: 2,
  status: "ok",
  attributes,
});

const options = () => {
  let ids = 0;
  return { clock: () => 1_000 + ids, newId: () => `id-${++ids}` };
};

test("what is forgotten while the archive is read is not in it, and the archive is one that a store takes", async () => {
  const store = createMemoryStore(options());
  await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: id })));
  for (const { rollout, attempt } of await store.claim("w", 3)) await store.append([span(rollout.id, attempt.id, "s")]);
  const reader = exportStore(store).getReader();
  const parts: Uint8Array[] = [(await reader.read()).value as Uint8Array, (await reader.read()).value as Uint8Array]; // a is on its way
  await store.cancel("b");
  await store.forget("b");
  for (let part = await reader.read(); !part.done; part = await reader.read()) parts.push(part.value);
  const bytes = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
  const taken = createMemoryStore();
  expect((await importStore(taken, streamOf(bytes))).added).toMatchObject({ rollouts: 2, attempts: 2, spans: 2 });
  expect((await collect(taken.rollouts())).map(({ id, status }) => [id, status])).toEqual([
    ["a", "running"],
    ["c", "running"],
  ]);
});

test("a rollout that came without its attempts is exported as it is", async () => {
  const store = createMemoryStore(options());
  const [queued] = await createMemoryStore(options()).enqueue([{ id: "a", input: 1 }]);
  await store.adopt([{ kind: "rollout", data: { ...queued!, status: "succeeded", attempts: 1, endedAtMs: 2 } }]);
  const taken = createMemoryStore();
  expect((await importStore(taken, streamOf(await read(exportStore(store))))).added.rollouts).toBe(1);
  expect(await collect(taken.rollouts())).toEqual(await collect(store.rollouts()));
});

/** Rollouts in every state, retried ones, spans of two rollouts in turn, resources and states. */
const fill = async (store: Store): Promise<void> => {
  const config = { maxAttempts: 2, retryOn: ["failed"] as const };
  await store.enqueue(
    ["done", "broken", "stopped", "again", "running", "waiting"].map((id) => ({ id, input: { id }, metadata: { m: [1] }, config })),
  );
  const [done, broken, stopped, again, running] = (await store.claim("w", 5)).map(({ attempt }) => attempt);
  await store.append([
    span("done", done!.id, "s1", { ids: Int32Array.of(1, -2), logprobs: Float32Array.of(-0.5, Number.NaN), look: { $i32: "x" } }),
    span("again", again!.id, "s1", { text: "é\u2028𝄞" }),
    span("done", done!.id, "s2"),
  ]);
  await store.finish(done!, { status: "succeeded" });
  await store.finish(broken!, { status: "timeout", error: { name: "E", message: "m", stack: "s" } });
  await store.cancel("stopped");
  await store.finish(again!, { status: "failed" });
  const [retried] = await store.claim("w2");
  await store.append([span("again", retried!.attempt.id, "s1"), span("again", again!.id, "late"), span("running", running!.id, "s1")]);
  await store.finish(retried!.attempt, { status: "failed" });
  const [last] = await store.enqueue([{ id: "requeued", input: null, mode: "val", config }]);
  await store.cancel("waiting");
  const [first] = await store.claim("w");
  expect([last!.id, first!.rollout.id, stopped!.status]).toEqual(["requeued", "requeued", "running"]);
  await store.finish(first!.attempt, { status: "failed" });
  await store.enqueue([{ id: "new", input: [] }]);
  await store.publish({
    name: "policy",
    kind: "lora",
    files: { "a.bin": Uint8Array.of(0, 255), empty: new Uint8Array(0) },
    metadata: { step: 1 },
  });
  await store.publish({ name: "policy", kind: "lora", version: 4, files: {} });
  await store.publish({ name: "a prompt", kind: "prompt", files: { text: Uint8Array.of(104) } });
  await store.putState("cursor", Uint8Array.of(1, 2, 3));
  await store.putState("../é", new Uint8Array(0));
};

/** All of it; seqs are the store's own, so their order is compared and not their values. */
const contents = async (store: Store) => {
  const withoutSeq = <T extends { seq: number }>(item: T) => ({ ...item, seq: 0 });
  const rollouts = await collect(store.rollouts());
  return {
    rollouts: rollouts.map(withoutSeq),
    attempts: await Promise.all(rollouts.map(({ id }) => store.attempts(id))),
    spans: await Promise.all(rollouts.map(async ({ id }) => (await collect(store.spans({ rolloutId: id }))).map(withoutSeq))),
    resources: await Promise.all((await collect(store.resources())).map(({ name, version }) => store.resource(name, version))),
    states: await Promise.all((await store.states()).map(async (name) => [name, await store.getState(name)])),
    stats: await store.stats(),
  };
};

const none = { rollouts: 0, attempts: 0, spans: 0, resources: 0, states: 0 };
const all = { rollouts: 8, attempts: 7, spans: 6, resources: 3, states: 2 };

let opened: Store[] = [];
afterEach(async () => {
  for (const store of opened) await store.close();
  opened = [];
});
const runId = Math.random().toString(36).slice(2);
let names = 0;

describe.each(storeCases)("$name", (storeCase) => {
  const test_ =
    storeCase.skip === undefined ? test : (title: string, _body: () => unknown) => test.skip(`${title} (${storeCase.skip})`, () => {});
  const open = async (name = `archive-${runId}-${++names}`): Promise<Store> => {
    const store = await storeCase.open(name, options());
    opened.push(store);
    return store;
  };

  test_("an archive holds everything, in every state, and goes into any store and back", async () => {
    const store = await open();
    await fill(store);
    const expected = await contents(store);
    expect(new Set(expected.rollouts.map(({ status }) => status)).size).toBe(5);
    const bytes = await read(exportStore(store));
    expect(await read(exportStore(store))).toEqual(bytes);
    const memory = createMemoryStore(options());
    expect(await importStore(memory, streamOf(bytes))).toEqual({ added: all, known: none, different: none, redacted: none, examples: [] });
    expect(await contents(memory)).toEqual(expected);
    const other = await open();
    expect((await importStore(other, exportStore(memory))).added).toEqual(all);
    expect(await contents(other)).toEqual(expected);
  });

  test_("what was imported lives on: it is claimed, finished, retried and silent as at home", async () => {
    const [home, away] = [await open(), await open()];
    await fill(home);
    await importStore(away, exportStore(home));
    for (const store of [home, away]) {
      const running = (await store.attempts("running"))[0]!;
      expect(await store.finish(running, { status: "failed" })).toMatchObject({ status: "queued", attempts: 1 });
      const claims = await store.claim("w", 9);
      expect(claims.map(({ rollout, attempt }) => [rollout.id, attempt.sequence])).toEqual([
        ["running", 2],
        ["requeued", 2],
        ["new", 1],
      ]);
      await store.append([span("running", claims[0]!.attempt.id, "s1")]);
      expect(await store.requeueStale(Number.MAX_SAFE_INTEGER)).toBe(3);
      expect((await store.publish({ name: "policy", kind: "lora", files: {} })).version).toBe(5);
    }
    expect((await away.stats()).rollouts).toEqual((await home.stats()).rollouts);
  });

  test_("importing again adds nothing, and what the store has otherwise stays as it is and is named", async () => {
    const store = await open();
    const source = createMemoryStore(options());
    await fill(source);
    const bytes = await read(exportStore(source));
    await store.enqueue([{ id: "running", input: "mine" }]);
    await store.publish({ name: "a prompt", kind: "prompt", files: { text: Uint8Array.of(1) } });
    await store.putState("cursor", Uint8Array.of(9));
    const report = await importStore(store, streamOf(bytes));
    const different = { rollouts: 1, attempts: 1, spans: 1, resources: 1, states: 1 };
    expect(report).toMatchObject({ added: { rollouts: 7, attempts: 6, spans: 5, resources: 2, states: 1 }, known: none, different });
    expect(report.examples[0]).toBe("rollout running");
    expect(report.examples).toContain("resource a prompt 1");
    expect(report.examples).toContain("state cursor");
    const before = await contents(store);
    const again: ImportReport = await importStore(store, streamOf(bytes, 7));
    expect(again).toMatchObject({ added: none, known: report.added, different });
    expect(await contents(store)).toEqual(before);
    expect((await collect(store.rollouts({ ids: ["running"] })))[0]).toMatchObject({ input: "mine", status: "queued", attempts: 0 });
    expect(await store.getState("cursor")).toEqual(Uint8Array.of(9));
  });

  test_("an archive cut at any place adds only what was proved, and the whole one completes it", async () => {
    const store = await open();
    const source = createMemoryStore(options());
    await fill(source);
    // large enough for several checks
    const attempt = (await source.attempts("running"))[0]!;
    for (let index = 0; index < 24; index++)
      await source.append([span("running", attempt.id, `big${index}`, { text: "x".repeat(100_000) })]);
    const bytes = await read(exportStore(source));
    const cut = await errorOf(importStore(store, streamOf(bytes.slice(0, bytes.length - 200_000), 50_000)));
    expect([cut.code, cut.message]).toEqual(["corrupt", expect.stringContaining("cut within a line")]);
    const { spans, rollouts } = await store.stats();
    expect(spans).toBeGreaterThan(5);
    expect(spans).toBeLessThan(30);
    expect(rollouts.running).toBe(1);
    const report = await importStore(store, streamOf(bytes, 50_000));
    expect(report.known.spans).toBe(spans);
    expect(report.different).toEqual(none);
    expect(await contents(store)).toEqual(await contents(source));
  });

  test_("what is imported passes redact", async () => {
    const source = createMemoryStore(options());
    await fill(source);
    const store = await storeCase.open(`archive-${runId}-${++names}`, {
      ...options(),
      redact: { span: (span) => (span.id === "s1" ? null : { ...span, attributes: {} }) },
    });
    opened.push(store);
    const report = await importStore(store, exportStore(source));
    expect([report.added.spans, report.redacted.spans]).toEqual([2, 4]);
    expect(await store.stats()).toMatchObject({ spans: 2, redacted: 4 });
  });

  test_("resources are listed by name and version without their bytes, states by name", async () => {
    const store = await open();
    expect([await collect(store.resources()), await store.states()]).toEqual([[], []]);
    for (let index = 0; index < 70; index++) await store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(index) } });
    await store.publish({ name: "a", kind: "lora", files: {}, metadata: { k: 1 } });
    await store.publish({ name: "é", kind: "model", files: {} });
    const entries = await collect(store.resources());
    expect(entries.map(({ name, version }) => `${name}${version}`)).toEqual([
      "a1",
      ...Array.from({ length: 70 }, (_, i) => `p${i + 1}`),
      "é1",
    ]);
    expect(entries[0]).toEqual({ name: "a", kind: "lora", version: 1, metadata: { k: 1 }, manifest: {}, createdAtMs: 1_000 });
    for (const name of ["b", "a/b", "é"]) await store.putState(name, Uint8Array.of(1));
    expect(await store.states()).toEqual(["a/b", "b", "é"]);
  });
});

test("garbage, other formats, other versions and any flipped bit are refused by line", async () => {
  const source = createMemoryStore(options());
  await fill(source);
  const bytes = await read(exportStore(source));
  const text = new TextDecoder().decode(bytes);
  const encode = (value: string) => streamOf(new TextEncoder().encode(value));
  const refused = async (stream: ReadableStream<Uint8Array>) => {
    const store = createMemoryStore();
    const { code, message } = await errorOf(importStore(store, stream));
    expect(code).toBe("corrupt");
    expect(await store.stats()).toMatchObject({ attempts: 0, spans: 0, resources: 0 });
    expect((await collect(store.rollouts())).length + (await store.states()).length).toBe(0);
    return message;
  };
  expect(await refused(encode(""))).toContain("first line of magic fulgurite-archive, v 1");
  expect(await refused(encode("PK\u0003\u0004 a zip file"))).toContain("PK");
  expect(await refused(encode("x".repeat(5_000)))).toContain("first line of magic");
  expect(await refused(encode('{"magic":"fulgurite-log","v":1}\n'))).toContain("fulgurite-log");
  expect(await refused(encode(text.replace('"v":1', '"v":2')))).toContain("v 1, got v 2");
  expect(await refused(encode(text.slice(0, text.lastIndexOf('{"kind":"end"'))))).toContain("cut after");
  // that there is more is seen when all before it is in
  expect((await errorOf(importStore(createMemoryStore(), encode(`${text}{}\n`)))).message).toContain("nothing after");
  for (let at = 40; at < bytes.length - 1; at += 13) {
    const flipped = bytes.slice();
    flipped[at]! ^= 1 << (at % 8);
    await refused(streamOf(flipped, 4_096));
  }
  for (let cut = 0; cut < bytes.length; cut += 37) await refused(streamOf(bytes.slice(0, cut), 4_096));
});

test("an import can be stopped, and says how far it is", async () => {
  const source = createMemoryStore(options());
  await fill(source);
  const bytes = await read(exportStore(source));
  const reason = new Error("enough");
  await expect(importStore(createMemoryStore(), streamOf(bytes), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  const controller = new AbortController();
  let cancelled = false;
  const endless = new ReadableStream<Uint8Array>({
    start: (stream) => stream.enqueue(bytes.slice(0, 500)),
    cancel: () => {
      cancelled = true;
    },
  });
  const stopped = importStore(createMemoryStore(), endless, { signal: controller.signal });
  setTimeout(() => controller.abort(reason), 5);
  await expect(stopped).rejects.toBe(reason);
  expect(cancelled).toBe(true);
  const steps: { lines: number; bytes: number }[] = [];
  await importStore(createMemoryStore(), streamOf(bytes), { onProgress: (progress) => steps.push(progress) });
  expect(steps.at(-1)).toEqual({ lines: new TextDecoder().decode(bytes).split("\n").length - 1, bytes: bytes.length });
});

test("a running rollout without its attempt, and attempts that share a number, are not adopted", async () => {
  const source = createMemoryStore(options());
  await fill(source);
  const [rollout] = await collect(source.rollouts({ ids: ["running"] }));
  const [attempt] = await source.attempts("running");
  const store = createMemoryStore();
  const codeOf = async (items: Parameters<Store["adopt"]>[0]) => (await errorOf(store.adopt(items))).code;
  expect(await codeOf([{ kind: "rollout", data: rollout! }])).toBe("bad-input");
  expect(
    await codeOf([
      { kind: "rollout", data: rollout! },
      { kind: "attempt", data: attempt! },
      { kind: "attempt", data: { ...attempt!, id: "other" } },
    ]),
  ).toBe("bad-input");
  expect(await codeOf([{ kind: "rollout", data: { ...rollout!, status: "odd" as never } }])).toBe("bad-input");
  expect((await store.stats()).rollouts.running).toBe(0);
  expect(await store.adopt([{ kind: "attempt", data: attempt! }])).toEqual(["different"]);
});

test("transitions as JSONL are numbers that any program reads", () => {
  const [transition] = toTransitions([
    {
      ...span("r", "a", "s", {
        "fulgurite.prompt.tokens": Int32Array.of(1, 2),
        "fulgurite.response.tokens": Int32Array.of(3),
        "fulgurite.sampler.logprobs": Float32Array.of(-0.1),
        "fulgurite.turn": 0,
        "fulgurite.policy.version": 2,
        "gen_ai.request.temperature": 1,
        "gen_ai.response.finish_reasons": ["stop"],
      }),
      seq: 1,
    },
  ]);
  const line =
    '{"rolloutId":"r","attemptId":"a","spanId":"s","turn":0,"promptTokens":[1,2],"responseTokens":[3],"samplerLogprobs":[-0.10000000149011612],"policyVersion":2,"temperature":1,"finishReason":"stop"}\n';
  expect(toJsonl([transition!, transition!])).toBe(line + line);
  expect(Math.fround(JSON.parse(line).samplerLogprobs[0])).toBe(Math.fround(-0.1));
  expect(toJsonl([])).toBe("");
});

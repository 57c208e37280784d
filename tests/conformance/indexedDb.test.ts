// What only IndexedDB does: handles that die, other tabs' upgrades and deletions, durability. Chromium's own in the browser project.
import { TraceError } from "@fulgurite/trace";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { afterEach, expect, test, vi } from "vitest";
import { inNode } from "./storeCases.ts";

if (inNode) await import("./storeCasesInNode.ts"); // brings fake-indexeddb

afterEach(() => {
  vi.restoreAllMocks();
});

const runId = Math.random().toString(36).slice(2);
let names = 0;
const newName = (): string => `connection-${runId}-${++names}`;

const ask = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    if ("onblocked" in request)
      (request as unknown as IDBOpenDBRequest).onblocked = () => reject(new Error("blocked: the store kept its handle"));
  });

/** The next `times` transactions fail as on a handle that is gone. */
const killHandles = (times: number, name = "InvalidStateError") => {
  const real = IDBDatabase.prototype.transaction;
  let left = times;
  return vi.spyOn(IDBDatabase.prototype, "transaction").mockImplementation(function (this: IDBDatabase, ...args) {
    if (left-- > 0) throw new DOMException("The database connection is closing.", name);
    return real.apply(this, args);
  });
};

test("a handle that dies is replaced once, and the transaction runs again", async () => {
  const store = await openIndexedDbStore(newName());
  await store.enqueue([{ id: "a", input: 1 }]);
  const spy = killHandles(1);
  expect((await store.claim("w")).map(({ rollout }) => rollout.id)).toEqual(["a"]);
  expect(spy).toHaveBeenCalledTimes(2);
  await store.close();
});

test("a handle that dies twice is a loud error, and the next call tries anew", async () => {
  const store = await openIndexedDbStore(newName());
  killHandles(2);
  const error = await store.stats().catch((caught) => caught);
  expect(error).toBeInstanceOf(TraceError);
  expect(error.code).toBe("storage");
  expect(error.cause.name).toBe("InvalidStateError");
  expect((await store.stats()).attempts).toBe(0);
  await store.close();
});

test("another error of the platform is handed on untouched, and not tried again", async () => {
  const store = await openIndexedDbStore(newName());
  const spy = killHandles(1, "QuotaExceededError");
  await expect(store.stats()).rejects.toMatchObject({ name: "QuotaExceededError" });
  expect(spy).toHaveBeenCalledTimes(1);
  await store.close();
});

test("a newer release may upgrade under us: the handle gives way, and what we know goes on", async () => {
  const name = newName();
  const store = await openIndexedDbStore(name);
  await store.enqueue([{ id: "a", input: 1 }]);
  const request = indexedDB.open(`fulgurite/${name}`, 99);
  request.onupgradeneeded = () => void request.result.createObjectStore("later");
  const newer = await ask(request);
  newer.close();
  expect(
    (
      await store.enqueue([
        { id: "a", input: 2 },
        { id: "b", input: 3 },
      ])
    ).map(({ input }) => input),
  ).toEqual([1, 3]);
  await store.close();
});

test("a database of the first version is upgraded with all that is in it, and can forget", async () => {
  const name = newName();
  const request = indexedDB.open(`fulgurite/${name}`, 1);
  request.onupgradeneeded = () => {
    const db = request.result;
    const rollouts = db.createObjectStore("rollouts", { keyPath: "id" });
    rollouts.createIndex("bySeq", "seq", { unique: true });
    rollouts.createIndex("byStatus", ["status", "seq"]);
    const attempts = db.createObjectStore("attempts", { keyPath: ["rolloutId", "id"] });
    attempts.createIndex("bySequence", ["rolloutId", "sequence"], { unique: true });
    attempts.createIndex("byHeartbeat", ["status", "lastHeartbeatMs"]);
    const spans = db.createObjectStore("spans", { keyPath: ["rolloutId", "attemptId", "id"] });
    spans.createIndex("bySeq", "seq", { unique: true });
    spans.createIndex("byRollout", ["rolloutId", "seq"]);
    spans.createIndex("byAttempt", ["rolloutId", "attemptId", "seq"]);
    db.createObjectStore("resources", { keyPath: ["name", "version"] });
    db.createObjectStore("states").put(Uint8Array.of(7), "cursor");
    rollouts.put({ id: "a", seq: 4, input: 1, mode: "train", status: "queued", config: {}, metadata: {}, attempts: 0, createdAtMs: 1 });
  };
  (await ask(request)).close();
  const store = await openIndexedDbStore(name);
  expect((await store.stats()).rollouts.queued).toBe(1);
  expect(await store.getState("cursor")).toEqual(Uint8Array.of(7));
  expect(await store.forget("a")).toBe(true);
  expect((await store.enqueue([{ id: "b", input: 1 }]))[0]!.seq).toBe(5);
  await store.close();
});

test("a database deleted by another tab is empty afterwards, and works", async () => {
  const name = newName();
  const store = await openIndexedDbStore(name);
  await store.enqueue([{ id: "a", input: 1 }]);
  await ask(indexedDB.deleteDatabase(`fulgurite/${name}`));
  expect((await store.stats()).rollouts.queued).toBe(0);
  expect((await store.enqueue([{ id: "b", input: 1 }]))[0]!.seq).toBe(1);
  await store.close();
});

test("a rule broken inside a transaction leaves nothing of it", async () => {
  const store = await openIndexedDbStore(newName());
  await store.enqueue([{ id: "a", input: 1 }]);
  const [claim] = await store.claim("w");
  const span = {
    rolloutId: "a",
    attemptId: claim!.attempt.id,
    id: "s",
    name: "n",
    startMs: 0,
    endMs: 0,
    status: "ok",
    attributes: {},
  } as const;
  await expect(store.append([span, { ...span, attemptId: "nobody" }])).rejects.toMatchObject({ code: "unknown" });
  expect((await store.stats()).spans).toBe(0);
  await store.append([span]);
  expect((await store.stats()).spans).toBe(1);
  await store.close();
});

test("what must survive a power cut asks for it", async () => {
  const store = await openIndexedDbStore(newName());
  const spy = vi.spyOn(IDBDatabase.prototype, "transaction");
  const durabilityOf = async (act: () => Promise<unknown>) => {
    spy.mockClear();
    await act();
    return (spy.mock.calls[0]![2] as IDBTransactionOptions | undefined)?.durability;
  };
  expect(await durabilityOf(() => store.enqueue([{ id: "a", input: 1 }]))).toBe("relaxed");
  const [claim] = await store.claim("w");
  expect(await durabilityOf(() => store.claim("w"))).toBe("strict");
  expect(await durabilityOf(() => store.append([]))).toBe("relaxed");
  expect(await durabilityOf(() => store.finish(claim!.attempt, { status: "succeeded" }))).toBe("strict");
  expect(await durabilityOf(() => store.publish({ name: "p", kind: "prompt", files: {} }))).toBe("strict");
  expect(await durabilityOf(() => store.putState("s", new Uint8Array(1)))).toBe("strict");
  await store.close();
});

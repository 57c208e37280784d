// What only IndexedDB does: handles that die, other tabs' upgrades and deletions, durability. Chromium's own in the browser project.
import { type Attempt, type AttemptRef, type Attributes, type Span, type Store, type StoreEvent, TraceError } from "@fulgurite/trace";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { afterEach, expect, test, vi } from "vitest";
import { ask, openFirstVersion, openSecondVersion } from "./indexedDbVersions.ts";
import { inNode } from "./storeCases.ts";

if (inNode) await import("./storeCasesInNode.ts"); // brings fake-indexeddb

afterEach(() => {
  vi.restoreAllMocks();
});

const runId = Math.random().toString(36).slice(2);
let names = 0;
const newName = (): string => `connection-${runId}-${++names}`;

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
  const spy = killHandles(1, "DataError");
  await expect(store.stats()).rejects.toMatchObject({ name: "DataError" });
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
  (await openFirstVersion(name)).close();
  const store = await openIndexedDbStore(name);
  expect((await store.stats()).rollouts.queued).toBe(1);
  expect(await store.getState("cursor")).toEqual(Uint8Array.of(7));
  expect(await store.forget("a")).toBe(true);
  expect((await store.enqueue([{ id: "b", input: 1 }]))[0]!.seq).toBe(5);
  await store.close();
});

test("a database of the second version is upgraded where it lies: rows, seqs and what runs go on", async () => {
  const name = newName();
  (await openSecondVersion(name)).close();
  const store = await openIndexedDbStore(name, { clock: () => 150 });
  const found = [];
  for await (const span of store.spans({ rolloutId: "a" })) found.push(`${span.id}@${span.seq} ${span.attributes.tokens}`);
  expect(found).toEqual(["s2@7 7", "s1@8 8"]);
  expect(await store.getState("cursor")).toEqual(Uint8Array.of(7));
  const attempt = { rolloutId: "a", id: "t" };
  await store.append([spanOf(attempt, "s1"), spanOf(attempt, "s3")]);
  expect((await store.attempts("a"))[0]).toMatchObject({ status: "running", startedAtMs: 5, lastHeartbeatMs: 150 });
  const seqs = [];
  for await (const { id, seq } of store.spans({ rolloutId: "a", attemptId: "t" })) seqs.push(`${id}@${seq}`);
  expect(seqs).toEqual(["s2@7", "s1@8", "s3@21"]);
  expect((await store.enqueue([{ id: "b", input: 1 }]))[0]!.seq).toBe(10);
  expect(await store.requeueStale(151)).toBe(1);
  await store.close();
});

test("a tab of the second version is refused, and writes nothing that nobody would count", async () => {
  const name = newName();
  const old = await openSecondVersion(name);
  old.onversionchange = () => old.close();
  const store = await openIndexedDbStore(name);
  const again = await ask(indexedDB.open(`fulgurite/${name}`)); // as that release does when it finds a newer version
  const stores = ["rollouts", "attempts", "spans", "resources", "counters"];
  expect(() => again.transaction(stores, "readwrite")).toThrow(expect.objectContaining({ name: "NotFoundError" }));
  again.close();
  await store.close();
});

test("a resource of the second version, which had no manifest, is given that of its bytes, and everything can be done with it", async () => {
  const name = newName();
  (await openSecondVersion(name)).close();
  const db = await ask(indexedDB.open(`fulgurite/${name}`));
  const rows = db.transaction("resources", "readwrite").objectStore("resources");
  const old = { name: "p", kind: "lora", metadata: { step: 1 }, createdAtMs: 5 };
  for (const version of [1, 2]) await ask(rows.put({ ...old, version, files: { w: Uint8Array.of(1, 2, 3), v: Uint8Array.of(version) } }));
  db.close();
  const store = await openIndexedDbStore(name);
  const manifests = [];
  for await (const { manifest } of store.resources()) manifests.push(manifest.w);
  const digest = { sha256: "039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81", byteLength: 3 };
  expect(manifests).toEqual([digest, digest]);
  expect((await store.resource("p", 1))?.manifest.w).toEqual(digest);
  const same = { ...old, kind: "lora" as const, files: { w: Uint8Array.of(1, 2, 3), v: Uint8Array.of(2) } };
  expect((await store.publish({ ...same, version: 2 })).createdAtMs).toBe(5); // known
  await expect(store.publish({ ...same, version: 2, files: {} })).rejects.toMatchObject({ code: "conflict" });
  expect(await store.unpublish("p", 1)).toBe(true);
  expect((await store.publish(same)).version).toBe(3);
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

// ---- appends that share a transaction -------------------------------------------------------------------------------------

const spanOf = (attempt: AttemptRef, id: string, more: Attributes = {}): Span => ({
  rolloutId: attempt.rolloutId,
  attemptId: attempt.id,
  id,
  name: "n",
  startMs: 0,
  endMs: 0,
  status: "ok",
  attributes: more,
});

const begin = async (store: Store, id: string): Promise<Attempt> => {
  await store.enqueue([{ id, input: 1 }]);
  return (await store.claim("w"))[0]!.attempt;
};

const idsOf = async (store: Store, rolloutId: string): Promise<string[]> => {
  const ids: string[] = [];
  for await (const { id, seq } of store.spans({ rolloutId })) ids[seq - 1] = id;
  return ids;
};

const countTransactions = () => {
  const spy = vi.spyOn(IDBDatabase.prototype, "transaction");
  return () => spy.mock.calls.filter(([, mode]) => mode === "readwrite").length;
};

const range = (count: number): number[] => Array.from({ length: count }, (_, index) => index);

test("appends of one moment share one transaction, in order, and those that wait share the next", async () => {
  const store = await openIndexedDbStore(newName());
  const attempt = await begin(store, "a");
  const count = countTransactions();
  const resolved: number[] = [];
  await Promise.all(range(50).map((index) => store.append([spanOf(attempt, `s${index}`)]).then(() => resolved.push(index))));
  expect(count()).toBe(1);
  expect(resolved).toEqual(range(50));
  expect(await idsOf(store, "a")).toEqual(range(50).map((index) => `s${index}`));
  await store.close();
});

test("a shared transaction has at most 64 spans, unless one call alone has more", async () => {
  const store = await openIndexedDbStore(newName());
  const attempt = await begin(store, "a");
  const count = countTransactions();
  const parts = [range(40), range(24), range(1), range(100), range(30)]; // 64, then 1, then 100, then 30
  await Promise.all(parts.map((part, call) => store.append(part.map((index) => spanOf(attempt, `${call}-${index}`)))));
  expect(count()).toBe(4);
  expect(await idsOf(store, "a")).toEqual(parts.flatMap((part, call) => part.map((index) => `${call}-${index}`)));
  await store.close();
});

test("an append has resolved only when its transaction has completed", async () => {
  const store = await openIndexedDbStore(newName());
  const attempt = await begin(store, "a");
  const real = IDBDatabase.prototype.transaction;
  const seen: string[] = [];
  vi.spyOn(IDBDatabase.prototype, "transaction").mockImplementation(function (this: IDBDatabase, ...args) {
    const transaction = real.apply(this, args);
    transaction.addEventListener("complete", () => seen.push("complete"));
    return transaction;
  });
  await Promise.all(["x", "y"].map((id) => store.append([spanOf(attempt, id)]).then(() => seen.push(id))));
  expect(seen).toEqual(["complete", "x", "y"]);
  await store.close();
});

test("of appends that share, one that breaks a rule fails alone", async () => {
  const store = await openIndexedDbStore(newName());
  const attempt = await begin(store, "a");
  const count = countTransactions();
  const nobody = { rolloutId: "a", id: "nobody" };
  const all = await Promise.allSettled(
    [attempt, nobody, attempt].map((ref, index) => store.append([spanOf(attempt, `s${index}`), spanOf(ref, `t${index}`)])),
  );
  expect(all.map((one) => (one.status === "rejected" ? one.reason.code : "stored"))).toEqual(["stored", "unknown", "stored"]);
  expect(count()).toBe(1);
  expect(await idsOf(store, "a")).toEqual(["s0", "t0", "s2", "t2"]);
  await store.close();
});

/** Values that say `heavy` find no room; so does what is refused when its transaction commits. */
const fillDisk = (at: "request" | "commit") => {
  for (const method of ["add", "put"] as const) {
    const real = IDBObjectStore.prototype[method];
    vi.spyOn(IDBObjectStore.prototype, method).mockImplementation(function (this: IDBObjectStore, ...args) {
      const isHeavy = JSON.stringify(args[0])?.includes("heavy") ?? false;
      if (isHeavy && at === "request") throw new DOMException("no room", "QuotaExceededError");
      if (isHeavy) {
        Object.defineProperty(this.transaction, "error", { value: new DOMException("no room", "QuotaExceededError") });
        const request = real.apply(this, args);
        this.transaction.abort();
        return request;
      }
      return real.apply(this, args);
    });
  }
};

test("on a full disk the call without room is told so by code, those that shared its transaction are stored", async () => {
  for (const at of ["request", "commit"] as const) {
    const store = await openIndexedDbStore(newName());
    const attempt = await begin(store, "a");
    const events: StoreEvent[] = [];
    store.watch((event) => events.push(event));
    fillDisk(at);
    const weights = ["light", "heavy", "light", "heavy", "light"];
    const all = await Promise.allSettled(weights.map((weight, index) => store.append([spanOf(attempt, `s${index}`, { weight })])));
    expect(all.map((one) => (one.status === "rejected" ? one.reason.code : "stored"))).toEqual([
      "stored",
      "full",
      "stored",
      "full",
      "stored",
    ]);
    expect((all[1] as PromiseRejectedResult).reason).toBeInstanceOf(TraceError);
    expect((all[1] as PromiseRejectedResult).reason.cause.name).toBe("QuotaExceededError");
    expect((all[1] as PromiseRejectedResult).reason.message).toContain("forget rollouts");
    expect(await idsOf(store, "a")).toEqual(["s0", "s2", "s4"]);
    expect(events.flatMap((event) => (event.kind === "spans" ? event.count : []))).toEqual([1, 1, 1]); // nobody heard of what was not stored
    await expect(store.putState("s", new Uint8Array(1))).resolves.toBeUndefined();
    vi.restoreAllMocks();
    await store.append([spanOf(attempt, "s1", { weight: "heavy" })]); // room again: the same call is stored
    expect(await idsOf(store, "a")).toEqual(["s0", "s2", "s4", "s1"]);
    await store.close();
  }
});

test("a disk without room for a byte still forgets, and no seq is given again", async () => {
  const store = await openIndexedDbStore(newName());
  await store.append([spanOf(await begin(store, "a"), "x")]);
  await store.cancel("a");
  for (const method of ["add", "put"] as const)
    vi.spyOn(IDBObjectStore.prototype, method).mockImplementation(() => {
      throw new DOMException("no room", "QuotaExceededError");
    });
  for (const write of [
    () => store.enqueue([{ id: "b", input: 1 }]),
    () => store.publish({ name: "p", kind: "prompt", files: {} }),
    () => store.putState("s", new Uint8Array(1)),
  ])
    await expect(write()).rejects.toMatchObject({ name: "TraceError", code: "full" });
  expect(await store.forget("a")).toBe(true);
  vi.restoreAllMocks();
  const attempt = await begin(store, "b");
  await store.append([spanOf(attempt, "y")]);
  const seqs = [];
  for await (const { seq } of store.rollouts()) seqs.push(seq);
  for await (const { seq } of store.spans({ rolloutId: "b" })) seqs.push(seq);
  expect(seqs).toEqual([2, 2]);
  await store.close();
});

test("close waits for the appends that were asked for before it", async () => {
  const name = newName();
  const store = await openIndexedDbStore(name);
  const attempt = await begin(store, "a");
  const appended = store.append([spanOf(attempt, "x")]);
  await store.close();
  await appended;
  const again = await openIndexedDbStore(name);
  expect((await again.stats()).spans).toBe(1);
  await again.close();
});

// ---- what an append goes by without reading ------------------------------------------------------------------------------------

/** Every row that there is, as text. */
const everything = async (name: string): Promise<string> => {
  const db = await ask(indexedDB.open(`fulgurite/${name}`));
  const rows = await Promise.all([...db.objectStoreNames].map((store) => ask(db.transaction(store).objectStore(store).getAll())));
  db.close();
  return JSON.stringify(rows);
};

const openTwo = async (): Promise<{ name: string; store: Store; other: Store; time: { now: number } }> => {
  const name = newName();
  const time = { now: 1_000 };
  const options = { clock: () => time.now };
  return { name, time, store: await openIndexedDbStore(name, options), other: await openIndexedDbStore(name, options) };
};

test("who is alone appends by one transaction that reads nothing; who is not, finds out, and reads until alone again", async () => {
  const { store, other } = await openTwo();
  const attempt = await begin(store, "a");
  const reads = (["get", "getKey", "getAll"] as const).map((method) => vi.spyOn(IDBObjectStore.prototype, method));
  const count = countTransactions();
  let [transactions, requests] = [0, 0];
  const costOf = async (act: () => Promise<unknown>): Promise<string> => {
    await act();
    const before = [transactions, requests] as const;
    transactions = count();
    requests = reads.reduce((sum, spy) => sum + spy.mock.calls.length, 0);
    return `${transactions - before[0]} transactions, ${requests - before[1] > 0 ? "reading" : "blind"}`;
  };
  let next = 0;
  const append = () => store.append([spanOf(attempt, `s${next++}`)]);
  expect(await costOf(append)).toBe("1 transactions, blind");
  expect(await costOf(append)).toBe("1 transactions, blind");
  await costOf(() => other.append([spanOf(attempt, "other")]));
  expect(await costOf(append)).toBe("2 transactions, reading"); // the first of them was undone
  expect(await costOf(append)).toBe("1 transactions, reading");
  expect(await costOf(append)).toBe("1 transactions, blind");
  expect(await idsOf(other, "a")).toEqual(["s0", "s1", "other", "s2", "s3", "s4"]);
  await store.close();
  await other.close();
});

test("two objects that append at once give every seq once, and lose nothing", async () => {
  const { store, other } = await openTwo();
  const attempt = await begin(store, "a");
  await Promise.all(
    range(40).map(async (index) => {
      const one = index % 2 === 0 ? store : other;
      for (const turn of range(1 + (index % 5))) await one.append([spanOf(attempt, `${index}-${turn}`)]);
    }),
  );
  await Promise.all(
    range(40).map((index) => (index % 2 === 0 ? other : store).append(["last", "0"].map((end) => spanOf(attempt, `${index}-${end}`)))),
  );
  const ids = await idsOf(store, "a");
  expect(ids.length).toBe(160); // by seq: one given twice would leave fewer
  expect(new Set(ids).size).toBe(160);
  await store.close();
  await other.close();
});

test("what another object ended stays ended, and what it forgot is unknown, whatever this one remembers", async () => {
  const { store, other, time } = await openTwo();
  const attempt = await begin(store, "a");
  await store.append([spanOf(attempt, "s0")]);
  time.now = 2_000;
  await other.finish(attempt, { status: "succeeded" });
  time.now = 3_000;
  await store.append([spanOf(attempt, "late")]);
  expect(await other.attempts("a")).toMatchObject([{ status: "succeeded", lastHeartbeatMs: 1_000, endedAtMs: 2_000 }]);
  const second = await begin(store, "b");
  await store.append([spanOf(second, "s0")]);
  await other.cancel("b");
  await other.forget("b");
  for (const id of ["s1", "s2"]) {
    await expect(store.append([spanOf(second, id)])).rejects.toMatchObject({ code: "unknown" });
    await store.enqueue([{ id, input: 1 }]); // it writes by itself again
  }
  await expect(store.append([spanOf(second, "s3")])).rejects.toMatchObject({ code: "unknown" });
  expect(await idsOf(store, "b")).toEqual([]);
  expect((await store.stats()).spans).toBe(2);
  await store.close();
  await other.close();
});

test("an append is a heartbeat that others see, also when it was one of hundreds; the ended are not remembered", async () => {
  const { name, store, other, time } = await openTwo();
  const attempt = await begin(store, "a");
  const quiet = await begin(store, "b");
  for (const index of range(100)) {
    time.now += 100;
    await store.append([spanOf(attempt, `s${index}`)]);
  }
  expect((await other.attempts("a"))[0]!.lastHeartbeatMs).toBe(11_000);
  expect(await other.requeueStale(11_000)).toBe(1); // the quiet one
  expect((await store.attempts("b")).map(({ status }) => status)).toEqual(["unresponsive"]);
  const db = await ask(indexedDB.open(`fulgurite/${name}`));
  expect(await ask(db.transaction("turns").objectStore("turns").count())).toBeLessThanOrEqual(32);
  db.close();
  await store.close();
  const again = await openIndexedDbStore(name, { clock: () => time.now });
  await again.heartbeat(attempt);
  expect((await again.attempts("a"))[0]).toMatchObject({ status: "running", lastHeartbeatMs: 11_000 });
  expect((await again.finish(attempt, { status: "succeeded" })).status).toBe("succeeded");
  expect((await again.attempts("a"))[0]!.lastHeartbeatMs).toBe(11_000);
  await again.forget("a");
  expect(await everything(name)).toContain(quiet.id);
  expect(await everything(name)).not.toContain(attempt.id);
  await again.close();
  await other.close();
});

test("an append that is undone because a span is there already is done again with what is new in it, alone and among others", async () => {
  const store = await openIndexedDbStore(newName());
  const attempt = await begin(store, "a");
  await store.append([spanOf(attempt, "x")]);
  await store.append([spanOf(attempt, "x"), spanOf(attempt, "y")]);
  await Promise.all([["z"], ["x"], ["z", "y"], ["w"]].map((ids) => store.append(ids.map((id) => spanOf(attempt, id)))));
  expect(await idsOf(store, "a")).toEqual(["x", "y", "z", "w"]);
  await store.close();
});

test("what changes within a frame is told to other tabs in one message; closing tells the rest", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const told: unknown[] = [];
    vi.spyOn(BroadcastChannel.prototype, "postMessage").mockImplementation(({ events }) => void told.push(events));
    const store = await openIndexedDbStore(newName());
    const attempt = await begin(store, "a");
    await store.append([spanOf(attempt, "x")]);
    expect(told).toEqual([]);
    vi.advanceTimersByTime(20);
    const [queued, running] = ["queued", "running"].map((status) => ({ kind: "rollout", id: "a", status }));
    expect(told).toEqual([[queued, running, { kind: "spans", rolloutId: "a", count: 1 }]]);
    await store.cancel("a");
    await store.close();
    vi.advanceTimersByTime(20);
    expect(told.slice(1)).toEqual([[{ kind: "rollout", id: "a", status: "cancelled" }]]);
  } finally {
    vi.useRealTimers();
  }
});

test("the browser is asked once to keep the data, and its answer is reported", async () => {
  const storageOf = (answer: boolean) => {
    const persist = vi.fn(async () => answer);
    return { storage: { persist }, persist };
  };
  for (const [answer, text] of [
    [true, "got yes"],
    [false, "got no; the browser may delete it"],
  ] as const) {
    const { storage, persist } = storageOf(answer);
    vi.stubGlobal("navigator", { storage });
    const told = new Promise<string>((onReport) => {
      void openIndexedDbStore(newName(), { persist: true, onReport }).then((store) => store.close());
    });
    expect(await told).toContain(text);
    expect(persist).toHaveBeenCalledTimes(1);
    vi.unstubAllGlobals();
  }
  const { storage, persist } = storageOf(true);
  vi.stubGlobal("navigator", { storage });
  await (await openIndexedDbStore(newName())).close();
  vi.unstubAllGlobals();
  expect(persist).not.toHaveBeenCalled();
});

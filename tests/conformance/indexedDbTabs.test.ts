// Tabs that do not agree: of a newer release, of an older one, frozen, without what a browser usually has. Chromium's own in
// the browser project.
import type { AttemptRef, Span, Store, StoreEvent, StoreOptions } from "@fulgurite/trace";
import { type IndexedDbOptions, openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { afterEach, expect, test, vi } from "vitest";
import { codeOf, collect, errorOf } from "../outcomes.ts";
import { ask, openFirstVersion, openSecondVersion } from "./indexedDbVersions.ts";
import { inNode } from "./storeCases.ts";
import { settle } from "./world.ts";

if (inNode) await import("./storeCasesInNode.ts"); // brings fake-indexeddb

const closers: (() => unknown)[] = [];
afterEach(async () => {
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
  for (const close of closers.splice(0).reverse()) await close();
});

const runId = Math.random().toString(36).slice(2);
let names = 0;
const newName = (): string => `tabs-${runId}-${++names}`;

/** Timers that pass when the test says so. */
const createTimers = () => {
  const waiting: { act: () => void; ms: number }[] = [];
  const timer: NonNullable<StoreOptions["timer"]> = (act, ms) => {
    const one = { act, ms };
    waiting.push(one);
    return () => void (waiting.includes(one) && waiting.splice(waiting.indexOf(one), 1));
  };
  return { timer, waiting };
};

const open = async (name: string, more: IndexedDbOptions = {}) => {
  const reports: string[] = [];
  const { timer, waiting } = createTimers();
  const store = await openIndexedDbStore(name, { timer, onReport: (message) => void reports.push(message), ...more });
  closers.push(() => store.close());
  return { store, reports, waiting };
};

const spanOf = (attempt: AttemptRef, id: string): Span => ({
  ...{ rolloutId: attempt.rolloutId, attemptId: attempt.id, id, name: "n", startMs: 0, endMs: 0, status: "ok" },
  attributes: { tokens: Int32Array.of(1, 2) },
});

const begin = async (store: Store, id: string) => {
  await store.enqueue([{ id, input: 1 }]);
  return (await store.claim("w"))[0]!.attempt;
};

/** What a later release may do, from another connection; it is left open, as by the tab that did it. */
const upgradeTo = async (name: string, version: number, change: (db: IDBDatabase, transaction: IDBTransaction) => void) => {
  const request = indexedDB.open(`fulgurite/${name}`, version);
  request.onupgradeneeded = () => change(request.result, request.transaction as IDBTransaction);
  const db = await ask(request);
  db.onversionchange = () => db.close();
  closers.push(() => db.close());
  return db;
};

const BREAKING: Readonly<Record<string, (db: IDBDatabase, transaction: IDBTransaction) => void>> = {
  "an object store is deleted": (db) => db.deleteObjectStore("turns"),
  "an object store is renamed": (_db, transaction) => {
    transaction.objectStore("spans").name = "spans4";
  },
  "the states are renamed": (_db, transaction) => {
    transaction.objectStore("states").name = "states4";
  },
};

/** One that listens, and whose rollout "a" runs with 300 spans. */
const openBusy = async (name: string) => {
  const { store, reports } = await open(name);
  const attempt = await begin(store, "a");
  await store.append(Array.from({ length: 300 }, (_, index) => spanOf(attempt, `s${index}`)));
  const heard: StoreEvent[] = [];
  store.watch((event) => void heard.push(event));
  return { store, reports, attempt, heard };
};

for (const [what, change] of Object.entries(BREAKING))
  test(`a newer release changes the database (${what}): every call, wait, listener and iteration of this one ends with one error`, async () => {
    const name = newName();
    const { store, reports, attempt, heard } = await openBusy(name);
    const waiting = errorOf(store.waitFor(["a"]));
    const spans = store.spans({ rolloutId: "a" })[Symbol.asyncIterator]();
    const read = [(await spans.next()).value];
    await upgradeTo(name, 4, change);
    const first = await waiting; // no timer passes here: it hears of it, it does not look
    expect(first.code).toBe("outdated");
    expect(first.message).toContain(`fulgurite/${name}: this tab's code must know it, got version 4`);
    expect(first.message).toContain("reload this tab");
    const ref = { rolloutId: "a", id: attempt.id };
    const calls: (() => Promise<unknown>)[] = [
      () => store.enqueue([{ id: "b", input: 1 }]),
      () => store.claim("w"),
      () => store.append([spanOf(attempt, "x")]),
      () => store.heartbeat(ref),
      () => store.finish(ref, { status: "succeeded" }),
      () => store.cancel("a"),
      () => store.forget("a"),
      () => store.requeueStale(0),
      () => collect(store.rollouts()),
      () => collect(store.rollouts({ ids: ["a"] })),
      () => store.attempts("a"),
      () => collect(store.spans({ rolloutId: "a" })),
      () => store.publish({ name: "p", kind: "prompt", files: {} }),
      () => store.resource("p"),
      () => store.unpublish("p", 1),
      () => collect(store.resources()),
      () => store.putState("s", new Uint8Array(1)),
      () => store.getState("s"),
      () => store.states(),
      () => store.adopt([]),
      () => store.waitFor(["a"]),
      () => store.stats(),
    ];
    for (const call of calls) expect(await errorOf(call()), String(call)).toBe(first);
    const last = await errorOf(
      (async () => {
        for (;;) {
          const { done, value } = await spans.next();
          if (done) return;
          read.push(value);
        }
      })(),
    );
    expect(last).toBe(first);
    expect(read.map((span) => span?.id)).toEqual(read.map((_, index) => `s${index}`)); // pages that it had; none is cut short in silence
    expect(read.length).toBeLessThan(300);
    expect(reports).toEqual([first.message]);
    await store.close();
    await settle();
    expect(heard).toEqual([]);
    await upgradeTo(name, 5, () => {}); // nothing of the older tab is in the way
  });

test("a newer release comes in the middle of many appends: what was acknowledged is in its database, the rest was told", async () => {
  const name = newName();
  const { store } = await open(name);
  const attempt = await begin(store, "a");
  const stored: string[] = [];
  const told: string[] = [];
  let next = 0;
  const write = async (): Promise<void> => {
    for (;;) {
      const id = `s${next++}`;
      const code = await codeOf(store.append([spanOf(attempt, id)]));
      (code === "resolved" ? stored : told).push(code === "resolved" ? id : code);
      if (code !== "resolved") return;
    }
  };
  const writers = Array.from({ length: 20 }, write);
  while (stored.length < 100) await settle();
  const db = await upgradeTo(name, 4, (_db, transaction) => {
    transaction.objectStore("spans").name = "spans4";
  });
  await Promise.all(writers);
  expect(told).toEqual(Array.from({ length: 20 }, () => "outdated"));
  const keys = await ask(db.transaction("spans4").objectStore("spans4").getAllKeys());
  expect(keys.map((key) => (key as string[])[2]).sort()).toEqual(stored.sort());
});

test("a database that is newer already is refused at the door, and let go", async () => {
  const name = newName();
  await (await openIndexedDbStore(name)).close();
  await upgradeTo(name, 4, (db) => db.deleteObjectStore("turns"));
  const error = await errorOf(openIndexedDbStore(name));
  expect([error.code, error.message]).toEqual(["outdated", expect.stringContaining("got version 4 of a newer release; reload this tab")]);
  await upgradeTo(name, 5, () => {});
});

test("a newer release that only added something lets waits, listeners and iterations go on", async () => {
  const name = newName();
  const { store, reports, attempt, heard } = await openBusy(name);
  const waiting = store.waitFor(["a"]);
  const spans = store.spans({ rolloutId: "a" })[Symbol.asyncIterator]();
  await spans.next();
  await upgradeTo(name, 4, (db, transaction) => {
    db.createObjectStore("later");
    transaction.objectStore("spans").createIndex("byName", "name");
  });
  let read = 1;
  while (!(await spans.next()).done) read += 1;
  expect(read).toBe(300);
  await store.finish(attempt, { status: "succeeded" });
  expect((await waiting)[0]!.status).toBe("succeeded");
  expect(heard).toEqual([{ kind: "rollout", id: "a", status: "succeeded" }]);
  expect(reports).toEqual([]);
});

test("deleted between two looks at its version, a database is made anew in the version that this code has", async () => {
  const name = newName();
  await upgradeTo(name, 99, () => {});
  const real = indexedDB.open.bind(indexedDB);
  let deleting: Promise<unknown> | undefined;
  vi.spyOn(indexedDB, "open").mockImplementation((database, version) => {
    if (version === undefined) deleting ??= ask(indexedDB.deleteDatabase(database));
    return real(database, version);
  });
  const { store } = await open(name);
  await deleting;
  vi.restoreAllMocks();
  await store.enqueue([{ id: "a", input: 1 }]);
  const db = await ask(indexedDB.open(`fulgurite/${name}`));
  expect(db.version).toBe(3);
  db.close();
});

// ---- who waits for whom ----------------------------------------------------------------------------------------------------

test("an older tab that does not let go is named at once, and after 30 s the newer one is refused; when it is gone, all is there", async () => {
  const name = newName();
  const old = await openSecondVersion(name); // deaf to versionchange
  const { timer, waiting } = createTimers();
  const reports: string[] = [];
  const options = { timer, onReport: (message: string) => void reports.push(message) };
  const opening = errorOf(openIndexedDbStore(name, options));
  await expect.poll(() => reports).toEqual([expect.stringContaining("got another tab that holds an older version; reload that tab")]);
  const behind = errorOf(openIndexedDbStore(name, options)); // in a queue behind the other, and told nothing by the browser
  await settle();
  expect(waiting.map(({ ms }) => ms)).toEqual([30_000, 30_000]);
  for (const { act } of [...waiting]) act();
  for (const error of [await opening, await behind])
    expect([error.code, error.message]).toEqual(["locked", expect.stringContaining("it must be open, got another tab")]);
  old.close();
  const { store } = await open(name);
  expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["s2@7", "s1@8"]);
  await store.close();
  await upgradeTo(name, 4, () => {}); // what came too late for those who were refused is not left open
});

test("an upgrade elsewhere that takes long is waited for, and the call that waited for it is refused, not lost", async () => {
  const name = newName();
  const { store, waiting } = await open(name);
  await store.enqueue([{ id: "a", input: 1 }]);
  let isHeld = true;
  closers.push(() => {
    isHeld = false;
  });
  const upgraded = upgradeTo(name, 4, (db, transaction) => {
    const rows = db.createObjectStore("later");
    const hold = () => {
      if (isHeld) rows.get(0).onsuccess = hold;
      return transaction;
    };
    hold();
  });
  await settle();
  const refused = errorOf(store.enqueue([{ id: "b", input: 1 }]));
  await expect.poll(() => waiting.length).toBe(1);
  waiting[0]!.act();
  expect((await refused).code).toBe("locked");
  isHeld = false;
  await upgraded;
  await store.enqueue([{ id: "c", input: 1 }]);
  expect((await collect(store.rollouts())).map(({ id }) => id)).toEqual(["a", "c"]);
});

test("a tab lets go before it is frozen, of what it is doing too, and takes hold again when it goes on", async () => {
  const target = inNode ? new EventTarget() : document;
  if (inNode) {
    vi.stubGlobal("addEventListener", target.addEventListener.bind(target));
    vi.stubGlobal("removeEventListener", target.removeEventListener.bind(target));
  }
  const name = newName();
  const { store } = await open(name);
  const attempt = await begin(store, "a");
  const close = vi.spyOn(IDBDatabase.prototype, "close");
  const abort = vi.spyOn(IDBTransaction.prototype, "abort");
  const settled: string[] = [];
  const calls = ["x", "y"].map((id) => store.append([spanOf(attempt, id)]).then(() => settled.push(id)));
  const read = collect(store.spans({ rolloutId: "a" })).then(() => settled.push("read"));
  for (let turn = 0; turn < 15; turn++) await Promise.resolve(); // their transactions have begun, and no request is answered
  target.dispatchEvent(new Event("freeze"));
  expect(abort).toHaveBeenCalled();
  await settle();
  expect(close).toHaveBeenCalled();
  expect(settled).toEqual([]); // nothing begins while it stands still
  const other = await upgradeTo(name, 4, (db) => void db.createObjectStore("later")); // and nothing is in the way
  expect(await ask(other.transaction("spans").objectStore("spans").count())).toBe(0);
  target.dispatchEvent(new Event("resume"));
  await Promise.all([...calls, read]);
  expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, seq }) => `${id}@${seq}`)).toEqual(["x@1", "y@2"]);
  await store.close();
  close.mockClear();
  target.dispatchEvent(new Event("freeze"));
  await settle();
  expect(close).not.toHaveBeenCalled();
});

// ---- no room, no storage ---------------------------------------------------------------------------------------------------

test("an upgrade on a full disk is refused by name, leaves the older version whole, and goes through when there is room", async () => {
  for (const openOld of [openFirstVersion, openSecondVersion]) {
    const name = newName();
    const old = await openOld(name, 50);
    const { version } = old;
    old.close();
    const real = IDBObjectStore.prototype.add;
    vi.spyOn(IDBObjectStore.prototype, "add").mockImplementation(function (this: IDBObjectStore, ...args) {
      Object.defineProperty(this.transaction, "error", { value: new DOMException("no room", "QuotaExceededError") });
      const request = real.apply(this, args);
      this.transaction.abort(); // as when there is no room to commit
      return request;
    });
    const error = await errorOf(openIndexedDbStore(name, { onReport: () => {} }));
    expect([error.code, (error.cause as Error).name]).toEqual(["full", "QuotaExceededError"]);
    expect(error.message).toContain(`fulgurite/${name}: it must have room`);
    vi.restoreAllMocks();
    const same = await ask(indexedDB.open(`fulgurite/${name}`));
    expect(same.version).toBe(version);
    expect(same.objectStoreNames.contains("turns")).toBe(false);
    expect(await ask(same.transaction("spans").objectStore("spans").index("bySeq").count())).toBe(50);
    same.close();
    const { store } = await open(name);
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ seq }) => seq)).toEqual(Array.from({ length: 50 }, (_, at) => at + 1));
  }
});

test("where the browser keeps nothing, the store says so", async () => {
  const refuse = (how: () => IDBOpenDBRequest) => vi.spyOn(indexedDB, "open").mockImplementation(how);
  const failing = (name: string, message: string) => (): IDBOpenDBRequest => {
    const request = { error: new DOMException(message, name) } as unknown as IDBOpenDBRequest;
    setTimeout(() => request.onerror?.(new Event("error")));
    return request;
  };
  const thrown = () => {
    throw new DOMException("denied in this context", "SecurityError");
  };
  for (const [how, got] of [
    [thrown, "SecurityError: denied in this context"], // a sandboxed frame, cookies refused
    [failing("InvalidStateError", "A mutation operation was attempted"), "InvalidStateError: A mutation operation"], // a private window
    [failing("UnknownError", "Internal error opening backing store for indexedDB.open."), "UnknownError: Internal error"], // a broken profile
    [failing("UnknownError", "odd"), "UnknownError: odd"],
  ] as const) {
    refuse(how);
    const error = await errorOf(openIndexedDbStore(newName()));
    expect([error.code, error.message]).toEqual(["storage", expect.stringContaining(`it must be open, got ${got}`)]);
    expect(error.cause).toBeInstanceOf(DOMException);
    vi.restoreAllMocks();
  }
  vi.stubGlobal("indexedDB", undefined);
  expect((await errorOf(openIndexedDbStore(newName()))).code).toBe("storage");
});

test("a browser that refuses once opens at the second try", async () => {
  const real = indexedDB.open.bind(indexedDB);
  let calls = 0;
  vi.spyOn(indexedDB, "open").mockImplementation((...args) => {
    if (calls++ === 0) throw new DOMException("Connection to Indexed Database server lost. Refresh the page to try again", "UnknownError");
    return real(...args);
  });
  const { store } = await open(newName());
  expect((await store.stats()).spans).toBe(0);
  expect(calls).toBe(2);
});

test("data that is deleted under a tab that writes is reported; what is acknowledged afterwards is there", async () => {
  const name = newName();
  const { store, reports } = await open(name);
  const attempt = await begin(store, "a");
  const waiting = codeOf(store.waitFor(["a"]));
  const before = Promise.all(Array.from({ length: 100 }, (_, index) => codeOf(store.append([spanOf(attempt, `s${index}`)]))));
  const deleted = ask(indexedDB.deleteDatabase(`fulgurite/${name}`));
  const after = store.enqueue([{ id: "b", input: 1 }]);
  expect((await before).every((code) => code === "resolved" || code === "unknown")).toBe(true);
  await deleted;
  await after;
  const again = await store.enqueue([{ id: "c", input: 1 }]);
  expect(again[0]!.status).toBe("queued");
  expect(await codeOf(store.append([spanOf(attempt, "late")]))).toBe("unknown");
  const kept = (await collect(store.rollouts())).map(({ id }) => id);
  expect(kept).toContain("c");
  expect(reports).toEqual([expect.stringContaining("it was deleted, and begins anew")]);
  await store.close();
  expect(await waiting).toBe("closed");
});

test("without channels between tabs a wait looks again by itself; without a storage manager nobody is asked", async () => {
  vi.stubGlobal("BroadcastChannel", undefined);
  vi.stubGlobal("navigator", {});
  const name = newName();
  const one = await open(name, { persist: true });
  const other = await open(name);
  await expect.poll(() => one.reports).toEqual([expect.stringContaining("got no; the browser may delete it")]);
  const attempt = await begin(one.store, "a");
  const ended = one.store.waitFor(["a"]);
  await settle();
  await other.store.finish(attempt, { status: "succeeded" });
  const look = one.waiting.find(({ ms }) => ms === 2_000);
  look!.act();
  expect((await ended)[0]!.status).toBe("succeeded");
});

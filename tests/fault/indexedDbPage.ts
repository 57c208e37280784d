// The tab's side of the browser's faults: runs in a page and, for writers that are ended in the middle, in its workers.
// What it calls acknowledged is what an awaited method of the store has resolved with.
import type { Span, Store } from "@fulgurite/trace";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { ask, openFirstVersion, openSecondVersion } from "../conformance/indexedDbVersions.ts";
import { type Inventory, takeInventory } from "./ledger.ts";

/** What a round of faults saw. */
export interface Round {
  readonly faults: number;
  readonly acknowledged: readonly string[];
  /** Rollout and attempt, as claim gave them. */
  readonly claims: readonly (readonly [string, string])[];
  /** Acknowledged to be deleted. */
  readonly gone?: readonly string[];
}

/** From a worker to its tab. */
type Word = { readonly keys: readonly string[]; readonly claim?: readonly [string, string] } | { readonly done: true };
type Job = { readonly kind: "write" | "claim"; readonly name: string; readonly me: string };

const open = (name: string): Promise<Store> => openIndexedDbStore(name, { onReport: () => {} });

const spanOf = (rolloutId: string, attemptId: string, id: string, tokens: Int32Array = Int32Array.of(1, 2)): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "n",
  startMs: 1,
  endMs: 1,
  status: "ok",
  attributes: { tokens },
});

/** Appends for ever, two calls at a time, of two spans each. */
const write = async (name: string, me: string, say: (word: Word) => void): Promise<never> => {
  const store = await open(name);
  await store.enqueue([{ id: me, input: null }]);
  const { attempt } = (await store.claim(me, 1))[0]!;
  let next = 0;
  const append = async (): Promise<never> => {
    for (;;) {
      const ids = [`${next++}`, `${next++}`];
      await store.append(ids.map((id) => spanOf(attempt.rolloutId, attempt.id, id)));
      say({ keys: ids.map((id) => `span/${attempt.rolloutId}/${id}`) });
    }
  };
  return Promise.race([append(), append()]);
};

/** Claims and ends what is queued until nothing is. */
const claimAll = async (name: string, me: string, say: (word: Word) => void): Promise<void> => {
  const store = await open(name);
  for (;;) {
    const [claim] = await store.claim(me, 1);
    if (claim === undefined) break;
    const { rollout, attempt } = claim;
    say({ keys: [`attempt/${rollout.id}/${attempt.id}`], claim: [rollout.id, attempt.id] });
    await store.append([spanOf(rollout.id, attempt.id, "s")]);
    say({ keys: [`span/${rollout.id}/s`] });
    await store.finish(attempt, { status: "succeeded" });
    say({ keys: [`ended/${rollout.id}/${attempt.id}/succeeded`] });
  }
  await store.close();
  say({ done: true });
};

/** Starts a worker and ends it at its `words`-th word, in the middle of whatever it is doing. */
const endWorkerAfter = (job: Job, words: number): Promise<Round & { readonly isDone: boolean }> =>
  new Promise((resolve, reject) => {
    const worker = new Worker(import.meta.url, { type: "module" });
    const acknowledged: string[] = [];
    const claims: (readonly [string, string])[] = [];
    const end = (isDone: boolean) => {
      worker.terminate();
      resolve({ faults: isDone ? 0 : 1, acknowledged, claims, isDone });
    };
    let heard = 0;
    worker.onerror = (event) => reject(new Error(`${job.kind} ${job.me}: ${event.message}`));
    worker.onmessage = ({ data }: MessageEvent<Word>) => {
      if ("done" in data) return end(true);
      acknowledged.push(...data.keys);
      if (data.claim) claims.push(data.claim);
      heard += 1;
      if (heard === words) end(false);
    };
    worker.postMessage(job);
  });

const joined = (rounds: readonly Round[]): Round => ({
  faults: rounds.reduce((total, { faults }) => total + faults, 0),
  acknowledged: rounds.flatMap(({ acknowledged }) => acknowledged),
  claims: rounds.flatMap(({ claims }) => claims),
});

/** Many writers of one database, each ended in the middle. */
const endWriters = async (name: string, me: string, count: number): Promise<Round> => {
  const rounds: Round[] = [];
  for (let index = 0; index < count; index++)
    rounds.push(await endWorkerAfter({ kind: "write", name, me: `${me}-${index}` }, 1 + (index % 7)));
  return joined(rounds);
};

/** Claims from the shared queue; each worker is ended after a few words, and followed by another, until the queue is empty. */
const endClaimers = async (name: string, me: string): Promise<Round> => {
  const rounds: Round[] = [];
  for (let index = 0; ; index++) {
    const round = await endWorkerAfter({ kind: "claim", name, me: `${me}-${index}` }, 2 + (index % 9));
    rounds.push(round);
    if (round.isDone) return joined(rounds);
  }
};

// ---- requests that fail, transactions that abort, handles that die ----------------------------------------------------------

/** What the database does at one request, or what happens to the handle before one transaction. */
type Blow = "abort" | "quota" | "close";

/** Strikes from the `at`-th chance on, `times` times. Returns how often it struck, when taken off. */
const strike = (blow: Blow, at: number, times: number): (() => number) => {
  let chance = 0;
  let struck = 0;
  const isDue = (): boolean => {
    chance += 1;
    if (chance < at || struck >= times) return false;
    struck += 1;
    return true;
  };
  const { add, put } = IDBObjectStore.prototype;
  const { transaction } = IDBDatabase.prototype;
  const struckAt = (write: typeof put): typeof put =>
    function (this: IDBObjectStore, ...args) {
      const due = isDue();
      if (due && blow === "quota") throw new DOMException("injected", "QuotaExceededError");
      const request = write.apply(this, args);
      if (due) this.transaction.abort();
      return request;
    };
  if (blow === "close")
    IDBDatabase.prototype.transaction = function (...args) {
      if (isDue()) this.close();
      return transaction.apply(this, args);
    };
  else Object.assign(IDBObjectStore.prototype, { add: struckAt(add), put: struckAt(put) });
  return () => {
    Object.assign(IDBObjectStore.prototype, { add, put });
    IDBDatabase.prototype.transaction = transaction;
    return struck;
  };
};

/** A short life in which every call may fail; a call that failed is made once more, and then counts. */
const live = async (store: Store, acknowledged: string[], claims: (readonly [string, string])[], gone: string[]): Promise<void> => {
  const twice = async <T>(act: () => Promise<T>): Promise<T> => act().catch(act).catch(act);
  const tasks = await twice(() => store.enqueue(["a", "b"].map((id) => ({ id, input: 0 }))));
  acknowledged.push(...tasks.map(({ id }) => `rollout/${id}`));
  for (const names of [["x", "y"], ["x"]]) {
    const [claim] = await twice(() => store.claim("w", 1, `claim of ${names.join(" and ")}`));
    if (claim === undefined) throw new Error("claim: one is queued, got none; a failed claim took it");
    const { rollout, attempt } = claim;
    claims.push([rollout.id, attempt.id]);
    acknowledged.push(`attempt/${rollout.id}/${attempt.id}`);
    await Promise.all(
      names.map(async (id) => {
        await twice(() => store.append([spanOf(rollout.id, attempt.id, id)]));
        acknowledged.push(`span/${rollout.id}/${id}`);
      }),
    );
    await twice(() => store.finish(attempt, { status: "succeeded" }));
    acknowledged.push(`ended/${rollout.id}/${attempt.id}/succeeded`);
  }
  for (const version of [1, 2])
    await twice(() => store.publish({ name: "p", version, kind: "prompt", files: { f: Uint8Array.of(version) } }));
  acknowledged.push("resource/p/2");
  await twice(() => store.unpublish("p", 1));
  gone.push("resource/p/1");
};

/** One life on a new database with one blow. `faults` is 0 when the life ended before it. */
const liveUnder = async (name: string, blow: Blow, at: number, times: number): Promise<Round & { readonly found: Inventory }> => {
  const acknowledged: string[] = [];
  const claims: (readonly [string, string])[] = [];
  const gone: string[] = [];
  const store = await open(name);
  const lift = strike(blow, at, times);
  let faults = 0;
  try {
    await live(store, acknowledged, claims, gone);
  } finally {
    faults = lift();
  }
  await store.close();
  const again = await open(name);
  const found = await takeInventory(again);
  await again.close();
  indexedDB.deleteDatabase(`fulgurite/${name}`);
  return { faults, acknowledged, claims, gone, found };
};

// ---- a full disk ----------------------------------------------------------------------------------------------------------

/** Random, for what compresses does not count against a quota. 20 kB. */
const bulk = (): Int32Array => crypto.getRandomValues(new Int32Array(5_000));

export interface Full extends Round {
  readonly released: readonly string[];
  /** How the store named its refusals, and how often. */
  readonly codes: Readonly<Record<string, number>>;
}

/** Writes until refused, goes on being refused, and forgets what an earlier call ended while nothing else can be written. */
const fill = async (name: string, id: string, victim: string | undefined, refusals: number): Promise<Full> => {
  const store = await open(name);
  const acknowledged: string[] = [];
  const released: string[] = [];
  const codes: Record<string, number> = {};
  // the browser learns of a raised quota a moment later
  const onceThereIsRoom = async <T>(act: () => Promise<T>): Promise<T> => {
    for (let tries = 1; ; tries++)
      try {
        return await act();
      } catch (error) {
        if ((error as { code?: unknown }).code !== "full" || tries === 100) throw error;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
  };
  const begin = async (rolloutId: string) => {
    await onceThereIsRoom(() => store.enqueue([{ id: rolloutId, input: null }]));
    const attempt = (await onceThereIsRoom(() => store.claim("w")))[0]!.attempt;
    acknowledged.push(`rollout/${rolloutId}`, `attempt/${rolloutId}/${attempt.id}`);
    return attempt;
  };
  const short = await begin(`${id}-short`);
  await onceThereIsRoom(() => store.finish(short, { status: "succeeded" }));
  acknowledged.push(`ended/${id}-short/${short.id}/succeeded`);
  const attempt = await begin(id);
  let faults = 0;
  const append = async (key: string): Promise<void> => {
    try {
      await store.append([spanOf(id, attempt.id, key, bulk())]);
      acknowledged.push(`span/${id}/${key}`);
    } catch (error) {
      const code = String((error as { code?: unknown }).code ?? error);
      codes[code] = (codes[code] ?? 0) + 1;
      faults += 1;
    }
  };
  // two calls at a time share a transaction; what one is refused the other may have
  for (let next = 0; faults < refusals; next++) {
    if (next === 2_000) throw new Error(`${id}: a disk of 3 MB is full after 80 MB, got ${faults} refusals; the quota is not in force`);
    await Promise.all([append(`${next}-a`), append(`${next}-b`)]);
  }
  if (victim !== undefined) {
    const gone = await store.attempts(victim);
    if (!(await store.forget(victim))) throw new Error(`forget ${victim}: it was there, got nothing; a full disk lost it`);
    released.push(`rollout/${victim}`, ...gone.flatMap(({ id, status }) => [`attempt/${victim}/${id}`, `ended/${victim}/${id}/${status}`]));
  }
  await store.close();
  return { faults, acknowledged, claims: [], released, codes };
};

// ---- upgrades -------------------------------------------------------------------------------------------------------------

/** A database of a past release, with one rollout of so many spans. Resolves with what is in it. */
const makeOld = async (name: string, version: 1 | 2, spanCount: number): Promise<readonly string[]> => {
  (await (version === 1 ? openFirstVersion : openSecondVersion)(name, spanCount)).close();
  return ["rollout/a", "attempt/a/t", ...Array.from({ length: spanCount }, (_, index) => `span/a/s${index + 1}`)];
};

/** As it lies there: asks for no version, and upgrades nothing. */
const look = async (name: string): Promise<{ readonly version: number; readonly spans: number }> => {
  const db = await ask(indexedDB.open(`fulgurite/${name}`));
  const found = { version: db.version, spans: await ask(db.transaction("spans").objectStore("spans").count()) };
  db.close();
  return found;
};

/** "opened", or how the store named its refusal. */
const tryOpen = async (name: string): Promise<string> => {
  try {
    await (await open(name)).close();
    return "opened";
  } catch (error) {
    return String((error as { code?: unknown }).code ?? error);
  }
};

/** Begins an upgrade and says so; if `holdMs` > 0 all is done then but the commit, which waits as long. */
const upgradeUntilKilled = (name: string, holdMs: number): void => {
  const { add } = IDBObjectStore.prototype;
  const tell = (globalThis as unknown as { acknowledged(me: string, keys: readonly string[]): void }).acknowledged;
  IDBObjectStore.prototype.add = function (...args) {
    const until = performance.now() + holdMs;
    const hold = () => {
      if (performance.now() < until) this.get(0).onsuccess = hold;
    };
    if (this.name === "turns") {
      hold();
      tell(name, ["upgrading"]);
    }
    return add.apply(this, args);
  };
  void open(name);
};

// ---- what no store can outlive ----------------------------------------------------------------------------------------------

/** A database of the platform's own, without a store: what it loses is not a store's to keep. */
const withMarks = async <T>(mode: IDBTransactionMode, act: (marks: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
  const opening = indexedDB.open("marks");
  opening.onupgradeneeded = () => void opening.result.createObjectStore("marks");
  const db = await new Promise<IDBDatabase>((resolve, reject) => {
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  const transaction = db.transaction("marks", mode, { durability: "strict" });
  const request = act(transaction.objectStore("marks"));
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
  db.close();
  return request.result;
};

const actions = {
  endWriters,
  endClaimers,
  liveUnder,
  fill,
  makeOld,
  look,
  tryOpen,
  upgradeUntilKilled,
  inventory: async (name: string): Promise<Inventory> => {
    const store = await open(name);
    const found = await takeInventory(store);
    await store.close();
    return found;
  },
  enqueue: async (name: string, ids: readonly string[]): Promise<void> => {
    const store = await open(name);
    await store.enqueue(ids.map((id) => ({ id, input: id })));
    await store.close();
  },
  mark: async (): Promise<void> => void (await withMarks("readwrite", (marks) => marks.put("there", "mark"))),
  isMarked: async (): Promise<boolean> => (await withMarks("readonly", (marks) => marks.count())) > 0,
  /** Ends what is queued, beside whoever else works on it, and begins something new. */
  workBeside: async (name: string, me: string): Promise<Round> => {
    const acknowledged: string[] = [];
    const claims: (readonly [string, string])[] = [];
    const store = await open(name);
    await store.enqueue([{ id: me, input: null }]);
    acknowledged.push(`rollout/${me}`);
    await store.close();
    await claimAll(name, me, (word) => {
      if (!("keys" in word)) return;
      acknowledged.push(...word.keys);
      if (word.claim) claims.push(word.claim);
    });
    return { faults: 0, acknowledged, claims };
  },
  /** Says its keys by `globalThis.acknowledged`, a way out of the browser, until it is killed. */
  writeUntilKilled: (name: string, me: string): void => {
    const tell = (globalThis as unknown as { acknowledged(me: string, keys: readonly string[]): void }).acknowledged;
    void write(name, me, (word) => "keys" in word && tell(me, word.keys));
  },
};
export type PageActions = typeof actions;

if (typeof document === "undefined")
  globalThis.onmessage = ({ data }: MessageEvent<Job>) => {
    const say = (word: Word) => postMessage(word);
    const ended = data.kind === "write" ? write(data.name, data.me, say) : claimAll(data.name, data.me, say);
    ended.catch((error) => setTimeout(() => Promise.reject(error)));
  };
else Object.assign(globalThis, { actions });

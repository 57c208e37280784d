// A tab's half of the IndexedDB figures. Our store promises that a span's attempt is there, that its id is kept once, that spans
// have one order, and that an append is a heartbeat. Dexie and idb do the same job, written by hand as well as we can, in one
// transaction an append; and they do less: each span put under its key, read in the order of keys.
// All relaxed, the same spans with typed arrays, databases of their own.
import type { Span } from "@fulgurite/trace";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import Dexie, { type Table } from "dexie";
import { openDB } from "idb";
import { spanOf } from "./span.ts";

interface Contestant {
  append(span: Span): Promise<unknown>;
  /** How many it read. */
  scan(): Promise<number>;
}

const opened = new Map<string, Promise<Contestant>>();

const ATTEMPT = { rolloutId: "r", id: "a" };
const SPANS_OF_ROLLOUT: [lower: [string, number], upper: [string, number]] = [
  ["r", 0],
  ["r", Number.POSITIVE_INFINITY],
];
const SPAN_KEY = ["rolloutId", "attemptId", "id"];

const noAttempt = (): never => {
  throw new Error("an attempt that is there, got none; run it by hand");
};

interface PeerAttempt {
  readonly lastHeartbeatMs: number;
}

/** Our rule: an append is a heartbeat when the last is 100 ms old. */
const beatOf = (attempt: PeerAttempt): PeerAttempt[] => {
  const nowMs = Date.now();
  return nowMs - attempt.lastHeartbeatMs < 100 ? [] : [{ ...attempt, lastHeartbeatMs: nowMs }];
};

const openings = {
  ours: async (name: string): Promise<Contestant> => {
    const store = await openIndexedDbStore(name);
    await store.enqueue([{ id: "r", input: null }]);
    const [claim] = await store.claim("bench");
    const attempt = claim!.attempt;
    return {
      append: (span) => store.append([{ ...span, rolloutId: "r", attemptId: attempt.id }]),
      scan: async () => {
        let spans = 0;
        for await (const span of store.spans({ rolloutId: "r" })) if (span.id !== "") spans += 1;
        return spans;
      },
    };
  },
  dexie: async (name: string): Promise<Contestant> => {
    const database = new Dexie(name, { chromeTransactionDurability: "relaxed" });
    database.version(1).stores({ spans: "[rolloutId+attemptId+id],[rolloutId+seq]", attempts: "[rolloutId+id]", counters: "" });
    const [spans, attempts, counters] = ["spans", "attempts", "counters"].map((table) => database.table(table)) as [Table, Table, Table];
    await attempts.put({ ...ATTEMPT, status: "running", lastHeartbeatMs: 0 });
    return {
      append: (span) =>
        database.transaction("rw", [spans, attempts, counters], async () => {
          const [attempt, known, last = 0] = await Promise.all([
            attempts.get<PeerAttempt>(["r", "a"]),
            spans.where(":id").equals(["r", "a", span.id]).count(),
            counters.get<number>("spanSeq"),
          ]);
          if (attempt === undefined) return noAttempt();
          await Promise.all([
            ...(known === 0 ? [spans.add({ ...span, seq: last + 1 }), counters.put(last + 1, "spanSeq")] : []),
            ...beatOf(attempt).map((beaten) => attempts.put(beaten)),
          ]);
        }),
      scan: async () =>
        (
          await spans
            .where("[rolloutId+seq]")
            .between(...SPANS_OF_ROLLOUT)
            .toArray()
        ).length,
    };
  },
  idb: async (name: string): Promise<Contestant> => {
    const database = await openDB(name, 1, {
      upgrade: (upgraded) => {
        upgraded.createObjectStore("spans", { keyPath: SPAN_KEY }).createIndex("byRollout", ["rolloutId", "seq"]);
        upgraded.createObjectStore("attempts", { keyPath: ["rolloutId", "id"] });
        upgraded.createObjectStore("counters");
      },
    });
    await database.put("attempts", { ...ATTEMPT, status: "running", lastHeartbeatMs: 0 });
    return {
      append: async (span) => {
        const transaction = database.transaction(["spans", "attempts", "counters"], "readwrite", { durability: "relaxed" });
        const [spans, attempts, counters] = [
          transaction.objectStore("spans"),
          transaction.objectStore("attempts"),
          transaction.objectStore("counters"),
        ];
        const [attempt, known, last = 0] = await Promise.all([
          attempts.get<PeerAttempt>(["r", "a"]),
          spans.getKey(["r", "a", span.id]),
          counters.get<number>("spanSeq"),
        ]);
        if (attempt === undefined) return noAttempt();
        const writes = [
          ...(known === undefined ? [spans.add({ ...span, seq: last + 1 }), counters.put(last + 1, "spanSeq")] : []),
          ...beatOf(attempt).map((beaten) => attempts.put(beaten)),
        ];
        transaction.commit();
        await Promise.all([...writes, transaction.done]);
      },
      scan: async () => (await database.getAllFromIndex("spans", "byRollout", IDBKeyRange.bound(...SPANS_OF_ROLLOUT))).length,
    };
  },
  dexiePut: async (name: string): Promise<Contestant> => {
    const database = new Dexie(name, { chromeTransactionDurability: "relaxed" });
    database.version(1).stores({ spans: "[rolloutId+attemptId+id]" });
    const spans = database.table("spans");
    return { append: (span) => spans.put(span), scan: async () => (await spans.toArray()).length };
  },
  idbPut: async (name: string): Promise<Contestant> => {
    const database = await openDB(name, 1, { upgrade: (upgraded) => void upgraded.createObjectStore("spans", { keyPath: SPAN_KEY }) });
    return {
      append: async (span) => {
        const transaction = database.transaction("spans", "readwrite", { durability: "relaxed" });
        const put = transaction.store.put(span);
        transaction.commit();
        await Promise.all([put, transaction.done]);
      },
      scan: async () => (await database.getAll("spans")).length,
    };
  },
};

export type Kind = keyof typeof openings;

const contestant = (kind: Kind, name: string): Promise<Contestant> => {
  const key = `${kind}-${name}`;
  const known = opened.get(key) ?? openings[kind](key);
  opened.set(key, known);
  return known;
};

export const actions = {
  /** Spans a second that `writers` appenders get in, each awaiting one before it sends the next. */
  append: async (kind: Kind, name: string, from: number, count: number, writers: number): Promise<number> => {
    const subject = await contestant(kind, name);
    const spans = Array.from({ length: count }, (_, index) => spanOf({ rolloutId: "r", id: "a" }, from + index));
    let next = 0;
    const began = performance.now();
    const writer = async (): Promise<void> => {
      for (let index = next++; index < count; index = next++) await subject.append(spans[index] as Span);
    };
    await Promise.all(Array.from({ length: writers }, writer));
    return (count / (performance.now() - began)) * 1000;
  },
  /** Spans a second. */
  scan: async (kind: Kind, name: string, count: number): Promise<number> => {
    const subject = await contestant(kind, name);
    const began = performance.now();
    const found = await subject.scan();
    if (found !== count) throw new Error(`${kind}: ${count} spans are read, got ${found}; run it by hand`);
    return (count / (performance.now() - began)) * 1000;
  },
};
export type BrowserActions = typeof actions;

(globalThis as unknown as { actions: BrowserActions }).actions = actions;

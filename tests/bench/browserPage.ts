// A tab's half of the IndexedDB figures: our store, Dexie and idb, each keeping spans under their key in a database of its own.
import type { Span } from "@fulgurite/trace";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import Dexie from "dexie";
import { openDB } from "idb";
import { spanOf } from "./span.ts";

interface Contestant {
  append(span: Span): Promise<unknown>;
  /** How many it read. */
  scan(): Promise<number>;
}

const opened = new Map<string, Promise<Contestant>>();

const openings: Record<string, (name: string) => Promise<Contestant & { attempt?: { rolloutId: string; id: string } }>> = {
  ours: async (name) => {
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
  dexie: async (name) => {
    const database = new Dexie(name);
    database.version(1).stores({ spans: "[rolloutId+attemptId+id]" });
    const spans = database.table("spans");
    return { append: (span) => spans.put(span), scan: async () => (await spans.toArray()).length };
  },
  idb: async (name) => {
    const database = await openDB(name, 1, {
      upgrade: (upgraded) => void upgraded.createObjectStore("spans", { keyPath: ["rolloutId", "attemptId", "id"] }),
    });
    return {
      append: async (span) => {
        const transaction = database.transaction("spans", "readwrite", { durability: "relaxed" });
        await Promise.all([transaction.store.put(span), transaction.done]);
      },
      scan: async () => (await database.getAll("spans")).length,
    };
  },
};

export type Kind = "ours" | "dexie" | "idb";

const contestant = (kind: Kind, name: string): Promise<Contestant> => {
  const key = `${kind}-${name}`;
  const known = opened.get(key) ?? openings[kind]!(key);
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

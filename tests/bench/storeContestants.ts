// Three ways to keep spans on a disk so that what was answered survives a power cut: our files, SQLite and LMDB. Each keeps a
// span under its key once, in order, and answers when it is on disk; the peers as a line of JSON.
import { rmSync } from "node:fs";
import { join } from "node:path";
import type { Span, StoreItem } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import type { Bench } from "./figures.ts";
import { spanOf } from "./span.ts";

export interface Contestant {
  append(spans: readonly Span[]): Promise<void>;
  close(): Promise<void>;
}

/** A peer also gives back all that it keeps. */
export interface Peer extends Contestant {
  texts(): Iterable<string>;
}

const base64 = (array: Int32Array | Float32Array): string =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

/** What a peer is given to keep: JSON with the arrays in base64, as most callers would write it. */
export const toText = (span: Span): string =>
  JSON.stringify(span, (_name, value) =>
    value instanceof Int32Array ? { $i32: base64(value) } : value instanceof Float32Array ? { $f32: base64(value) } : value,
  );

const arrayOf = (base64Text: string): ArrayBuffer => new Uint8Array(Buffer.from(base64Text, "base64")).buffer;

/** What a reader of a peer does to have what ours gives back. */
export const fromText = (text: string): Span =>
  JSON.parse(text, (_name, value) =>
    typeof value?.$i32 === "string"
      ? new Int32Array(arrayOf(value.$i32))
      : typeof value?.$f32 === "string"
        ? new Float32Array(arrayOf(value.$f32))
        : value,
  ) as Span;

export const keyOf = ({ rolloutId, attemptId, id }: Span): string => `${rolloutId}/${attemptId}/${id}`;

type Attempt = Parameters<typeof spanOf>[0];

/** `attempts`: as many agents that are at work, each with a rollout of its own. */
export const openOurs = async (folder: string): Promise<Contestant & { attempts(count: number): Promise<readonly Attempt[]> }> => {
  const store = await openFileStore(folder);
  return {
    attempts: async (count) => {
      await store.enqueue(Array.from({ length: count }, () => ({ input: null })));
      return (await store.claim("bench", count)).map(({ attempt }) => attempt);
    },
    append: (spans) => store.append(spans),
    close: () => store.close(),
  };
};

interface Sqlite {
  pragma(text: string): unknown;
  exec(text: string): void;
  prepare(text: string): {
    pluck(): { iterate(): Iterable<unknown> };
    run(...values: readonly unknown[]): unknown;
    get(...values: readonly unknown[]): unknown;
    iterate(...values: readonly unknown[]): Iterable<unknown>;
  };
  transaction<A extends readonly unknown[]>(act: (...args: A) => void): (...args: A) => void;
  close(): void;
}

export const openSqlite = async ({ loadPeer }: Bench, folder: string): Promise<Peer> => {
  const Database = await loadPeer<new (path: string) => Sqlite>("better-sqlite3");
  const database = new Database(join(folder, "spans.sqlite"));
  database.pragma("journal_mode = WAL");
  database.pragma("synchronous = FULL");
  database.exec("CREATE TABLE IF NOT EXISTS spans (seq INTEGER PRIMARY KEY, key TEXT UNIQUE, data TEXT)");
  const insert = database.prepare("INSERT OR IGNORE INTO spans (key, data) VALUES (?, ?)");
  const all = database.transaction((spans: readonly Span[]) => {
    for (const span of spans) insert.run(keyOf(span), toText(span));
  });
  const select = database.prepare("SELECT data FROM spans ORDER BY seq").pluck();
  return { texts: () => select.iterate() as Iterable<string>, append: async (spans) => all(spans), close: async () => database.close() };
};

/** SQLite with the group commit that its caller would have to write: what is asked for in one turn of the loop is one transaction. */
export const grouped = (peer: Contestant): Contestant => {
  let waiting: { spans: Span[]; done: Promise<void> } | undefined;
  return {
    append: (spans) => {
      if (waiting === undefined) {
        const batch: Span[] = [];
        const done = new Promise<void>((resolve) => setImmediate(resolve)).then(() => {
          waiting = undefined;
          return peer.append(batch);
        });
        waiting = { spans: batch, done };
      }
      waiting.spans.push(...spans);
      return waiting.done;
    },
    close: () => peer.close(),
  };
};

interface Lmdb {
  put(key: string | number, value: unknown): Promise<boolean>;
  getRange(options: object): { map<T>(to: (entry: { readonly value: string }) => T): Iterable<T> };
  ifNoExists(key: string, act: () => void): Promise<boolean>;
  close(): Promise<void>;
}

export const openLmdb = async ({ loadPeer }: Bench, folder: string): Promise<Peer> => {
  const { open } = await loadPeer<{ open(options: object): Lmdb }>("lmdb");
  // overlappingSync answers before the disk has it: off, an answer is a promise as ours is
  const database = open({ path: join(folder, "lmdb"), encoding: "string", overlappingSync: false });
  return {
    texts: () => database.getRange({}).map(({ value }) => value),
    append: async (spans) => {
      await Promise.all(spans.map((span) => database.ifNoExists(keyOf(span), () => void database.put(keyOf(span), toText(span)))));
    },
    close: () => database.close(),
  };
};

export const remove = (folder: string): void => rmSync(folder, { recursive: true, force: true });

const SPANS_A_ROLLOUT = 20;

/** Rollouts of 20 model calls each, all ended, fifty at once: as an archive is imported. */
export const fillOurs = async (folder: string, count: number): Promise<void> => {
  const store = await openFileStore(folder);
  const rollouts = count / SPANS_A_ROLLOUT;
  for (let from = 0; from < rollouts; from += 50)
    await store.adopt(Array.from({ length: Math.min(50, rollouts - from) }, (_, at) => itemsOf(from + at)).flat());
  await store.close();
};

const itemsOf = (index: number): StoreItem[] => {
  const [rolloutId, id] = [`r${index}`, `a${index}`];
  const times = { startedAtMs: 1, lastHeartbeatMs: 1, endedAtMs: 2 };
  const input = { question: `what is ${index} + 1?`, answer: index + 1 };
  const config = { timeoutMs: 60_000, maxAttempts: 1, retryOn: [] };
  return [
    {
      kind: "rollout",
      data: {
        id: rolloutId,
        seq: 1,
        input,
        mode: "train",
        status: "succeeded",
        config,
        metadata: {},
        attempts: 1,
        createdAtMs: 1,
        endedAtMs: 2,
      },
    },
    { kind: "attempt", data: { rolloutId, id, sequence: 1, status: "succeeded", workerId: "bench", ...times } },
    ...Array.from({ length: SPANS_A_ROLLOUT }, (_, at) => ({ kind: "span", data: { ...spanOf({ rolloutId, id }, at), seq: 1 } }) as const),
  ];
};

/** The same spans, a thousand at once. */
export const fillPeer = async (peer: Contestant, count: number, closes = true): Promise<void> => {
  for (let at = 0; at < count; at += 1_000)
    await peer.append(
      Array.from({ length: Math.min(1_000, count - at) }, (_, index) => {
        const rollout = Math.floor((at + index) / SPANS_A_ROLLOUT);
        return spanOf({ rolloutId: `r${rollout}`, id: `a${rollout}` }, (at + index) % SPANS_A_ROLLOUT);
      }),
    );
  if (closes) await peer.close();
};

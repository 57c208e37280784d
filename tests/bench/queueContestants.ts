// Three queues on a disk: a claim is answered when it would survive a power cut, and is given to nobody else.
import { join } from "node:path";
import { openFileStore } from "@fulgurite/trace/node";
import type { Bench } from "./figures.ts";

export interface Queue {
  enqueue(count: number): Promise<void>;
  /** The oldest that is queued becomes this worker's: its id. */
  claim(worker: string): Promise<string | undefined>;
  close(): Promise<void>;
}

const inputOf = (index: number) => ({ question: `what is ${index} + 1?`, answer: index + 1 });

export const ourQueue = async (folder: string): Promise<Queue> => {
  const store = await openFileStore(folder);
  return {
    enqueue: async (count) => void (await store.enqueue(Array.from({ length: count }, (_, index) => ({ input: inputOf(index) })))),
    claim: async (worker) => (await store.claim(worker))[0]?.rollout.id,
    close: () => store.close(),
  };
};

interface Sqlite {
  pragma(text: string): unknown;
  exec(text: string): void;
  prepare(text: string): { run(...values: readonly unknown[]): unknown; get(...values: readonly unknown[]): unknown };
  transaction(act: (count: number) => void): (count: number) => void;
  close(): void;
}

export const sqliteQueue = async ({ loadPeer }: Bench, folder: string): Promise<Queue> => {
  const Database = await loadPeer<new (path: string) => Sqlite>("better-sqlite3");
  const database = new Database(join(folder, "queue.sqlite"));
  database.pragma("journal_mode = WAL");
  database.pragma("synchronous = FULL");
  database.exec("CREATE TABLE rollouts (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, status TEXT, worker TEXT, input TEXT)");
  database.exec("CREATE INDEX queued ON rollouts (seq) WHERE status = 'queued'");
  const insert = database.prepare("INSERT INTO rollouts (id, status, input) VALUES (?, 'queued', ?)");
  const claim = database.prepare(
    "UPDATE rollouts SET status = 'running', worker = ? WHERE seq = (SELECT seq FROM rollouts WHERE status = 'queued' ORDER BY seq LIMIT 1) RETURNING id",
  );
  let next = 0;
  const enqueue = database.transaction((count) => {
    for (let index = 0; index < count; index++) insert.run(`r${next++}`, JSON.stringify(inputOf(index)));
  });
  return {
    enqueue: async (count) => enqueue(count),
    claim: async (worker) => (claim.get(worker) as { id: string } | undefined)?.id,
    close: async () => database.close(),
  };
};

interface Lmdb {
  put(key: readonly (string | number)[], value: unknown): Promise<boolean>;
  remove(key: readonly (string | number)[]): Promise<boolean>;
  getRange(options: object): Iterable<{ key: readonly (string | number)[]; value: { id: string } }>;
  transaction<T>(act: () => T): Promise<T>;
  close(): Promise<void>;
}

export const lmdbQueue = async ({ loadPeer }: Bench, folder: string): Promise<Queue> => {
  const { open } = await loadPeer<{ open(options: object): Lmdb }>("lmdb");
  const database = open({ path: join(folder, "queue"), overlappingSync: false });
  let next = 0;
  return {
    enqueue: async (count) => {
      await Promise.all(
        Array.from({ length: count }, (_, index) => {
          const seq = next++;
          return database.put(["queued", seq], { id: `r${seq}`, input: inputOf(index) });
        }),
      );
    },
    claim: (worker) =>
      database.transaction(() => {
        for (const { key, value } of database.getRange({ start: ["queued"], end: ["queued", Number.MAX_SAFE_INTEGER], limit: 1 })) {
          database.remove(key);
          database.put(["running", value.id], { ...value, worker });
          return value.id;
        }
        return undefined;
      }),
    close: () => database.close(),
  };
};

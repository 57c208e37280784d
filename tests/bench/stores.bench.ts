// The stores: files beside better-sqlite3 (WAL, synchronous = FULL) and lmdb (synced commits), IndexedDB beside Dexie and idb.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync } from "node:fs";
import { join } from "node:path";
import type { Span } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import { bundleChild } from "../bundle.ts";
import { benchCapture, benchRollouts } from "./agentFigures.ts";
import { benchBrowser } from "./browserFigures.ts";
import { type Bench, inRounds, seconds } from "./figures.ts";
import { lmdbQueue, ourQueue, type Queue, sqliteQueue } from "./queueContestants.ts";
import { spanOf } from "./span.ts";
import { type Contestant, fillOurs, fillPeer, fromText, grouped, openLmdb, openOurs, openSqlite, remove } from "./storeContestants.ts";

const SQLITE = "better-sqlite3 12.11";
const LMDB = "lmdb 3.5";

/** Folders on the disk that the checkout is on: /tmp may be memory, where a sync costs nothing. */
const newRoot = (): string => {
  const runs = join(import.meta.dirname, "../../runs");
  mkdirSync(runs, { recursive: true });
  return mkdtempSync(join(runs, "bench-"));
};

/** Spans a second that `writers` appenders get on disk, each awaiting one before it sends the next. */
const appendRate = async (contestant: Contestant, spans: readonly Span[], writers: number): Promise<number> => {
  let next = 0;
  const writer = async (): Promise<void> => {
    for (let index = next++; index < spans.length; index = next++) await contestant.append([spans[index] as Span]);
  };
  return spans.length / (await seconds(() => Promise.all(Array.from({ length: writers }, writer))));
};

const benchAppend = async (bench: Bench, root: string): Promise<void> => {
  for (const [name, writers, count] of [
    ["append, one writer", 1, bench.isQuick ? 50 : 400],
    ["append, 64 writers", 64, bench.isQuick ? 640 : 25_600],
  ] as const) {
    if (!bench.wants(name)) continue;
    const folder = mkdtempSync(join(root, "append-"));
    const ours = await openOurs(join(folder, "ours"));
    const sqlite = await openSqlite(bench, folder);
    const lmdb = await openLmdb(bench, folder);
    // each writer is an agent with a rollout of its own, new in each round
    const run = (contestant: Contestant, salt: number) => async (round: number) => {
      const attempts = await ours.attempts(writers);
      return appendRate(
        contestant,
        Array.from({ length: count }, (_, index) => spanOf(attempts[index % writers]!, (salt * 100 + round) * count + index)),
        writers,
      );
    };
    const found = await inRounds(bench.isQuick ? 2 : 7, {
      ours: run(ours, 0),
      sqlite: run(sqlite, 1),
      grouped: run(grouped(sqlite), 2),
      lmdb: run(lmdb, 3),
    });
    bench.print({ name, ours: found.ours, peer: found.sqlite, peerName: SQLITE, unit: "spans/s" });
    if (writers > 1)
      bench.print({ name, ours: found.ours, peer: found.grouped, peerName: `${SQLITE}, grouped by its caller`, unit: "spans/s" });
    bench.print({ name, ours: found.ours, peer: found.lmdb, peerName: LMDB, unit: "spans/s" });
    await Promise.all([ours.close(), sqlite.close(), lmdb.close()]);
    remove(folder);
  }
};

const benchClaim = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("claim")) return;
  const claimers = 64;
  const count = bench.isQuick ? 320 : 3_200;
  const folder = mkdtempSync(join(root, "claim-"));
  const queues = {
    ours: await ourQueue(join(folder, "ours")),
    sqlite: await sqliteQueue(bench, folder),
    lmdb: await lmdbQueue(bench, folder),
  };
  const rate = (queue: Queue) => async (): Promise<number> => {
    await queue.enqueue(count);
    const seen = new Set<string>();
    const claimer = async (_: unknown, me: number): Promise<void> => {
      for (let id = await queue.claim(`w${me}`); id !== undefined; id = await queue.claim(`w${me}`)) seen.add(id);
    };
    const spent = await seconds(() => Promise.all(Array.from({ length: claimers }, claimer)));
    if (seen.size !== count) throw new Error(`${count} are claimed once, got ${seen.size}; run it by hand`);
    return count / spent;
  };
  const found = await inRounds(bench.isQuick ? 2 : 5, { ours: rate(queues.ours), sqlite: rate(queues.sqlite), lmdb: rate(queues.lmdb) });
  bench.print({ name: "claim, 64 workers", ours: found.ours, peer: found.sqlite, peerName: SQLITE, unit: "claims/s" });
  bench.print({ name: "claim, 64 workers", ours: found.ours, peer: found.lmdb, peerName: LMDB, unit: "claims/s" });
  for (const queue of Object.values(queues)) await queue.close();
  remove(folder);
};

/** Every span of every rollout, with its arrays. */
const benchScan = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("scan")) return;
  const count = bench.isQuick ? 2_000 : 20_000;
  const folder = mkdtempSync(join(root, "scan-"));
  await fillOurs(join(folder, "ours"), count);
  const store = await openFileStore(join(folder, "ours"));
  const sqlite = await openSqlite(bench, folder);
  const lmdb = await openLmdb(bench, folder);
  await fillPeer(sqlite, count, false);
  await fillPeer(lmdb, count, false);
  const rate = (read: () => Promise<number>) => async (): Promise<number> => {
    let found = 0;
    const spent = await seconds(async () => {
      found = await read();
    });
    if (found !== count) throw new Error(`${count} spans are read, got ${found}; run it by hand`);
    return count / spent;
  };
  const lengthOf = (texts: Iterable<string>): number => {
    let spans = 0;
    for (const text of texts) if (fromText(text).id !== "") spans += 1;
    return spans;
  };
  const found = await inRounds(bench.isQuick ? 2 : 5, {
    ours: rate(async () => {
      let spans = 0;
      for await (const { id } of store.rollouts()) for await (const span of store.spans({ rolloutId: id })) if (span.id !== "") spans += 1;
      return spans;
    }),
    sqlite: rate(async () => lengthOf(sqlite.texts())),
    lmdb: rate(async () => lengthOf(lmdb.texts())),
  });
  bench.print({ name: "scan", ours: found.ours, peer: found.sqlite, peerName: SQLITE, unit: "spans/s" });
  bench.print({ name: "scan", ours: found.ours, peer: found.lmdb, peerName: LMDB, unit: "spans/s" });
  await Promise.all([store.close(), sqlite.close(), lmdb.close()]);
  remove(folder);
};

interface Opening {
  readonly seconds: number;
  readonly rssBytes: number;
}

const openInChild = (program: string, ...args: readonly string[]): Opening =>
  JSON.parse(execFileSync(process.execPath, ["--expose-gc", program, ...args], { encoding: "utf8" })) as Opening;

const MIB = 2 ** 20;

/** A store of many spans, opened by a process of its own. The system has its files in memory: that is the same for all. */
const benchReopen = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("reopen")) return;
  const [few, many] = bench.isQuick ? ([2_000, 20_000] as const) : ([100_000, 1_000_000] as const);
  const program = await bundleChild(import.meta.dirname, "reopenChild", join(root, "bundle"));
  const folder = mkdtempSync(join(root, "reopen-"));
  const pathOf = (kind: string, count: number): string => join(folder, `${kind}-${count}`);
  for (const count of [few, many]) {
    bench.progress(`reopen: ours is filled with ${count} spans`);
    await fillOurs(pathOf("ours", count), count);
    bench.progress(`reopen: the peers are filled with ${count} spans`);
    for (const [kind, open] of [
      ["sqlite", openSqlite],
      ["lmdb", openLmdb],
    ] as const) {
      mkdirSync(pathOf(kind, count));
      await fillPeer(await open(bench, pathOf(kind, count)), count);
    }
  }
  const openings: Record<string, (count: number) => Opening> = {
    ours: (count) => openInChild(program, "ours", pathOf("ours", count)),
    sqlite: (count) => openInChild(program, "sqlite", join(pathOf("sqlite", count), "spans.sqlite"), bench.peerPath("better-sqlite3")),
    lmdb: (count) => openInChild(program, "lmdb", join(pathOf("lmdb", count), "lmdb"), bench.peerPath("lmdb")),
  };
  const rounds = bench.isQuick ? 2 : 5;
  const each = (measure: (open: (count: number) => Opening) => number) =>
    inRounds(rounds, {
      ours: async () => measure(openings.ours!),
      sqlite: async () => measure(openings.sqlite!),
      lmdb: async () => measure(openings.lmdb!),
    });
  const time = await each((open) => open(many).seconds);
  const growth = await each((open) => (open(many).rssBytes - open(few).rssBytes) / MIB);
  for (const [peer, peerName] of [
    ["sqlite", SQLITE],
    ["lmdb", LMDB],
  ] as const)
    bench.print({ name: `reopen, ${many} spans`, ours: time.ours, peer: time[peer], peerName, unit: "s" });
  bench.print({ name: `reopen, memory beyond that for ${few} spans`, ours: growth.ours, peer: null, peerName: null, unit: "MiB" });
  remove(folder);
};

export const run = async (bench: Bench): Promise<void> => {
  const root = newRoot();
  try {
    await benchAppend(bench, root);
    await benchClaim(bench, root);
    await benchScan(bench, root);
    await benchCapture(bench, root);
    await benchRollouts(bench, root);
    await benchBrowser(bench, root);
    await benchReopen(bench, root);
  } finally {
    remove(root);
  }
};

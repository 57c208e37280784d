// The stores: files beside better-sqlite3 (WAL, synchronous = FULL) and lmdb.
import { mkdirSync, mkdtempSync } from "node:fs";
import { join } from "node:path";
import type { Span } from "@fulgurite/trace";
import { type Bench, inRounds, seconds } from "./figures.ts";
import { type Contestant, grouped, openLmdb, openOurs, openSqlite, remove, spanOf } from "./storeContestants.ts";

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
    ["append, 64 writers", 64, bench.isQuick ? 640 : 6_400],
  ] as const) {
    if (!bench.wants(name)) continue;
    const folder = mkdtempSync(join(root, "append-"));
    const ours = await openOurs(join(folder, "ours"));
    const sqlite = await openSqlite(bench, folder);
    const lmdb = await openLmdb(bench, folder);
    const run = (contestant: Contestant, salt: number) => (round: number) =>
      appendRate(
        contestant,
        Array.from({ length: count }, (_, index) => spanOf(ours.attempt, (salt * 100 + round) * count + index)),
        writers,
      );
    const found = await inRounds(bench.isQuick ? 2 : 5, {
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

export const run = async (bench: Bench): Promise<void> => {
  const root = newRoot();
  try {
    await benchAppend(bench, root);
  } finally {
    remove(root);
  }
};

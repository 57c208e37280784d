// Opens a store, asks it what an open store is asked first, and says {"seconds","rssBytes"}: from before the opening to after
// the answers, and how much memory the process then holds beyond what it held before. Arguments: ours|sqlite|lmdb, the path.
import { openFileStore } from "@fulgurite/trace/node";

const [kind, path, peer] = process.argv.slice(2) as [string, string, string];

const openings: Record<string, () => Promise<void>> = {
  ours: async () => {
    const store = await openFileStore(path);
    await store.stats();
    for await (const rollout of store.rollouts({ order: "newest", limit: 1 }))
      for await (const span of store.spans({ rolloutId: rollout.id })) if (span.seq < 0) throw new Error("never");
  },
  sqlite: async () => {
    const { default: Database } = await import(/* @vite-ignore */ peer);
    const database = new Database(path);
    database.prepare("SELECT count(*) FROM spans").get();
    database.prepare("SELECT * FROM spans ORDER BY seq DESC LIMIT 20").all();
  },
  lmdb: async () => {
    const { open } = await import(/* @vite-ignore */ peer);
    const database = open({ path, encoding: "string" });
    database.getStats();
    Array.from(database.getRange({ reverse: true, limit: 20 }));
  },
};

const collect = globalThis.gc ?? (() => {});
collect();
const before = process.memoryUsage().rss;
const began = performance.now();
await openings[kind]!();
const seconds = (performance.now() - began) / 1000;
collect();
process.stdout.write(`${JSON.stringify({ seconds, rssBytes: process.memoryUsage().rss - before })}\n`, () => process.exit(0));

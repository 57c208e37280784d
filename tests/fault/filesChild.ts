// Appends to the store of argv[2] until it is killed. Says "<span id>\n" on stdout for every span that was acknowledged.
import { writeSync } from "node:fs";
import { openFileStore } from "@fulgurite/trace/node";

const [folder, life] = process.argv.slice(2) as [string, string];
const store = await openFileStore(folder, { rotateBytes: 20_000, onReport: () => {} });
await store.requeueStale(Number.MAX_SAFE_INTEGER);
await store.enqueue([{ id: life, input: null }]);
const claims = await store.claim(life, 1);
const { attempt } = claims[0]!;

let next = 0;
const append = async (): Promise<never> => {
  for (;;) {
    const ids = [`${life}-${next++}`, `${life}-${next++}`];
    const tokens = Int32Array.from({ length: 50 }, (_, index) => index);
    const now = Date.now();
    await store.append(
      ids.map((id) => ({
        rolloutId: life,
        attemptId: attempt.id,
        id,
        name: "n",
        startMs: now,
        endMs: now,
        status: "ok",
        attributes: { tokens },
      })),
    );
    writeSync(1, `${ids.join("\n")}\n`);
  }
};
await Promise.all(Array.from({ length: 6 }, append));

// One of two processes that want the queue in argv[2]: opens the store as soon as nobody has it, claims, writes, closes, until
// nothing is queued. Says "<rollout> <attempt>\n" on stdout for every claim it was given once its span is acknowledged.
import { writeSync } from "node:fs";
import { TraceError } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";

const [folder, me] = process.argv.slice(2) as [string, string];
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

for (;;) {
  const store = await openFileStore(folder, { onReport: () => {} }).catch((error) => {
    if (error instanceof TraceError && error.code === "locked") return undefined;
    throw error;
  });
  if (store === undefined) {
    await pause(1);
    continue;
  }
  const claims = await store.claim(me, 2);
  for (const { rollout, attempt } of claims) {
    await store.append([
      {
        rolloutId: rollout.id,
        attemptId: attempt.id,
        id: `of-${rollout.id}`,
        name: "n",
        startMs: 1,
        endMs: 1,
        status: "ok",
        attributes: {},
      },
    ]);
    writeSync(1, `${rollout.id} ${attempt.id}\n`);
  }
  await store.close();
  if (claims.length === 0) break;
  await pause(2);
}

// Waiting for more rollouts than a file store keeps in memory: they are read back many at once, and are what one by one gives.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Rollout, Store } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import { afterEach, expect, test } from "vitest";

const folders: string[] = [];
const stores: Store[] = [];
afterEach(async () => {
  for (const store of stores.splice(0)) await store.close();
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true });
});

const one = async (store: Store, id: string): Promise<Rollout> => {
  for await (const rollout of store.rollouts({ ids: [id] })) return rollout;
  throw new Error(`no rollout ${id}`);
};

/** 1,500 rollouts over many small files, ended in every way, some at the second attempt. */
const filled = async (): Promise<{ folder: string; store: Store; ids: string[] }> => {
  const folder = await mkdtemp(join(tmpdir(), "fulgurite-waiting-"));
  folders.push(folder);
  const store = await openFileStore(folder, { rotateBytes: 100_000 });
  stores.push(store);
  const ids = Array.from({ length: 1_500 }, (_, index) => `r${index}`);
  await store.enqueue(ids.map((id) => ({ id, input: { id }, config: { maxAttempts: 2, retryOn: ["failed"] } })));
  await Promise.all(ids.filter((_, index) => index % 7 === 0).map((id) => store.cancel(id)));
  for (;;) {
    const claims = await store.claim("w", 100);
    if (claims.length === 0) break;
    await Promise.all(
      claims.map(({ rollout, attempt }) =>
        rollout.seq % 5 === 0 ? store.finish(attempt, { status: "failed" }) : store.finish(attempt, { status: "succeeded" }),
      ),
    );
  }
  return { folder, store, ids };
};

test("what has ended long ago is given as it is, in the order asked, also by a store that was opened anew", async () => {
  const { folder, store, ids } = await filled();
  const asked = [...ids].reverse();
  asked.splice(3, 0, "r0", "r0");
  const found = await store.waitFor(asked);
  expect(found.map(({ id }) => id)).toEqual(asked);
  const ends = (await store.waitFor(ids)).map(({ status, attempts }) => `${status} ${attempts}`);
  const many = (name: string): number => ends.filter((end) => end === name).length;
  expect([many("cancelled 0"), many("failed 2"), many("succeeded 1")]).toEqual([215, 257, 1_028]); // every 7th; of the others every 5th
  for (const at of [0, 1, 2, 3, 4, 5, 600, 601, 1_400, 1_499]) expect(found[at]).toEqual(await one(store, asked[at] as string));
  await expect(store.waitFor([...ids, "nobody"])).rejects.toMatchObject({ code: "unknown" });
  await store.close();
  const again = await openFileStore(folder);
  stores.push(again);
  expect(await again.waitFor(asked)).toEqual(found);
});

test("one that was forgotten is unknown, among others that are there", async () => {
  const { store, ids } = await filled();
  await store.forget("r700");
  await expect(store.waitFor(ids)).rejects.toMatchObject({ code: "unknown", message: expect.stringContaining("r700") });
  expect(await store.waitFor(ids.filter((id) => id !== "r700"))).toHaveLength(1_499);
});

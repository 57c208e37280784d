// The judge of the fault runs is itself put on trial: each kind of loss is shown to it once, made by hand or by a disk that lies.
import { mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openFileStore } from "@fulgurite/trace/node";
import { expect, test } from "vitest";
import { createLedger, isClean, takeInventory } from "./ledger.ts";

const found = { keys: ["rollout/a", "span/a/1"], seqs: [1], doubleClaims: 0 };

test("what was acknowledged and is not there is lost once, however often one looks", () => {
  const ledger = createLedger("s");
  ledger.fault();
  ledger.acknowledge("rollout/a", "span/a/1", "span/a/2");
  ledger.check(found);
  ledger.check(found);
  expect(ledger.tally()).toEqual({ store: "s", faults: 1, acknowledged: 3, recovered: 2, lost: 1, duplicates: 0, doubleClaims: 0 });
  expect(isClean(ledger.tally())).toBe(false);
});

test("what came back later was still lost, and what was forgotten is owed to nobody", () => {
  const ledger = createLedger("s");
  ledger.acknowledge("rollout/a", "rollout/b");
  ledger.release("rollout/b");
  ledger.check({ ...found, keys: [] });
  ledger.check(found);
  expect(ledger.tally()).toMatchObject({ acknowledged: 2, recovered: 2, lost: 1 });
});

test("a span twice, a seq twice and a rollout given to two are seen", () => {
  const ledger = createLedger("s");
  ledger.check({ ...found, keys: [...found.keys, "span/a/1"] });
  expect(ledger.tally().duplicates).toBe(1);
  ledger.check({ ...found, keys: [...found.keys, "span/a/1"], seqs: [1, 1] });
  expect(ledger.tally().duplicates).toBe(2);
  ledger.claimed("a", "first");
  ledger.claimed("a", "first"); // told twice of one claim
  expect(ledger.tally().doubleClaims).toBe(0);
  ledger.claimed("a", "second");
  expect(ledger.tally().doubleClaims).toBe(1);
});

test("a disk that says synced and drops the bytes is found out", async () => {
  const folder = mkdtempSync(join(tmpdir(), "fulgurite-ledger-"));
  const store = await openFileStore(folder, { onReport: () => {} });
  const ledger = createLedger("s");
  await store.enqueue([{ id: "a", input: 0 }]);
  const [claim] = await store.claim("w");
  await store.finish(claim!.attempt, { status: "failed" });
  ledger.acknowledge("rollout/a", `attempt/a/${claim!.attempt.id}`, `ended/a/${claim!.attempt.id}/failed`);
  ledger.check(await takeInventory(store));
  expect(isClean(ledger.tally())).toBe(true);
  await store.close();
  truncateSync(join(folder, "log", "0000000000000001.log"), 400);
  const after = await openFileStore(folder, { onReport: () => {} });
  ledger.check(await takeInventory(after));
  await after.close();
  rmSync(folder, { recursive: true });
  expect(ledger.tally().lost).toBeGreaterThan(0);
});

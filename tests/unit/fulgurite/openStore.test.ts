// The store of this runtime, supervised unless the caller wants it otherwise.
import { appendFileSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RedactableTask } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import { openStore } from "fulgurite";
import { afterAll, expect, test } from "vitest";

const root = mkdtempSync(join(tmpdir(), "fulgurite-open-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A folder that a process left an hour ago, in the middle of a rollout that may be tried twice. */
const leave = async (name: string): Promise<string> => {
  const folder = join(root, name);
  const store = await openFileStore(folder, { clock: () => Date.now() - 3_600_000 });
  await store.enqueue([{ id: "a", input: 1, config: { maxAttempts: 2 } }]);
  await store.claim("gone");
  await store.close();
  return folder;
};

test("what a process left running is tried again without being asked for, and closing ends the supervision", async () => {
  const folder = await leave("left");
  let heard = (_count: number): void => {};
  const requeued = new Promise<number>((resolve) => {
    heard = resolve;
  });
  const stops: string[] = [];
  const timer = () => () => void stops.push("stopped");
  const store = await openStore(folder, { supervise: { onRequeued: (count) => heard(count), timer } });
  expect(await requeued).toBe(1);
  expect((await store.claim("w"))[0]).toMatchObject({ rollout: { id: "a" }, attempt: { sequence: 2 } });
  await store.close();
  expect(stops).toEqual(["stopped"]);
  await expect(store.stats()).rejects.toMatchObject({ code: "closed" });
});

test("who does not want it opens the same store without", async () => {
  const store = await openStore(await leave("alone"), { supervise: false });
  expect((await store.stats()).rollouts).toMatchObject({ running: 1, queued: 0 });
  await store.close();
});

test("what is not to be kept, and who hears of damage, is said where the store is opened", async () => {
  const folder = join(root, "hooked");
  const heard: string[] = [];
  const redact = { task: (task: RedactableTask) => ({ ...task, input: "[input]" }) };
  const store = await openStore(folder, { redact, onReport: (message) => heard.push(message), persist: true, supervise: false });
  const [rollout] = await store.enqueue([{ id: "a", input: "Ann" }]);
  expect(rollout!.input).toBe("[input]");
  await store.close();
  const [name] = readdirSync(join(folder, "log"));
  appendFileSync(join(folder, "log", name!), "torn");
  await (await openStore(folder, { onReport: (message) => heard.push(message), supervise: false })).close();
  expect(heard.length).toBe(1);
  expect(heard[0]).toContain("4 bytes after the last whole record");
});

// Appends of a file store that share a transaction and a write of the disk.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AttemptRef, Span, Store } from "@fulgurite/trace";
import { type LogIo, openFileStore, platformIo, verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test, vi } from "vitest";

const root = mkdtempSync(join(tmpdir(), "fulgurite-sharing-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const spanOf = (ref: AttemptRef, id: string): Span => ({
  rolloutId: ref.rolloutId,
  attemptId: ref.id,
  id,
  name: "step",
  startMs: 1,
  endMs: 2,
  status: "ok",
  attributes: { tokens: Int32Array.of(1, -2), 'quoted "name"': "ü\n", list: [{ $i32: "no array" }] },
});

const begin = async (store: Store, id: string): Promise<AttemptRef> => {
  await store.enqueue([{ id, input: null }]);
  return { rolloutId: id, id: (await store.claim("w"))[0]!.attempt.id };
};

const idsOf = async (store: Store, rolloutId: string): Promise<string[]> => {
  const ids: string[] = [];
  for await (const { id } of store.spans({ rolloutId })) ids.push(id);
  return ids;
};

test("what is asked for in one turn is one write; one that breaks a rule fails alone", async () => {
  let writes = 0;
  const io: LogIo = {
    ...platformIo,
    write: (...args) => {
      writes += 1;
      return platformIo.write(...args);
    },
  };
  const folder = join(root, "alone");
  const store = await openFileStore(folder, { io, clock: () => 1 });
  const attempt = await begin(store, "a");
  const nobody = { rolloutId: "a", id: "nobody" };
  writes = 0;
  const all = await Promise.allSettled(
    Array.from({ length: 64 }, (_, index) => store.append([spanOf(index === 3 ? nobody : attempt, `s${index}`)])),
  );
  expect(writes).toBe(1);
  expect(all.flatMap((one, index) => (one.status === "rejected" ? [[index, one.reason.code]] : []))).toEqual([[3, "unknown"]]);
  const kept = Array.from({ length: 64 }, (_, index) => `s${index}`).filter((id) => id !== "s3");
  expect(await idsOf(store, "a")).toEqual(kept);
  await store.close();
  const again = await openFileStore(folder);
  expect(await idsOf(again, "a")).toEqual(kept);
  for await (const { attributes } of again.spans({ rolloutId: "a" })) expect(attributes).toEqual(spanOf(attempt, "s").attributes);
  await again.close();
});

test("a crowd takes turns with the disk, every write a part of it; what was asked for before close is done", async () => {
  const written: number[] = [];
  const io: LogIo = {
    ...platformIo,
    write: (handle, bytes, position) => {
      written.push(bytes.length);
      return platformIo.write(handle, bytes, position);
    },
  };
  const folder = join(root, "crowd");
  const store = await openFileStore(folder, { io, clock: () => 1 });
  const attempt = await begin(store, "a");
  let next = 0;
  const ids = Array.from({ length: 2_000 }, (_, index) => `s${index}`);
  const writer = async (): Promise<void> => {
    for (let index = next++; index < ids.length; index = next++) await store.append([spanOf(attempt, ids[index]!)]);
  };
  written.length = 0;
  await Promise.all(Array.from({ length: 64 }, writer));
  expect(written.length).toBeLessThan(2_000 / 8);
  const last = Array.from({ length: 64 }, (_, index) => store.append([spanOf(attempt, `last${index}`)]));
  const closed = store.close();
  expect((await Promise.allSettled(last)).filter(({ status }) => status === "rejected")).toEqual([]);
  await closed;
  expect(readdirSync(join(folder, "log"))).toEqual(["0000000000000001.log"]); // nothing was written after it was closed
  const again = await openFileStore(folder);
  const found = await idsOf(again, "a");
  expect(found.length).toBe(2_064);
  expect(new Set(found)).toEqual(new Set([...ids, ...last.map((_, index) => `last${index}`)]));
  expect(found.slice(-64)).toEqual(last.map((_, index) => `last${index}`));
  await again.close();
});

test("a record that is too large is refused with its call, whole, and harms nobody who shares the write", async () => {
  const folder = join(root, "tooLarge");
  const store = await openFileStore(folder, { clock: () => 1 });
  const attempt = await begin(store, "a");
  const stringify = JSON.stringify;
  const spy = vi.spyOn(JSON, "stringify").mockImplementation(((value: unknown) => {
    if (value === "huge") throw new RangeError("Invalid string length");
    return stringify(value);
  }) as typeof JSON.stringify);
  const huge = (id: string): Span => ({ ...spanOf(attempt, id), attributes: { text: "huge" } });
  const all = await Promise.allSettled([
    store.append([spanOf(attempt, "s1")]),
    store.append([spanOf(attempt, "small"), huge("h1")]),
    store.append([spanOf(attempt, "s2")]),
  ]);
  expect(all.map((one) => (one.status === "rejected" ? one.reason.code : "kept"))).toEqual(["kept", "too-large", "kept"]);
  await expect(store.finish(attempt, { status: "succeeded" }, [spanOf(attempt, "last"), huge("h2")])).rejects.toMatchObject({
    code: "too-large",
  });
  await store.append([spanOf(attempt, "s3")]);
  spy.mockRestore();
  const kept = ["s1", "s2", "s3"];
  expect(await idsOf(store, "a")).toEqual(kept);
  expect(await store.stats()).toMatchObject({ spans: 3, rollouts: { running: 1 } });
  await store.close();
  expect((await verifyFileStore(folder)).problems).toEqual([]);
  const again = await openFileStore(folder, { onReport: (message) => expect.fail(message) });
  expect(await idsOf(again, "a")).toEqual(kept);
  await again.close();
});

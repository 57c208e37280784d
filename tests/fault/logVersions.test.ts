// Logs that an earlier release wrote, and what must not pass for a record.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Span, Store } from "@fulgurite/trace";
import { compactFileStore, openFileStore, verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test } from "vitest";
import { collect } from "../outcomes.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-versions-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const newFolder = (): string => join(root, String(++folders));

/** Rollouts a to e of two spans each, of which b was forgotten and compacted away, a queued one, a prompt, a state. */
const VERSION_1 = join(import.meta.dirname, "logV1");
const copyOfVersion1 = (): string => {
  const folder = newFolder();
  cpSync(VERSION_1, folder, { recursive: true });
  return folder;
};

const open = async (folder: string, rotateBytes = 2_500): Promise<{ store: Store; reports: string[] }> => {
  const reports: string[] = [];
  const store = await openFileStore(folder, { clock: () => 2_000, rotateBytes, onReport: (message) => reports.push(message) });
  return { store, reports };
};

const idsOf = async (store: Store): Promise<string[]> => (await collect(store.rollouts())).map(({ id }) => id);
const logNames = (folder: string): string[] => readdirSync(join(folder, "log")).sort();
const versionOf = (folder: string, name: string): unknown =>
  JSON.parse(
    readFileSync(join(folder, "log", name), "latin1")
      .slice(9)
      .split("\n")[0]!,
  ).v;

const spansOf = (rolloutId: string, attemptId: string, firstSeq: number) =>
  ["s1", "s2"].map((id, index) => ({
    rolloutId,
    attemptId,
    id,
    name: "chat spark",
    startMs: 1,
    endMs: 2.5,
    status: "ok",
    seq: firstSeq + index,
    attributes: {
      tokens: Int32Array.of(1, -2, 70_000),
      logprobs: Float32Array.of(-0.5, -1.25),
      text: `é of ${rolloutId}`,
      lookalike: { $i32: "AQ==" },
      ...(id === "s2" ? { list: [1, null, "x"] } : {}),
    },
  }));

const expectVersion1 = async (store: Store): Promise<void> => {
  expect((await collect(store.rollouts())).map(({ id, status, seq }) => [id, status, seq])).toEqual([
    ["a", "succeeded", 1],
    ["c", "succeeded", 3],
    ["d", "failed", 4],
    ["e", "running", 5],
    ["late", "queued", 6],
  ]);
  for (const [rolloutId, attemptId, firstSeq] of [
    ["a", "id-1", 1],
    ["c", "id-3", 5],
    ["d", "id-4", 7],
    ["e", "id-5", 9],
  ] as const)
    expect(await collect(store.spans({ rolloutId }))).toEqual(spansOf(rolloutId, attemptId, firstSeq));
  expect((await store.resource("p"))?.files.f).toEqual(Uint8Array.of(2));
  expect(await store.getState("loop")).toEqual(Uint8Array.of(7, 8));
};

test("a store of version 1 is read, written on in files of version 2, forgotten in, compacted and verified", async () => {
  for (const keepsIndex of [true, false]) {
    const folder = copyOfVersion1();
    if (!keepsIndex) rmSync(join(folder, "index"), { recursive: true });
    const before = logNames(folder);
    const { store, reports } = await open(folder);
    await expectVersion1(store);
    await store.append([{ ...spansOf("e", "id-5", 0)[0]!, id: "s1" } as Span]); // it is there
    await store.append([{ ...spansOf("e", "id-5", 0)[0]!, id: "s3" } as Span]);
    expect((await collect(store.spans({ rolloutId: "e" }))).map(({ id, seq }) => [id, seq])).toEqual([
      ["s1", 9],
      ["s2", 10],
      ["s3", 11],
    ]);
    expect((await store.enqueue([{ id: "new", input: 0 }]))[0]!.seq).toBe(7);
    await store.close();
    expect(logNames(folder).map((name) => [name, versionOf(folder, name)])).toEqual([
      ...before.map((name) => [name, 1]),
      ["0000000000000030.log", 2],
    ]);
    expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [] });

    // a and c go; what they leave behind is said in the files of version 1 in their own way
    const second = await open(folder, 1);
    for (const id of ["a", "c", "d"]) await second.store.forget(id);
    expect(await idsOf(second.store)).toEqual(["e", "late", "new"]);
    await second.store.close();
    await compactFileStore(folder);
    expect(versionOf(folder, logNames(folder)[0]!)).toBe(1);
    expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [] });
    const third = await open(folder);
    expect(await idsOf(third.store)).toEqual(["e", "late", "new"]);
    expect((await collect(third.store.spans({ rolloutId: "e" }))).slice(0, 2)).toEqual(spansOf("e", "id-5", 9));
    expect((await third.store.enqueue([{ id: "newer", input: 0 }]))[0]!.seq).toBe(8);
    await third.store.close();
    expect([...reports, ...second.reports, ...third.reports]).toEqual([]);
  }
});

test("a log of version 1 whose last file is cut gives back its whole lines", async () => {
  const name = logNames(VERSION_1).at(-1)!;
  const bytes = readFileSync(join(VERSION_1, "log", name));
  const ends = Array.from(bytes.keys()).filter((at) => bytes[at] === 0x0a);
  expect(ends.length).toBe(7); // header, two spans, dropped, resource, dropped, rollout
  for (let cut = 0; cut <= bytes.length; cut++) {
    if (cut % 61 > 0 && !ends.some((end) => cut >= end && cut <= end + 2)) continue;
    const folder = copyOfVersion1();
    writeFileSync(join(folder, "log", name), bytes.subarray(0, cut));
    const { store, reports } = await open(folder);
    const whole = ends.filter((end) => end < cut).length - 1;
    expect((await collect(store.spans({ rolloutId: "e" }))).length, `cut at ${cut}`).toBe(Math.min(Math.max(whole, 0), 2));
    expect((await idsOf(store)).includes("late"), `cut at ${cut}`).toBe(whole >= 6);
    expect(reports.length, `cut at ${cut}`).toBe(cut === 0 || ends.includes(cut - 1) ? 0 : 1);
    await store.close();
    rmSync(folder, { recursive: true });
  }
});

test("a damaged line of version 1 is reported, and costs only itself", async () => {
  const folder = copyOfVersion1();
  const name = logNames(folder)[0]!;
  const path = join(folder, "log", name);
  const bytes = readFileSync(path);
  bytes[bytes.indexOf('"id":"s1"') + 3]! ^= 1;
  writeFileSync(path, bytes);
  rmSync(join(folder, "index"), { recursive: true });
  expect((await verifyFileStore(folder)).problems.length).toBe(2); // the line, and its number
  const { store, reports } = await open(folder);
  expect(reports).toEqual([expect.stringContaining("1 damaged records"), expect.stringContaining("records 3 to 3 are missing")]);
  expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id }) => id)).toEqual(["s2"]);
  expect(await idsOf(store)).toEqual(["a", "c", "d", "e", "late"]);
  await store.close();
});

/** Without the zeros that are written ahead. */
const writtenIn = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.findLastIndex((byte) => byte !== 0) + 1);

/** The bytes as elements, with one more that keeps them four bytes wide. */
const asTokens = (bytes: Buffer): Int32Array => {
  const padded = Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
  return Int32Array.of(-1, ...Array.from({ length: padded.length / 4 }, (_, index) => padded.readInt32LE(index * 4)));
};

test("what a user stores never passes for a record, not behind damage either", async () => {
  const begin = async (folder: string) => {
    const { store } = await open(folder, 2 ** 20);
    await store.enqueue([{ id: "r", input: 0 }]);
    const [claim] = await store.claim("w");
    const append = (id: string, attributes: Span["attributes"]) =>
      store.append([{ rolloutId: "r", attemptId: claim!.attempt.id, id, name: "n", startMs: 1, endMs: 1, status: "ok", attributes }]);
    return { store, append };
  };
  const other = newFolder();
  const theirs = await begin(other);
  const kept = writtenIn(readFileSync(join(other, "log", "0000000000000001.log"))).length;
  await theirs.append("posing", { text: "forged" });
  await theirs.store.close();
  const posing = readFileSync(join(other, "log", "0000000000000001.log")).subarray(kept);

  const folder = newFolder();
  const { store, append } = await begin(folder);
  await append("outer", { text: "findme", tokens: asTokens(posing) });
  await append("after", { tokens: Int32Array.of(0, 255, 256, 65_536, 2 ** 24 - 1) });
  await store.close();
  const path = join(folder, "log", "0000000000000001.log");
  const bytes = readFileSync(path);
  expect(bytes.indexOf(posing)).toBeGreaterThan(0);
  bytes[bytes.indexOf("findme")]! ^= 1;
  writeFileSync(path, bytes);
  const again = await open(folder);
  expect(again.reports).toEqual([expect.stringContaining("1 damaged records"), expect.stringContaining("records 3 to 3 are missing")]);
  const found = await collect(again.store.spans({ rolloutId: "r" }));
  expect(found.map(({ id }) => id)).toEqual(["after"]);
  expect(found[0]!.attributes.tokens).toEqual(Int32Array.of(0, 255, 256, 65_536, 2 ** 24 - 1));
  await again.store.close();
});

test("token ids of every width come back, and take no more bytes than they need", async () => {
  const folder = newFolder();
  const { store } = await open(folder, 2 ** 20);
  await store.enqueue([{ id: "r", input: 0 }]);
  const [claim] = await store.claim("w");
  const path = join(folder, "log", "0000000000000001.log");
  const arrays = [
    [],
    [255],
    [256],
    [65_535],
    [65_536],
    [2 ** 24 - 1],
    [2 ** 24],
    [2 ** 31 - 1],
    [-1],
    [-(2 ** 31)],
    [0, 1, 2],
    [7, 300, 70_000],
  ];
  const widths: number[] = [];
  for (const [index, ids] of arrays.entries()) {
    const before = writtenIn(readFileSync(path)).length;
    await store.append([
      {
        rolloutId: "r",
        attemptId: claim!.attempt.id,
        id: `s${index}`,
        name: "n",
        startMs: 1,
        endMs: 1,
        status: "ok",
        attributes: { ids: Int32Array.from(ids), __proto__: null, 7: Float32Array.of(index) } as never,
      },
    ]);
    const bytes = readFileSync(path).subarray(before);
    widths.push((bytes.readUInt32LE(8) - 28 - bytes.readUInt32LE(12) - 1 - 4) / Math.max(1, ids.length));
  }
  expect(widths).toEqual([0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 1, 3]);
  const found = await collect(store.spans({ rolloutId: "r" }));
  expect(found.map(({ attributes }) => [...(attributes.ids as Int32Array)])).toEqual(arrays);
  expect(found.map(({ attributes }) => [...(attributes[7] as Float32Array)])).toEqual(arrays.map((_, index) => [index]));
  await store.close();
});

// The file store against torn files, flipped bits, failing disks, killed processes and second openers.
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { type Span, type Store, type StoredSpan, TraceError } from "@fulgurite/trace";
import { compactFileStore, type FileStoreOptions, type LogIo, openFileStore, platformIo, verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test } from "vitest";
import { bundleChild } from "../bundle.ts";
import { codeOf, collect } from "../outcomes.ts";
import { createFailingIo } from "./disk.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-faults-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const newFolder = (): string => join(root, String(++folders));

const span = (attemptId: string, id: string, more = {}): Span => ({
  rolloutId: "r",
  attemptId,
  id,
  name: "n",
  startMs: 1,
  endMs: 1,
  status: "ok",
  attributes: { tokens: Int32Array.of(1, 2), ...more },
});

const open = async (folder: string, options: FileStoreOptions = {}): Promise<{ store: Store; reports: string[] }> => {
  const reports: string[] = [];
  let ids = 0;
  const store = await openFileStore(folder, {
    clock: () => 1_000,
    newId: () => `id-${++ids}`,
    onReport: (message) => reports.push(message),
    ...options,
  });
  return { store, reports };
};

const logFiles = (folder: string): string[] => readdirSync(join(folder, "log")).sort();
const FIRST = "0000000000000001.log";

/** One log file: header, rollout, attempt, then a record for each of these spans. */
const makeLog = async (spanIds: readonly string[]): Promise<{ folder: string; bytes: Buffer }> => {
  const folder = newFolder();
  const { store } = await open(folder);
  await store.enqueue([{ id: "r", input: "é" }]);
  const [claim] = await store.claim("w");
  for (const id of spanIds) await store.append([span(claim!.attempt.id, id)]);
  await store.close();
  expect(logFiles(folder)).toEqual([FIRST]);
  return { folder, bytes: readFileSync(join(folder, "log", FIRST)) };
};

/** What a store finds in that log. */
const recover = async (folder: string, bytes: Buffer) => {
  rmSync(join(folder, "quarantine"), { recursive: true, force: true });
  for (const name of logFiles(folder)) unlinkSync(join(folder, "log", name));
  writeFileSync(join(folder, "log", FIRST), bytes);
  const { store, reports } = await open(folder);
  const found = {
    rollouts: (await collect(store.rollouts())).length,
    attempts: (await store.attempts("r")).length,
    spans: (await collect(store.spans({ rolloutId: "r" }))).map(({ id }) => id),
  };
  return { store, reports, found };
};

/** The header and every record, each with the place of its last byte. */
const recordsOf = (bytes: Buffer): { start: number; end: number }[] => {
  const records = [{ start: 0, end: bytes.indexOf(0x0a) }];
  for (let start = records[0]!.end + 1; start < bytes.length; ) {
    const next = start + bytes.readUInt32LE(start + 8);
    records.push({ start, end: next - 1 });
    start = next;
  }
  return records;
};

test("a log cut at any byte gives back exactly its whole records, and can be written on", async () => {
  const { folder, bytes } = await makeLog(["s1", "s2"]);
  const records = recordsOf(bytes);
  expect(records.length).toBe(5);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const whole = records.filter(({ end }) => end < cut).length - 1; // without the header
    const { store, reports, found } = await recover(folder, bytes.subarray(0, cut));
    const expected = { rollouts: whole >= 1 ? 1 : 0, attempts: whole >= 2 ? 1 : 0, spans: ["s1", "s2"].slice(0, Math.max(0, whole - 2)) };
    expect(found, `cut at ${cut}`).toEqual(expected);
    const isAtEnd = cut === 0 || records.some(({ end }) => end + 1 === cut);
    expect(reports.length, `cut at ${cut}`).toBe(isAtEnd ? 0 : 1);
    if (cut % 40 === 0) {
      await store.enqueue([{ id: `new-${cut}`, input: 0 }]);
      await store.close();
      const again = await open(folder);
      expect(again.reports).toEqual([]);
      expect((await collect(again.store.rollouts())).map(({ id }) => id)).toEqual([...(whole >= 1 ? ["r"] : []), `new-${cut}`]);
      await again.store.close();
    } else await store.close();
  }
});

test("a flipped bit is reported, costs only its own record, and the file as it was is kept", async () => {
  const { folder, bytes } = await makeLog(["s1", "s2"]);
  const records = recordsOf(bytes);
  // what every record begins and ends with, and every seventh byte
  const ats = Array.from(bytes.keys()).filter(
    (at) => at % 7 === 0 || records.some(({ start, end }) => (at < start + 28 ? at >= start : at === end - 1 || at === end)),
  );
  const lengthOfLast = records.at(-1)!.start + 8;
  for (const at of ats) {
    const flipped = Buffer.from(bytes);
    flipped[at]! ^= 1 << (at % 8);
    const hit = records.findIndex(({ end }) => at <= end);
    const { store, reports, found } = await recover(folder, flipped);
    const alive = (record: number) => record !== hit;
    expect(found, `bit of byte ${at}`).toEqual({
      rollouts: alive(1) ? 1 : 0,
      attempts: alive(1) && alive(2) ? 1 : 0,
      spans: ["s1", "s2"].filter((_, index) => alive(1) && alive(2) && alive(index + 3)),
    });
    expect(reports.length, `bit of byte ${at}`).toBeGreaterThan(0);
    // a last record that says it is longer than the file looks like one that was being written
    if (flipped.readUInt32LE(lengthOfLast) <= bytes.readUInt32LE(lengthOfLast)) {
      const kept = readdirSync(join(folder, "quarantine"));
      expect(readFileSync(join(folder, "quarantine", kept[0]!)).equals(flipped), `bit of byte ${at}`).toBe(true);
    }
    await store.close();
  }
});

test("of a write that a crash cut in its midst stays what comes before the part that is missing; of one that was acknowledged, all that is whole", async () => {
  const folder = newFolder();
  const { store } = await open(folder);
  await store.enqueue([{ id: "r", input: 0 }]);
  const [claim] = await store.claim("w");
  const path = join(folder, "log", FIRST);
  const write = (prefix: string) =>
    Promise.all(
      Array.from({ length: 40 }, (_, index) => store.append([span(claim!.attempt.id, `${prefix}${index}`, { text: "x".repeat(400) })])),
    );
  await write("a");
  let crashed = readFileSync(path);
  const length = crashed.findLastIndex((byte) => byte !== 0) + 1;
  await expect
    .poll(() => {
      crashed = readFileSync(path);
      return crashed.length;
    })
    .toBeGreaterThan(length); // zeros are written ahead
  await write("b");
  await store.close();
  const later = readFileSync(path);
  expect(later.subarray(0, length).equals(crashed.subarray(0, length))).toBe(true);

  const PAGE = 4096;
  const spans = recordsOf(crashed.subarray(0, length)).slice(3);
  expect(spans.length).toBe(40);
  const all = [...spans.keys()].map((index) => `a${index}`);
  for (let at = PAGE; at < length; at += PAGE) {
    const withHole = (bytes: Buffer): Buffer => Buffer.from(bytes).fill(0, at, at + PAGE);
    const torn = await recover(folder, withHole(crashed));
    expect(torn.found, `page at ${at}`).toEqual({ rollouts: 1, attempts: 1, spans: all.filter((_, index) => spans[index]!.end < at) });
    expect(torn.reports.length, `page at ${at}`).toBe(1);
    expect((await torn.store.stats()).spans).toBe(torn.found.spans.length);
    await torn.store.append([span(claim!.attempt.id, "new")]);
    await torn.store.close();
    const again = await open(folder);
    expect((await collect(again.store.spans({ rolloutId: "r" }))).map(({ id }) => id)).toEqual([...torn.found.spans, "new"]);
    expect(again.reports).toEqual([]);
    await again.store.close();

    // a later write is there: this one was acknowledged, and its page is damaged
    const damaged = await recover(folder, withHole(later));
    const alive = recordsOf(later)
      .slice(3)
      .map(({ start, end }) => end < at || start >= at + PAGE);
    expect(damaged.found.spans, `page at ${at}`).toEqual(
      [...all, ...all.map((id) => id.replace("a", "b"))].filter((_, index) => alive[index]),
    );
    await damaged.store.close();
  }
});

test("spans are read from the disk when asked for, and damage found then is an error", async () => {
  const folder = newFolder();
  const { store } = await open(folder);
  await store.enqueue([{ id: "r", input: 0 }]);
  const [claim] = await store.claim("w");
  await store.append([span(claim!.attempt.id, "s1", { text: "findme" })]);
  const path = join(folder, "log", FIRST);
  const bytes = readFileSync(path);
  const at = bytes.indexOf("findme");
  expect(at).toBeGreaterThan(0);
  bytes[at]! ^= 1;
  writeFileSync(path, bytes);
  expect(await codeOf(collect(store.spans({ rolloutId: "r" })))).toBe("corrupt");
  await store.close();
});

test("a log file that is gone is reported by the numbers that are missing", async () => {
  const folder = newFolder();
  const first = await open(folder, { rotateBytes: 1 });
  await first.store.enqueue([{ id: "a", input: 0 }]);
  await first.store.enqueue([{ id: "b", input: 0 }]);
  await first.store.enqueue([{ id: "c", input: 0 }]);
  await first.store.close();
  expect(logFiles(folder).length).toBe(3);
  unlinkSync(join(folder, "log", "0000000000000002.log"));
  const { store, reports } = await open(folder);
  expect(reports).toEqual([expect.stringContaining("records 2 to 2 are missing")]);
  expect((await collect(store.rollouts())).map(({ id }) => id)).toEqual(["a", "c"]);
  expect((await store.enqueue([{ id: "d", input: 0 }]))[0]!.seq).toBe(4);
  expect((await collect(store.rollouts({ order: "newest" }))).map(({ id }) => id)).toEqual(["d", "c", "a"]);
  await store.close();
});

test("damaged blobs, states and other formats are refused by name", async () => {
  const folder = newFolder();
  const { store } = await open(folder);
  await store.publish({ name: "p", kind: "lora", files: { f: Uint8Array.of(1, 2, 3) } });
  await store.putState("s", Uint8Array.of(1, 2, 3));
  const spoil = (kind: string) => {
    const [name] = readdirSync(join(folder, kind));
    const bytes = readFileSync(join(folder, kind, name!));
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(join(folder, kind, name!), bytes);
  };
  spoil("blobs");
  spoil("state");
  expect(await codeOf(store.resource("p"))).toBe("corrupt");
  expect(await codeOf(store.getState("s"))).toBe("corrupt");
  await store.close();
  for (const text of ["", "{", "null", '"x"', "\u0000"]) {
    writeFileSync(join(folder, "meta.json"), text);
    expect(await codeOf(openFileStore(folder, { onReport: () => {} })), text).toBe("corrupt");
    expect(await codeOf(verifyFileStore(folder)), text).toBe("corrupt");
    expect(await codeOf(compactFileStore(folder)), text).toBe("corrupt");
  }
  writeFileSync(join(folder, "meta.json"), '{"magic":"fulgurite-store","v":2}');
  await expect(open(folder)).rejects.toThrow(/v 1, got magic fulgurite-store, v 2/);
  expect(existsSync(join(folder, "lock"))).toBe(false);
});

test("the room that forgetting makes on a full disk is kept for forgetting, until what is kept back is there again", async () => {
  const folder = newFolder();
  let isFull = false;
  const reserve = join(folder, "reserve");
  const io: LogIo = {
    ...platformIo,
    write: async (...args) => {
      // what was kept back makes room for one write, and something else on the disk takes the rest
      if (isFull && existsSync(reserve)) throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
      if (isFull) mkdirSync(reserve);
      await platformIo.write(...args);
    },
  };
  const { store } = await open(folder, { io });
  await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: id })));
  isFull = true;
  expect(await codeOf(store.enqueue([{ id: "d", input: 1 }]))).toBe("full");
  expect(await store.forget("a")).toBe(true);
  isFull = false;
  for (const act of [() => store.enqueue([{ id: "d", input: 1 }]), () => store.putState("s", Uint8Array.of(1)), () => store.claim("w")])
    expect(await codeOf(act())).toBe("full");
  expect(await store.forget("b")).toBe(true);
  expect((await collect(store.rollouts())).map(({ id }) => id)).toEqual(["c"]);
  rmSync(reserve, { recursive: true });
  expect(await codeOf(store.enqueue([{ id: "d", input: 1 }]))).toBe("resolved");
  expect(await codeOf(store.putState("s", Uint8Array.of(1)))).toBe("resolved");
  await store.close();
});

test("what is no folder, or none of ours, is refused by name, and left as it is", async () => {
  const file = join(newFolder(), "file");
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(file, "mine");
  for (const act of [openFileStore, verifyFileStore, compactFileStore]) {
    await expect(act(file)).rejects.toMatchObject({
      code: "storage",
      message: expect.stringContaining(`${file}: a folder that can be read and written`),
    });
    if (act !== openFileStore) await expect(act(newFolder())).rejects.toMatchObject({ code: "storage", cause: { code: "ENOENT" } });
  }
  expect(readFileSync(file, "utf8")).toBe("mine");
  const folder = newFolder();
  const { store } = await open(folder);
  await store.enqueue([{ id: "a", input: 1 }]);
  await store.close();
  for (const name of ["log", "state", "blobs", "index"]) {
    rmSync(join(folder, "kept"), { recursive: true, force: true });
    cpSync(join(folder, name), join(folder, "kept"), { recursive: true });
    rmSync(join(folder, name), { recursive: true });
    writeFileSync(join(folder, name), "no folder");
    expect(await codeOf(openFileStore(folder)), name).toBe("storage");
    expect(existsSync(join(folder, "lock"))).toBe(false);
    rmSync(join(folder, name));
    cpSync(join(folder, "kept"), join(folder, name), { recursive: true });
  }
  const { store: again } = await open(folder);
  expect((await again.stats()).rollouts.queued).toBe(1);
  await again.close();
});

test("a second opener gets an error naming the pid, and may open once the first has closed", async () => {
  const folder = newFolder();
  const { store } = await open(folder);
  const second = open(folder);
  await expect(second).rejects.toThrow(`pid ${process.pid} on ${hostname()}`);
  expect(await codeOf(second)).toBe("locked");
  await store.close();
  await (await open(folder)).store.close();
});

test("of ten openers at once one wins, also over a stale lock", async () => {
  for (const stale of [false, true, true, true]) {
    const folder = newFolder();
    mkdirSync(folder);
    // no process has this pid: it is above the largest that Linux gives
    if (stale)
      writeFileSync(
        join(folder, "lock"),
        JSON.stringify({ magic: "fulgurite-lock", v: 1, pid: 2 ** 22 + 1, host: hostname(), token: "x" }),
      );
    const all = await Promise.allSettled(Array.from({ length: 10 }, () => open(folder)));
    const won = all.filter((result) => result.status === "fulfilled");
    expect(won.length).toBe(1);
    expect(readdirSync(folder).filter((name) => name.startsWith("lock"))).toEqual(["lock"]);
    await won[0]!.value.store.close();
  }
});

test("a lock is stale when its process is gone or another has its pid, never when it is elsewhere or unreadable", async () => {
  const lock = { magic: "fulgurite-lock", v: 1, pid: process.pid, host: hostname(), token: "x" };
  const tryWith = async (text: string): Promise<string> => {
    const folder = newFolder();
    mkdirSync(folder);
    writeFileSync(join(folder, "lock"), text);
    return codeOf(open(folder).then(({ store }) => store.close()));
  };
  expect(await tryWith(JSON.stringify(lock))).toBe("locked");
  if (existsSync("/proc/self/stat")) expect(await tryWith(JSON.stringify({ ...lock, startedAt: "1" }))).toBe("resolved");
  expect(await tryWith(JSON.stringify({ ...lock, pid: 2 ** 22 + 1 }))).toBe("resolved");
  expect(await tryWith(JSON.stringify({ ...lock, pid: 2 ** 22 + 1, host: "elsewhere" }))).toBe("locked");
  expect(await tryWith("{")).toBe("locked");
});

// ---- what is forgotten, on the disk --------------------------------------------------------------------------------------

/** Every byte under the folder, as text. */
const bytesUnder = (folder: string): string =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => readFileSync(join(entry.parentPath, entry.name), "latin1"))
    .join("\n");

/** Rollouts of these names, each with a span that says `secret of <name>`, one after the other, ended. */
const live = async (store: Store, names: readonly string[]) => {
  for (const name of names) {
    await store.enqueue([{ id: name, input: `secret of ${name}` }]);
    const [claim] = await store.claim("w");
    await store.append([{ ...span(claim!.attempt.id, "s", { text: `secret of ${name}` }), rolloutId: name }]);
    await store.finish(claim!.attempt, { status: "succeeded" });
  }
};

const lookAt = async (store: Store, names: readonly string[]) => ({
  rollouts: await collect(store.rollouts()),
  attempts: await Promise.all(names.map((name) => store.attempts(name))),
  spans: await Promise.all(names.map((rolloutId) => collect(store.spans({ rolloutId })))),
  stats: await store.stats(),
});

const names = ["one", "two", "three", "four"];

test("a log file whose rollouts are all gone is deleted at once, and nothing is reported missing", async () => {
  for (const victims of [["one"], ["two"], ["two", "one"], ["three", "two", "one"], names]) {
    const folder = newFolder();
    const { store, reports } = await open(folder, { rotateBytes: 1 }); // a file for every record
    await live(store, names);
    const before = logFiles(folder).length;
    for (const victim of victims) await store.forget(victim);
    expect(logFiles(folder).length).toBeLessThan(before);
    const bytes = bytesUnder(folder);
    for (const name of names) expect(bytes.includes(`secret of ${name}`), name).toBe(!victims.includes(name));
    const seen = await lookAt(store, names);
    await store.close();
    const again = await open(folder);
    expect(await lookAt(again.store, names)).toEqual(seen);
    expect((await again.store.enqueue([{ id: "new", input: 0 }]))[0]!.seq).toBe(5);
    await again.store.close();
    expect([...reports, ...again.reports]).toEqual([]);
  }
});

test("compaction takes the records of a forgotten rollout out of files that living ones share, and changes nothing else", async () => {
  const folder = newFolder();
  const { store, reports } = await open(folder, { rotateBytes: 2_000 });
  await live(store, names);
  await store.publish({ name: "p", kind: "lora", files: { f: Uint8Array.of(1, 2) } });
  await store.forget("two");
  await store.enqueue([{ id: "two", input: "another" }]);
  const seen = await lookAt(store, names);
  expect(bytesUnder(folder).includes("secret of two")).toBe(false);
  await expect(compactFileStore(folder)).rejects.toThrow("one writer at a time");
  await store.close();
  const compacted = await compactFileStore(folder, { onReport: (message) => reports.push(message) });
  expect(compacted.records).toBeGreaterThan(4);
  expect(compacted.bytesAfter).toBeLessThan(compacted.bytesBefore);
  const bytes = bytesUnder(folder);
  for (const name of names) expect(bytes.includes(`secret of ${name}`), name).toBe(name !== "two");
  const again = await open(folder);
  expect(await lookAt(again.store, names)).toEqual(seen);
  expect((await again.store.resource("p"))?.files.f).toEqual(Uint8Array.of(1, 2));
  expect((await again.store.enqueue([{ id: "new", input: 0 }]))[0]!.seq).toBe(6);
  await again.store.close();
  expect([...reports, ...again.reports]).toEqual([]);
  expect(await compactFileStore(folder)).toMatchObject({ records: 0 });
});

test("the word that a rollout is gone stays as long as an older file has its records", async () => {
  const folder = newFolder();
  const first = await open(folder);
  await live(first.store, ["one", "two"]);
  await first.store.close();
  const second = await open(folder, { rotateBytes: 1 });
  await second.store.forget("two"); // in a file of its own
  await live(second.store, ["three"]);
  await second.store.forget("three");
  const seen = await lookAt(second.store, names);
  await second.store.close();
  for (const name of ["two", "three"]) expect(bytesUnder(folder).includes(`secret of ${name}`), name).toBe(false);
  for (const compacts of [false, true]) {
    if (compacts) await compactFileStore(folder);
    const { store, reports } = await open(folder, { rotateBytes: 1 });
    expect(await lookAt(store, names)).toEqual(seen);
    expect(seen.rollouts.map(({ id }) => id)).toEqual(["one"]);
    await store.close();
    expect(reports).toEqual([]);
  }
  expect(logFiles(folder)).toEqual([FIRST]);
});

test("a compaction that is stopped after any file leaves a store that reads the same, and the next one ends it", async () => {
  const make = newFolder();
  const first = await open(make, { rotateBytes: 700 });
  await live(first.store, names);
  await live(first.store, ["five"]);
  for (const victim of ["three", "one"]) await first.store.forget(victim);
  const all = [...names, "five"];
  const seen = await lookAt(first.store, all);
  await first.store.close();
  const count = logFiles(make).length;
  expect(count).toBeGreaterThan(3);
  for (let stopAfter = 0; stopAfter <= count; stopAfter++) {
    const folder = newFolder();
    cpSync(make, folder, { recursive: true });
    let looks = 0;
    const signal = {
      throwIfAborted: () => {
        if (looks++ === stopAfter) throw new Error("stopped");
      },
    } as AbortSignal;
    await compactFileStore(folder, { signal }).catch((error) => expect(error.message).toBe("stopped"));
    const { store, reports } = await open(folder);
    expect(await lookAt(store, all), `stopped after ${stopAfter}`).toEqual(seen);
    await store.close();
    await compactFileStore(folder);
    expect(bytesUnder(folder)).not.toMatch(/secret of (one|three)/);
    const again = await open(folder);
    expect(await lookAt(again.store, all), `ended after ${stopAfter}`).toEqual(seen);
    await again.store.close();
    expect([...reports, ...again.reports]).toEqual([]);
  }
});

test("killed between taking a file's place and unlinking it, or in the middle of the record, the log reads the same", async () => {
  const folder = newFolder();
  const { store } = await open(folder, { rotateBytes: 1 });
  await live(store, names);
  const copy = newFolder();
  await store.close();
  cpSync(folder, copy, { recursive: true });
  const again = await open(folder, { rotateBytes: 1 });
  await again.store.forget("two");
  const seen = await lookAt(again.store, names);
  await again.store.close();
  // the files that were unlinked are there again, beside the records that replaced them
  const unlinked = logFiles(copy).filter((name) => !logFiles(folder).includes(name));
  expect(unlinked.length).toBeGreaterThan(2);
  for (const cut of [0, 5, 30]) {
    const both = newFolder();
    cpSync(folder, both, { recursive: true });
    for (const name of unlinked) cpSync(join(copy, "log", name), join(both, "log", name));
    const before = logFiles(both)[logFiles(both).indexOf(unlinked[0]!) - 1]!;
    if (cut > 0) {
      const bytes = readFileSync(join(both, "log", before));
      writeFileSync(join(both, "log", before), bytes.subarray(0, bytes.length - cut));
    }
    const third = await open(both);
    expect(third.reports).toEqual([]);
    expect(await lookAt(third.store, names)).toEqual(seen);
    await third.store.close();
    expect(logFiles(both)).toEqual(logFiles(folder));
  }
});

// ---- a disk that fails --------------------------------------------------------------------------------------------------

/** Fails the calls of these numbers: a write after half of its bytes, a sync by dropping what was not yet on disk. */
const failingIo = (fails: (call: number) => boolean) =>
  createFailingIo((call) =>
    fails(call)
      ? [
          { call: "write", landed: "half", code: "EIO" },
          { call: "datasync", unsynced: "dropped", code: "EIO" },
        ]
      : [],
  );

/** Lives until the first error; says what was acknowledged. */
const liveOn = async (folder: string, io: LogIo): Promise<{ acknowledged: string[]; error: string | undefined; reports: string[] }> => {
  const { store, reports } = await open(folder, { io, rotateBytes: 900 });
  const acknowledged: string[] = [];
  let error: string | undefined;
  try {
    await store.enqueue([{ id: "r", input: 0 }]);
    const [claim] = await store.claim("w");
    for (let round = 0; round < 4; round++)
      await Promise.all(
        ["x", "y", "z"].map(async (name) => {
          await store.append([span(claim!.attempt.id, `${name}${round}`)]);
          acknowledged.push(`${name}${round}`);
        }),
      );
  } catch (caught) {
    error = caught instanceof TraceError ? caught.code : String(caught);
    expect(await codeOf(store.stats())).toBe("storage"); // once broken, it says so to everyone
  }
  await store.close();
  return { acknowledged, error, reports };
};

const recovered = async (folder: string): Promise<StoredSpan[]> => {
  const { store } = await open(folder);
  const spans = await collect(store.spans({ rolloutId: "r" }));
  await store.close();
  return spans;
};

test("what comes while another file takes over is known at once, and who goes meanwhile is gone", async () => {
  const folder = newFolder();
  const { io } = createFailingIo(() => []);
  let meanwhile: (() => void) | undefined;
  const { store } = await open(folder, {
    io: {
      ...io,
      write: async (handle, bytes, position) => {
        const act = meanwhile;
        meanwhile = undefined;
        act?.();
        if (act) throw Object.assign(new Error("EIO: injected"), { code: "EIO" });
        await io.write(handle, bytes, position);
      },
    },
  });
  await store.enqueue([
    { id: "r", input: 0 },
    { id: "gone", input: 0 },
  ]);
  const [claim, other] = await store.claim("w", 2);
  await store.append([span(claim!.attempt.id, "before")]);
  await store.append([{ ...span(other!.attempt.id, "lost"), rolloutId: "gone" }]);
  await store.finish({ rolloutId: "gone", id: other!.attempt.id }, { status: "succeeded" });
  const later: Promise<unknown>[] = [];
  meanwhile = () => {
    for (const id of ["one", "two"]) later.push(store.append([span(claim!.attempt.id, id)]));
    later.push(store.forget("gone"));
    later.push(store.append([span(claim!.attempt.id, "three")]));
  };
  await store.append([span(claim!.attempt.id, "failing")]);
  await Promise.all(later);
  const ids = ["before", "failing", "one", "two", "three"];
  await Promise.all(ids.map((id) => store.append([span(claim!.attempt.id, id)])));
  const idsOf = async (from: Store) => (await collect(from.spans({ rolloutId: "r" }))).map(({ id }) => id);
  expect(await idsOf(store)).toEqual(ids);
  expect(await collect(store.spans({ rolloutId: "gone" }))).toEqual([]);
  expect((await store.stats()).spans).toBe(5);
  await store.close();
  const again = await open(folder);
  expect(await idsOf(again.store)).toEqual(ids);
  expect(await collect(again.store.rollouts())).toMatchObject([{ id: "r" }]);
  await again.store.close();
});

test("one failed call of the disk, whichever it is, loses nothing and is reported", async () => {
  for (let failed = 1; ; failed++) {
    const folder = newFolder();
    const { io, calls } = failingIo((call) => call === failed);
    const { acknowledged, error, reports } = await liveOn(folder, io);
    expect(error, `call ${failed}`).toBeUndefined();
    expect(acknowledged.length).toBe(12);
    const spans = await recovered(folder);
    expect(spans.map(({ id }) => id).sort(), `call ${failed}`).toEqual([...acknowledged].sort());
    expect(spans.map(({ seq }) => seq)).toEqual(acknowledged.map((_, index) => index + 1));
    if (calls() < failed) {
      expect(failed).toBeGreaterThan(15);
      break;
    }
    expect(reports.length, `call ${failed}`).toBe(1);
  }
});

test("a disk that goes on failing fails the store, and what was acknowledged before is there", async () => {
  let lost = 0;
  for (let failed = 1; failed < 20; failed++) {
    const folder = newFolder();
    const { acknowledged, error } = await liveOn(folder, failingIo((call) => call >= failed).io);
    if (error === undefined) continue;
    expect(error).toBe("storage");
    lost += 1;
    const ids = (await recovered(folder)).map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids, `from call ${failed}`).toEqual(expect.arrayContaining(acknowledged));
  }
  expect(lost).toBeGreaterThan(10);
});

test("what a file that was left after a failed sync says is void from the next file's first number on", async () => {
  const { folder, bytes } = await makeLog(["s1", "s2"]);
  const [header, rollout, attempt, s1, s2] = recordsOf(bytes).map(({ start, end }) => bytes.subarray(start, end + 1)) as Buffer[];
  const lost = Buffer.alloc(s1!.length - 1, 0); // the disk kept the later page and dropped the earlier one
  writeFileSync(join(folder, "log", FIRST), Buffer.concat([header!, rollout!, attempt!, lost, Buffer.from("\n"), s2!]));
  writeFileSync(join(folder, "log", "0000000000000003.log"), Buffer.concat([header!, s1!, s2!]));
  const { store, reports } = await open(folder);
  expect((await collect(store.spans({ rolloutId: "r" }))).map(({ id }) => id)).toEqual(["s1", "s2"]);
  expect(reports).toEqual([]);
  await store.close();
});

// ---- kill -9 --------------------------------------------------------------------------------------------------------------

test("kill -9 in an append loop, again and again: all that was acknowledged is recovered, once", async () => {
  const program = await bundleChild(import.meta.dirname, "filesChild", join(root, "child"));
  const folder = newFolder();
  const acknowledged = new Set<string>();
  for (let life = 0; life < 4; life++) {
    const child = spawn(process.execPath, [program, folder, `life${life}`], { stdio: ["ignore", "pipe", "pipe"] });
    let out = "";
    let errors = "";
    child.stderr.on("data", (data) => {
      errors += data;
    });
    child.stdout.on("data", (data) => {
      out += data;
      if (out.length > 600 * (life + 1)) child.kill("SIGKILL");
    });
    const signal = await new Promise((resolve) => child.on("close", (_code, signal) => resolve(signal)));
    expect([signal, errors]).toEqual(["SIGKILL", ""]);
    const whole = out.slice(0, out.lastIndexOf("\n")).split("\n");
    expect(whole.length).toBeGreaterThan(10);
    for (const id of whole) acknowledged.add(id);

    const copy = newFolder(); // looked at without helping the next life
    cpSync(folder, copy, { recursive: true });
    const { store, reports } = await open(copy);
    const all: StoredSpan[] = [];
    for (let past = 0; past <= life; past++) all.push(...(await collect(store.spans({ rolloutId: `life${past}` }))));
    const ids = new Set(all.map(({ id }) => id));
    expect([...acknowledged].filter((id) => !ids.has(id))).toEqual([]);
    expect(ids.size).toBe(all.length);
    expect(all.map(({ seq }) => seq)).toEqual(all.map((_, index) => index + 1));
    expect(all.every(({ attributes }) => (attributes.tokens as Int32Array)[49] === 49)).toBe(true);
    expect(reports.filter((report) => !report.includes("never acknowledged"))).toEqual([]);
    await store.close();
  }
  expect(logFiles(folder).length).toBeGreaterThan(1);
});

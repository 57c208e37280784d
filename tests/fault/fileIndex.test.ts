// What lies beside the log: sidecars and the manifest may be missing, torn, damaged, another file's or of another day, and the
// store reads the same. And a disk that is full: what it refuses leaves no trace, and the store goes on.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createMemoryStore, type Span, type Store } from "@fulgurite/trace";
import { type FileStoreOptions, openFileStore, platformIo, verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test } from "vitest";
import { codeOf, collect } from "../outcomes.ts";
import { createFailingIo } from "./disk.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-index-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const newFolder = (): string => join(root, String(++folders));

const options = () => {
  let ids = 0;
  return { clock: () => 1_000, newId: () => `id-${++ids}` };
};

const open = async (folder: string, more: FileStoreOptions = {}): Promise<{ store: Store; reports: string[] }> => {
  const reports: string[] = [];
  const store = await openFileStore(folder, { ...options(), rotateBytes: 4_000, onReport: (report) => reports.push(report), ...more });
  return { store, reports };
};

const copyOf = (folder: string): string => {
  const copy = newFolder();
  cpSync(folder, copy, { recursive: true });
  return copy;
};

const indexFiles = (folder: string): string[] => readdirSync(join(folder, "index")).sort();
const sidecars = (folder: string): string[] => indexFiles(folder).filter((name) => name.endsWith(".idx"));

const spanOf = (rolloutId: string, attemptId: string, id: string): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "n",
  startMs: 1,
  endMs: 1,
  status: "ok",
  attributes: { tokens: Int32Array.of(1, 2, 3), text: `${rolloutId} ${id}` },
});

/** Everything that can happen to a rollout, to `count` of them. The same in every store. */
const live = async (store: Store, count: number): Promise<void> => {
  const ids = Array.from({ length: count }, (_, index) => `r${index}`);
  await store.enqueue(ids.map((id, index) => ({ id, input: index, config: { maxAttempts: 2 } })));
  const claims = await store.claim("w", Math.ceil(count * 0.9));
  for (let from = 0; from < claims.length; from += 8)
    await Promise.all(
      claims.slice(from, from + 8).map(async ({ attempt }, at) => {
        const { rolloutId } = attempt;
        const index = from + at;
        const appended = store.append([spanOf(rolloutId, attempt.id, "a"), spanOf(rolloutId, attempt.id, "b")]);
        if (index % 7 === 6) await store.cancel(rolloutId);
        else if (index % 5 < 3) await store.finish(attempt, { status: "succeeded" });
        else if (index % 5 === 3) await store.finish(attempt, { status: "timeout" });
        await appended;
      }),
    );
  await store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(1) } });
  await store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(2) } });
  await store.unpublish("p", 1);
  // late spans, of rollouts whose other records are in older files
  for (const [index, { attempt }] of claims.entries())
    if (index % 4 === 0) await store.append([spanOf(attempt.rolloutId, attempt.id, "late")]);
  for (const index of [2, 3, 10, 11, 12]) await store.forget(`r${index}`).catch(() => {}); // what runs stays
  await store.enqueue([{ id: "r2", input: "again" }]);
};

const look = async (store: Store, count: number) => {
  const ids = Array.from({ length: count }, (_, index) => `r${index}`);
  return {
    rollouts: await collect(store.rollouts()),
    newest: await collect(store.rollouts({ order: "newest", limit: 40 })),
    after: await collect(store.rollouts({ after: 5, limit: 9 })),
    before: await collect(store.rollouts({ after: count - 3, order: "newest", limit: 9 })),
    failed: await collect(store.rollouts({ status: ["failed", "cancelled"] })),
    some: await collect(store.rollouts({ ids: ["r1", "r2", "r3", "nobody"] })),
    attempts: await Promise.all(ids.map((id) => store.attempts(id))),
    spans: await Promise.all(ids.map((rolloutId) => collect(store.spans({ rolloutId })))),
    later: await collect(store.spans({ rolloutId: "r0", after: 2 })),
    resources: await collect(store.resources()),
    stats: await store.stats(),
  };
};

/** Is told of once: appending the same spans again adds nothing. */
const appendAgain = async (store: Store, count: number): Promise<void> => {
  for (let index = 0; index < count; index++)
    for (const { rolloutId, id } of await store.attempts(`r${index}`))
      await store.append((await collect(store.spans({ rolloutId, attemptId: id }))).map(({ id: span }) => spanOf(rolloutId, id, span)));
};

const COUNT = 60;

const make = async (count = COUNT): Promise<{ folder: string; expected: Awaited<ReturnType<typeof look>> }> => {
  const memory = createMemoryStore(options());
  await live(memory, count);
  const folder = newFolder();
  const { store, reports } = await open(folder);
  await live(store, count);
  const expected = await look(memory, count);
  expect(await look(store, count)).toEqual(expected);
  await store.close();
  expect(reports).toEqual([]);
  return { folder, expected };
};

const { folder: made, expected } = await make();

test("rollouts that ended long ago are read from their files, and answer as memory does", async () => {
  const { folder, expected: all } = await make(900); // more than are kept in memory
  for (const rotateBytes of [4_000, 2 ** 20]) {
    const { store, reports } = await open(folder, { rotateBytes });
    expect(await look(store, 900)).toEqual(all);
    expect(reports).toEqual([]);
    await store.close();
  }
});

test("a store opens without reading the files of its manifest, and finds damage in them when it comes to it", async () => {
  const folder = copyOf(made);
  const path = join(folder, "log", "0000000000000001.log");
  const bytes = readFileSync(path);
  bytes[bytes.indexOf('"input":7,') + 8]! ^= 1;
  writeFileSync(path, bytes);
  const first = await open(folder);
  expect(first.reports).toEqual([]);
  expect(await codeOf(collect(first.store.rollouts()))).toBe("corrupt");
  expect((await collect(first.store.spans({ rolloutId: "r0" }))).length).toBe(expected.spans[0]!.length);
  for (let round = 0; round < 8; round++) await first.store.enqueue([{ id: `more${round}`, input: "x".repeat(2_000) }]); // files are left meanwhile
  await first.store.close();
  // found once, all is read again: the record is lost, the others are kept, the file as it was is set aside
  const second = await open(folder);
  expect(second.reports.filter((report) => report.includes("damaged records")).length).toBe(1);
  const kept = await collect(second.store.rollouts());
  expect(kept.filter(({ id }) => !id.startsWith("more"))).toEqual(expected.rollouts.filter(({ id }) => id !== "r7"));
  expect(await collect(second.store.spans({ rolloutId: "r7" }))).toEqual([]);
  expect((await second.store.stats()).spans).toBe(expected.stats.spans - expected.spans[7]!.length);
  await second.store.close();
});

test("a store of the layout before sidecars is read once, and gets the same sidecars", async () => {
  const folder = copyOf(made);
  rmSync(join(folder, "index"), { recursive: true });
  const { store, reports } = await open(folder);
  expect(await look(store, COUNT)).toEqual(expected);
  await store.close();
  expect(reports).toEqual([]);
  expect(sidecars(folder)).toEqual(sidecars(made));
  for (const name of sidecars(made))
    expect(readFileSync(join(folder, "index", name)).equals(readFileSync(join(made, "index", name))), name).toBe(true);
});

const flipped = (bytes: Buffer, at: number): Buffer => {
  const other = Buffer.from(bytes);
  other[at]! ^= 1 << (at % 8);
  return other;
};

test("sidecars that are missing, torn, damaged or another file's are made anew, byte for byte", async () => {
  const names = sidecars(made);
  expect(names.length).toBeGreaterThan(5);
  const spoils: Record<string, (path: string, bytes: Buffer, index: number) => void> = {
    missing: (path) => rmSync(path),
    empty: (path) => writeFileSync(path, ""),
    torn: (path, bytes, index) => writeFileSync(path, bytes.subarray(0, (bytes.length * ((index % 7) + 1)) >> 3)),
    "torn by a byte": (path, bytes) => writeFileSync(path, bytes.subarray(0, -1)),
    longer: (path, bytes) => writeFileSync(path, Buffer.concat([bytes, bytes])),
    flipped: (path, bytes, index) => writeFileSync(path, flipped(bytes, (index * 997) % bytes.length)),
    "another's": (path, _bytes, index) => cpSync(join(made, "index", names[(index + 1) % names.length]!), path),
  };
  for (const [kind, spoil] of Object.entries(spoils)) {
    const folder = copyOf(made);
    for (const [index, name] of names.entries()) spoil(join(folder, "index", name), readFileSync(join(made, "index", name)), index);
    expect((await verifyFileStore(folder)).notes.length, kind).toBeGreaterThanOrEqual(names.length);
    expect((await verifyFileStore(folder)).problems, kind).toEqual([]);
    const { store, reports } = await open(folder);
    expect(await look(store, COUNT), kind).toEqual(expected);
    await appendAgain(store, COUNT);
    expect((await store.stats()).spans, kind).toBe(expected.stats.spans);
    await store.close();
    expect(reports, kind).toEqual([]);
    for (const name of names)
      expect(readFileSync(join(folder, "index", name)).equals(readFileSync(join(made, "index", name))), `${kind} ${name}`).toBe(true);
    expect((await verifyFileStore(folder)).notes, kind).toEqual([]);
  }
});

test("any flipped bit of a sidecar is noticed or harms nothing", async () => {
  const folder = copyOf(made);
  const [name] = sidecars(made);
  const bytes = readFileSync(join(made, "index", name!));
  for (let at = 0; at < bytes.length; at += 61) {
    writeFileSync(join(folder, "index", name!), flipped(bytes, at));
    const { store } = await open(folder, { rotateBytes: 2 ** 20 });
    expect(await collect(store.rollouts()), `byte ${at}`).toEqual(expected.rollouts);
    expect(await collect(store.spans({ rolloutId: "r0" })), `byte ${at}`).toEqual(expected.spans[0]);
    await store.close();
  }
});

test("a manifest that is missing, torn anywhere, damaged or of another day is not believed", async () => {
  const whole = readFileSync(join(made, "index", "manifest"));
  const spoilt = [
    undefined,
    ...Array.from({ length: 24 }, (_, index) => whole.subarray(0, Math.floor((whole.length * index) / 24))),
    ...Array.from({ length: 24 }, (_, index) => flipped(whole, Math.floor((whole.length * index) / 24))),
    whole.subarray(0, whole.lastIndexOf(0x0a, -2) + 1),
    Buffer.concat([whole, whole]),
  ];
  for (const [index, bytes] of spoilt.entries()) {
    const folder = copyOf(made);
    if (bytes) writeFileSync(join(folder, "index", "manifest"), bytes);
    else rmSync(join(folder, "index", "manifest"));
    const { store, reports } = await open(folder);
    expect(await look(store, COUNT), `case ${index}`).toEqual(expected);
    await store.close();
    expect(reports).toEqual([]);
  }
});

test("a manifest from before files changed or went is not believed, one from before files came is enough", async () => {
  const folder = newFolder();
  const first = await open(folder);
  const manifests: Buffer[] = [];
  const keep = () => {
    if (existsSync(join(folder, "index", "manifest"))) manifests.push(readFileSync(join(folder, "index", "manifest")));
  };
  for (let round = 0; round < 12; round++) {
    const names = [`x${round}`, `y${round}`];
    await first.store.enqueue(names.map((id) => ({ id, input: "x".repeat(700) })));
    for (const { attempt } of await first.store.claim("w", 2)) {
      await first.store.append([spanOf(attempt.rolloutId, attempt.id, "s")]);
      await first.store.finish(attempt, { status: "succeeded" });
    }
    keep();
  }
  for (let round = 0; round < 6; round++) for (const name of ["x", "y"]) await first.store.forget(`${name}${round}`);
  keep();
  const all = await collect(first.store.rollouts());
  const stats = await first.store.stats();
  await first.store.close();
  expect(new Set(manifests.map(String)).size).toBeGreaterThan(3);
  for (const manifest of manifests) {
    const copy = copyOf(folder);
    writeFileSync(join(copy, "index", "manifest"), manifest);
    const { store, reports } = await open(copy);
    expect(await collect(store.rollouts())).toEqual(all);
    expect(await store.stats()).toEqual(stats);
    await store.close();
    expect(reports).toEqual([]);
  }
});

test("what cannot be written beside the log is told, and nothing is lost", async () => {
  for (let failed = 1; ; failed++) {
    let calls = 0;
    const folder = newFolder();
    const { store, reports } = await open(folder, {
      io: {
        ...platformIo,
        replace: async (path, bytes) => {
          if (++calls >= failed) throw Object.assign(new Error("ENOSPC: injected"), { code: "ENOSPC" });
          await platformIo.replace(path, bytes);
        },
      },
    });
    await live(store, COUNT);
    expect(await look(store, COUNT), `from call ${failed}`).toEqual(expected);
    await store.close();
    if (calls < failed) break;
    expect(reports.length).toBeGreaterThan(0);
    const again = await open(folder);
    expect(await look(again.store, COUNT), `from call ${failed}`).toEqual(expected);
    expect(again.reports).toEqual([]);
    await again.store.close();
    failed += 3;
  }
});

// ---- a disk that is full ---------------------------------------------------------------------------------------------------

test("on a full disk every write is refused by name and leaves no trace, reading goes on, and so does writing when there is room", async () => {
  for (const code of ["ENOSPC", "EDQUOT"])
    for (const landed of ["nothing", "half", "all"] as const) {
      let isFull = false;
      const { io, fired } = createFailingIo(() => (isFull ? [{ call: "write", landed, code }] : []));
      const folder = newFolder();
      const { store, reports } = await open(folder, { io, rotateBytes: 1_500 });
      await store.enqueue(["a", "b", "c"].map((id) => ({ id, input: 0 })));
      const [a, b] = (await store.claim("w", 2)).map(({ attempt }) => attempt);
      await store.append([spanOf("a", a!.id, "s")]);
      const state = async () => ({
        rollouts: await collect(store.rollouts()),
        attempts: await Promise.all(["a", "b", "c"].map((id) => store.attempts(id))),
        spans: await collect(store.spans({ rolloutId: "a" })),
        stats: await store.stats(),
      });
      const before = await state();
      isFull = true;
      const writes: (() => Promise<unknown>)[] = [
        () => store.enqueue([{ id: "d", input: 0 }]),
        () => store.claim("w"),
        () => store.append([spanOf("a", a!.id, "t")]),
        () => store.finish(a!, { status: "succeeded" }),
        () => store.cancel("b"),
        () => store.forget("c"),
        () => store.requeueStale(2_000),
        () => store.publish({ name: "p", kind: "prompt", files: {} }),
      ];
      for (const write of writes) {
        await expect(write()).rejects.toMatchObject({ code: "full", message: expect.stringContaining(code) });
        expect(await state()).toEqual(before);
      }
      // all at once, reads among them
      const outcomes = await Promise.all([
        ...writes.map((write) => codeOf(write())),
        codeOf(store.stats()),
        ...writes.map((write) => codeOf(write())),
      ]);
      expect(outcomes.filter((outcome) => outcome !== "full")).toEqual(["resolved"]);
      expect(await state()).toEqual(before);
      expect(fired()).toBeGreaterThan(16);

      isFull = false;
      await store.append([spanOf("a", a!.id, "t")]);
      await store.finish(a!, { status: "succeeded" });
      await store.cancel("b");
      expect((await store.claim("w")).map(({ rollout }) => rollout.id)).toEqual(["c"]);
      expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, seq }) => [id, seq])).toEqual([
        ["s", 1],
        ["t", 2],
      ]);
      expect(await codeOf(store.finish(b!, { status: "succeeded" }))).toBe("status");
      const after = await state();
      await store.close();
      expect(reports.every((report) => report.includes("writing failed"))).toBe(true);
      const again = await open(folder);
      expect(await collect(again.store.rollouts())).toEqual(after.rollouts);
      expect(await collect(again.store.spans({ rolloutId: "a" }))).toEqual(after.spans);
      expect(again.reports).toEqual([]);
      await again.store.close();
    }
});

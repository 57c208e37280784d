// What was forgotten is off the disk: no file of the folder has a byte of it, while the others of its files read as before.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import type { Span, Store } from "@fulgurite/trace";
import { compactFileStore, type FileStoreOptions, openFileStore, platformIo, verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test } from "vitest";
import { collect } from "../outcomes.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-forgetting-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const newFolder = (): string => join(root, String(++folders));

const open = async (
  folder: string,
  options: FileStoreOptions = {},
): Promise<{ store: Store; reports: string[]; time: { now: number } }> => {
  const reports: string[] = [];
  const time = { now: 1_000 };
  const store = await openFileStore(folder, { clock: () => time.now, onReport: (message) => reports.push(message), ...options });
  return { store, reports, time };
};

/** Bytes that nothing else has. */
const TOKENS = [0x5e, 0xc2, 0x3e, 0x7a, 0x11, 0xd3, 0x94, 0xa5];
const secrets = (id: string): readonly string[] =>
  ["input", "metadata", "worker", "name", "text", "error", "parent"].map((part) => `${part}-secret-of-${id}`);

const filesIn = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((name) => join(folder, name))
    .filter((path) => statSync(path).isFile());

/** "file: what it has" for everything of a rollout that a file of the folder has. */
const remainsOf = (folder: string, id: string): string[] =>
  filesIn(folder).flatMap((path) => {
    const bytes = readFileSync(path);
    const found = secrets(id).filter((secret) => bytes.includes(secret));
    if (bytes.includes(Buffer.from([...TOKENS, id.charCodeAt(0)]))) found.push("tokens");
    return found.map((secret) => `${path.slice(folder.length)}: ${secret}`);
  });

/** Two attempts with heartbeats and spans, the second of which fails with an error. */
const live = async (store: Store, time: { now: number }, ids: readonly string[], spans: number): Promise<void> => {
  await store.enqueue(
    ids.map((id) => ({
      id,
      input: { question: `input-secret-of-${id}` },
      metadata: { from: `metadata-secret-of-${id}` },
      config: { maxAttempts: 2, retryOn: ["failed"] },
    })),
  );
  for (const id of ids)
    for (const _ of [1, 2]) {
      const [claim] = await store.claim(`worker-secret-of-${id}`);
      const attempt = claim!.attempt;
      for (let index = 0; index < spans; index++) {
        time.now += 500;
        await store.append([
          {
            rolloutId: id,
            attemptId: attempt.id,
            id: `s${index}`,
            parentId: `parent-secret-of-${id}`,
            name: `name-secret-of-${id}`,
            startMs: 1,
            endMs: 2,
            status: "ok",
            attributes: { text: `text-secret-of-${id}`, tokens: Int32Array.from([...TOKENS, id.charCodeAt(0)]) },
          } satisfies Span,
        ]);
      }
      await store.finish(attempt, { status: "failed", error: { name: "Error", message: `error-secret-of-${id}` } });
    }
};

const lookAt = async (store: Store, ids: readonly string[]): Promise<unknown[]> => {
  const seen: unknown[] = [];
  for (const id of ids)
    seen.push((await collect(store.rollouts({ ids: [id] })))[0], await store.attempts(id), await collect(store.spans({ rolloutId: id })));
  return seen;
};

/** Does the manifest know its files as they are? Else opening the store reads all of them. */
const isManifestTrue = (folder: string): boolean =>
  readFileSync(join(folder, "index", "manifest"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line.slice(9)))
    .filter(({ kind }) => kind === "segment")
    .every(
      ({ data: { name, end, check } }) => crc32(readFileSync(join(folder, "log", name)).subarray(Math.max(0, end - 4096), end)) === check,
    );

const IDS = ["a", "b", "c", "d"];
const KEPT = ["a", "c", "d"];

for (const [name, rotateBytes] of [
  ["one file", 2 ** 20],
  ["many files", 1_500],
] as const)
  test(`nothing of a forgotten rollout is left in ${name}, the manifest or a sidecar, and the others are as they were`, async () => {
    const folder = newFolder();
    const { store, reports, time } = await open(folder, { rotateBytes });
    await live(store, time, IDS, 6);
    expect(remainsOf(folder, "b").length).toBeGreaterThan(4);
    const before = await lookAt(store, KEPT);
    expect(await store.forget("b")).toBe(true);
    expect(remainsOf(folder, "b")).toEqual([]);
    expect(remainsOf(folder, "a").length).toBeGreaterThan(4);
    expect(await lookAt(store, KEPT)).toEqual(before);
    await store.close();
    expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [], quarantined: [] });
    const again = await open(folder, { rotateBytes });
    expect(await lookAt(again.store, KEPT)).toEqual(before);
    expect((await again.store.stats()).rollouts.failed).toBe(3);
    await again.store.close();
    rmSync(join(folder, "index"), { recursive: true }); // all of the log is read
    const anew = await open(folder, { rotateBytes });
    expect(await lookAt(anew.store, KEPT)).toEqual(before);
    expect(await collect(anew.store.rollouts({ ids: ["b"] }))).toEqual([]);
    await anew.store.close();
    await compactFileStore(folder);
    const compacted = await open(folder, { rotateBytes });
    expect(await lookAt(compacted.store, KEPT)).toEqual(before);
    await compacted.store.close();
    expect([...reports, ...again.reports, ...anew.reports, ...compacted.reports]).toEqual([]);
  });

test("a manifest that knew a rollout while it ran tells of it no more", async () => {
  const folder = newFolder();
  const { store, time } = await open(folder, { rotateBytes: 1_500 });
  await store.enqueue([{ id: "b", input: "input-secret-of-b" }]);
  await store.claim("worker-secret-of-b");
  await live(store, time, ["a"], 6);
  await store.cancel("b");
  expect(readFileSync(join(folder, "index", "manifest")).includes("input-secret-of-b")).toBe(true);
  await store.forget("b");
  expect(remainsOf(folder, "b")).toEqual([]);
  expect(isManifestTrue(folder)).toBe(true);
  await store.close();
});

test("a process that dies before, between or after overwriting leaves the rest to the next opening", async () => {
  const folder = newFolder();
  const copies: string[] = [];
  const copy = (): void => {
    const made = newFolder();
    cpSync(folder, made, { recursive: true });
    rmSync(join(made, "lock"), { recursive: true, force: true });
    copies.push(made);
  };
  const { store, time } = await open(folder, {
    rotateBytes: 1_500,
    io: {
      ...platformIo,
      overwrite: async (path, parts) => {
        copy();
        for (const part of parts) {
          await platformIo.overwrite(path, [part]);
          copy();
        }
      },
    },
  });
  await live(store, time, IDS, 3);
  const before = await lookAt(store, KEPT);
  await store.forget("b");
  await store.close();
  expect(copies.length).toBeGreaterThan(4);
  expect(remainsOf(copies[0]!, "b").length).toBeGreaterThan(4);
  for (const [at, made] of copies.entries()) {
    const next = await open(made, { rotateBytes: 1_500 });
    expect(remainsOf(made, "b"), `copy ${at}`).toEqual([]);
    expect(await lookAt(next.store, KEPT)).toEqual(before);
    await next.store.close();
    expect(next.reports).toEqual([]);
  }
});

test("where overwriting fails, it is said and tried again", async () => {
  const folder = newFolder();
  let isBroken = true;
  const { store, reports, time } = await open(folder, {
    io: {
      ...platformIo,
      overwrite: async (path, parts) => {
        if (isBroken) throw Object.assign(new Error("EIO: injected"), { code: "EIO" });
        await platformIo.overwrite(path, parts);
      },
    },
  });
  await live(store, time, IDS, 2);
  expect(await store.forget("b")).toBe(true);
  expect(reports).toHaveLength(1);
  expect(reports[0]).toContain("EIO");
  expect(remainsOf(folder, "b").length).toBeGreaterThan(4);
  isBroken = false;
  await store.forget("c");
  expect(remainsOf(folder, "b")).toEqual([]);
  expect(remainsOf(folder, "c")).toEqual([]);
  await store.close();
});

test("a file of version 1 too keeps nothing of what is forgotten", async () => {
  const folder = newFolder();
  cpSync(join(import.meta.dirname, "logV1"), folder, { recursive: true });
  const { store, reports } = await open(folder);
  const bytes = () => Buffer.concat(filesIn(join(folder, "log")).map((path) => readFileSync(path)));
  expect(bytes().includes("é of c")).toBe(true);
  await store.forget("c");
  expect(bytes().includes("é of c")).toBe(false);
  expect(bytes().includes("é of d")).toBe(true);
  await store.close();
  expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [], quarantined: [] });
  expect(reports).toEqual([]);
});

test("what was published says nothing more of itself than its name once it is unpublished", async () => {
  const folder = newFolder();
  const { store } = await open(folder);
  for (const version of [1, 2])
    await store.publish({
      name: "p",
      kind: "prompt",
      version,
      metadata: { note: `note-${version}` },
      files: { "a.txt": Buffer.from(`text-${version}`) },
    });
  await store.unpublish("p", 1);
  const left = filesIn(folder).map((path) => readFileSync(path));
  for (const secret of ["note-1", "text-1"])
    expect(
      left.some((bytes) => bytes.includes(secret)),
      secret,
    ).toBe(false);
  for (const kept of ["note-2", "text-2"])
    expect(
      left.some((bytes) => bytes.includes(kept)),
      kept,
    ).toBe(true);
  await store.close();
  const again = await open(folder);
  expect((await again.store.resource("p"))?.metadata).toEqual({ note: "note-2" });
  await again.store.close();
});

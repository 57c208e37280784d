// `fulgurite store …` on real folders, with stdout and stderr listened to.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeCheckpoint } from "@fulgurite/rl";
import { modelCallSpan, rewardSpan } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";
import { zipSync } from "fflate";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { store as command } from "../../../apps/gateway/src/store.ts";
import { UsageError } from "../../../apps/gateway/src/usageError.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-store-command-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
afterEach(() => {
  vi.restoreAllMocks();
});
let folders = 0;
const newPath = (): string => join(root, String(++folders));

const run = async (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> => {
  const heard = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    vi.spyOn(process[name], "write").mockImplementation(((chunk: string | Uint8Array, ...rest: unknown[]) => {
      heard[name] += typeof chunk === "string" ? chunk : new TextDecoder().decode(chunk);
      const done = rest.at(-1);
      if (typeof done === "function") queueMicrotask(() => done());
      return true;
    }) as typeof process.stdout.write);
  try {
    return { code: await command(args), ...heard };
  } finally {
    vi.restoreAllMocks();
  }
};

const linesOf = (text: string): unknown[] =>
  text
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line));

/** "a" succeeded with one call and a reward, "b" is queued, "c" failed; a resource and a state. */
const makeStore = async (): Promise<string> => {
  const folder = newPath();
  const store = await openFileStore(folder, { clock: () => 1_000 });
  await store.enqueue([
    { id: "a", input: "secret a", metadata: { fold: 1 } },
    { id: "c", input: 0, mode: "val" },
    { id: "b", input: 1, metadata: { fold: 2 } },
  ]);
  const [a, c] = await store.claim("w", 2);
  const attempt = { rolloutId: "a", id: a!.attempt.id };
  await store.append([
    modelCallSpan({
      attempt,
      id: "0000000000000001",
      startMs: 0,
      endMs: 1,
      model: "m",
      responseId: "r1",
      turn: 0,
      mode: "train",
      policyVersion: 3,
      fidelity: "exact",
      temperature: 1,
      finishReason: "stop",
      promptTokens: Int32Array.of(1, 2),
      responseTokens: Int32Array.of(3),
      samplerLogprobs: Float32Array.of(-0.5),
    }),
    rewardSpan({ attempt, id: "0000000000000002", atMs: 1, value: 0.75 }),
  ]);
  await store.finish(a!.attempt, { status: "succeeded" });
  await store.finish(c!.attempt, { status: "failed" });
  await store.publish({ name: "p", kind: "lora", files: { f: Uint8Array.of(1, 2, 3) } });
  await store.putState("cursor", Uint8Array.of(7));
  await store.close();
  return folder;
};

test("stats and query say what is there, for people and for programs", async () => {
  const folder = await makeStore();
  expect((await run("stats", folder)).stdout).toBe(
    "rollouts   1 queued, 0 running, 1 succeeded, 1 failed, 0 cancelled\nattempts   2\nspans      2\nresources  1\n",
  );
  expect(linesOf((await run("stats", folder, "--json")).stdout)).toEqual([
    { rollouts: { queued: 1, running: 0, succeeded: 1, failed: 1, cancelled: 0 }, attempts: 2, spans: 2, resources: 1 },
  ]);
  const ids = async (...options: string[]) =>
    linesOf((await run("query", folder, "rollouts", ...options)).stdout).map((rollout) => (rollout as { id: string }).id);
  expect(await ids()).toEqual(["a", "c", "b"]);
  expect(await ids("--newest", "--limit", "2")).toEqual(["b", "c"]);
  expect(await ids("--status", "failed", "--status", "queued")).toEqual(["c", "b"]);
  expect(await ids("--mode", "val")).toEqual(["c"]);
  expect(await ids("--metadata", "fold=2")).toEqual(["b"]);
  expect(await ids("--id", "b", "--id", "nobody")).toEqual(["b"]);
  expect(linesOf((await run("query", folder, "attempts", "--status", "failed")).stdout)).toMatchObject([
    { rolloutId: "c", sequence: 1, status: "failed", workerId: "w" },
  ]);
  const spans = linesOf((await run("query", folder, "spans", "--id", "a")).stdout) as {
    seq: number;
    attributes: Record<string, unknown>;
  }[];
  expect(spans.map(({ seq }) => seq)).toEqual([1, 2]);
  expect(Object.values(spans[0]!.attributes)).toContainEqual([1, 2]);
  expect(Object.values(spans[0]!.attributes)).toContainEqual([-0.5]);
  expect(linesOf((await run("query", folder, "spans", "--id", "b")).stdout)).toEqual([]);
  expect(linesOf((await run("query", folder, "transitions")).stdout)).toMatchObject([
    { rolloutId: "a", promptTokens: [1, 2], responseTokens: [3], samplerLogprobs: [-0.5], reward: 0.75, policyVersion: 3 },
  ]);
});

test("a store goes out as an archive and into another folder, once", async () => {
  const folder = await makeStore();
  const archive = newPath();
  expect((await run("export", folder, "--out", archive)).code).toBe(0);
  expect(readFileSync(archive, "utf8")).toBe((await run("export", folder)).stdout);
  const other = newPath();
  expect((await run("import", other, "--in", archive)).stdout).toBe(
    "added      3 rollouts, 2 attempts, 2 spans, 1 resources, 1 states\n" +
      "known      0 rollouts, 0 attempts, 0 spans, 0 resources, 0 states\n" +
      "different  0 rollouts, 0 attempts, 0 spans, 0 resources, 0 states\n",
  );
  expect(linesOf((await run("import", other, "--in", archive, "--json")).stdout)).toMatchObject([
    { added: { rollouts: 0, spans: 0 }, known: { rollouts: 3, attempts: 2, spans: 2, resources: 1, states: 1 } },
  ]);
  expect((await run("export", other)).stdout).toBe(readFileSync(archive, "utf8"));
  writeFileSync(archive, readFileSync(archive).subarray(0, -9));
  await expect(run("import", newPath(), "--in", archive)).rejects.toThrow("cut within a line");
});

test("verify is quiet about a whole store, and exits 1 naming what is damaged", async () => {
  const spoil = (path: string, at: number): void => {
    const bytes = readFileSync(path);
    bytes[at < 0 ? bytes.length + at : at]! ^= 1;
    writeFileSync(path, bytes);
  };
  const folder = await makeStore();
  const whole = await run("verify", folder);
  expect(whole).toMatchObject({ code: 0, stdout: expect.stringMatching(/^whole: \d+ records, 1 file, 1 blob, 1 state, 0.0 MB\n$/) });

  const log = (of: string) => join(of, "log", readdirSync(join(of, "log"))[0]!);
  const before = readFileSync(log(folder));
  spoil(log(folder), 300);
  const line = await run("verify", folder, "--json");
  expect(line.code).toBe(1);
  expect(linesOf(line.stdout)).toMatchObject([
    { isWhole: false, problems: [expect.stringContaining("1 damaged records"), expect.stringContaining("are missing before it")] },
  ]);
  writeFileSync(log(folder), before);
  expect((await run("verify", folder)).code).toBe(0); // it changed nothing

  spoil(join(folder, "blobs", readdirSync(join(folder, "blobs"))[0]!), 0);
  spoil(join(folder, "state", readdirSync(join(folder, "state"))[0]!), -1);
  const bytes = await run("verify", folder);
  expect(bytes.code).toBe(1);
  expect(bytes.stdout).toContain("NOT WHOLE");
  expect(bytes.stdout.match(/^damaged /gm)!.length).toBe(2);
  rmSync(join(folder, "blobs"), { recursive: true });
  expect((await run("verify", folder)).stdout).toContain("a blob of 3 bytes, got no file");

  const torn = await makeStore();
  writeFileSync(log(torn), Buffer.concat([readFileSync(log(torn)), Buffer.from("0123")]));
  expect(await run("verify", torn)).toMatchObject({ code: 0, stdout: expect.stringContaining("note         ") });
  spoil(log(torn), 300);
  await run("stats", torn); // opening it sets the file aside
  expect((await run("verify", torn)).stdout).toContain("quarantined  quarantine/");
});

test("forget takes what a rollout held off the disk, and compact its room", async () => {
  const folder = await makeStore();
  const has = () => readFileSync(join(folder, "log", readdirSync(join(folder, "log"))[0]!), "utf8").includes("secret a");
  expect(has()).toBe(true);
  expect((await run("forget", folder, "a", "nobody")).stdout).toContain("forgotten 1, not there 1");
  expect(has()).toBe(false);
  expect(linesOf((await run("compact", folder, "--json")).stdout)).toMatchObject([{ records: 6 }]);
  expect((await run("verify", folder)).code).toBe(0);
  expect(linesOf((await run("query", folder, "rollouts")).stdout).length).toBe(2);
});

const adapterFiles = {
  "adapter_config.json": new TextEncoder().encode('{"r":4}'),
  "adapter_model.safetensors": Uint8Array.from({ length: 1_000 }, (_, index) => index & 255),
  "deep/readme.md": Uint8Array.of(1),
};

test("an adapter goes out as a directory and as a zip, and in from both, byte for byte", async () => {
  const folder = await makeStore();
  const direct = await openFileStore(folder);
  await direct.publish({ name: "policy", kind: "lora", files: adapterFiles });
  await direct.publish({ name: "policy", kind: "lora", files: { ...adapterFiles, "deep/readme.md": Uint8Array.of(2) } });
  await direct.close();
  const [directory, zip] = [newPath(), `${newPath()}.zip`];
  expect((await run("adapter", folder, "policy", "--version", "1", "--out", directory)).stdout).toMatch(
    /^policy 1: 3 files, 0.0 MB, written to/,
  );
  expect((await run("adapter", folder, "policy", "--out", zip)).code).toBe(0);
  expect(new Uint8Array(readFileSync(join(directory, "deep/readme.md")))).toEqual(Uint8Array.of(1));
  expect(readdirSync(root).filter((name) => name.includes(".tmp"))).toEqual([]);
  const other = await makeStore();
  expect((await run("adapter", other, "mine", "--in", directory)).stdout).toMatch(/^mine 1: 3 files.*published from/);
  expect(linesOf((await run("adapter", other, "mine", "--in", zip, "--json")).stdout)).toMatchObject([{ name: "mine", version: 2 }]);
  const wrapped = `${newPath()}.zip`; // zipped as a directory, as people do
  writeFileSync(wrapped, zipSync(Object.fromEntries(Object.entries(adapterFiles).map(([path, bytes]) => [`my-adapter/${path}`, bytes]))));
  expect((await run("adapter", other, "mine", "--in", wrapped)).code).toBe(0);
  const back = await openFileStore(other);
  expect((await back.resource("mine", 1))?.files).toEqual(adapterFiles);
  expect((await back.resource("mine", 2))?.files["deep/readme.md"]).toEqual(Uint8Array.of(2));
  expect((await back.resource("mine", 3))?.files).toEqual(adapterFiles);
  await back.publish({ name: "evil", kind: "lora", files: { "../out.txt": Uint8Array.of(1) } });
  await back.close();
  await expect(run("adapter", other, "evil", "--out", newPath())).rejects.toThrow('stays inside its directory, got "../out.txt"');
  const listed = linesOf((await run("query", other, "resources")).stdout) as {
    name: string;
    manifest: Record<string, { byteLength: number }>;
  }[];
  expect(listed.filter(({ name }) => name === "mine").map(({ manifest }) => manifest["adapter_model.safetensors"]!.byteLength)).toEqual([
    1_000, 1_000, 1_000,
  ]);
});

test("gc says what it would delete, deletes it, and keeps what a checkpoint needs", async () => {
  const folder = await makeStore();
  const direct = await openFileStore(folder);
  await direct.cancel("b"); // what is queued may need every version that comes
  for (let version = 1; version <= 5; version++)
    await direct.publish({ name: "run", kind: "lora", metadata: { run: "run" }, files: { weights: new Uint8Array(100).fill(version) } });
  const cursor = {
    runId: "run",
    step: 2,
    version: 2,
    seed: 0,
    options: { adapterName: "run" },
    report: { step: 1, version: 2, metrics: {}, failures: [] },
  };
  await direct.putState("train/run", encodeCheckpoint({ cursor: cursor as never, trainerState: new Uint8Array(3) }));
  await direct.close();
  expect((await run("gc", folder, "--dry-run")).stdout).toBe("run 1\nrun 4\nwould delete 2 versions (0.0 MB), kept 4\n"); // 3: the policy version of a's call
  expect(linesOf((await run("gc", folder, "--keep", "2", "--json")).stdout)).toEqual([
    { removed: [{ name: "run", version: 1 }], kept: 5, byteLength: 100, dryRun: false },
  ]);
  expect(linesOf((await run("gc", folder, "--json")).stdout)).toMatchObject([{ removed: [{ version: 4 }], kept: 4 }]);
  expect((await run("verify", folder)).code).toBe(0);
  const damaged = await openFileStore(folder);
  await damaged.putState("train/run", Uint8Array.of(1));
  await damaged.close();
  await expect(run("gc", folder)).rejects.toThrow("checkpoint");
});

test("what is called wrongly is told, with what was got", async () => {
  const folder = await makeStore();
  const wrong = async (...args: string[]): Promise<string> => {
    const error = await run(...args).catch((caught) => caught);
    expect(error, args.join(" ")).toBeInstanceOf(UsageError);
    return error.message;
  };
  expect(await wrong()).toContain(
    "command is one of stats, query, adapter, export, import, verify, forget, gc, compact, serve, got undefined",
  );
  expect(await wrong("toString", folder)).toContain('got "toString"');
  expect(await wrong("stats")).toContain("takes a store's folder, got none");
  expect(await wrong("stats", root)).toContain("without meta.json");
  expect(await wrong("stats", folder, "more")).toContain("takes nothing after the folder, got more");
  expect(await wrong("stats", folder, "--limit", "1")).toContain("store: stats takes --help, --json, got --limit");
  expect(await wrong("stats", folder, "--odd")).toContain("--odd");
  expect(await wrong("query", folder)).toContain("takes rollouts, attempts, spans, transitions or resources after the folder, got nothing");
  expect(await wrong("query", folder, "toString")).toContain('got "toString"');
  expect(await wrong("query", folder, "rollouts", "--status", "done")).toContain('cancelled, got "done"');
  expect(await wrong("query", folder, "rollouts", "--limit", "-1")).toBeTruthy();
  expect(await wrong("query", folder, "rollouts", "--metadata", "x")).toContain("NAME=JSON");
  expect(await wrong("import", newPath(), "--in", newPath())).toContain("got no file");
  expect(await wrong("forget", folder)).toContain("takes ids of rollouts");
  expect(await wrong("adapter", folder)).toContain("takes an adapter's name after the folder");
  expect(await wrong("adapter", folder, "p")).toContain("takes --out or --in, got both or none");
  expect(await wrong("adapter", folder, "nobody", "--out", newPath())).toContain("adapter nobody: the store holds");
  expect(await wrong("adapter", folder, "p", "--out", folder)).toContain("a path where nothing is yet");
  expect(await wrong("adapter", folder, "p", "--in", newPath())).toContain("got nothing at");
  expect(await wrong("adapter", folder, "p", "--in", folder)).toContain("holds adapter_config.json");
  expect(await wrong("adapter", folder, "p", "--version", "x", "--out", newPath())).toContain("--version is a whole number");
  expect(await wrong("serve", newPath(), "--port", "70000")).toContain("up to 65535");
  expect(await wrong("serve", newPath(), "--origin", "app.test")).toContain("--origin is * or like https://host");
  const held = await openFileStore(folder);
  await expect(run("verify", folder)).rejects.toThrow(`pid ${process.pid}`);
  await held.close();
  expect((await run("--help")).stdout).toContain("usage: fulgurite store");
});

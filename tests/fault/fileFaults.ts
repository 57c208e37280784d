// Everything that can happen to a folder, a thousand times: a log cut at every byte of its last record, a disk that fails any
// call in any way, kill -9, and two processes that want one queue.
import { spawn, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Span, type Store, TraceError } from "@fulgurite/trace";
import { type FileStoreOptions, openFileStore } from "@fulgurite/trace/node";
import { bundleChild } from "../bundle.ts";
import { createFailingIo, type DiskFault } from "./disk.ts";
import { createLedger, type Ledger, sum, type Tally, takeInventory } from "./ledger.ts";
import { uponEnd } from "./uponEnd.ts";

/** Says on stderr how far it is. */
export type Progress = (line: string) => void;

const open = (folder: string, options: FileStoreOptions = {}): Promise<Store> =>
  openFileStore(folder, { clock: () => 1_000, onReport: () => {}, ...options });

const spanOf = (rolloutId: string, attemptId: string, id: string): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "n",
  startMs: 1,
  endMs: 1,
  status: "ok",
  attributes: { tokens: Int32Array.of(1, 2, 3), text: "é" },
});

const look = async (folder: string, ledger: Ledger): Promise<void> => {
  const store = await open(folder);
  ledger.check(await takeInventory(store));
  await store.close();
};

// ---- torn tails -----------------------------------------------------------------------------------------------------------

/** What the last record of a log can be. Each may be done again after it was torn, and is then there once. */
const LAST_RECORDS: Readonly<Record<string, (store: Store, attemptId: string) => Promise<string[]>>> = {
  rollout: async (store) => (await store.enqueue([{ id: "late", input: "é" }])).map(({ id }) => `rollout/${id}`),
  attempt: async (store, attemptId) => {
    await store.finish({ rolloutId: "r", id: attemptId }, { status: "succeeded" });
    return [`ended/r/${attemptId}/succeeded`];
  },
  span: async (store, attemptId) => {
    await store.append([spanOf("r", attemptId, "last")]);
    return ["span/r/last"];
  },
  resource: async (store) => {
    const { name, version } = await store.publish({ name: "p", version: 1, kind: "prompt", files: { f: Uint8Array.of(1, 2, 3) } });
    return [`resource/${name}/${version}`];
  },
  unpublished: async (store) => {
    await store.unpublish("old", 1);
    return ["gone resource/old/1"];
  },
};

/** A key, or the word that what it names is deleted. */
const told = (ledger: Ledger, keys: readonly string[]): void => {
  for (const key of keys) key.startsWith("gone ") ? ledger.gone(key.slice(5)) : ledger.acknowledge(key);
};

/** Without the zeros that are written ahead. */
const writtenIn = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.findLastIndex((byte) => byte !== 0) + 1);

const tearTails = async (newFolder: () => string): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (const act of Object.values(LAST_RECORDS)) {
    const folder = newFolder();
    const store = await open(folder);
    await store.enqueue([{ id: "r", input: 0 }]);
    const attemptId = (await store.claim("w"))[0]!.attempt.id;
    await store.append([spanOf("r", attemptId, "first")]);
    for (const version of [1, 2]) await store.publish({ name: "old", version, kind: "prompt", files: { f: Uint8Array.of(version) } });
    const path = join(folder, "log", "0000000000000001.log");
    const kept = writtenIn(readFileSync(path)).length;
    await act(store, attemptId);
    await store.close();
    const whole = readFileSync(path);
    // what comes after a crash is the end of the file, or the zeros that were written ahead
    for (let end = kept, ahead = 0; end < whole.length; end += ahead === 0 ? 0 : 1, ahead = ahead === 0 ? 4_096 : 0) {
      for (const name of readdirSync(join(folder, "log"))) rmSync(join(folder, "log", name));
      writeFileSync(path, Buffer.concat([whole.subarray(0, end), Buffer.alloc(ahead)])); // the last record was never acknowledged in this history
      const ledger = createLedger("tail");
      ledger.acknowledge("rollout/r", `attempt/r/${attemptId}`, "span/r/first", "resource/old/2");
      ledger.fault();
      const torn = await open(folder);
      ledger.check(await takeInventory(torn));
      told(ledger, await act(torn, attemptId));
      await torn.close();
      await look(folder, ledger);
      tallies.push(ledger.tally());
    }
  }
  return tallies;
};

// ---- a disk that fails ----------------------------------------------------------------------------------------------------

const DISK_FAULTS: readonly DiskFault[] = [
  { call: "write", landed: "half", code: "ENOSPC" },
  { call: "write", landed: "half", code: "EIO" },
  { call: "write", landed: "nothing", code: "ENOSPC" },
  { call: "write", landed: "zeros", code: "EIO" },
  { call: "write", landed: "all", code: "EIO" }, // it was written, and the caller is told that it was not
  { call: "datasync", unsynced: "dropped", code: "EIO" },
  { call: "datasync", unsynced: "kept", code: "EIO" },
];

/** The same life each time; what it was told is its own to remember. Stops where the store says that its disk is gone. */
const live = async (store: Store, ledger: Ledger): Promise<void> => {
  const mine = async (id: string, spans: readonly string[]): Promise<void> => {
    const [claim] = await store.claim(id);
    if (claim === undefined) return;
    const { rollout, attempt } = claim;
    ledger.claimed(rollout.id, attempt.id);
    ledger.acknowledge(`attempt/${rollout.id}/${attempt.id}`);
    await Promise.all(
      spans.map(async (name) => {
        await store.append([spanOf(rollout.id, attempt.id, name)]);
        ledger.acknowledge(`span/${rollout.id}/${name}`);
      }),
    );
    await store.finish(attempt, { status: "succeeded" });
    ledger.acknowledge(`ended/${rollout.id}/${attempt.id}/succeeded`);
  };
  try {
    const tasks = await store.enqueue(["a", "b"].map((id) => ({ id, input: 0 })));
    ledger.acknowledge(...tasks.map(({ id }) => `rollout/${id}`));
    await mine("w1", ["x", "y", "z"]);
    const { name, version } = await store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(1) } });
    ledger.acknowledge(`resource/${name}/${version}`);
    await mine("w2", ["x", "y"]);
  } catch (error) {
    if (!(error instanceof TraceError && (error.code === "storage" || error.code === "full"))) throw error;
  }
};

/** After the disk is well again: the writer sends once more whatever it had, and all of it is there once. */
const sendAgain = async (store: Store, ledger: Ledger, names: readonly string[] = ["x", "y", "z"]): Promise<void> => {
  for await (const { id, status } of store.rollouts()) {
    if (status === "queued") continue;
    for (const attempt of await store.attempts(id))
      for (const name of names) {
        await store.append([spanOf(id, attempt.id, name)]);
        ledger.acknowledge(`span/${id}/${name}`);
      }
  }
};

const failDisks = async (newFolder: () => string): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (const fault of DISK_FAULTS)
    for (const rotateBytes of [500, 2 ** 20])
      for (const lasts of [false, true])
        for (let at = 1; ; at++) {
          const folder = newFolder();
          const ledger = createLedger(folder);
          const { io, calls, fired } = createFailingIo((call) => (call === at || (lasts && call > at) ? [fault] : []));
          const store = await open(folder, { io, rotateBytes });
          await live(store, ledger);
          await store.close();
          const count = fired();
          ledger.fault(count);
          if (count > 0) {
            await look(folder, ledger);
            const healed = await open(folder);
            await sendAgain(healed, ledger);
            await healed.close();
            await look(folder, ledger);
            tallies.push(ledger.tally());
          }
          rmSync(folder, { recursive: true });
          if (calls() < at) break;
        }
  return tallies;
};

// ---- beside the log --------------------------------------------------------------------------------------------------------

/** What can become of a file beside the log; `other`: what another of its kind holds, `earlier`: what it held before. */
const SPOILS: Readonly<Record<string, (path: string, bytes: Buffer, at: number, other: Buffer, earlier: Buffer) => void>> = {
  deleted: (path) => rmSync(path),
  torn: (path, bytes, at) => writeFileSync(path, bytes.subarray(0, at)),
  flipped: (path, bytes, at) => {
    const spoilt = Buffer.from(bytes);
    spoilt[at] = (spoilt[at] as number) ^ (1 << (at % 8));
    writeFileSync(path, spoilt);
  },
  swapped: (path, _bytes, _at, other) => writeFileSync(path, other),
  stale: (path, _bytes, _at, _other, earlier) => writeFileSync(path, earlier),
};

/** Rollouts that end, are forgotten or stay, in files of a few records. */
const liveLong = async (store: Store, from: number, to: number): Promise<void> => {
  for (let index = from; index < to; index++) {
    const id = `r${index}`;
    await store.enqueue([{ id, input: index }]);
    const [claim] = await store.claim("w");
    await store.append([spanOf(id, claim!.attempt.id, "x"), spanOf(id, claim!.attempt.id, "y")]);
    if (index % 4 !== 3) await store.finish(claim!.attempt, { status: "succeeded" });
    if (index % 4 === 2) await store.forget(`r${index - 1}`);
  }
};

/** Sidecars and manifests say nothing that the log does not say: spoilt in any way, all is there, and once. */
const spoilIndexes = async (newFolder: () => string): Promise<Tally[]> => {
  const made = newFolder();
  const options = { rotateBytes: 1_500 };
  const first = await open(made, options);
  await liveLong(first, 0, 16);
  await first.close();
  const before = newFolder();
  cpSync(made, before, { recursive: true });
  const second = await open(made, options);
  await liveLong(second, 16, 24);
  const { keys } = await takeInventory(second);
  await second.close();
  const names = readdirSync(join(made, "index")).sort();
  const bytesOf = (folder: string, name: string): Buffer => {
    const path = join(folder, "index", name);
    return existsSync(path) ? readFileSync(path) : Buffer.alloc(0);
  };
  const tallies: Tally[] = [];
  for (const [index, name] of names.entries())
    for (const [kind, spoil] of Object.entries(SPOILS)) {
      const bytes = bytesOf(made, name);
      const ats =
        kind === "torn" || kind === "flipped" ? Array.from({ length: 5 }, (_, part) => Math.floor((bytes.length * part) / 5)) : [0];
      for (const at of ats) {
        const folder = newFolder();
        cpSync(made, folder, { recursive: true });
        spoil(join(folder, "index", name), bytes, at, bytesOf(made, names[(index + 1) % names.length] as string), bytesOf(before, name));
        const ledger = createLedger(`${name} ${kind}`);
        ledger.acknowledge(...keys);
        ledger.fault();
        const store = await open(folder, options);
        ledger.check(await takeInventory(store));
        await sendAgain(store, createLedger("again"), ["x", "y"]);
        await liveLong(store, 24, 25);
        ledger.acknowledge("rollout/r24", "span/r24/x", "span/r24/y");
        await store.close();
        await look(folder, ledger);
        tallies.push(ledger.tally());
        rmSync(folder, { recursive: true });
      }
    }
  return tallies;
};

// ---- a full disk -----------------------------------------------------------------------------------------------------------

const FULL_DISK_BYTES = 1_000_000;
/** So much each cycle has until it is full. */
const ROOM_BYTES = 40_000;

/** A disk of its own, if this process may mount one: filled, refused, given room, filled again. */
const fillDisk = async (newFolder: () => string, progress: Progress): Promise<Tally> => {
  const disk = newFolder();
  const ledger = createLedger("full");
  if (spawnSync("mount", ["-t", "tmpfs", "-o", `size=${FULL_DISK_BYTES}`, "tmpfs", disk]).status !== 0) {
    progress("files: no disk can be mounted here, so none is filled: run it as root");
    return ledger.tally();
  }
  try {
    const folder = join(disk, "store");
    const ballast = join(disk, "ballast");
    mkdirSync(folder);
    const options = { rotateBytes: 20_000 };
    for (let cycle = 0; cycle < 6; cycle++) {
      const store = await open(folder, options);
      const victim = `victim-${cycle}`;
      await store.enqueue([{ id: victim, input: "x".repeat(800) }]);
      await store.cancel(victim);
      const { bavail, bsize } = statfsSync(disk);
      writeFileSync(ballast, Buffer.alloc(bavail * bsize - ROOM_BYTES, 1));
      let refusals = 0;
      const ask = async (act: () => Promise<readonly string[]>): Promise<void> => {
        try {
          ledger.acknowledge(...(await act()));
        } catch (error) {
          if (!(error instanceof TraceError && error.code === "full")) throw error;
          refusals += 1;
          ledger.fault();
        }
      };
      for (let index = 0; refusals < 12; index++) {
        const id = `c${cycle}-${index}`;
        await ask(async () => (await store.enqueue([{ id, input: "x".repeat(800) }])).map((rollout) => `rollout/${rollout.id}`));
        await ask(async () => {
          const claims = await store.claim("w");
          for (const { rollout, attempt } of claims) {
            ledger.claimed(rollout.id, attempt.id);
            ledger.acknowledge(`attempt/${rollout.id}/${attempt.id}`);
            await ask(async () => {
              await store.append([spanOf(rollout.id, attempt.id, "x")]);
              return [`span/${rollout.id}/x`];
            });
            await ask(async () => {
              await store.finish(attempt, { status: "succeeded" });
              return [`ended/${rollout.id}/${attempt.id}/succeeded`];
            });
          }
          return [];
        });
        ledger.check(await takeInventory(store));
      }
      if (!(await store.forget(victim))) throw new Error(`${victim}: on a full disk it is forgotten, got nothing of that name`);
      if ((await takeInventory(store)).keys.includes(`rollout/${victim}`)) throw new Error(`${victim}: it was forgotten, got it back`);
      rmSync(ballast);
      await store.requeueStale(Number.MAX_SAFE_INTEGER); // there is room again
      await store.enqueue([{ id: `room-${cycle}`, input: 0 }]);
      ledger.acknowledge(`rollout/room-${cycle}`);
      ledger.check(await takeInventory(store));
      await store.close();
      await look(folder, ledger);
    }
    return ledger.tally();
  } finally {
    spawnSync("umount", ["-l", disk]);
  }
};

// ---- kill -9 --------------------------------------------------------------------------------------------------------------

/** Runs a program until it has said `bytes` bytes, then kills it. What it said is what was acknowledged. */
const killAfter = (program: string, args: readonly string[], bytes: number): Promise<{ lines: string[]; wasKilled: boolean }> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    const isOver = uponEnd(() => child.kill("SIGKILL"));
    let out = "";
    let errors = "";
    child.stderr.on("data", (data) => {
      errors += data;
    });
    child.stdout.on("data", (data) => {
      out += data;
      if (out.length >= bytes) child.kill("SIGKILL");
    });
    child.on("close", (_code, signal) => {
      isOver();
      if (errors !== "") reject(new Error(`${program}: silence on stderr, got ${errors}; read it`));
      else
        resolve({
          lines: out
            .slice(0, out.lastIndexOf("\n") + 1)
            .split("\n")
            .slice(0, -1),
          wasKilled: signal === "SIGKILL",
        });
    });
  });

const killWriters = async (newFolder: () => string, program: string, kills: number): Promise<Tally> => {
  const folder = newFolder();
  const ledger = createLedger("kill");
  for (let life = 0; life < kills; life++) {
    const { lines, wasKilled } = await killAfter(program, [folder, `life${life}`], 1 + ((life * 97) % 700));
    if (!wasKilled) throw new Error(`life ${life}: a writer writes until it is killed, got its end; run filesChild by hand`);
    ledger.fault();
    ledger.acknowledge(`rollout/life${life}`, ...lines.map((id) => `span/life${life}/${id}`));
    if (life % 8 === 7 || life === kills - 1) await look(folder, ledger);
  }
  return ledger.tally();
};

/** Two processes; each is killed when it has had some, and comes back, until the queue is empty. */
const fight = async (newFolder: () => string, program: string, kills: number): Promise<Tally> => {
  const folder = newFolder();
  const ledger = createLedger("fight");
  const store = await open(folder);
  const tasks = await store.enqueue(Array.from({ length: kills * 6 }, (_, index) => ({ id: `q${index}`, input: index })));
  ledger.acknowledge(...tasks.map(({ id }) => `rollout/${id}`));
  await store.close();
  let left = kills;
  const worker = async (me: string): Promise<void> => {
    for (;;) {
      const mayLive = left-- <= 0;
      const { lines, wasKilled } = await killAfter(program, [folder, me], mayLive ? Number.POSITIVE_INFINITY : 1 + ((left * 37) % 150));
      for (const line of lines) {
        const [rolloutId, attemptId] = line.split(" ") as [string, string];
        ledger.claimed(rolloutId, attemptId);
        ledger.acknowledge(`attempt/${rolloutId}/${attemptId}`, `span/${rolloutId}/of-${rolloutId}`);
      }
      if (!wasKilled) return;
      ledger.fault();
    }
  };
  await Promise.all([worker("one"), worker("two")]);
  await look(folder, ledger);
  return ledger.tally();
};

/** @throws what is no fault of the store's: an error of its own that it should not have made. */
export const faultFiles = async (progress: Progress): Promise<Tally> => {
  const root = mkdtempSync(join(tmpdir(), "fulgurite-faults-"));
  const remove = () => rmSync(root, { recursive: true, force: true });
  const isRemoved = uponEnd(remove);
  let folders = 0;
  const newFolder = (): string => {
    const folder = join(root, String(++folders));
    mkdirSync(folder);
    return folder;
  };
  try {
    const tallies: Tally[] = [];
    const part = async (what: string, act: () => Promise<Tally | readonly Tally[]>): Promise<void> => {
      const found = sum("files", [await act()].flat());
      tallies.push(found);
      progress(`files: ${what}: ${found.faults} faults, ${found.lost} lost`);
    };
    await part("a log cut at every byte of its last record", () => tearTails(newFolder));
    await part("a disk that fails any call", () => failDisks(newFolder));
    await part("sidecars and manifests spoilt", () => spoilIndexes(newFolder));
    await part("a full disk", () => fillDisk(newFolder, progress));
    const writer = await bundleChild(import.meta.dirname, "filesChild", join(root, "bundle"));
    await part("kill -9 of a writer", () => killWriters(newFolder, writer, 60));
    const fighter = await bundleChild(import.meta.dirname, "filesFighter", join(root, "bundle"));
    await part("two processes, one queue, kill -9", () => fight(newFolder, fighter, 30));
    return sum("files", tallies);
  } finally {
    isRemoved();
    remove();
  }
};

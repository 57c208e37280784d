// `fulgurite store <command> <folder>`: what is in a file store, out of it, into it, and whether it is whole.

import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { rename, unlink } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type ParseArgsConfig, parseArgs } from "node:util";
import {
  exportStore,
  importStore,
  type Json,
  type Mode,
  type RolloutQuery,
  type RolloutStatus,
  type Store,
  type StoredSpan,
  toJsonl,
  toTransitions,
} from "@fulgurite/trace";
import { compactFileStore, openFileStore, verifyFileStore } from "@fulgurite/trace/node";
import { UsageError } from "./usageError.ts";

const HELP = `usage: fulgurite store <command> <folder> [options]

  stats FOLDER                    how much there is
  query FOLDER rollouts           rollouts as JSONL on stdout
  query FOLDER transitions        trainable model calls as JSONL on stdout
  export FOLDER                   everything as one archive on stdout
  import FOLDER                   adds from an archive on stdin what is not there yet (the folder is made if missing)
  verify FOLDER                   checks every line and every blob; exit code 1 when something is damaged
  forget FOLDER ID …              deletes these rollouts; their bytes may stay on the disk until compact
  compact FOLDER                  takes what was forgotten off the disk

  --json                          stats, import, verify, forget, compact: one line of JSON on stdout
  --out FILE                      export: into a file, which appears when it is whole
  --in FILE                       import: from a file
  --id ID  --status S  --mode M   query: only these (each may be repeated but --mode)
  --metadata NAME=JSON            query: only rollouts whose metadata has this value (may be repeated)
  --limit N  --newest             query: at most N rollouts; the newest first

A store is open in one process at a time: stop a run before looking into its store.
`;

interface Options {
  readonly json: boolean;
  readonly out: string | undefined;
  readonly in: string | undefined;
  readonly query: RolloutQuery;
}

interface Command {
  readonly run: (folder: string, rest: readonly string[], options: Options) => Promise<number>;
  /** The options it knows, beside --help. */
  readonly knows: readonly string[];
  /** What follows the folder. */
  readonly takes: { readonly least: number; readonly most: number; readonly what: string };
}

const OPTIONS = {
  json: { type: "boolean" },
  out: { type: "string" },
  in: { type: "string" },
  id: { type: "string", multiple: true },
  status: { type: "string", multiple: true },
  mode: { type: "string" },
  metadata: { type: "string", multiple: true },
  limit: { type: "string" },
  newest: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const satisfies ParseArgsConfig["options"];

const STATUSES: readonly string[] = ["queued", "running", "succeeded", "failed", "cancelled"] satisfies RolloutStatus[];
const MODES: readonly string[] = ["train", "val"] satisfies Mode[];

const say = (text: string): void => void process.stderr.write(`${text}\n`);
const answer = (value: unknown): void => void process.stdout.write(`${JSON.stringify(value)}\n`);

const guardStore = (folder: string): void => {
  if (!existsSync(join(folder, "meta.json")))
    throw new UsageError(`store: ${folder} must be a store's folder, got one without meta.json; a run's store is <run folder>/store`);
};

const withStore = async <T>(folder: string, body: (store: Store) => Promise<T>): Promise<T> => {
  const opened = await openFileStore(folder, { onReport: (report) => say(`store: ${JSON.stringify(report)}`) });
  try {
    return await body(opened);
  } finally {
    await opened.close();
  }
};

const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

const stats: Command["run"] = async (folder, _rest, { json }) => {
  const found = await withStore(folder, (opened) => opened.stats());
  const { redacted: _, ...kept } = found;
  if (json) answer(kept);
  else {
    const statuses = Object.entries(kept.rollouts).map(([status, count]) => `${count} ${status}`);
    process.stdout.write(
      `rollouts   ${statuses.join(", ")}\nattempts   ${kept.attempts}\nspans      ${kept.spans}\nresources  ${kept.resources}\n`,
    );
  }
  return 0;
};

/** Waits where the reader is slower; a reader that left (| head) ends the query quietly. */
const printer = (): ((text: string) => Promise<boolean>) => {
  let isOpen = true;
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    isOpen = false;
  });
  return (text) =>
    new Promise((resolve) => {
      if (!isOpen) return resolve(false);
      process.stdout.write(text, () => resolve(isOpen));
    });
};

const query: Command["run"] = async (folder, [what], options) => {
  if (what !== "rollouts" && what !== "transitions")
    throw new UsageError(`store: query is for rollouts or transitions, got ${JSON.stringify(what)}`);
  const print = printer();
  await withStore(folder, async (opened) => {
    for await (const rollout of opened.rollouts(options.query)) {
      if (what === "rollouts") {
        if (!(await print(`${JSON.stringify(rollout)}\n`))) return;
        continue;
      }
      const spans: StoredSpan[] = [];
      for await (const span of opened.spans({ rolloutId: rollout.id })) spans.push(span);
      if (!(await print(toJsonl(toTransitions(spans))))) return;
    }
  });
  return 0;
};

const exporting: Command["run"] = async (folder, _rest, { out }) => {
  return withStore(folder, async (opened) => {
    const archive = Readable.fromWeb(exportStore(opened) as Parameters<typeof Readable.fromWeb>[0]);
    if (out === undefined) {
      try {
        await pipeline(archive, process.stdout, { end: false });
        return 0;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
        say("store: the reader of the archive left before its end; what it has is not whole");
        return 1;
      }
    }
    const partial = `${out}.tmp`;
    try {
      await pipeline(archive, createWriteStream(partial, { flush: true }));
      await rename(partial, out);
    } catch (error) {
      await unlink(partial).catch(() => {}); // the first error is the one to tell
      throw error;
    }
    return 0;
  });
};

const importing: Command["run"] = async (folder, _rest, { in: from, json }) => {
  if (from !== undefined && !existsSync(from)) throw new UsageError(`store: --in is an archive, got no file ${from}`);
  const source = Readable.toWeb(from === undefined ? process.stdin : createReadStream(from)) as ReadableStream<Uint8Array>;
  const report = await withStore(folder, (opened) => importStore(opened, source));
  if (json) answer(report);
  else {
    const line = (name: "added" | "known" | "different"): string =>
      `${name.padEnd(10)} ${Object.entries(report[name])
        .map(([what, count]) => `${count} ${what}`)
        .join(", ")}\n`;
    process.stdout.write(line("added") + line("known") + line("different"));
    for (const example of report.examples) say(`different: ${example} (the store's own was kept)`);
  }
  return 0;
};

const verify: Command["run"] = async (folder, _rest, { json }) => {
  const found = await verifyFileStore(folder);
  const isWhole = found.problems.length === 0;
  if (json) answer({ isWhole, ...found });
  else {
    for (const problem of found.problems) process.stdout.write(`damaged      ${problem}\n`);
    for (const path of found.quarantined) process.stdout.write(`quarantined  ${path}: a damaged file that was set aside earlier\n`);
    for (const note of found.notes) process.stdout.write(`note         ${note}\n`);
    const { files, records, blobs, states, byteLength } = found;
    const parts = [
      counted(records, "record"),
      counted(files, "file"),
      counted(blobs, "blob"),
      counted(states, "state"),
      megabytes(byteLength),
    ];
    process.stdout.write(`${isWhole ? "whole" : "NOT WHOLE"}: ${parts.join(", ")}\n`);
  }
  return isWhole ? 0 : 1;
};

const forget: Command["run"] = async (folder, ids, { json }) => {
  const forgotten: string[] = [];
  const unknown: string[] = [];
  await withStore(folder, async (opened) => {
    for (const id of ids) ((await opened.forget(id)) ? forgotten : unknown).push(id);
  });
  if (json) answer({ forgotten, unknown });
  else process.stdout.write(`forgotten ${forgotten.length}, not there ${unknown.length}; run compact to take them off the disk\n`);
  return 0;
};

const compact: Command["run"] = async (folder, _rest, { json }) => {
  const done = await compactFileStore(folder, { onReport: (report) => say(`store: ${JSON.stringify(report)}`) });
  if (json) answer(done);
  else
    process.stdout.write(
      `dropped ${counted(done.records, "record")} of forgotten rollouts: ${megabytes(done.bytesBefore)} → ${megabytes(done.bytesAfter)}\n`,
    );
  return 0;
};

const nothing = { least: 0, most: 0, what: "nothing" };
const COMMANDS: Readonly<Record<string, Command>> = {
  stats: { run: stats, knows: ["json"], takes: nothing },
  query: {
    run: query,
    knows: ["id", "status", "mode", "metadata", "limit", "newest"],
    takes: { least: 1, most: 1, what: "rollouts or transitions" },
  },
  export: { run: exporting, knows: ["out"], takes: nothing },
  import: { run: importing, knows: ["in", "json"], takes: nothing },
  verify: { run: verify, knows: ["json"], takes: nothing },
  forget: { run: forget, knows: ["json"], takes: { least: 1, most: Number.POSITIVE_INFINITY, what: "ids of rollouts" } },
  compact: { run: compact, knows: ["json"], takes: nothing },
};

const oneOf = <T extends string>(name: string, known: readonly string[], value: string): T => {
  if (!known.includes(value)) throw new UsageError(`store: --${name} is one of ${known.join(", ")}, got ${JSON.stringify(value)}`);
  return value as T;
};

const metadataOf = (pairs: readonly string[]): Record<string, Json> =>
  Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf("=");
      try {
        if (at > 0) return [pair.slice(0, at), JSON.parse(pair.slice(at + 1)) as Json];
      } catch {
        // told below
      }
      throw new UsageError(`store: --metadata is NAME=JSON, for example set='"train"' or fold=2, got ${JSON.stringify(pair)}`);
    }),
  );

const limitOf = (text: string): number => {
  const limit = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(limit))
    throw new UsageError(`store: --limit is a whole number, got ${JSON.stringify(text)}`);
  return limit;
};

export const store = async (args: string[]): Promise<number> => {
  const parse = () => {
    try {
      return parseArgs({ args, options: OPTIONS, allowPositionals: true });
    } catch (cause) {
      throw new UsageError(`store: ${(cause as Error).message}\n\n${HELP}`, { cause });
    }
  };
  const { values, positionals } = parse();
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const [name, folder, ...rest] = positionals;
  const command = name !== undefined && Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command)
    throw new UsageError(`store: command is one of ${Object.keys(COMMANDS).join(", ")}, got ${JSON.stringify(name)}\n\n${HELP}`);
  if (folder === undefined) throw new UsageError(`store: ${name} takes a store's folder, got none\n\n${HELP}`);
  const { least, most, what } = command.takes;
  if (rest.length < least || rest.length > most)
    throw new UsageError(`store: ${name} takes ${what} after the folder, got ${rest.length === 0 ? "nothing" : rest.join(" ")}`);
  for (const option of Object.keys(values))
    if (!command.knows.includes(option))
      throw new UsageError(`store: ${name} takes ${["help", ...command.knows].map((known) => `--${known}`).join(", ")}, got --${option}`);
  if (name !== "import") guardStore(folder);
  return command.run(folder, rest, {
    json: values.json ?? false,
    out: values.out,
    in: values.in,
    query: {
      ...(values.id && { ids: values.id }),
      ...(values.status && { status: values.status.map((status) => oneOf<RolloutStatus>("status", STATUSES, status)) }),
      ...(values.mode !== undefined && { mode: oneOf<Mode>("mode", MODES, values.mode) }),
      ...(values.metadata && { metadata: metadataOf(values.metadata) }),
      ...(values.limit !== undefined && { limit: limitOf(values.limit) }),
      ...(values.newest && { order: "newest" as const }),
    },
  });
};

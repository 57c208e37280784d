// `fulgurite store <command> <folder>`: what is in a file store, out of it, into it, whether it is whole, and for others over HTTP.
// Reads the words; what each command does is in its file.

import { existsSync } from "node:fs";
import { join } from "node:path";
import type { ParseArgsConfig } from "node:util";
import type { Json, Mode, RolloutStatus } from "@fulgurite/trace";
import { readOptions } from "./commandLine.ts";
import { adapter } from "./store/adapter.ts";
import { exporting, importing } from "./store/archive.ts";
import type { Command } from "./store/command.ts";
import { query, stats, verify } from "./store/look.ts";
import { compact, forget, gc } from "./store/room.ts";
import { serve } from "./store/serve.ts";
import { UsageError } from "./usageError.ts";

const HELP = `usage: fulgurite store <command> <folder> [options]

  stats FOLDER                    how much there is
  query FOLDER rollouts           rollouts as JSONL on stdout
  query FOLDER attempts           their attempts, or
  query FOLDER spans              their spans, as JSONL on stdout
  query FOLDER transitions        trainable model calls as JSONL on stdout
  query FOLDER resources          versions of adapters, with the hashes of their files, as JSONL on stdout
  adapter FOLDER NAME --out PATH  an adapter as a PEFT directory, or a zip of one where PATH ends in .zip
  adapter FOLDER NAME --in PATH   publishes the adapter in a PEFT directory or a zip of one
  export FOLDER                   everything as one archive on stdout
  import FOLDER                   adds from an archive on stdin what is not there yet (the folder is made if missing)
  verify FOLDER                   checks every line and every blob; exit code 1 when something is damaged
  forget FOLDER ID …              deletes these rollouts: what they held is overwritten, its room is given back by compact
  gc FOLDER                       deletes adapter versions that no rollout and no checkpoint needs, oldest first
  compact FOLDER                  takes what is gone off the disk
  serve FOLDER                    the store over HTTP, for openHttpStore, until SIGINT or SIGTERM (the folder is made if missing)

  --json                          all but query and export: one line of JSON on stdout
  --out FILE                      export: into a file, which appears when it is whole
  --in FILE                       import: from a file
  --version N                     adapter: that version instead of the latest, or instead of the next
  --id ID  --status S  --mode M   query: only these (each may be repeated but --mode)
  --metadata NAME=JSON            query: only rollouts whose metadata has this value (may be repeated)
  --limit N  --newest             query: at most N rollouts; the newest first
  --keep N  --dry-run             gc: the N latest versions of each name stay (1); only say what would go
  --port N  --host NAME           serve: 7788 of 127.0.0.1; port 0 is any free one
  --token KEY                     serve: what clients must send; better in FULGURITE_TOKEN, which no list of processes shows.
                                  Without either a key is made and said
  --origin URL                    serve: pages of this origin may ask, * is every page (may be repeated)
  --stale-after SECONDS           serve: attempts that are silent for longer are ended and tried again as their config says (150)

A store is open in one process at a time: stop a run before looking into its store, or let all of them use one that is served.
`;

const OPTIONS = {
  json: { type: "boolean" },
  out: { type: "string" },
  in: { type: "string" },
  version: { type: "string" },
  id: { type: "string", multiple: true },
  status: { type: "string", multiple: true },
  mode: { type: "string" },
  metadata: { type: "string", multiple: true },
  limit: { type: "string" },
  newest: { type: "boolean" },
  keep: { type: "string" },
  "dry-run": { type: "boolean" },
  port: { type: "string" },
  host: { type: "string" },
  token: { type: "string" },
  origin: { type: "string", multiple: true },
  "stale-after": { type: "string" },
  help: { type: "boolean", short: "h" },
} as const satisfies ParseArgsConfig["options"];

const COMMANDS: Readonly<Record<string, Command>> = {
  stats,
  query,
  adapter,
  export: exporting,
  import: importing,
  verify,
  forget,
  gc,
  compact,
  serve,
};

const PORT = 7788;
const STALE_AFTER_SECONDS = 150;

const STATUSES: readonly string[] = ["queued", "running", "succeeded", "failed", "cancelled"] satisfies RolloutStatus[];
const MODES: readonly string[] = ["train", "val"] satisfies Mode[];

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

const wholeOf = (name: string, text: string | undefined, most: number = Number.MAX_SAFE_INTEGER): number | undefined => {
  if (text === undefined) return undefined;
  const number = Number(text);
  if (!/^\d+$/.test(text) || number > most)
    throw new UsageError(`store: --${name} is a whole number up to ${most}, got ${JSON.stringify(text)}`);
  return number;
};

const originOf = (text: string): string => {
  if (text === "*") return text;
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || url.origin !== text)
    throw new UsageError(`store: --origin is * or like https://host or http://localhost:5173, got ${JSON.stringify(text)}`);
  return text;
};

const guardStore = (folder: string): void => {
  if (!existsSync(join(folder, "meta.json")))
    throw new UsageError(`store: ${folder} must be a store's folder, got one without meta.json; a run's store is <run folder>/store`);
};

export const store = async (args: string[]): Promise<number> => {
  const { values, positionals } = readOptions("store", HELP, args, OPTIONS);
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
  if (!command.makesFolder) guardStore(folder);
  return command.run(folder, rest, {
    json: values.json ?? false,
    out: values.out,
    in: values.in,
    version: wholeOf("version", values.version),
    keep: wholeOf("keep", values.keep),
    dryRun: values["dry-run"] ?? false,
    port: wholeOf("port", values.port, 65_535) ?? PORT,
    host: values.host ?? "127.0.0.1",
    token: values.token ?? (process.env.FULGURITE_TOKEN || undefined),
    origins: (values.origin ?? []).map(originOf),
    staleAfterMs: (wholeOf("stale-after", values["stale-after"], 31_536_000) ?? STALE_AFTER_SECONDS) * 1_000,
    query: {
      ...(values.id && { ids: values.id }),
      ...(values.status && { status: values.status.map((status) => oneOf<RolloutStatus>("status", STATUSES, status)) }),
      ...(values.mode !== undefined && { mode: oneOf<Mode>("mode", MODES, values.mode) }),
      ...(values.metadata && { metadata: metadataOf(values.metadata) }),
      ...(values.limit !== undefined && { limit: wholeOf("limit", values.limit) as number }),
      ...(values.newest && { order: "newest" as const }),
    },
  });
};

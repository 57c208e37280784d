// What every `fulgurite store <command>` is, how it opens its folder, and how it says figures.

import type { Json, RolloutQuery, Store } from "@fulgurite/trace";
import { openFileStore } from "@fulgurite/trace/node";

export interface Options {
  readonly json: boolean;
  readonly out: string | undefined;
  readonly in: string | undefined;
  readonly query: RolloutQuery;
  readonly version: number | undefined;
  readonly keep: number | undefined;
  readonly dryRun: boolean;
  readonly port: number;
  readonly host: string;
  readonly token: string | undefined;
  readonly origins: readonly string[];
  readonly staleAfterMs: number;
}

export interface Command {
  /** Gives the exit code. */
  readonly run: (folder: string, rest: readonly string[], options: Options) => Promise<number>;
  /** The options it knows, beside --help. */
  readonly knows: readonly string[];
  /** What follows the folder. */
  readonly takes: { readonly least: number; readonly most: number; readonly what: string };
  /** It makes the folder if there is none. */
  readonly makesFolder?: boolean;
}

export const nothing = { least: 0, most: 0, what: "nothing" } as const;

export const say = (text: string): void => void process.stderr.write(`${text}\n`);
export const answer = (value: Json | object): void => void process.stdout.write(`${JSON.stringify(value)}\n`);

export const onReport = (report: string): void => say(`store: ${JSON.stringify(report)}`);

export const withStore = async <T>(folder: string, body: (store: Store) => Promise<T>): Promise<T> => {
  const opened = await openFileStore(folder, { onReport });
  try {
    return await body(opened);
  } finally {
    await opened.close();
  }
};

export const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

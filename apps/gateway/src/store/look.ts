// What is in a store, and whether it is whole: nothing is changed.

import { type RolloutQuery, type Store, type StoredSpan, toJsonl, toTransitions } from "@fulgurite/trace";
import { verifyFileStore } from "@fulgurite/trace/node";
import { UsageError } from "../usageError.ts";
import { answer, type Command, counted, megabytes, nothing, withStore } from "./command.ts";

export const stats: Command = {
  knows: ["json"],
  takes: nothing,
  run: async (folder, _rest, { json }) => {
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
  },
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

/** Typed arrays as lists of numbers. */
const toLine = (value: unknown): string =>
  `${JSON.stringify(value, (_name, inner) => (inner instanceof Int32Array || inner instanceof Float32Array ? [...inner] : inner))}\n`;

type Lines = (opened: Store, query: RolloutQuery) => AsyncGenerator<string>;

const LISTS: Readonly<Record<string, Lines>> = {
  async *rollouts(opened, query) {
    for await (const rollout of opened.rollouts(query)) yield toLine(rollout);
  },
  async *attempts(opened, query) {
    for await (const { id } of opened.rollouts(query)) for (const attempt of await opened.attempts(id)) yield toLine(attempt);
  },
  async *spans(opened, query) {
    for await (const { id } of opened.rollouts(query)) for await (const span of opened.spans({ rolloutId: id })) yield toLine(span);
  },
  async *transitions(opened, query) {
    for await (const { id } of opened.rollouts(query)) {
      const spans: StoredSpan[] = [];
      for await (const span of opened.spans({ rolloutId: id })) spans.push(span);
      yield toJsonl(toTransitions(spans));
    }
  },
  async *resources(opened) {
    for await (const entry of opened.resources()) yield toLine(entry);
  },
};

const LIST_NAMES = "rollouts, attempts, spans, transitions or resources";

export const query: Command = {
  knows: ["id", "status", "mode", "metadata", "limit", "newest"],
  takes: { least: 1, most: 1, what: LIST_NAMES },
  run: async (folder, [what = ""], options) => {
    const list = Object.hasOwn(LISTS, what) ? LISTS[what] : undefined;
    if (list === undefined) throw new UsageError(`store: query is for ${LIST_NAMES}, got ${JSON.stringify(what)}`);
    const print = printer();
    await withStore(folder, async (opened) => {
      for await (const line of list(opened, options.query)) if (!(await print(line))) return;
    });
    return 0;
  },
};

export const verify: Command = {
  knows: ["json"],
  takes: nothing,
  run: async (folder, _rest, { json }) => {
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
  },
};

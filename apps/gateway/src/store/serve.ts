// A folder's store over HTTP, for workers and pages elsewhere: behind a key, supervised, and gone without losing anything.

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { supervise } from "@fulgurite/trace";
import { serveStore } from "@fulgurite/trace/http";
import { type Listener, listen, openFileStore } from "@fulgurite/trace/node";
import { answer, type Command, nothing, onReport, say } from "./command.ts";

export interface ServeFolderOptions {
  readonly port: number;
  readonly host: string;
  readonly token: string;
  /** Pages of these may ask; "*" is every page. */
  readonly origins: readonly string[];
  readonly staleAfterMs: number;
}

export interface ServedFolder {
  readonly url: string;
  /** What is under way comes to its end, the store is closed, its lock released. */
  close(): Promise<void>;
}

/** In the same time for every wrong key, whatever of it is right. */
const isSameKey = (given: string, token: string): boolean => {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(token));
};

export const serveFolder = async (folder: string, options: ServeFolderOptions): Promise<ServedFolder> => {
  const { port, host, token, origins, staleAfterMs } = options;
  const store = await openFileStore(folder, { onReport });
  const closing = new AbortController();
  const handler = serveStore(store, {
    authorize: (request) => isSameKey(request.headers.get("authorization") ?? "", `Bearer ${token}`),
    closing: closing.signal,
    ...(origins.length === 0 ? {} : { origins: origins.includes("*") ? "*" : origins }),
  });
  let listener: Listener;
  try {
    listener = await listen(handler, { port, host });
  } catch (error) {
    await store.close();
    throw error;
  }
  const stop = supervise(store, {
    staleAfterMs,
    onRequeued: (count) => say(`store: ${count} attempts were silent for ${staleAfterMs / 1_000} s and are ended`),
    onError: (error) => say(`store: looking for silent attempts failed (${error})`),
  });
  return {
    url: listener.url,
    close: async () => {
      closing.abort();
      stop();
      await listener.close();
      await store.close();
    },
  };
};

/** The first asks for an end; a second one does not wait for it. */
const untilSignal = (): Promise<void> =>
  new Promise((resolve) => {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => resolve());
  });

export const serve: Command = {
  knows: ["port", "host", "token", "origin", "stale-after", "json"],
  takes: nothing,
  makesFolder: true,
  run: async (folder, _rest, options) => {
    const ended = untilSignal();
    const token = options.token ?? randomBytes(24).toString("base64url");
    const served = await serveFolder(folder, { ...options, token });
    if (options.token === undefined) say(`store: the key of this run is ${token} (choose your own with FULGURITE_TOKEN or --token)`);
    if (options.json) answer({ url: served.url });
    else process.stdout.write(`serving ${folder} at ${served.url}\n`);
    await ended;
    say("store: ending what is under way");
    await served.close();
    return 0;
  },
};

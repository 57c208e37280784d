import { stat } from "node:fs/promises";
import { homedir, totalmem } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { createPolicy } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import { openFileStore } from "@fulgurite/trace/node";
import type { Edge } from "../edge.ts";
import { checkIn } from "../gpuVerdicts.ts";
import { openFolderCache } from "./folderCache.ts";
import { readWhole } from "./readWhole.ts";

const isUrl = (source: string): boolean => /^[a-z][a-z0-9+.-]+:\/\//i.test(source);

/** Of the moment: nothing is read at import. */
const cacheFolder = (): string => join(homedir(), ".cache", "fulgurite");

export const edge: Edge = {
  folderUrl: (source) => {
    const folder = source.endsWith("/") ? source : `${source}/`;
    return isUrl(folder) ? new URL(folder) : new URL(`${pathToFileURL(resolve(folder)).href}/`);
  },

  isLocalFolder: async (source) =>
    !isUrl(source) &&
    (await stat(resolve(source)).then(
      (found) => found.isDirectory(),
      () => false, // a name that no path can have is no folder either
    )),

  readFile: (url, { signal, onBytes } = {}) =>
    readWhole(url, { signal, ...(onBytes && { onPart: (_, bytes, totalBytes) => onBytes(bytes, totalBytes) }) }),

  isPreflightFree: () => true,

  openCache: async (folder = cacheFolder()) => openFolderCache(resolve(folder)),

  // a container's share, where there is one; without one some systems report an absurd number
  memoryBytes: () => Math.min(totalmem(), process.constrainedMemory?.() || Number.POSITIVE_INFINITY),

  openDevice: (device, options) => createBackend(device, options),

  startPolicy: async ({ device, threads, ...options }) =>
    createPolicy({
      ...options,
      backend: await createBackend(device, {
        ...(threads !== undefined && { threads }),
        check: checkIn(openFolderCache(cacheFolder())),
      }),
    }),

  openStore: (name) => openFileStore(name),
};

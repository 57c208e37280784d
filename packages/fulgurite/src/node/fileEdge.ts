import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { FileEdge } from "../fileEdge.ts";
import { openConvertedFolder } from "./convertedFolder.ts";
import { openFolderCache } from "./folderCache.ts";
import { readWhole } from "./readWhole.ts";
import { streamWhole } from "./streamWhole.ts";

const isUrl = (source: string): boolean => /^[a-z][a-z0-9+.-]+:\/\//i.test(source);

/** Of the moment: nothing is read at import. */
export const cacheFolder = (): string => join(homedir(), ".cache", "fulgurite");

export const files: FileEdge = {
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

  hasFile: (url) =>
    stat(url).then(
      (found) => found.isFile(),
      () => false,
    ),

  streamFile: streamWhole,

  isPreflightFree: () => true,

  openCache: async (folder = cacheFolder()) => openFolderCache(resolve(folder)),

  openConverted: async (folder = cacheFolder()) => openConvertedFolder(resolve(folder)),

  createHash: () => createHash("sha256"),
};

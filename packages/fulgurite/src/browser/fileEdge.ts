import { EngineError } from "@fulgurite/engine";
import type { FileEdge } from "../fileEdge.ts";
import { openConvertedFiles } from "./convertedFiles.ts";
import { openWebCache } from "./webCache.ts";

const noPath = async (url: URL): Promise<never> => {
  throw new EngineError("bad-request", `loadPolicy: a page reads models over http, got ${url}; host the folder`);
};

export const files: FileEdge = {
  folderUrl: (source) => new URL(source.endsWith("/") ? source : `${source}/`, globalThis.location?.href),

  isLocalFolder: async () => false,

  readFile: noPath,
  hasFile: noPath,
  streamFile: noPath,

  isPreflightFree: (url) => url.origin === globalThis.location?.origin,

  openCache: async () => {
    const { caches, crypto } = globalThis;
    if (!caches || !crypto?.subtle)
      throw new EngineError("unsupported", "loadPolicy: the page has a Cache API, got none; serve it over https or from localhost");
    return openWebCache(caches);
  },

  openConverted: openConvertedFiles,
};

import { createBackend, EngineError, wrapPolicy } from "@fulgurite/engine";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import type { Edge } from "../edge.ts";
import { openWebCache } from "./webCache.ts";

export const edge: Edge = {
  folderUrl: (source) => new URL(source.endsWith("/") ? source : `${source}/`, globalThis.location?.href),

  isLocalFolder: async () => false,

  readFile: async (url) => {
    throw new EngineError("bad-request", `loadPolicy: a page reads models over http, got ${url}; host the folder`);
  },

  isPreflightFree: (url) => url.origin === globalThis.location?.origin,

  openCache: async () => {
    const { caches, crypto } = globalThis;
    if (!caches || !crypto?.subtle)
      throw new EngineError("unsupported", "loadPolicy: the page has a Cache API, got none; serve it over https or from localhost");
    return openWebCache(caches);
  },

  openDevice: (device) => createBackend(device),

  startPolicy: async (options) => {
    const worker = new Worker(new URL("./policyWorker.js", import.meta.url), { type: "module" });
    try {
      const policy = await wrapPolicy(worker, options);
      return {
        ...policy,
        dispose: async () => {
          await policy.dispose();
          worker.terminate();
        },
      };
    } catch (error) {
      worker.terminate();
      throw error;
    }
  },

  openStore: (name) => openIndexedDbStore(name),
};

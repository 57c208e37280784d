import { createBackend, EngineError, wrapPolicy } from "@fulgurite/engine";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import type { Edge, StartOptions } from "../edge.ts";
import { openWebCache } from "./webCache.ts";

const DEVICE_MEMORY_CAP = 8;

/** The model's bytes move into the worker: a copy of the weights would not fit beside them. */
const buffersOf = ({ model: { config, weights, tokenizer } }: StartOptions): Transferable[] => {
  const files = [config, ...(tokenizer ? [tokenizer] : []), ...(weights instanceof Uint8Array ? [weights] : Object.values(weights))];
  return [...new Set(files.map(({ buffer }) => buffer as ArrayBuffer))];
};

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

  memoryBytes: () => {
    // Rounded and capped by the browser, so that it names no machine: the cap means "that or more".
    const { deviceMemory } = navigator as { deviceMemory?: number };
    return deviceMemory === undefined || deviceMemory >= DEVICE_MEMORY_CAP ? undefined : deviceMemory * 2 ** 30;
  },

  openDevice: (device, options) => createBackend(device, options),

  startPolicy: async (options) => {
    const worker = new Worker(new URL("./policyWorker.js", import.meta.url), { type: "module" });
    try {
      const policy = await wrapPolicy(worker, options, buffersOf(options));
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

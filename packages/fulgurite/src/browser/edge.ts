import { wrapPolicy } from "@fulgurite/engine";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import type { Edge } from "../edge.ts";

export const edge: Edge = {
  folderUrl: (source) => new URL(source.endsWith("/") ? source : `${source}/`, globalThis.location?.href),

  readFile: async (url, signal) => {
    const response = await fetch(url, signal ? { signal } : {});
    // a server of single-page apps answers a missing file with its page
    if (!response.ok || response.headers.get("content-type")?.startsWith("text/html")) {
      throw new Error(`fetch: ${url} is a file, got status ${response.status}, ${response.headers.get("content-type")}`);
    }
    return new Uint8Array(await response.arrayBuffer());
  },

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

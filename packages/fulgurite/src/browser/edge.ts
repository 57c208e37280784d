import { createBackend, wrapPolicy } from "@fulgurite/engine";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import type { Edge } from "../edge.ts";
import { isHubName } from "../modelSource.ts";
import { files } from "./fileEdge.ts";
import type { ToPage, ToWorker } from "./startMessages.ts";

const DEVICE_MEMORY_CAP = 8;

export const edge: Edge = {
  ...files,

  memoryBytes: () => {
    // Rounded and capped by the browser, so that it names no machine: the cap means "that or more".
    const { deviceMemory } = navigator as { deviceMemory?: number };
    return deviceMemory === undefined || deviceMemory >= DEVICE_MEMORY_CAP ? undefined : deviceMemory * 2 ** 30;
  },

  openDevice: (device, options) => createBackend(device, options),

  startPolicy: async (options, { signal, onProgress, onReport } = {}) => {
    // A page's own address, with which the worker, whose address is another, finds a relative folder.
    const source = options.weights.source;
    const isAbsolute = source === "spark" || isHubName(source) || /^https?:/i.test(source);
    const place = isAbsolute ? options.weights : { ...options.weights, source: files.folderUrl(source).href };
    // Only a page may ask. Without it the browser may drop the weights when it runs short: then they are loaded again.
    if (place.options.cache !== false) await navigator.storage?.persist?.().catch(() => false);
    const worker = new Worker(new URL("./policyWorker.js", import.meta.url), { type: "module" });
    const { port1: port, port2 } = new MessageChannel();
    port.onmessage = ({ data }: MessageEvent<ToPage>) => {
      if (data.kind === "progress") onProgress?.(data.progress);
      else onReport?.(data.message);
    };
    const abort = (): void => port.postMessage({ kind: "abort" } satisfies ToWorker);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      const policy = await wrapPolicy(worker, { ...options, weights: place, port: port2 }, [port2]);
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
    } finally {
      signal?.removeEventListener("abort", abort);
      port.close();
    }
  },

  openStore: openIndexedDbStore,
};

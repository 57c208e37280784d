// What the engine found out about a GPU, kept beside the model files: a folder in Node, the Cache API in a browser.

import type { GpuCheck } from "@fulgurite/engine";
import type { VerdictStore } from "@fulgurite/engine/gpuCheck";
import type { ModelCache } from "./modelCache.ts";

const VERSION = "1";

const keyOf = (name: string): string => `gpu verdict ${name}`;

export const verdictsIn = (cache: ModelCache): VerdictStore => ({
  read: async (name) => {
    const bytes = await cache.read(keyOf(name), VERSION);
    return bytes && new TextDecoder().decode(bytes);
  },
  write: (name, verdict) => cache.write(keyOf(name), VERSION, new TextEncoder().encode(verdict)),
});

/** Tests a GPU at its first start and reads the verdict at later ones. The test is loaded where there is a GPU. */
export const checkIn =
  (cache: ModelCache): GpuCheck =>
  async (open) =>
    (await import("@fulgurite/engine/gpuCheck")).openChecked(open, { verdicts: verdictsIn(cache) });

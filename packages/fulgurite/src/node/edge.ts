import { totalmem } from "node:os";
import { createBackend } from "@fulgurite/engine/node";
import { openFileStore } from "@fulgurite/trace/node";
import type { Edge } from "../edge.ts";
import { checkIn } from "../gpuVerdicts.ts";
import { startFrom } from "../weightPlace.ts";
import { cacheFolder, files } from "./fileEdge.ts";
import { openFolderCache } from "./folderCache.ts";

export const edge: Edge = {
  ...files,

  // a container's share, where there is one; without one some systems report an absurd number
  memoryBytes: () => Math.min(totalmem(), process.constrainedMemory?.() || Number.POSITIVE_INFINITY),

  openDevice: (device, options) => createBackend(device, options),

  startPolicy: async (options, hooks) => {
    const { device, threads, precision } = options;
    const check = checkIn(openFolderCache(cacheFolder()));
    const given = { ...(threads !== undefined && { threads }), ...(precision && { precision }) };
    return startFrom(options, await createBackend(device, { ...given, check }), hooks);
  },

  openStore: (name, { persist: _, ...hooks }) => openFileStore(name, hooks),
};

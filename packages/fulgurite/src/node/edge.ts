import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { createPolicy } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import { openFileStore } from "@fulgurite/trace/node";
import type { Edge } from "../edge.ts";

export const edge: Edge = {
  folderUrl: (source) => {
    const folder = source.endsWith("/") ? source : `${source}/`;
    return /^[a-z][a-z0-9+.-]+:\/\//i.test(folder) ? new URL(folder) : new URL(`${pathToFileURL(resolve(folder)).href}/`);
  },

  readFile: async (url, signal) => {
    if (url.protocol === "file:") return new Uint8Array(await readFile(url, signal ? { signal } : {}));
    const response = await fetch(url, signal ? { signal } : {});
    if (!response.ok) throw new Error(`fetch: ${url} is a file, got status ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  },

  startPolicy: async ({ device, threads, ...options }) =>
    createPolicy({ ...options, backend: await createBackend(device, threads === undefined ? {} : { threads }) }),

  openStore: (name) => openFileStore(name),
};

// The stores that only Node can run.
import "fake-indexeddb/auto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { openFileStore } from "@fulgurite/trace/node";
import { spoilIndexedDb } from "./spoilIndexedDb.ts";
import type { StoreCase } from "./storeCases.ts";

const folder = mkdtempSync(join(tmpdir(), "fulgurite-stores-"));

const spoiled = new Set<string>();

export const fakeIndexedDbCase: StoreCase = {
  name: "fake-indexeddb",
  persists: true,
  shared: true,
  open: openIndexedDbStore,
  spoil: spoilIndexedDb,
};

export const filesCase: StoreCase = {
  name: "files",
  persists: true,
  shared: false,
  open: (name, options) =>
    openFileStore(join(folder, name), {
      ...options,
      rotateBytes: 2_000, // so that every test crosses files
      onReport: (message) => {
        if (!spoiled.has(name)) throw new Error(`nothing was damaged, got the report: ${message}`);
      },
    }),
  spoil: async (name, { sha256 }) => {
    spoiled.add(name);
    const path = join(folder, name, "blobs", sha256);
    const bytes = readFileSync(path);
    bytes[0]! ^= 1;
    writeFileSync(path, bytes);
  },
};

// The stores that only Node can run.
import "fake-indexeddb/auto";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { openFileStore } from "@fulgurite/trace/node";
import type { StoreCase } from "./storeCases.ts";

const folder = mkdtempSync(join(tmpdir(), "fulgurite-stores-"));

export const fakeIndexedDbCase: StoreCase = { name: "fake-indexeddb", persists: true, shared: true, open: openIndexedDbStore };

export const filesCase: StoreCase = {
  name: "files",
  persists: true,
  shared: false,
  open: (name, options) =>
    openFileStore(join(folder, name), {
      ...options,
      rotateBytes: 2_000, // so that every test crosses files
      onReport: (message) => {
        throw new Error(`nothing was damaged, got the report: ${message}`);
      },
    }),
};

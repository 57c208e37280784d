// The stores that only Node can run.
import "fake-indexeddb/auto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openIndexedDbStore } from "@fulgurite/trace/indexedDb";
import { type LogIo, openFileStore, platformIo } from "@fulgurite/trace/node";
import { fillIndexedDb, spoilIndexedDb } from "./indexedDbDamage.ts";
import type { StoreCase } from "./storeCases.ts";

const folder = mkdtempSync(join(tmpdir(), "fulgurite-stores-"));

const spoiled = new Set<string>();
const full = new Set<string>();
const wasFull = new Set<string>();

/** The platform's, unless that store's disk is full. */
const ioOf = (name: string): LogIo => {
  const guard = (): void => {
    if (full.has(name)) throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
  };
  return {
    write: async (handle, bytes, position) => {
      guard();
      await platformIo.write(handle, bytes, position);
    },
    datasync: async (handle) => {
      guard();
      await platformIo.datasync(handle);
    },
    lengthen: async (path, from, byteLength) => {
      guard();
      await platformIo.lengthen(path, from, byteLength);
    },
    overwrite: platformIo.overwrite, // takes no room
    replace: async (path, bytes) => {
      guard();
      await platformIo.replace(path, bytes);
    },
  };
};

export const fakeIndexedDbCase: StoreCase = {
  name: "fake-indexeddb",
  persists: true,
  shared: true,
  open: openIndexedDbStore,
  spoil: spoilIndexedDb,
  fillDisk: fillIndexedDb,
};

export const filesCase: StoreCase = {
  name: "files",
  persists: true,
  shared: false,
  open: (name, options) =>
    openFileStore(join(folder, name), {
      ...options,
      rotateBytes: 2_000, // so that every test crosses files
      io: ioOf(name),
      onReport: (message) => {
        if (!spoiled.has(name) && !wasFull.has(name)) throw new Error(`nothing was damaged, got the report: ${message}`);
      },
    }),
  fillDisk: (name) => {
    full.add(name);
    wasFull.add(name);
    return () => void full.delete(name);
  },
  spoil: async (name, { sha256 }) => {
    spoiled.add(name);
    const path = join(folder, name, "blobs", sha256);
    const bytes = readFileSync(path);
    bytes[0]! ^= 1;
    writeFileSync(path, bytes);
  },
};

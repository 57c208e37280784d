// A file of checked blocks, and a bounded cache to read it through.
//
//   file  = block*                      all but the last are 4096 bytes long
//   block   offset 0     n ≤ 4092 bytes   the next part of the content
//           offset n     4 bytes          CRC-32 (IEEE 802.3) of that part, u32 little-endian
//
// Blocks are read synchronously: one is nearly always in the system's own cache, and a way over the thread pool costs
// twenty times the reading.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { crc32 } from "node:zlib";

const BLOCK = 4096;
const PART = BLOCK - 4;
const CACHED_BLOCKS = 1024; // in each of two generations: 8 MiB at most
const OPEN_FILES = 64;

/** Thrown for a file that is not there or not what was written: it is to be made anew. */
export class DamagedBlock extends Error {}

export const toBlocks = (content: Buffer): Buffer => {
  const parts: Buffer[] = [];
  for (let at = 0; at < content.length; at += PART) {
    const part = content.subarray(at, at + PART);
    const sum = Buffer.allocUnsafe(4);
    sum.writeUInt32LE(crc32(part));
    parts.push(part, sum);
  }
  return Buffer.concat(parts);
};

/** The content again; undefined for a damaged file. */
export const fromBlocks = (file: Buffer): Buffer | undefined => {
  const parts: Buffer[] = [];
  for (let at = 0; at < file.length; at += BLOCK) {
    const block = file.subarray(at, at + BLOCK);
    const part = block.subarray(0, -4);
    if (block.length <= 4 || crc32(part) !== block.readUInt32LE(part.length)) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts);
};

export const blocksLength = (contentLength: number): number => contentLength + 4 * Math.ceil(contentLength / PART);

export interface Blocks {
  /** @throws DamagedBlock; the platform's errors but for a missing file. */
  read(path: string, offset: number, length: number): Buffer;
  /** @throws as read. */
  byteLength(path: string): number;
  /** Reads these bytes instead of a file that could not be written. */
  hold(path: string, file: Buffer): void;
  /** Call it when the file was replaced or removed. */
  forget(path: string): void;
  close(): void;
}

const isMissing = (error: unknown): boolean => (error as NodeJS.ErrnoException | undefined)?.code === "ENOENT";

export const createBlocks = (): Blocks => {
  const files = new Map<string, number>(); // by last use
  const held = new Map<string, Buffer>();
  let young = new Map<string, Buffer>();
  let old = new Map<string, Buffer>();
  /** A search ends in one block. */
  let last: { readonly path: string; readonly index: number; readonly part: Buffer } | undefined;

  const descriptorOf = (path: string): number => {
    let descriptor = files.get(path);
    if (descriptor === undefined) {
      try {
        descriptor = openSync(path, "r");
      } catch (error) {
        if (isMissing(error)) throw new DamagedBlock(`${path}: no file`);
        throw error;
      }
      const [oldest] = files.keys();
      if (files.size >= OPEN_FILES && oldest !== undefined) {
        closeSync(files.get(oldest) as number);
        files.delete(oldest);
      }
    } else files.delete(path);
    files.set(path, descriptor);
    return descriptor;
  };

  const load = (path: string, index: number): Buffer => {
    const block = Buffer.allocUnsafeSlow(BLOCK);
    const from = held.get(path);
    const length = from ? from.copy(block, 0, index * BLOCK) : readSync(descriptorOf(path), block, 0, BLOCK, index * BLOCK);
    if (length <= 4 || crc32(block.subarray(0, length - 4)) !== block.readUInt32LE(length - 4))
      throw new DamagedBlock(`${path}: block ${index} is damaged`);
    return block.subarray(0, length - 4);
  };

  const partAt = (path: string, index: number): Buffer => {
    if (last?.index === index && last.path === path) return last.part;
    const key = `${index} ${path}`;
    let part = young.get(key);
    if (part === undefined) {
      part = old.get(key) ?? load(path, index);
      if (young.size >= CACHED_BLOCKS) {
        old = young;
        young = new Map();
      }
      young.set(key, part);
    }
    last = { path, index, part };
    return part;
  };

  const forget = (path: string): void => {
    const descriptor = files.get(path);
    if (descriptor !== undefined) closeSync(descriptor);
    files.delete(path);
    held.delete(path);
    last = undefined;
    for (const generation of [young, old]) for (const key of generation.keys()) if (key.endsWith(` ${path}`)) generation.delete(key);
  };

  return {
    read: (path, offset, length) => {
      const index = Math.floor(offset / PART);
      const start = offset - index * PART;
      const part = partAt(path, index);
      if (start + length <= part.length) return part.subarray(start, start + length);
      const pieces = [part.subarray(start)];
      for (let have = part.length - start, next = index + 1; have < length; next++) {
        const more = partAt(path, next).subarray(0, length - have);
        pieces.push(more);
        have += more.length;
      }
      return Buffer.concat(pieces);
    },
    byteLength: (path) => held.get(path)?.length ?? fstatSync(descriptorOf(path)).size,
    hold: (path, file) => {
      forget(path);
      held.set(path, file);
    },
    forget,
    close: () => {
      for (const descriptor of files.values()) closeSync(descriptor);
      files.clear();
      held.clear();
      young.clear();
      old.clear();
      last = undefined;
    },
  };
};

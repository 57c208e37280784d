// The sidecars of a folder: written when a log file is left, made anew when they are missing or wrong, in memory when there is
// no room for them.

import { readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import type { Blocks } from "./blocks.ts";
import { isMissing } from "./durable.ts";
import type { Segment } from "./logIndex.ts";
import type { LogReader } from "./logReader.ts";
import { firstSeqOf, nameOf, outlineAt, scan } from "./segmentFile.ts";
import { SegmentIndex } from "./segmentIndex.ts";
import { checkedFrom, checkOf, type Extent, encodeSidecar, restamped } from "./sidecar.ts";

export const sidecarName = (firstSeq: number): string => nameOf(firstSeq).replace(".log", ".idx");

/** What the bytes of a log file say, by themselves. */
export const indexBytes = (bytes: Buffer, path: string, name: string): SegmentIndex => {
  const index = new SegmentIndex();
  for (const found of scan(bytes, path, Number.POSITIVE_INFINITY).records) {
    const record = outlineAt(bytes, found);
    index.replay(record, record.seq, { held: undefined, file: name, offset: found.start, byteLength: found.end - found.start });
  }
  return index;
};

export interface SidecarFilesOptions {
  readonly folders: { readonly log: string; readonly index: string };
  readonly blocks: Blocks;
  readonly reader: LogReader;
  readonly replace: (path: string, bytes: Uint8Array) => Promise<void>;
  readonly onReport: (message: string) => void;
  /** A log file is not what it was. */
  readonly onDamage: () => Promise<void>;
}

export interface SidecarFiles {
  pathOf(extent: Extent): string;
  /** Writes the sidecar of a file that is left. `index` says what is in its first `end` bytes; `before` is the file before it. */
  seal(name: string, end: number, index: SegmentIndex, before: Segment | undefined): Promise<Segment>;
  /** From the log file alone. @throws TraceError "corrupt" when that is not the file that was left. */
  rebuild(segment: Segment): Promise<void>;
  /** A file that was left now ends elsewhere, and tells of nothing else. Returns its extent. */
  extend(segment: Segment, end: number): Promise<Extent>;
  /** A file that was left now tells of nothing. Returns its extent. */
  empty(segment: Segment, end: number): Promise<Extent>;
  /** A file that was left is no more. */
  remove(segment: Segment): Promise<void>;
}

export const createSidecarFiles = ({ folders, blocks, reader, replace, onReport, onDamage }: SidecarFilesOptions): SidecarFiles => {
  const pathOf = ({ firstSeq }: Extent): string => join(folders.index, sidecarName(firstSeq));

  const extentOf = async (name: string, end: number): Promise<Extent> => {
    const from = checkedFrom(end);
    return { firstSeq: firstSeqOf(name), end, check: checkOf(await reader.bytesAt({ file: name, offset: from, byteLength: end - from })) };
  };

  const readLog = async (name: string, end: number): Promise<{ bytes: Buffer; index: SegmentIndex }> => {
    const path = join(folders.log, name);
    const bytes = (await readFile(path)).subarray(0, end);
    return { bytes, index: indexBytes(bytes, path, name) };
  };

  const keep = async (extent: Extent, file: Buffer): Promise<void> => {
    const path = pathOf(extent);
    blocks.forget(path);
    const there = await readFile(path).catch(() => undefined);
    if (there?.equals(file)) return;
    try {
      await replace(path, file);
    } catch (error) {
      blocks.hold(path, file);
      onReport(`${path}: what is where could not be written (${error}); it stays in memory, and is made again when the store is opened`);
    }
  };

  return {
    pathOf,
    seal: async (name, end, index, before) => {
      const extent = await extentOf(name, end);
      await keep(extent, encodeSidecar(index, extent));
      return {
        ...extent,
        name,
        lastSeq: Math.max(index.lastSeq, before?.lastSeq ?? 0),
        rolloutSeq: Math.max(index.rolloutSeq, before?.rolloutSeq ?? 0),
        spanSeq: Math.max(index.spanSeq, before?.spanSeq ?? 0),
        owners: index.owners.size,
        gone: index.gone.size,
        marks: new Uint8Array(Math.ceil(index.owners.size / 8)),
      };
    },
    rebuild: async (segment) => {
      const { bytes, index } = await readLog(segment.name, segment.end);
      if (bytes.length < segment.end || checkOf(bytes) !== segment.check || index.owners.size !== segment.owners) {
        await onDamage();
        throw new TraceError(
          "corrupt",
          `${join(folders.log, segment.name)}: the file that was written, got a damaged one; restore it from a copy, or open the store again to keep what is whole`,
        );
      }
      await keep(segment, encodeSidecar(index, segment));
    },
    extend: async (segment, end) => {
      const extent = await extentOf(segment.name, end);
      const file = await readFile(pathOf(segment)).catch(() => undefined);
      await keep(extent, (file && restamped(file, extent)) ?? encodeSidecar((await readLog(segment.name, end)).index, extent));
      return extent;
    },
    empty: async (segment, end) => {
      await reader.release(segment.name); // it was replaced
      const extent = await extentOf(segment.name, end);
      await keep(extent, encodeSidecar(new SegmentIndex(), extent));
      return extent;
    },
    remove: async (segment) => {
      await reader.release(segment.name);
      blocks.forget(pathOf(segment));
      await unlink(pathOf(segment)).catch((error) => {
        if (!isMissing(error)) throw error;
      });
    },
  };
};

// Overwriting what was forgotten, where it lies in the log. A record keeps its length, its number, the ids that say whose it is,
// its times and its states, so that the log reads as it did; of what a user stored in it nothing is left.
//
// It begins when the word that somebody is gone is on disk. A process that dies before the end leaves the rest to the next
// opening, which meets that word again: no file is left, and no manifest written anew, before the end was reached.

import { join } from "node:path";
import type { Attempt, Rollout, StoredSpan } from "../vocabulary.ts";
import { decodeRecord, refill } from "./codec.ts";
import type { LogIo } from "./logFile.ts";
import type { Segment } from "./logIndex.ts";
import { type LogReader, toRuns } from "./logReader.ts";
import type { LogRecord, StoredResource } from "./logRecord.ts";
import type { Place } from "./segmentIndex.ts";
import type { SegmentLog } from "./segmentLog.ts";
import { checkedFrom } from "./sidecar.ts";

/** So much is held in memory at once. */
const PART_BYTES = 4 * 2 ** 20;

// As JSON each is no longer than it was.

export const emptiedRollout = (rollout: Rollout): Rollout => ({ ...rollout, input: 0, metadata: {} });

export const emptiedAttempt = ({ error: _, claimId: __, ...attempt }: Attempt): Attempt => ({ ...attempt, workerId: "" });

export const emptiedResource = (resource: StoredResource): StoredResource => ({ ...resource, metadata: {} });

const emptiedSpan = ({ parentId: _, ...span }: StoredSpan): StoredSpan => ({ ...span, name: "", attributes: {} });

const emptied = (record: LogRecord): LogRecord => {
  switch (record.kind) {
    case "rollout":
      return { ...record, data: emptiedRollout(record.data) };
    case "attempt":
      return { ...record, data: emptiedAttempt(record.data) };
    case "span":
      return { ...record, data: emptiedSpan(record.data) };
    case "resource":
      return { ...record, data: emptiedResource(record.data) };
    default:
      return record;
  }
};

/** undefined where there is nothing to do: it was done before, or the bytes are damaged. */
const emptiedBytes = (bytes: Buffer): Buffer | undefined => {
  const record = decodeRecord(bytes);
  const refilled = record && refill(bytes, emptied(record));
  return refilled?.equals(bytes) ? undefined : refilled;
};

const byFile = (places: readonly Place[]): Map<string, Place[]> => {
  const files = new Map<string, Place[]>();
  for (const place of places) {
    const own = files.get(place.file);
    if (own) own.push(place);
    else files.set(place.file, [place]);
  }
  return files;
};

/** What lies together is read and written together. Returns where the last byte that changed is. */
const scrubFile = async (path: string, io: LogIo, reader: LogReader, places: readonly Place[]): Promise<number> => {
  let parts: { position: number; bytes: Buffer[]; end: number }[] = [];
  let held = 0;
  let last = 0;
  const write = async (): Promise<void> => {
    if (parts.length > 0)
      await io.overwrite(
        path,
        parts.map(({ position, bytes }) => ({ position, bytes: Buffer.concat(bytes) })),
      );
    parts = [];
    held = 0;
  };
  for (const { places: own, end } of toRuns([...places].sort((a, b) => a.offset - b.offset))) {
    const { file, offset: from } = own[0] as Place;
    const run = await reader.bytesAt({ file, offset: from, byteLength: end - from });
    for (const { offset, byteLength } of own) {
      const bytes = emptiedBytes(run.subarray(offset - from, offset - from + byteLength));
      if (bytes === undefined) continue;
      const part = parts.at(-1);
      if (part?.end === offset) {
        part.bytes.push(bytes);
        part.end += byteLength;
      } else parts.push({ position: offset, bytes: [bytes], end: offset + byteLength });
      held += byteLength;
      last = offset + byteLength;
    }
    if (held >= PART_BYTES) await write();
  }
  await write();
  return last;
};

/**
 * What remains in the log is overwritten. Everything must be on disk, and nobody may read or write meanwhile. `spent`: files that are
 * deleted next, as a whole. Returns whether a file that was left ends with other bytes now, which its segment says. @throws the
 * platform's errors.
 */
export const scrubLog = async (
  folder: string,
  io: LogIo,
  { index, reader, sidecars }: SegmentLog,
  spent: readonly Segment[],
): Promise<boolean> => {
  let endsElse = false;
  for (const [file, places] of byFile([...index.remains.values()].flat())) {
    if (spent.some(({ name }) => name === file)) continue;
    const last = await scrubFile(join(folder, file), io, reader, places);
    if (last > 0) await reader.release(file);
    const at = index.segments.findIndex(({ name }) => name === file);
    const segment = index.segments[at];
    if (segment === undefined || last <= checkedFrom(segment.end)) continue;
    index.segments[at] = { ...segment, ...(await sidecars.extend(segment, segment.end)) };
    endsElse = true;
  }
  return endsElse;
};

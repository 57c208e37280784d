// Deleting log files of which nothing is needed any more, while the store is open. A file's word that someone is gone is
// needed as long as an older file has records of him.

import { removeFile } from "./compaction.ts";
import { isMarked, isSpent, type LogIndex, type Segment } from "./logIndex.ts";
import type { SegmentLog } from "./segmentLog.ts";
import type { Key } from "./sidecar.ts";

const isNeededBy = (index: LogIndex, older: readonly Segment[], key: Key): Promise<boolean> =>
  older.reduce(
    async (found, segment) =>
      (await found) || (await index.within(segment, (sidecar) => sidecar.owners(key).some((row) => isMarked(segment, row)))),
    Promise.resolve(false),
  );

/** Files that can go, oldest first. */
export const findSpent = async (index: LogIndex): Promise<Segment[]> => {
  const spent: Segment[] = [];
  const kept: Segment[] = [];
  for (const segment of index.segments) {
    let canGo = isSpent(segment);
    if (canGo && segment.gone > 0)
      for (const key of await index.within(segment, (sidecar) => sidecar.gone()))
        if (await isNeededBy(index, kept, key)) {
          canGo = false;
          break;
        }
    (canGo ? spent : kept).push(segment);
  }
  return spent;
};

/** Oldest first, as findSpent found them. Nobody may read or write meanwhile. */
export const removeSpent = async (folder: string, { index, sidecars }: SegmentLog, files: readonly Segment[]): Promise<void> => {
  for (const { name } of files) {
    const at = index.segments.findIndex((segment) => segment.name === name);
    const spent = index.segments[at] as Segment;
    const before = index.segments[at - 1];
    const end = await removeFile(folder, spent, before);
    if (before) {
      const { lastSeq, rolloutSeq, spanSeq } = spent;
      index.segments.splice(at - 1, 2, { ...before, ...(await sidecars.extend(before, end)), lastSeq, rolloutSeq, spanSeq });
      await sidecars.remove(spent);
    } else {
      // the first of all is only emptied
      index.segments[at] = { ...spent, ...(await sidecars.empty(spent, end)), owners: 0, gone: 0, marks: new Uint8Array() };
    }
  }
};

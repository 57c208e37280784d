// What a folder's log says, ready to be asked and written: begun from the manifest, brought up to date from the files after
// it, and kept so that the next opening can begin later.

import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { applyRecord } from "../records.ts";
import type { Soon, StoreRecord } from "../rows.ts";
import type { Resource } from "../vocabulary.ts";
import { createBlobUses, keepBlob, loadBlob, removeBlobs } from "./blobs.ts";
import { namingFull } from "./diskFull.ts";
import type { BlobRef, LogData, StoredResource } from "./logRecord.ts";
import { createLogRows, type LogRows } from "./logRows.ts";
import { type Counts, encodeManifest, readManifest } from "./manifest.ts";
import { scrubLog } from "./scrub.ts";
import { type Known, knownIn, recheckManifest, scrubManifest } from "./scrubManifest.ts";
import { SEGMENT } from "./segmentFile.ts";
import { createSegmentLog, type LogFolders, type SegmentLog, type SegmentLogOptions } from "./segmentLog.ts";
import { findSpent, removeSpent } from "./spent.ts";

export interface LogState {
  readonly log: SegmentLog;
  readonly rows: LogRows;
  /** To the log, and a resource's bytes to the disk before it. `callers` wait for it. */
  add(records: readonly StoreRecord[], callers: number): Soon<void>;
  /** Leaves a file that is large enough; where something is gone, deletes what is needed no more. Everything must be settled, and nothing else go on. */
  tidy(hasGone: boolean): Promise<void>;
  close(): Promise<void>;
}

const noCounts = (): Counts => ({ queued: 0, running: 0, succeeded: 0, failed: 0, cancelled: 0, attempts: 0, spans: 0, orphans: 0 });

export const openLogState = async (
  folder: string,
  folders: LogFolders,
  options: Pick<SegmentLogOptions, "rotateBytes" | "io" | "pace" | "clock" | "onReport">,
): Promise<LogState> => {
  const { io, onReport } = options;
  const blobs = join(folder, "blobs");
  const manifestPath = join(folders.index, "manifest");
  const names = (await readdir(folders.log)).filter((name) => SEGMENT.test(name)).sort();
  const manifest = await readManifest(manifestPath, folders.log, names);

  const stored = new WeakMap<Resource, StoredResource>();
  const published = new Set<StoredResource>();
  const blobUses = createBlobUses();

  const rows = await createLogRows({
    index: () => log.index,
    readAll: (places) => log.reader.readAll(places),
    resources: {
      keepResource: (resource) => {
        const kept = stored.get(resource) as StoredResource;
        published.add(kept);
        blobUses.add(Object.values(kept.files));
        return kept;
      },
      loadResource: async (kept) => {
        const files: [string, Uint8Array][] = [];
        for (const [path, ref] of Object.entries(kept.files)) files.push([path, await loadBlob(blobs, ref, folders.quarantine, onReport)]);
        return { ...kept, manifest: kept.files, files: Object.fromEntries(files) };
      },
      dropResource: (kept) => {
        published.delete(kept);
        blobUses.remove(Object.values(kept.files));
      },
      entryOf: (kept) => ({ ...kept, manifest: kept.files }),
    },
    counts: manifest?.counts ?? noCounts(),
    rows: manifest?.rows ?? [],
  });

  const toResource = (kept: StoredResource): Resource => {
    const resource = { ...kept, manifest: kept.files, files: {} };
    stored.set(resource, kept);
    return resource;
  };
  for (const resource of manifest?.resources ?? []) await rows.putResource(toResource(resource));
  const last = manifest?.segments.at(-1);
  if (last) rows.raiseSeqs(last.rolloutSeq, last.spanSeq);

  // a rollout's first record may be off the disk while its others, and the word that it is gone, are still to come
  const orphans = new Map<string, string[]>();

  /** Bytes of log files that were left since; it costs no more than what it saves reading. */
  let unlisted = 0;
  let listedBytes = 0;
  /** Of the manifest on disk, where it was looked through. */
  let known: Known | undefined;
  const writeManifest = async (): Promise<void> => {
    if (log.isDamaged()) return;
    known = undefined;
    const bytes = encodeManifest({ counts: rows.counts, segments: log.index.segments, rows: await rows.live(), resources: [...published] });
    unlisted = 0;
    listedBytes = bytes.length;
    await io
      .replace(manifestPath, bytes)
      .catch((error) => onReport(`${manifestPath}: it could not be written (${error}); the next opening reads more of the log`));
  };

  const log: SegmentLog = createSegmentLog(folders, {
    ...options,
    known: manifest?.segments ?? [],
    onRecord: async (record) => {
      if (record.kind === "dropped") return rows.raiseSeqs(record.data.rolloutSeq, record.data.spanSeq);
      if (record.kind === "gone") orphans.delete(record.data.rolloutId);
      const known: StoreRecord = record.kind === "resource" ? { kind: "resource", data: toResource(record.data) } : record;
      const applied = await applyRecord(rows, known);
      await rows.release();
      if (applied !== undefined) return;
      rows.leaveOut();
      const { rolloutId } = record.data as { rolloutId: string };
      const report = `${folders.log}: record ${record.seq} is a ${record.kind} of a rollout or attempt that was lost, and is left out`;
      const others = orphans.get(rolloutId);
      if (others) others.push(report);
      else orphans.set(rolloutId, [report]);
    },
    onLeft: async () => {
      unlisted += log.index.segments.at(-1)?.end ?? 0;
      if (unlisted >= listedBytes) await writeManifest();
    },
  });

  const removeUnusedBlobs = (): Promise<void> =>
    removeBlobs(blobs, blobUses.takeUnused()).catch((error) =>
      onReport(`${blobs}: files that no resource names any more could not be deleted (${error})`),
    );
  const tidy: LogState["tidy"] = async (hasGone) => {
    try {
      const spent = hasGone ? await findSpent(log.index) : []; // never the file that says why
      if (log.index.remains.size > 0) {
        if (await scrubLog(folders.log, io, log, spent)) {
          known = undefined;
          await recheckManifest(manifestPath, io, log.index);
        }
        known ??= await knownIn(manifestPath);
        await scrubManifest(manifestPath, io, log.index, known);
        log.index.remains.clear();
      }
      if (log.isRipe() || spent.length > 0) await log.leave();
      if (spent.length > 0) {
        await removeSpent(folders.log, log, spent);
        await writeManifest();
      }
    } catch (error) {
      onReport(`${folders.log}: a file could not be left or deleted, or what was forgotten overwritten (${error}); it is tried again`);
    }
    if (hasGone) await removeUnusedBlobs();
  };

  try {
    await log.replay();
    for (const report of [...orphans.values()].flat()) onReport(report);
    await tidy(true); // of a process that died before it came to it
  } catch (error) {
    await log.close();
    throw error;
  }

  const toLogData = async (record: StoreRecord): Promise<LogData> => {
    if (record.kind !== "resource") return record;
    const { manifest: refs, files, ...rest } = record.data; // the log's `files` are the manifest
    for (const [path, bytes] of Object.entries(files))
      await namingFull(folder, `file ${path} of resource ${rest.name}`, () => keepBlob(blobs, bytes, (refs[path] as BlobRef).sha256));
    const data: StoredResource = { ...rest, files: refs };
    stored.set(record.data, data);
    return { kind: "resource", data };
  };

  const addResources = async (records: readonly StoreRecord[], callers: number): Promise<void> => {
    const data: LogData[] = [];
    for (const record of records) data.push(await toLogData(record));
    log.add(data, callers);
  };

  return {
    log,
    rows,
    add: (records, callers) =>
      records.some(({ kind }) => kind === "resource") ? addResources(records, callers) : log.add(records as readonly LogData[], callers),
    tidy,
    close: () => log.close(),
  };
};

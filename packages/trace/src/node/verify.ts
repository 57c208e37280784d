// Is a store's folder what was written? Reads every record and every blob, changes nothing.

import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { TraceError } from "../errors.ts";
import { readState } from "./blobs.ts";
import { isMissing } from "./durable.ts";
import type { BlobRef } from "./logRecord.ts";
import { firstSeqOf, outlineAt, SEGMENT, scan } from "./segmentFile.ts";
import { checkOf, encodeSidecar } from "./sidecar.ts";
import { indexBytes, sidecarName } from "./sidecarFiles.ts";

export interface Verification {
  readonly files: number;
  readonly records: number;
  readonly blobs: number;
  readonly states: number;
  readonly byteLength: number;
  /** Something that was written is not there any more, one sentence each. Empty: the store is whole. */
  readonly problems: readonly string[];
  /** What opening the store will tidy up, or a person may delete: a torn tail, blobs that nothing names. */
  readonly notes: readonly string[];
  /** Damaged files that an earlier opening set aside, as paths within the folder. */
  readonly quarantined: readonly string[];
}

const resourceKey = ({ name, version }: { readonly name: string; readonly version: number }): string => JSON.stringify([name, version]);

const namesIn = async (folder: string): Promise<string[]> =>
  (
    await readdir(folder).catch((error) => {
      if (isMissing(error)) return [];
      throw error;
    })
  ).sort();

/** The folder's lock must be held, or the store may be read while it is written. */
export const verifyFolder = async (folder: string, signal?: AbortSignal): Promise<Verification> => {
  const problems: string[] = [];
  const notes: string[] = [];
  let byteLength = 0;
  /** What throws "corrupt" is a finding; another error is the platform's. */
  const find = async <T>(act: () => Promise<T>): Promise<T | undefined> => {
    signal?.throwIfAborted();
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof TraceError && error.code === "corrupt")) throw error;
      problems.push(error.message);
      return undefined;
    }
  };

  const names = (await namesIn(join(folder, "log"))).filter((name) => SEGMENT.test(name));
  const indexes = await namesIn(join(folder, "index"));
  const manifests = new Map<string, readonly BlobRef[]>(); // by resource
  let records = 0;
  let lastSeq = 0;
  for (const [index, name] of names.entries()) {
    await find(async () => {
      const path = join(folder, "log", name);
      const bytes = await readFile(path);
      byteLength += bytes.length;
      const next = names[index + 1];
      const found = scan(bytes, path, next === undefined ? Number.POSITIVE_INFINITY : firstSeqOf(next));
      if (found.damaged > 0) problems.push(`${path}: ${found.damaged} damaged records stand before whole ones`);
      if (next === undefined && found.tailLength > 0) {
        const tail = `${path}: ${found.tailLength} bytes after the last whole record`;
        if (found.isTailEnded) problems.push(`${tail}, written to the end: damaged, or never acknowledged`);
        else notes.push(`${tail} were never acknowledged; opening the store cuts them off`);
      }
      for (const each of found.records) {
        const record = outlineAt(bytes, each);
        if (record.seq <= lastSeq) continue;
        const firstSeq = record.kind === "dropped" ? record.data.firstSeq : record.seq;
        if (firstSeq > lastSeq + 1) problems.push(`${path}: records ${lastSeq + 1} to ${firstSeq - 1} are missing before it`);
        lastSeq = record.seq;
        records += 1;
        if (record.kind === "resource") manifests.set(resourceKey(record.data), Object.values(record.data.files));
        if (record.kind === "unpublished") manifests.delete(resourceKey(record.data));
      }
      const sidecar = sidecarName(firstSeqOf(name));
      if (next === undefined || found.damaged > 0) return;
      const kept = bytes.subarray(0, found.end);
      const extent = { firstSeq: firstSeqOf(name), end: found.end, check: checkOf(kept) };
      const right = encodeSidecar(indexBytes(kept, path, name), extent);
      const there = indexes.includes(sidecar) ? await readFile(join(folder, "index", sidecar)) : undefined;
      if (!there?.equals(right))
        notes.push(`${join(folder, "index", sidecar)}: ${there ? "not what its log file says" : "no file"}; the store makes it anew`);
    });
  }

  const refs = new Map([...manifests.values()].flat().map((ref) => [ref.sha256, ref]));
  let blobs = 0;
  const kept = await namesIn(join(folder, "blobs"));
  for (const name of kept) {
    signal?.throwIfAborted();
    if (name.endsWith(".tmp")) {
      notes.push(`${join(folder, "blobs", name)}: half-written by a crash; opening the store removes it`);
      continue;
    }
    const bytes = await readFile(join(folder, "blobs", name));
    const hash = createHash("sha256").update(bytes).digest("hex");
    blobs += 1;
    byteLength += bytes.length;
    if (hash !== name) problems.push(`${join(folder, "blobs", name)}: bytes of that SHA-256, got ${hash}`);
    else if (!refs.has(name)) notes.push(`${join(folder, "blobs", name)}: no resource names it`);
  }
  for (const [hash, ref] of refs)
    if (!kept.includes(hash)) problems.push(`${join(folder, "blobs", hash)}: a blob of ${ref.byteLength} bytes, got no file`);

  let states = 0;
  for (const name of await namesIn(join(folder, "state"))) {
    if (name.endsWith(".tmp")) continue;
    await find(() => readState(join(folder, "state", name)));
    states += 1;
    byteLength += (await stat(join(folder, "state", name))).size;
  }
  const quarantined = (await namesIn(join(folder, "quarantine"))).map((name) => join("quarantine", name));
  return { files: names.length, records, blobs, states, byteLength, problems, notes, quarantined };
};

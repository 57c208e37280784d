// What the log said when its last file was left: opening a store begins here, and reads only what was written after. It says
// nothing that the log does not say; without one, or with one that is not of these files, all of the log is read once.
//
//   index/manifest = line*   (lines.ts), replaced whole
//   first   {"magic":"fulgurite-manifest","v":1,"lines":n,"counts":{"queued","running","succeeded","failed","cancelled","attempts","spans","orphans"}}
//   then    {"kind":"segment","data":{"name","firstSeq","end","check","lastSeq","rolloutSeq","spanSeq","owners","gone","marks":"<base64>"}}
//           as logIndex.ts says, oldest first
//           {"kind":"rollout","data":{"rollout":{…},"attempts":[…]}}     those that have not ended
//           {"kind":"resource","data":{…}}                               as in the log
//   in all n lines

import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import type { Attempt, Rollout, RolloutStatus } from "../vocabulary.ts";
import { isMissing, withFile } from "./durable.ts";
import { decodeLine, encodeLine, NEWLINE } from "./lines.ts";
import type { Segment } from "./logIndex.ts";
import type { StoredResource } from "./logRecord.ts";
import { checkedFrom } from "./sidecar.ts";

const MAGIC = "fulgurite-manifest";
const VERSION = 1;

export interface Counts extends Record<RolloutStatus, number> {
  attempts: number;
  spans: number;
  /** Records that are left out, because what they belong to was lost. */
  orphans: number;
}

export interface LiveRow {
  readonly rollout: Rollout;
  readonly attempts: readonly Attempt[];
}

export interface Manifest {
  readonly counts: Counts;
  readonly segments: readonly Segment[];
  readonly rows: readonly LiveRow[];
  readonly resources: readonly StoredResource[];
}

export const encodeManifest = ({ counts, segments, rows, resources }: Manifest): Buffer => {
  const lines = [
    ...segments.map((data) => ({ kind: "segment", data: { ...data, marks: Buffer.from(data.marks).toString("base64") } })),
    ...rows.map((data) => ({ kind: "rollout", data })),
    ...resources.map((data) => ({ kind: "resource", data })),
  ];
  const header = { magic: MAGIC, v: VERSION, lines: lines.length + 1, counts };
  return Buffer.concat([header, ...lines].map(encodeLine));
};

const freeze = <T>(value: T): T => {
  if (typeof value === "object" && value !== null) for (const item of Object.values(Object.freeze(value))) freeze(item);
  return value;
};

interface Header {
  readonly magic?: unknown;
  readonly v?: unknown;
  readonly lines?: unknown;
  readonly counts: Counts;
}

/** Any but the first. */
export type ManifestLine =
  | { readonly kind: "segment"; readonly data: Omit<Segment, "marks"> & { readonly marks: string } }
  | { readonly kind: "rollout"; readonly data: LiveRow }
  | { readonly kind: "resource"; readonly data: StoredResource };

/** undefined for anything but a whole manifest of this version. */
export const decodeManifest = (bytes: Buffer): Manifest | undefined => {
  let header: Header | undefined;
  const segments: Segment[] = [];
  const rows: LiveRow[] = [];
  const resources: StoredResource[] = [];
  let lines = 0;
  for (let start = 0; start < bytes.length; lines++) {
    const end = bytes.indexOf(NEWLINE, start);
    const value = end < 0 ? undefined : decodeLine(bytes.subarray(start, end));
    if (value === undefined) return undefined;
    start = end + 1;
    if (header === undefined) {
      const first = value as Header;
      if (first.magic !== MAGIC || first.v !== VERSION) return undefined;
      header = first;
      continue;
    }
    const { kind, data } = value as ManifestLine;
    if (kind === "segment") segments.push({ ...data, marks: new Uint8Array(Buffer.from(data.marks, "base64")) });
    else if (kind === "rollout") rows.push(freeze(data));
    else resources.push(freeze(data));
  }
  return header === undefined || header.lines !== lines ? undefined : { counts: { ...header.counts }, segments, rows, resources };
};

/** Of the bytes of a file before `end`. */
const readCheck = async (path: string, end: number): Promise<number | undefined> => {
  const known = await stat(path).catch((error) => {
    if (!isMissing(error)) throw error;
    return undefined;
  });
  if (known === undefined || known.size < end) return undefined;
  return withFile(path, "r", async (handle) => {
    const bytes = Buffer.allocUnsafe(end - checkedFrom(end));
    await handle.read(bytes, 0, bytes.length, checkedFrom(end));
    return crc32(bytes);
  });
};

/** The manifest at `path` if it is one, and of the files in `folder`, of which `names` are all, oldest first. */
export const readManifest = async (path: string, folder: string, names: readonly string[]): Promise<Manifest | undefined> => {
  const bytes = await readFile(path).catch((error) => {
    if (!isMissing(error)) throw error;
    return undefined;
  });
  const manifest = bytes && decodeManifest(bytes);
  if (manifest === undefined) return undefined;
  for (const [index, { name, end, check }] of manifest.segments.entries())
    if (names[index] !== name || (await readCheck(join(folder, name), end)) !== check) return undefined;
  return manifest;
};

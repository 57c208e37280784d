// What a record of the log is, however it is written (codec.ts). Its seq is of the log, from 1, rising by 1.
//
//   "rollout" | "attempt" | "span" | "resource"     as the vocabulary has them; a resource's files are refs, their bytes blobs
//   "gone"          {"rolloutId"}                            what is before it of that rollout is void
//   "unpublished"   {"name","version"}                       what is before it of that resource's version is void
//   "dropped"       {"firstSeq","rolloutSeq","spanSeq"}      in place of the records firstSeq … seq, all of what is gone

import { TraceError } from "../errors.ts";
import type { Attempt, Resource, Rollout, StoredSpan } from "../vocabulary.ts";

export interface BlobRef {
  readonly sha256: string;
  readonly byteLength: number;
}

export type StoredResource = Omit<Resource, "files" | "manifest"> & { readonly files: Readonly<Record<string, BlobRef>> };

/** What a record says, typed arrays already decoded. */
export type LogData =
  | { readonly kind: "rollout"; readonly data: Rollout }
  | { readonly kind: "attempt"; readonly data: Attempt }
  | { readonly kind: "span"; readonly data: StoredSpan }
  | { readonly kind: "resource"; readonly data: StoredResource }
  | { readonly kind: "gone"; readonly data: { readonly rolloutId: string } }
  | { readonly kind: "unpublished"; readonly data: { readonly name: string; readonly version: number } };

/** Written by compaction only. The seqs are 0 where no rollout or span was among the records. */
export interface Dropped {
  readonly kind: "dropped";
  readonly data: { readonly firstSeq: number; readonly rolloutSeq: number; readonly spanSeq: number };
}

export type LogRecord = (LogData | Dropped) & { readonly seq: number };

export const KINDS: readonly string[] = [
  "rollout",
  "attempt",
  "span",
  "resource",
  "gone",
  "unpublished",
  "dropped",
] satisfies LogRecord["kind"][];

const freeze = <T>(value: T): T => {
  if (typeof value === "object" && value !== null) for (const item of Object.values(Object.freeze(value))) freeze(item);
  return value;
};

/** Frozen but for spans, which are still to be decoded. @throws TraceError "corrupt" for what is no record of these versions. */
export const guardRecord = (value: unknown): LogRecord => {
  const record = value as LogRecord | null;
  if (record === null || !KINDS.includes(record?.kind) || !Number.isSafeInteger(record.seq))
    throw new TraceError(
      "corrupt",
      `log record: kind is one of ${KINDS.join(", ")} and seq an integer, got ${JSON.stringify(value).slice(0, 80)}; open it with the release that wrote it`,
    );
  return record.kind === "span" ? record : freeze(record); // the rows hand it out as it is
};

// The lines of a log file. UTF-8 text, one JSON value a line, readable with `cut -c10- | jq`.
//
//   file   = header line, then record lines
//   header = {"magic":"fulgurite-log","v":1,"firstSeq":n,"createdMs":ms}
//   record = {"seq":n,"kind":"rollout"|"attempt"|"span"|"resource","data":{…}}       seq: of the log, from 1, rising by 1
//          | {"seq":n,"kind":"gone","data":{"rolloutId"}}                            what is before it of that rollout is void
//          | {"seq":n,"kind":"unpublished","data":{"name","version"}}                what is before it of that resource's version is void
//          | {"seq":n,"kind":"dropped","data":{"firstSeq","rolloutSeq","spanSeq"}}   in place of the records firstSeq … n, all of
//                                                                                    what is gone; their highest seqs
//   line     offset 0     8 bytes   CRC-32 (IEEE 802.3) of the JSON bytes, lower-case hexadecimal
//            offset 8     1 byte    0x20
//            offset 9     n bytes   JSON (JSON.stringify emits no raw 0x0A)
//            offset 9+n   1 byte    0x0A
//
// A span's attributes are as attributeCodec.ts says. A resource's files are {"<path>":{"sha256":"<hex>","byteLength":n}}; their bytes are blobs.

import { crc32 } from "node:zlib";
import { type Base64, decodeAttributes, encodeAttributes } from "../attributeCodec.ts";
import { TraceError } from "../errors.ts";
import type { Attempt, Attributes, Json, Resource, Rollout, StoredSpan } from "../vocabulary.ts";

export const LOG_MAGIC = "fulgurite-log";
export const LOG_VERSION = 1;

export interface LogHeader {
  readonly magic: string;
  readonly v: number;
  readonly firstSeq: number;
  readonly createdMs: number;
}

export interface BlobRef {
  readonly sha256: string;
  readonly byteLength: number;
}

export type StoredResource = Omit<Resource, "files" | "manifest"> & { readonly files: Readonly<Record<string, BlobRef>> };

/** What a line says, typed arrays already decoded. */
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

const SPACE = 0x20;
const NEWLINE = 0x0a;
const JSON_AT = 9;

const base64: Base64 = {
  encode: (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64"),
  decode: (text) => new Uint8Array(Buffer.from(text, "base64")), // a buffer of its own: the pool is neither aligned nor ours to keep
};

const HEX = Buffer.from("0123456789abcdef", "latin1");

/** JSON text as a whole line. */
const toLine = (json: string): Buffer => {
  const line = Buffer.allocUnsafe(JSON_AT + Buffer.byteLength(json) + 1);
  line.write(json, JSON_AT);
  line[line.length - 1] = NEWLINE;
  let sum = crc32(line.subarray(JSON_AT, -1));
  for (let at = JSON_AT - 2; at >= 0; at--) {
    line[at] = HEX[sum & 15] as number;
    sum >>>= 4;
  }
  line[JSON_AT - 1] = SPACE;
  return line;
};

/** Any JSON value as a whole line. */
export const encodeLine = (value: unknown): Buffer => toLine(JSON.stringify(value));

/** The checksum that a line begins with; undefined for anything but eight lower-case hexadecimal digits and a space. */
const sumOf = (line: Buffer): number | undefined => {
  let sum = 0;
  for (let at = 0; at < JSON_AT - 1; at++) {
    const unit = line[at] as number;
    const digit = unit >= 0x30 && unit <= 0x39 ? unit - 0x30 : unit >= 0x61 && unit <= 0x66 ? unit - 0x57 : undefined;
    if (digit === undefined) return undefined;
    sum = sum * 16 + digit;
  }
  return line[JSON_AT - 1] === SPACE ? sum : undefined;
};

/** Is every bit of a line, without its newline, what was written? */
const isWhole = (line: Buffer): boolean => line.length > JSON_AT && crc32(line.subarray(JSON_AT)) === sumOf(line);

/** The JSON value of a line without its newline; undefined if any bit of it is not what was written. */
export const decodeLine = (line: Buffer): unknown => (isWhole(line) ? JSON.parse(line.toString("utf8", JSON_AT)) : undefined);

/** As JSON.stringify would write it; base64 has nothing to escape, and is most of a span. */
const attributesText = (attributes: Attributes): string => {
  let text = "";
  const encoded = encodeAttributes(attributes, base64);
  for (const name of Object.keys(encoded)) {
    const value = attributes[name];
    const written =
      value instanceof Int32Array
        ? `{"$i32":"${(encoded[name] as { $i32: string }).$i32}"}`
        : value instanceof Float32Array
          ? `{"$f32":"${(encoded[name] as { $f32: string }).$f32}"}`
          : JSON.stringify(encoded[name]);
    text += `${text === "" ? "" : ","}${JSON.stringify(name)}:${written}`;
  }
  return `{${text}}`;
};

/** The attributes come last. */
const spanText = ({ attributes, ...rest }: StoredSpan): string =>
  `${JSON.stringify(rest).slice(0, -1)},"attributes":${attributesText(attributes)}}`;

export const encodeRecord = (record: LogRecord): Buffer =>
  record.kind === "span"
    ? toLine(`{"seq":${record.seq},"kind":"span","data":${spanText(record.data)}}`)
    : encodeLine({ seq: record.seq, kind: record.kind, data: record.data });

const KINDS: readonly unknown[] = [
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

const SEQ_FIRST = /^\{"seq":(\d{1,16}),/;

/** The number of a record without decoding the rest of it; undefined for a damaged line. @throws as decodeRecord. */
export const decodeSeq = (line: Buffer): number | undefined => {
  if (!isWhole(line)) return undefined;
  const found = SEQ_FIRST.exec(line.toString("latin1", JSON_AT, JSON_AT + 32));
  return found ? Number(found[1]) : decodeOutline(line).seq;
};

/** undefined for a damaged line. @throws TraceError "corrupt" for a whole one that is no record of this version. */
export const decodeRecord = (line: Buffer): LogRecord | undefined => {
  if (!isWhole(line)) return undefined;
  const record = decodeOutline(line);
  if (record.kind !== "span") return record;
  const attributes = decodeAttributes(record.data.attributes as Record<string, Json>, base64, `log record ${record.seq}`);
  return { ...record, data: { ...record.data, attributes } };
};

/**
 * What a whole line says; a span's attributes are left as they are written, which is most of the work.
 * @throws TraceError "corrupt" for what is no record of this version.
 */
export const decodeOutline = (line: Buffer): LogRecord => {
  const value = JSON.parse(line.toString("utf8", JSON_AT)) as LogRecord;
  if (!KINDS.includes(value?.kind) || !Number.isSafeInteger(value.seq))
    throw new TraceError(
      "corrupt",
      `log record: kind is one of ${KINDS.join(", ")} and seq an integer, got ${JSON.stringify(value).slice(0, 80)}; open it with the release that wrote it`,
    );
  return value.kind === "span" ? value : freeze(value); // the rows hand it out as it is
};

/** undefined for a damaged line. @throws TraceError "corrupt" for another magic or version. */
export const decodeHeader = (line: Buffer, where: string): LogHeader | undefined => {
  const header = decodeLine(line) as LogHeader | undefined;
  if (header === undefined) return undefined;
  if (header?.magic !== LOG_MAGIC || header.v !== LOG_VERSION)
    throw new TraceError(
      "corrupt",
      `${where}: a log of magic ${LOG_MAGIC}, v ${LOG_VERSION}, got magic ${header?.magic}, v ${header?.v}; open it with the release that wrote it`,
    );
  return header;
};

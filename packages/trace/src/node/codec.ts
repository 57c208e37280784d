// The lines of a log file. UTF-8 text, one JSON value a line, readable with `cut -c10- | jq`.
//
//   file   = header line, then record lines
//   header = {"magic":"fulgurite-log","v":1,"firstSeq":n,"createdMs":ms}
//   record = {"seq":n,"kind":"rollout"|"attempt"|"span"|"resource","data":{…}}       seq: of the log, from 1, rising by 1
//   line     offset 0     8 bytes   CRC-32 (IEEE 802.3) of the JSON bytes, lower-case hexadecimal
//            offset 8     1 byte    0x20
//            offset 9     n bytes   JSON (JSON.stringify emits no raw 0x0A)
//            offset 9+n   1 byte    0x0A
//
// A span's attribute that is a typed array is {"$i32":"<base64>"} or {"$f32":"<base64>"}, its elements little-endian. An
// attribute that is an object with one such name is wrapped as {"$json":…}, so that nothing a user stores is mistaken.
// A resource's files are {"<path>":{"sha256":"<hex>","byteLength":n}}; their bytes are blobs.

import { crc32 } from "node:zlib";
import { TraceError } from "../errors.ts";
import type { Attempt, Attributes, AttributeValue, Json, Resource, Rollout, StoredSpan } from "../vocabulary.ts";

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

export type StoredResource = Omit<Resource, "files"> & { readonly files: Readonly<Record<string, BlobRef>> };

/** What a line says, typed arrays already decoded. */
export type LogData =
  | { readonly kind: "rollout"; readonly data: Rollout }
  | { readonly kind: "attempt"; readonly data: Attempt }
  | { readonly kind: "span"; readonly data: StoredSpan }
  | { readonly kind: "resource"; readonly data: StoredResource };

export type LogRecord = LogData & { readonly seq: number };

const SPACE = 0x20;
const NEWLINE = 0x0a;
const JSON_AT = 9;
const MARKS = ["$i32", "$f32", "$json"];

const isLittleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** The array's bytes, little-endian: its own on nearly every machine. */
const toLittleEndian = (array: Int32Array | Float32Array): Buffer => {
  const bytes = Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  return isLittleEndian ? bytes : Buffer.from(bytes).swap32();
};

/** A buffer of its own: the decoder's pool is neither aligned nor ours to keep. */
const fromLittleEndian = (base64: string, where: string): ArrayBuffer => {
  const bytes = Buffer.from(base64, "base64");
  if (bytes.length % 4 !== 0)
    throw new TraceError("corrupt", `${where}: whole elements of 4 bytes, got ${bytes.length} bytes; restore the file from a copy`);
  if (!isLittleEndian) bytes.swap32();
  return new Uint8Array(bytes).buffer;
};

const encodeAttribute = (value: AttributeValue): Json => {
  if (value instanceof Int32Array) return { $i32: toLittleEndian(value).toString("base64") };
  if (value instanceof Float32Array) return { $f32: toLittleEndian(value).toString("base64") };
  return isMarked(value) ? { $json: value } : (value as Json);
};

const isMarked = (value: AttributeValue): boolean => {
  if (value === null || typeof value !== "object") return false;
  const keys = Object.keys(value);
  return keys.length === 1 && MARKS.includes(keys[0] as string);
};

const decodeAttribute = (value: Json, where: string): AttributeValue => {
  if (!isMarked(value)) return value;
  const { $i32, $f32, $json } = value as { $i32?: string; $f32?: string; $json?: Json };
  if ($i32 !== undefined) return new Int32Array(fromLittleEndian($i32, where));
  if ($f32 !== undefined) return new Float32Array(fromLittleEndian($f32, where));
  return $json as Json;
};

const mapped = <A, B>(record: Readonly<Record<string, A>>, change: (value: A, name: string) => B): Record<string, B> =>
  Object.fromEntries(Object.entries(record).map(([name, value]) => [name, change(value, name)]));

/** Any JSON value as a whole line. */
export const encodeLine = (value: unknown): Buffer => {
  const json = JSON.stringify(value);
  const line = Buffer.allocUnsafe(JSON_AT + Buffer.byteLength(json) + 1);
  line.write(json, JSON_AT);
  line[line.length - 1] = NEWLINE;
  line.write(crc32(line.subarray(JSON_AT, -1)).toString(16).padStart(8, "0"), 0, "latin1");
  line[JSON_AT - 1] = SPACE;
  return line;
};

/** The JSON value of a line without its newline; undefined if any bit of it is not what was written. */
export const decodeLine = (line: Buffer): unknown => {
  if (line.length <= JSON_AT || line[JSON_AT - 1] !== SPACE) return undefined;
  const sum = line.toString("latin1", 0, JSON_AT - 1);
  if (crc32(line.subarray(JSON_AT)).toString(16).padStart(8, "0") !== sum) return undefined;
  return JSON.parse(line.toString("utf8", JSON_AT));
};

export const encodeRecord = (record: LogRecord): Buffer =>
  encodeLine(
    record.kind === "span"
      ? { ...record, data: { ...record.data, attributes: mapped(record.data.attributes, encodeAttribute) } }
      : { seq: record.seq, kind: record.kind, data: record.data },
  );

const KINDS: readonly unknown[] = ["rollout", "attempt", "span", "resource"] satisfies LogRecord["kind"][];

const freeze = <T>(value: T): T => {
  if (typeof value === "object" && value !== null) for (const item of Object.values(Object.freeze(value))) freeze(item);
  return value;
};

/** undefined for a damaged line. @throws TraceError "corrupt" for a whole one that is no record of this version. */
export const decodeRecord = (line: Buffer): LogRecord | undefined => {
  const value = decodeLine(line) as LogRecord | undefined;
  if (value === undefined) return undefined;
  if (!KINDS.includes(value?.kind) || !Number.isSafeInteger(value.seq))
    throw new TraceError(
      "corrupt",
      `log record: kind is one of ${KINDS.join(", ")} and seq an integer, got ${JSON.stringify(value).slice(0, 80)}; open it with the release that wrote it`,
    );
  if (value.kind !== "span") return freeze(value); // the index hands it out as it is
  const attributes: Attributes = mapped(value.data.attributes as Record<string, Json>, (attribute, name) =>
    decodeAttribute(attribute, `log record ${value.seq}, attribute ${name}`),
  );
  return { ...value, data: { ...value.data, attributes } };
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

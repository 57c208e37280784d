// The records of a log of version 2: frames, numbers little-endian.
//
//   offset 0     4 bytes   mark: of the file, as its header says; the first byte is 0x80 or more, so no line begins like it
//          4     u32       CRC-32 (IEEE 802.3) of the bytes from 8 on, begun with the mark read as u32 big-endian
//          8     u32       n: so long is the record, all of it
//         12     u32       j: so long is its JSON
//         16    u8        kind: its place in KINDS, from 1
//         17    u24       so many records came before it in the same write
//         20    f64       seq
//         28    j bytes   JSON of the record's data, UTF-8
//         28+j            typed arrays of a span's attributes, one after the other, in the order in which the JSON names them
//        n-1     1 byte    0x0a: zeros behind a record are none of it
//
//   An attribute that is a typed array is in the JSON {"$i32":[w,count]}, then elements of w bytes: 1 to 3 unsigned, 4 signed, the
//   least that holds them all; or {"$f32":count}, then elements of 4 bytes. What a user stored that looks so is {"$json":…}.
//
// The mark is drawn anew by whoever opens a log, so that what a user stores cannot pose as a record where one is looked for
// behind damage.

import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { fromLittleEndian, isMarked, toLittleEndian } from "../attributeCodec.ts";
import { TraceError } from "../errors.ts";
import type { Attributes, Json, StoredSpan } from "../vocabulary.ts";
import { NEWLINE } from "./lines.ts";
import { type Dropped, guardRecord, KINDS, type LogData, type LogRecord } from "./logRecord.ts";

const HEADER = 28;
const CHECKED_FROM = 8;
const FIRST_BYTES = 2 ** 16;
const KNOWN_TEXTS = 1024;

export const newMark = (): number => (randomBytes(4).readUInt32BE() | 0x80000000) >>> 0;

export const isFrame = (bytes: Buffer): boolean => (bytes[0] as number) >= 0x80;

// ---- writing --------------------------------------------------------------------------------------------------------------

/** The least bytes that hold every element. */
const widthOf = (ints: Int32Array): number => {
  let bits = 0;
  for (let at = 0; at < ints.length; at++) bits |= ints[at] as number;
  return bits < 0 ? 4 : bits < 0x100 ? 1 : bits < 0x10000 ? 2 : bits < 0x1000000 ? 3 : 4;
};

type AllNamed<Rest extends never> = Rest;
/** Every property of a span is written by its name below. */
export type Unwritten = AllNamed<
  Exclude<keyof StoredSpan, "rolloutId" | "attemptId" | "id" | "parentId" | "name" | "startMs" | "endMs" | "status" | "seq" | "attributes">
>;

/** Records one after the other, in memory that grows and is used again. */
export class FrameBuffer {
  readonly mark: number;
  length = 0;
  count = 0;
  #bytes: Buffer = Buffer.allocUnsafeSlow(FIRST_BYTES);
  /** JSON of the texts that come again and again: names of attributes and of spans. */
  readonly #known: Map<string, string> = new Map();
  /** By attempt. */
  readonly #beginnings: Map<string, { readonly rolloutId: string; readonly json: string }> = new Map();
  readonly #arrays: (Int32Array | Float32Array)[] = [];
  readonly #widths: number[] = [];

  constructor(mark: number) {
    this.mark = mark;
  }

  /** All that was added, until the next is. */
  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.length);
  }

  slice(offset: number, byteLength: number): Buffer {
    return this.#bytes.subarray(offset, offset + byteLength);
  }

  get capacity(): number {
    return this.#bytes.length;
  }

  clear(): void {
    this.length = 0;
    this.count = 0;
  }

  /** Returns how many bytes it takes. */
  add(record: LogData | Dropped, seq: number): number {
    this.#arrays.length = 0;
    this.#widths.length = 0;
    const json = record.kind === "span" ? this.#spanText(record.data) : JSON.stringify(record.data);
    let needed = HEADER + (json.length < FIRST_BYTES ? 3 * json.length : Buffer.byteLength(json)) + 4;
    for (const array of this.#arrays) needed += array.byteLength;
    this.#reserve(needed);
    const bytes = this.#bytes;
    const start = this.length;
    const jsonLength = bytes.write(json, start + HEADER);
    let at = start + HEADER + jsonLength;
    for (let index = 0; index < this.#arrays.length; index++) {
      const array = this.#arrays[index] as Int32Array | Float32Array;
      const width = this.#widths[index] as number;
      if (array instanceof Int32Array && width < 4) {
        // each element's high bytes are written over by the next one
        for (let place = 0; place < array.length; place++, at += width) {
          const element = array[place] as number;
          bytes[at] = element;
          bytes[at + 1] = element >> 8;
          bytes[at + 2] = element >> 16;
        }
      } else {
        bytes.set(toLittleEndian(array), at);
        at += array.byteLength;
      }
    }
    bytes[at++] = NEWLINE;
    const byteLength = at - start;
    bytes.writeUInt32BE(this.mark, start);
    bytes.writeUInt32LE(byteLength, start + 8);
    bytes.writeUInt32LE(jsonLength, start + 12);
    bytes[start + 16] = KINDS.indexOf(record.kind) + 1;
    bytes[start + 17] = this.count;
    bytes[start + 18] = this.count >> 8;
    bytes[start + 19] = this.count >> 16;
    bytes.writeDoubleLE(seq, start + 20);
    const checked = new Uint8Array(bytes.buffer, start + CHECKED_FROM, byteLength - CHECKED_FROM); // a Buffer of it costs thrice as much
    bytes.writeUInt32LE(crc32(checked, this.mark), start + 4);
    this.length = at;
    this.count += 1;
    return byteLength;
  }

  #reserve(byteLength: number): void {
    const needed = this.length + byteLength;
    if (needed <= this.#bytes.length) return;
    const grown = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.#bytes.length));
    this.#bytes.copy(grown, 0, 0, this.length);
    this.#bytes = grown;
  }

  /** As JSON.stringify would write it, in half the time. */
  #spanText(span: StoredSpan): string {
    const parent = span.parentId === undefined ? "" : `"parentId":${JSON.stringify(span.parentId)},`;
    return (
      `${this.#ofAttempt(span)}${JSON.stringify(span.id)},${parent}` +
      `"name":${this.#quoted(span.name)},"startMs":${span.startMs},"endMs":${span.endMs},"status":"${span.status}","seq":${span.seq},` +
      `"attributes":{${this.#attributesText(span.attributes)}}}`
    );
  }

  #attributesText(attributes: Attributes): string {
    let text = "";
    for (const name of Object.keys(attributes)) {
      const value = attributes[name] as Attributes[string];
      if (text !== "") text += ",";
      text += this.#quoted(name);
      if (value instanceof Int32Array) {
        const width = widthOf(value);
        this.#arrays.push(value);
        this.#widths.push(width);
        text += `:{"$i32":[${width},${value.length}]}`;
      } else if (value instanceof Float32Array) {
        this.#arrays.push(value);
        this.#widths.push(4);
        text += `:{"$f32":${value.length}}`;
      } else if (typeof value === "number") text += `:${value}`;
      else text += isMarked(value) ? `:{"$json":${JSON.stringify(value)}}` : `:${JSON.stringify(value)}`;
    }
    return text;
  }

  /** How the JSON of all its spans begins. */
  #ofAttempt({ rolloutId, attemptId }: StoredSpan): string {
    const known = this.#beginnings.get(attemptId);
    if (known?.rolloutId === rolloutId) return known.json;
    if (this.#beginnings.size >= KNOWN_TEXTS) this.#beginnings.clear();
    const json = `{"rolloutId":${JSON.stringify(rolloutId)},"attemptId":${JSON.stringify(attemptId)},"id":`;
    this.#beginnings.set(attemptId, { rolloutId, json });
    return json;
  }

  #quoted(text: string): string {
    let json = this.#known.get(text);
    if (json === undefined) {
      if (this.#known.size >= KNOWN_TEXTS) this.#known.clear();
      json = JSON.stringify(text);
      this.#known.set(text, json);
    }
    return json;
  }
}

/** One record by itself. */
export const encodeFrame = (record: LogRecord, mark: number): Buffer => {
  const buffer = new FrameBuffer(mark);
  buffer.add(record, record.seq);
  return Buffer.from(buffer.bytes);
};

/** A frame with another record of the same kind and number in it. It keeps its length: behind the JSON are spaces. */
export const refillFrame = (frame: Buffer, record: LogRecord): Buffer => {
  const refilled = Buffer.alloc(frame.length, " ");
  frame.copy(refilled, 0, 0, HEADER);
  refilled.writeUInt32LE(frame.length - HEADER - 1, 12);
  refilled.write(JSON.stringify(record.data), HEADER);
  refilled[frame.length - 1] = NEWLINE;
  refilled.writeUInt32LE(crc32(refilled.subarray(CHECKED_FROM), refilled.readUInt32BE(0)), 4);
  return refilled;
};

// ---- finding --------------------------------------------------------------------------------------------------------------

const lengthAt = (bytes: Buffer, at: number): number => bytes.readUInt32LE(at + 8);
const seqAt = (bytes: Buffer, at: number): number => bytes.readDoubleLE(at + 20);

const isWhole = (bytes: Buffer, at: number, byteLength: number): boolean =>
  crc32(bytes.subarray(at + CHECKED_FROM, at + byteLength), bytes.readUInt32BE(at)) === bytes.readUInt32LE(at + 4);

export interface Frame {
  readonly mark: number;
  readonly seq: number;
  /** Of the first record of the same write. */
  readonly firstSeq: number;
  readonly end: number;
}

/** The whole frame that begins there, if one does: of that mark, or of any. */
export const frameAt = (bytes: Buffer, at: number, mark?: number): Frame | undefined => {
  if (at + HEADER > bytes.length || (bytes[at] as number) < 0x80) return undefined;
  const found = bytes.readUInt32BE(at);
  const byteLength = lengthAt(bytes, at);
  if ((mark !== undefined && found !== mark) || byteLength < HEADER || at + byteLength > bytes.length) return undefined;
  if (!isWhole(bytes, at, byteLength)) return undefined;
  const seq = seqAt(bytes, at);
  return { mark: found, seq, firstSeq: seq - bytes.readUIntLE(at + 17, 3), end: at + byteLength };
};

/** Does what begins there, which is no whole frame, look as one does that was not written to its end? */
export const isTorn = (bytes: Buffer, at: number, mark: number): boolean =>
  at + HEADER > bytes.length || (bytes.readUInt32BE(at) === mark && at + lengthAt(bytes, at) > bytes.length);

/** Where the next whole frame begins. */
export const findFrame = (bytes: Buffer, from: number, mark?: number): number | undefined => {
  if (mark === undefined) {
    for (let at = from; at + HEADER <= bytes.length; at++) if (frameAt(bytes, at)) return at;
    return undefined;
  }
  const sought = Buffer.allocUnsafe(4);
  sought.writeUInt32BE(mark);
  for (let at = bytes.indexOf(sought, from); at >= 0; at = bytes.indexOf(sought, at + 1)) if (frameAt(bytes, at, mark)) return at;
  return undefined;
};

// ---- reading --------------------------------------------------------------------------------------------------------------

const recordOf = (frame: Buffer, json: string): LogRecord =>
  guardRecord({ seq: seqAt(frame, 0), kind: KINDS[(frame[16] as number) - 1], data: JSON.parse(json) });

/** The quotes of a text are escaped: what a user stored never looks so. */
const ATTRIBUTES = Buffer.from(',"attributes":{');

/** What a whole frame says; a span's attributes, which come last, are left out. @throws as guardRecord. */
export const outlineFrame = (frame: Buffer): LogRecord => {
  const end = HEADER + frame.readUInt32LE(12);
  if (KINDS[(frame[16] as number) - 1] !== "span") return recordOf(frame, frame.toString("utf8", HEADER, end));
  return recordOf(frame, `${frame.toString("utf8", HEADER, frame.indexOf(ATTRIBUTES, HEADER))},"attributes":{}}`);
};

/** undefined for a damaged frame. @throws as guardRecord; TraceError "corrupt" for arrays that are not of its length. */
export const decodeFrame = (frame: Buffer): LogRecord | undefined => {
  if (frame.length < HEADER || lengthAt(frame, 0) !== frame.length || !isWhole(frame, 0, frame.length)) return undefined;
  const end = HEADER + frame.readUInt32LE(12);
  const record = recordOf(frame, frame.toString("utf8", HEADER, end));
  if (record.kind === "span") fillArrays(record.data, frame, end);
  return record;
};

const fillArrays = (span: StoredSpan, frame: Buffer, from: number): void => {
  const attributes = span.attributes as Record<string, Json | Int32Array | Float32Array>;
  let at = from;
  for (const name of Object.keys(attributes)) {
    const value = attributes[name] as Json;
    if (!isMarked(value)) continue;
    const { $i32, $f32, $json } = value as { $i32?: readonly [width: number, count: number]; $f32?: number; $json?: Json };
    if ($json !== undefined) {
      attributes[name] = $json;
      continue;
    }
    const [width, count] = $i32 ?? [4, $f32 as number];
    const end = at + width * count;
    if (!(end < frame.length))
      throw new TraceError(
        "corrupt",
        `log record of span ${span.id}, attribute ${name}: ${count} elements of ${width} bytes, got ${frame.length - at - 1} bytes; restore it from a copy`,
      );
    if ($i32 === undefined) attributes[name] = new Float32Array(fromLittleEndian(frame.subarray(at, end)));
    else attributes[name] = width === 4 ? new Int32Array(fromLittleEndian(frame.subarray(at, end))) : readInts(frame, at, width, count);
    at = end;
  }
  Object.freeze(attributes);
  Object.freeze(span);
};

/** `width` is 1, 2 or 3. */
const readInts = (frame: Buffer, from: number, width: number, count: number): Int32Array => {
  const ints = new Int32Array(count);
  for (let index = 0, at = from; index < count; index++, at += width) {
    let element = frame[at] as number;
    if (width > 1) element |= (frame[at + 1] as number) << 8;
    if (width > 2) element |= (frame[at + 2] as number) << 16;
    ints[index] = element;
  }
  return ints;
};

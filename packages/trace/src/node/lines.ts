// Checked lines of JSON, for what is small: headers, manifests, states, and the records of logs of version 1.
//
//   offset 0     8 bytes   CRC-32 (IEEE 802.3) of the JSON bytes, lower-case hexadecimal
//   offset 8     1 byte    0x20
//   offset 9     n bytes   JSON (JSON.stringify emits no raw 0x0A)
//   offset 9+n   1 byte    0x0A

import { crc32 } from "node:zlib";

export const NEWLINE = 0x0a;
const SPACE = 0x20;
const JSON_AT = 9;

const sumText = (sum: number): string => sum.toString(16).padStart(JSON_AT - 1, "0");

/** Any JSON value as a whole line. */
export const encodeLine = (value: unknown): Buffer => {
  const json = JSON.stringify(value);
  return Buffer.from(`${sumText(crc32(json))} ${json}\n`);
};

/** Another JSON value in a line as long, without its newline: behind the JSON are spaces. */
export const refillLine = (line: Buffer, value: unknown): Buffer => {
  const refilled = Buffer.alloc(line.length, " ");
  refilled.write(JSON.stringify(value), JSON_AT);
  refilled.write(sumText(crc32(refilled.subarray(JSON_AT))));
  return refilled;
};

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
export const isWholeLine = (line: Buffer): boolean => line.length > JSON_AT && crc32(line.subarray(JSON_AT)) === sumOf(line);

/** The JSON text of a whole line, or its first `bytes` bytes. */
export const jsonOf = (line: Buffer, bytes: number = line.length): string => line.toString("utf8", JSON_AT, JSON_AT + bytes);

/** The JSON value of a line without its newline; undefined if any bit of it is not what was written. */
export const decodeLine = (line: Buffer): unknown => (isWholeLine(line) ? JSON.parse(jsonOf(line)) : undefined);

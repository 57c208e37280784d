// A span's attributes as JSON and back: the one form in which files, archives and HTTP write typed arrays.
//
//   Int32Array     {"$i32":"<base64>"}     elements little-endian
//   Float32Array   {"$f32":"<base64>"}
//   an object whose only name is one of these is wrapped as {"$json":…}, so that nothing a user stores is mistaken
//
// Base64 comes from outside: Node's is its Buffer, the web's is btoa.

import { TraceError } from "./errors.ts";
import type { Attributes, AttributeValue, Json } from "./vocabulary.ts";

export interface Base64 {
  encode(bytes: Uint8Array): string;
  /** Bytes of their own buffer, from its beginning. */
  decode(text: string): Uint8Array<ArrayBuffer>;
}

/** What every platform has. Chunks, because a call takes only so many arguments. */
export const webBase64: Base64 = {
  encode: (bytes) => {
    let text = "";
    // apply takes the array as it is; spreading it costs ten times as much
    for (let at = 0; at < bytes.length; at += 0x2000)
      text += String.fromCharCode.apply(null, bytes.subarray(at, at + 0x2000) as unknown as number[]);
    return btoa(text);
  },
  decode: (base64) => {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    return bytes;
  },
};

const MARKS = ["$i32", "$f32", "$json"];
const isLittleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

const swapped = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => {
  const copy = new Uint8Array(bytes);
  for (let at = 0; at < copy.length; at += 4) copy.subarray(at, at + 4).reverse();
  return copy;
};

/** The array's bytes, little-endian: its own on nearly every machine. */
export const toLittleEndian = (array: Int32Array | Float32Array): Uint8Array => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  return isLittleEndian ? bytes : swapped(bytes);
};

/** The elements of little-endian bytes, in a buffer of their own. */
export const fromLittleEndian = (bytes: Uint8Array): ArrayBuffer => (isLittleEndian ? new Uint8Array(bytes) : swapped(bytes)).buffer;

/** Would it be taken for what this codec writes? */
export const isMarked = (value: AttributeValue): boolean => {
  if (value === null || typeof value !== "object") return false;
  const keys = Object.keys(value);
  return keys.length === 1 && MARKS.includes(keys[0] as string);
};

/**
 * As Object.fromEntries over Object.entries, in a third of the time: every span that is kept or read passes here. What is
 * undefined is left out.
 */
export const mapped = <A, B>(record: Readonly<Record<string, A | undefined>>, change: (value: A, name: string) => B): Record<string, B> => {
  const result: Record<string, B> = {};
  for (const name of Object.keys(record)) {
    const given = record[name];
    if (given === undefined) continue;
    const value = change(given, name);
    if (name === "__proto__") Object.defineProperty(result, name, { value, enumerable: true, configurable: true, writable: true });
    else result[name] = value;
  }
  return result;
};

export const encodeAttributes = (attributes: Attributes, { encode }: Base64): Record<string, Json> =>
  mapped(attributes, (value) => {
    if (value instanceof Int32Array) return { $i32: encode(toLittleEndian(value)) };
    if (value instanceof Float32Array) return { $f32: encode(toLittleEndian(value)) };
    return isMarked(value) ? { $json: value as Json } : (value as Json);
  });

/** @throws TraceError "corrupt", naming `where` and the attribute, for bytes that are not whole elements. */
export const decodeAttributes = (
  attributes: Readonly<Record<string, Json>>,
  { decode }: Pick<Base64, "decode">,
  where: string,
): Attributes => {
  const bytesOf = (base64: unknown): Uint8Array<ArrayBuffer> | undefined => {
    try {
      return typeof base64 === "string" ? decode(base64) : undefined;
    } catch {
      return undefined; // not base64: told by the caller
    }
  };
  const elements = (base64: unknown, name: string): ArrayBuffer => {
    const bytes = bytesOf(base64);
    if (bytes === undefined || bytes.length % 4 !== 0)
      throw new TraceError(
        "corrupt",
        `${where}, attribute ${name}: whole elements of 4 bytes in base64, got ${bytes === undefined ? JSON.stringify(base64).slice(0, 40) : `${bytes.length} bytes`}; restore it from a copy`,
      );
    return (isLittleEndian ? bytes : swapped(bytes)).buffer;
  };
  return mapped(attributes, (value, name): AttributeValue => {
    if (!isMarked(value)) return value;
    const { $i32, $f32, $json } = value as { $i32?: Json; $f32?: Json; $json?: Json };
    if ($i32 !== undefined) return new Int32Array(elements($i32, name));
    if ($f32 !== undefined) return new Float32Array(elements($f32, name));
    return $json as Json;
  });
};

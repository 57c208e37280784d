// What a store holds as JSON, for archives and HTTP: {"kind":"rollout"|"attempt"|"span"|"resource","data":{…}}. A span's
// attributes are as attributeCodec.ts says; bytes are {"$u8":"<base64>"}. What comes back is checked as at the store's door.

import { decodeAttributes, encodeAttributes, webBase64 } from "./attributeCodec.ts";
import { TraceError } from "./errors.ts";
import { checkedItem, isObject, refuse } from "./values.ts";
import type { Json, Resource, Span, StoreItem } from "./vocabulary.ts";

export const encodeBytes = (bytes: Uint8Array): Json => ({ $u8: webBase64.encode(bytes) });

/** @throws TraceError "corrupt" for anything else. */
export const decodeBytes = (value: unknown, where: string): Uint8Array => {
  const text = (value as { $u8?: unknown } | null | undefined)?.$u8;
  if (typeof text === "string")
    try {
      return webBase64.decode(text);
    } catch {
      // told below
    }
  throw new TraceError(
    "corrupt",
    `${where}: bytes are {"$u8":"<base64>"}, got ${String(JSON.stringify(value)).slice(0, 60)}; send it whole`,
  );
};

export const encodeSpan = <S extends Span>(span: S): Json =>
  ({ ...span, attributes: encodeAttributes(span.attributes, webBase64) }) as unknown as Json;

/** Of the right outer shape only: the store checks the rest. */
export const decodeSpan = <S extends Span>(value: unknown, where: string): S => {
  const span = value as { attributes?: unknown } | null;
  if (!isObject(span?.attributes)) return refuse(where, "a span is an object with attributes", value);
  return { ...span, attributes: decodeAttributes(span.attributes as Record<string, Json>, webBase64, where) } as S;
};

export const encodeFiles = (files: Resource["files"]): Json =>
  Object.fromEntries(Object.entries(files).map(([path, bytes]) => [path, encodeBytes(bytes)]));

export const decodeFiles = (files: unknown, where: string): Resource["files"] => {
  if (!isObject(files)) return refuse(where, "files is an object of bytes by path", files);
  return Object.fromEntries(Object.entries(files).map(([path, bytes]) => [path, decodeBytes(bytes, `${where}.files.${path}`)]));
};

export const encodeItem = (item: StoreItem): Json => {
  const { kind, data } = item;
  if (kind === "span") return { kind, data: encodeSpan(data) };
  if (kind === "resource") return { kind, data: { ...data, files: encodeFiles(data.files) } as unknown as Json };
  return { kind, data: data as unknown as Json };
};

/** @throws TraceError "bad-input" or "corrupt", naming `where`. */
export const decodeItem = (value: unknown, where: string): StoreItem => {
  const { kind, data } = (value ?? {}) as StoreItem;
  if (!isObject(data)) return checkedItem(value as StoreItem, where);
  if (kind === "span") return checkedItem({ kind, data: decodeSpan(data, where) }, where);
  if (kind === "resource") return checkedItem({ kind, data: { ...data, files: decodeFiles(data.files, where) } as Resource }, where);
  return checkedItem({ kind, data } as StoreItem, where);
};

// Attributes in OTLP's JSON (opentelemetry-proto 1.x, common.proto: AnyValue, KeyValue) and back.
//
//   null → {} · text → stringValue · boolean → boolValue · list → arrayValue · object → kvlistValue
//   a number: intValue as decimal text where it is a safe integer, else doubleValue
//   the three arrays of a model call: bytesValue (base64, little-endian) or arrayValue, as asked; their names say their type
//   any other typed array: a kvlistValue of one bytesValue named $i32 or $f32
//   bytesValue of others: {"$bytes":"<base64>"}, and back
//
// Reading also takes what others write: intValue as a number, doubleValue as text. An integer too large for a number, and a
// NaN, become text: a store keeps neither.

import { decodeAttributes, encodeAttributes, webBase64 } from "../attributeCodec.ts";
import { ATTRIBUTES } from "../attributes.ts";
import { TraceError } from "../errors.ts";
import type { Attributes, AttributeValue, Json } from "../vocabulary.ts";

export interface AnyValue {
  readonly stringValue?: string;
  readonly boolValue?: boolean;
  readonly intValue?: string | number;
  readonly doubleValue?: number | string;
  readonly arrayValue?: { readonly values?: readonly AnyValue[] };
  readonly kvlistValue?: { readonly values?: readonly KeyValue[] };
  /** Base64. */
  readonly bytesValue?: string;
}

export interface KeyValue {
  readonly key: string;
  readonly value?: AnyValue;
}

/** How the arrays of a model call travel: not at all, as bytes, or as lists of numbers. */
export type Arrays = "omit" | "bytes" | "lists";

const MARK_OF: ReadonlyMap<string, "$i32" | "$f32"> = new Map([
  [ATTRIBUTES.promptTokens, "$i32"],
  [ATTRIBUTES.responseTokens, "$i32"],
  [ATTRIBUTES.samplerLogprobs, "$f32"],
]);

const bad = (where: string, rule: string, got: unknown): never => {
  throw new TraceError("bad-input", `${where}: ${rule}, got ${String(JSON.stringify(got)).slice(0, 60)}; correct the exporter`);
};

const isTyped = (value: AttributeValue): value is Int32Array | Float32Array => value instanceof Int32Array || value instanceof Float32Array;

/** Base64 of the elements, as attributeCodec.ts writes them. */
const bytesOf = (value: Int32Array | Float32Array): { mark: "$i32" | "$f32"; base64: string } => {
  const mark = value instanceof Int32Array ? "$i32" : "$f32";
  const { array } = encodeAttributes({ array: value }, webBase64) as { array: Record<string, string> };
  return { mark, base64: array[mark] as string };
};

const arrayOf = (mark: "$i32" | "$f32", base64: string, where: string): AttributeValue => {
  try {
    return decodeAttributes({ array: { [mark]: base64 } }, webBase64, where).array as AttributeValue;
  } catch (error) {
    throw error instanceof TraceError ? new TraceError("bad-input", error.message) : error;
  }
};

// ---- out ------------------------------------------------------------------------------------------------------------------

const toNumber = (value: number): AnyValue => (Number.isSafeInteger(value) ? { intValue: String(value) } : { doubleValue: value });

const toAny = (value: Json): AnyValue => {
  if (value === null) return {};
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  if (typeof value === "number") return toNumber(value);
  if (Array.isArray(value)) return { arrayValue: { values: value.map(toAny) } };
  const { $bytes } = value as { readonly $bytes?: Json };
  if (typeof $bytes === "string" && Object.keys(value).length === 1) return { bytesValue: $bytes };
  return { kvlistValue: { values: Object.entries(value).map(([key, item]) => ({ key, value: toAny(item) })) } };
};

const toTyped = (name: string, value: Int32Array | Float32Array, arrays: Arrays): AnyValue => {
  const { mark, base64 } = bytesOf(value);
  if (MARK_OF.get(name) !== mark) return { kvlistValue: { values: [{ key: mark, value: { bytesValue: base64 } }] } };
  if (arrays === "bytes") return { bytesValue: base64 };
  return { arrayValue: { values: Array.from(value, (item) => (mark === "$f32" ? { doubleValue: item } : toNumber(item))) } };
};

export const toKeyValues = (attributes: Attributes, arrays: Arrays): KeyValue[] =>
  Object.entries(attributes).flatMap(([key, value]) => {
    if (!isTyped(value)) return [{ key, value: toAny(value) }];
    return arrays === "omit" ? [] : [{ key, value: toTyped(key, value, arrays) }];
  });

// ---- in -------------------------------------------------------------------------------------------------------------------

/** No sender of ours nests deeper, and a sender that means harm could. */
const DEEPEST = 64;

const fromInt = (value: string | number, where: string): Json => {
  if (typeof value === "number") return Number.isSafeInteger(value) ? value + 0 : String(value);
  if (typeof value !== "string" || !/^-?\d{1,20}$/.test(value)) return bad(where, "intValue is an integer", value);
  return Number.isSafeInteger(Number(value)) ? Number(value) + 0 : value;
};

const fromAny = (value: AnyValue | null | undefined, where: string, depth = 0): Json => {
  if (value === undefined || value === null) return null;
  if (typeof value !== "object") return bad(where, "a value is an object", value);
  if (depth > DEEPEST) return bad(where, `at most ${DEEPEST} values within each other`, "more");
  if (value.stringValue !== undefined) return String(value.stringValue);
  if (value.boolValue !== undefined) return value.boolValue === true;
  if (value.intValue !== undefined) return fromInt(value.intValue, where);
  if (value.doubleValue !== undefined) {
    const number = Number(value.doubleValue);
    return Number.isFinite(number) ? number + 0 : String(value.doubleValue);
  }
  if (value.arrayValue !== undefined)
    return listOf(value.arrayValue?.values, where).map((item) => fromAny(item as AnyValue, where, depth + 1));
  if (value.kvlistValue !== undefined)
    return Object.fromEntries(
      pairsOf(value.kvlistValue?.values, where).map(([key, item]) => [key, fromAny(item, `${where}.${key}`, depth + 1)]),
    );
  if (value.bytesValue !== undefined) return { $bytes: String(value.bytesValue) };
  return null;
};

const listOf = (value: unknown, where: string): readonly unknown[] =>
  value === undefined || value === null ? [] : Array.isArray(value) ? value : bad(where, "values is a list", value);

const pairsOf = (value: unknown, where: string): [string, AnyValue | undefined][] =>
  listOf(value, where).map((pair) => {
    const { key, value: item } = (pair ?? {}) as Partial<KeyValue>;
    return typeof key === "string" ? [key, item] : bad(where, "an attribute has a key", pair);
  });

const isNumbers = (value: Json): value is readonly number[] => Array.isArray(value) && value.every((item) => typeof item === "number");

const fromNamed = (name: string, value: AnyValue | undefined, where: string): AttributeValue => {
  const mark = MARK_OF.get(name);
  if (mark !== undefined && typeof value?.bytesValue === "string") return arrayOf(mark, value.bytesValue, where);
  const only = value?.kvlistValue?.values?.length === 1 ? value.kvlistValue.values[0] : undefined;
  if ((only?.key === "$i32" || only?.key === "$f32") && typeof only.value?.bytesValue === "string")
    return arrayOf(only.key, only.value.bytesValue, where);
  const plain = fromAny(value, where);
  if (mark === undefined || !isNumbers(plain)) return plain;
  if (mark === "$f32") return Float32Array.from(plain);
  const strange = plain.find((item) => !Number.isInteger(item) || Math.abs(item) > 2 ** 31 - 1);
  return strange === undefined ? Int32Array.from(plain) : bad(where, "token ids are integers of 32 bits", strange);
};

/** The last of a repeated key wins. @throws TraceError "bad-input". */
export const fromKeyValues = (pairs: unknown, where: string): Attributes =>
  Object.fromEntries(pairsOf(pairs, where).map(([key, value]) => [key, fromNamed(key, value, `${where}.${key}`)]));

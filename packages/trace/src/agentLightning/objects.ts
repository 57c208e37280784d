// JSON objects that are read with care, and the difference between two of them as a patch.

import { encodeAttributes, webBase64 } from "../attributeCodec.ts";
import { sameJson } from "../values.ts";
import type { AttributeValue, Json } from "../vocabulary.ts";
import type { JsonObject } from "./shapes.ts";

export const isObject = (value: unknown): value is JsonObject => typeof value === "object" && value !== null && !Array.isArray(value);
export const objectOf = (value: unknown): JsonObject => (isObject(value) ? value : {});
export const without = (object: JsonObject, ...names: readonly string[]): JsonObject =>
  Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name)));
export const present = (object: Readonly<Record<string, Json | undefined>>): JsonObject =>
  Object.fromEntries(Object.entries(object).filter((entry): entry is [string, Json] => entry[1] !== undefined));
export const numberOf = (value: unknown): number | undefined => (typeof value === "number" && Number.isFinite(value) ? value : undefined);

/** What must be set and dropped to make `wanted` of `got`. */
export const difference = (wanted: JsonObject, got: JsonObject): JsonObject | undefined => {
  const set = Object.fromEntries(
    Object.entries(wanted).filter(([name, value]) => !(Object.hasOwn(got, name) && sameJson(value, got[name]))),
  );
  const drop = Object.keys(got).filter((name) => !Object.hasOwn(wanted, name));
  return Object.keys(set).length + drop.length === 0 ? undefined : { set, drop };
};

export const patched = (got: JsonObject, patch: Json | undefined): JsonObject => {
  const { set, drop } = objectOf(patch);
  return { ...without(got, ...(Array.isArray(drop) ? (drop as string[]) : [])), ...objectOf(set) };
};

/** A value where JSON is due: a typed array, which nobody has put there on purpose, as attributeCodec.ts writes it. */
export const jsonOf = (value: AttributeValue | undefined): Json | undefined =>
  value instanceof Int32Array || value instanceof Float32Array ? encodeAttributes({ value }, webBase64).value : value;

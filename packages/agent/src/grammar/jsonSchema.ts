// A JSON Schema (draft 2020-12, the part that model servers constrain by) → the texts of its values, as a regular expression.
// Objects are closed and keep the order of `properties`; after "," and ":" one space is allowed, elsewhere none. Where no schema says
// what a value is, it may be any JSON of at most ANY_DEPTH levels: a finite automaton cannot count further.
// A keyword that would restrict more than this can is refused by name; annotations are passed over.

import { type CharSet, type Element, isDisjointWith, NFA, type NoParent } from "refa";
import { AgentError } from "../errors.ts";
import { anyOf, characters, charSet, type Expression, LAST_CHARACTER, optional, repeated, sequence, text } from "./expression.ts";
import { regexExpression } from "./regex.ts";

const ANY_DEPTH = 3;

type Schema = Readonly<Record<string, unknown>>;

const ANNOTATIONS = new Set([
  ...["$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated"],
  ...["readOnly", "writeOnly", "format", "strict", "contentMediaType"],
]);
const KEYWORDS: Readonly<Record<string, readonly string[]>> = {
  object: ["properties", "required", "additionalProperties"],
  array: ["items", "prefixItems", "minItems", "maxItems"],
  string: ["pattern", "minLength", "maxLength"],
  number: [],
  integer: [],
  boolean: [],
  null: [],
};
const ALL_TYPES = Object.keys(KEYWORDS);

const digit = characters(charSet([0x30, 0x39]));
const INTEGER = sequence(optional(text("-")), anyOf(text("0"), sequence(characters(charSet([0x31, 0x39])), repeated(digit, 0))));
const NUMBER = sequence(
  INTEGER,
  optional(sequence(text("."), repeated(digit, 1))),
  optional(sequence(anyOf(text("e"), text("E")), optional(anyOf(text("+"), text("-"))), repeated(digit, 1))),
);
/** What stands for itself inside a JSON string: no quote, no backslash, no control character, no half of a surrogate pair. */
const PLAIN: CharSet = charSet([0x20, 0x21], [0x23, 0x5b], [0x5d, 0xd7ff], [0xe000, LAST_CHARACTER]);
const hex = characters(charSet([0x30, 0x39], [0x41, 0x46], [0x61, 0x66]));
const CHARACTER = anyOf(
  characters(PLAIN),
  sequence(text("\\"), anyOf(...Array.from('"\\/bfnrt', text), sequence(text("u"), repeated(hex, 4, 4)))),
);
const STRING = sequence(text('"'), repeated(CHARACTER, 0), text('"'));
const COMMA = sequence(text(","), optional(text(" ")));
const COLON = sequence(text(":"), optional(text(" ")));

const list = (item: Expression, min = 0, max: number = Number.POSITIVE_INFINITY): Expression => {
  if (max === 0) return text("[]");
  const some = sequence(item, repeated(sequence(COMMA, item), Math.max(min - 1, 0), max - 1));
  return sequence(text("["), min > 0 ? some : optional(some), text("]"));
};

const anyObject = (value: Expression): Expression => {
  const member = sequence(STRING, COLON, value);
  return sequence(text("{"), optional(sequence(member, repeated(sequence(COMMA, member), 0))), text("}"));
};

const anyValue = (depth: number): Expression => {
  const scalars = [STRING, NUMBER, text("true"), text("false"), text("null")];
  if (depth === 0) return anyOf(...scalars);
  const inner = anyValue(depth - 1);
  return anyOf(...scalars, list(inner), anyObject(inner));
};

/** The pattern's texts as they stand inside a JSON string: quotes and backslashes escaped, control characters left out. */
const escaped = ({ elements }: Expression): Expression => ({
  type: "Concatenation",
  elements: elements.map((element): NoParent<Element> => {
    if (element.type === "CharacterClass") {
      const forms = [characters(element.characters.intersect(PLAIN))];
      for (const [code, form] of [
        [0x22, '\\"'],
        [0x5c, "\\\\"],
      ] as const)
        if (element.characters.has(code)) forms.push(text(form));
      return { type: "Alternation", alternatives: forms };
    }
    if (element.type === "Alternation" || element.type === "Quantifier")
      return { ...element, alternatives: element.alternatives.map((part) => escaped(part as Expression)) };
    return element;
  }),
});

/** @throws AgentError "bad-request" naming the place of what is not supported. */
export const jsonSchemaExpression = (root: unknown, where: string): Expression => {
  const refuse = (at: string, rule: string, got: unknown, next: string): never => {
    const shown = JSON.stringify(got) ?? String(got);
    throw new AgentError("bad-request", `${at}: ${rule}, got ${shown.length > 200 ? `${shown.slice(0, 200)}…` : shown}; ${next}`, {
      param: at,
    });
  };
  const count = (schema: Schema, key: string, at: string, absent: number): number => {
    const value = schema[key] ?? absent;
    if (value !== absent && (!Number.isInteger(value) || (value as number) < 0))
      refuse(`${at}.${key}`, "must be a non-negative integer", value, "see the JSON Schema specification");
    return value as number;
  };
  const decoded = (part: string, at: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      return refuse(at, "must be percent-encoded as in a URL", part, "encode % as %25");
    }
  };
  const lookUp = (pointer: string, at: string): unknown => {
    if (!pointer.startsWith("#")) refuse(at, "only references into the same schema (#/…) are followed", pointer, "write it out");
    let found: unknown = root;
    for (const part of pointer.slice(1).split("/").slice(1)) {
      const key = decoded(part, at).replaceAll("~1", "/").replaceAll("~0", "~");
      found = typeof found === "object" && found !== null && Object.hasOwn(found, key) ? (found as Schema)[key] : undefined;
    }
    return found ?? refuse(at, "must point at a part of the schema", pointer, "define it under $defs");
  };

  const objectOf = (schema: Schema, at: string, open: readonly unknown[]): Expression => {
    const { properties, required = [], additionalProperties } = schema;
    if (additionalProperties !== undefined && typeof additionalProperties !== "boolean")
      refuse(`${at}.additionalProperties`, "must be true or false", additionalProperties, "name the properties");
    if (properties === undefined) return additionalProperties === false ? text("{}") : anyObject(anyValue(ANY_DEPTH - 1));
    if (typeof properties !== "object" || properties === null || !Array.isArray(required))
      return refuse(at, "properties must be an object and required a list", schema, "see the JSON Schema specification");
    const names = Object.keys(properties);
    const stray = required.find((name) => !names.includes(name));
    if (stray !== undefined) refuse(`${at}.required`, "must name declared properties", stray, "declare it under properties");
    // `after`: the rest when a member stands before it · `fresh`: the rest when none does, so that no comma leads
    let after = sequence();
    let fresh = sequence();
    for (const name of names.toReversed()) {
      const value = expressionOf((properties as Schema)[name], `${at}.properties.${name}`, open);
      const member = sequence(text(JSON.stringify(name)), COLON, value);
      const isRequired = required.includes(name);
      const begun = sequence(member, after);
      fresh = isRequired ? begun : anyOf(begun, fresh);
      after = sequence(isRequired ? sequence(COMMA, member) : optional(sequence(COMMA, member)), after);
    }
    return sequence(text("{"), fresh, text("}"));
  };

  const arrayOf = (schema: Schema, at: string, open: readonly unknown[]): Expression => {
    const min = count(schema, "minItems", at, 0);
    const max = count(schema, "maxItems", at, Number.POSITIVE_INFINITY);
    if (max < min) refuse(`${at}.maxItems`, `must be ≥ minItems (${min})`, max, "no array has both");
    const { items, prefixItems } = schema;
    if (prefixItems === undefined)
      return list(items === undefined ? anyValue(ANY_DEPTH - 1) : expressionOf(items, `${at}.items`, open), min, max);
    if (!Array.isArray(prefixItems) || (items !== undefined && items !== false) || min > prefixItems.length || max < prefixItems.length)
      return refuse(`${at}.prefixItems`, "a tuple has exactly its prefixItems", schema, "leave items, minItems and maxItems out");
    const parts = prefixItems.map((item, i) => expressionOf(item, `${at}.prefixItems[${i}]`, open));
    return sequence(text("["), ...parts.flatMap((part, i) => (i === 0 ? [part] : [COMMA, part])), text("]"));
  };

  const stringOf = (schema: Schema, at: string): Expression => {
    const min = count(schema, "minLength", at, 0);
    const max = count(schema, "maxLength", at, Number.POSITIVE_INFINITY);
    const { pattern } = schema;
    if (pattern === undefined) return sequence(text('"'), repeated(CHARACTER, min, max), text('"'));
    if (typeof pattern !== "string" || min > 0 || max < Number.POSITIVE_INFINITY)
      return refuse(`${at}.pattern`, "a pattern is text and says the length itself", schema, "leave minLength and maxLength out");
    return sequence(text('"'), escaped(regexExpression(pattern, `${at}.pattern`)), text('"'));
  };

  const typeOf = (type: string, schema: Schema, at: string, open: readonly unknown[]): Expression => {
    switch (type) {
      case "object":
        return objectOf(schema, at, open);
      case "array":
        return arrayOf(schema, at, open);
      case "string":
        return stringOf(schema, at);
      case "number":
        return NUMBER;
      case "integer":
        return INTEGER;
      case "boolean":
        return anyOf(text("true"), text("false"));
      case "null":
        return text("null");
      default:
        return refuse(`${at}.type`, `must be one of ${ALL_TYPES.join(", ")}`, type, "see the JSON Schema specification");
    }
  };

  const alternatives = (key: "anyOf" | "oneOf", schema: Schema, at: string, open: readonly unknown[]): Expression => {
    const parts = schema[key];
    if (!Array.isArray(parts) || parts.length === 0)
      return refuse(`${at}.${key}`, "must be a list with entries", parts, "see the JSON Schema specification");
    const found = parts.map((part, i) => expressionOf(part, `${at}.${key}[${i}]`, open));
    if (key === "oneOf") {
      const automata = found.map((part) => NFA.fromRegex(part, { maxCharacter: LAST_CHARACTER }));
      for (const [i, one] of automata.entries())
        for (const other of automata.slice(i + 1))
          if (!isDisjointWith(one, other))
            refuse(`${at}.oneOf`, "its schemas must share no value", schema, "use anyOf, or give each a property with a const of its own");
    }
    return anyOf(...found);
  };

  const expressionOf = (schema: unknown, at: string, open: readonly unknown[]): Expression => {
    if (schema === true) return anyValue(ANY_DEPTH);
    if (typeof schema !== "object" || schema === null || Array.isArray(schema))
      return refuse(at, "must be a JSON Schema object", schema, "see the JSON Schema specification");
    if (open.includes(schema))
      return refuse(
        at,
        "a schema must not contain itself: the texts would need more than a finite automaton",
        "a recursive $ref",
        "unroll it",
      );
    const inner = [...open, schema];
    const given = schema as Schema;
    const allow = (...keywords: readonly string[]): void => {
      const unknown = Object.keys(given).find((key) => !ANNOTATIONS.has(key) && !keywords.includes(key));
      if (unknown !== undefined)
        refuse(`${at}.${unknown}`, "is not supported as a constraint", given[unknown], "leave it out and check the answer afterwards");
    };
    if (given.$ref !== undefined) {
      allow("$ref");
      return expressionOf(lookUp(String(given.$ref), `${at}.$ref`), at, inner);
    }
    if (given.const !== undefined) {
      allow("const", "type");
      return text(JSON.stringify(given.const));
    }
    if (given.enum !== undefined) {
      allow("enum", "type");
      if (!Array.isArray(given.enum) || given.enum.length === 0)
        refuse(`${at}.enum`, "must be a list with entries", given.enum, "see the JSON Schema specification");
      return anyOf(...(given.enum as unknown[]).map((value) => text(JSON.stringify(value))));
    }
    for (const key of ["anyOf", "oneOf"] as const) {
      if (given[key] === undefined) continue;
      allow(key);
      return alternatives(key, given, at, inner);
    }
    if (given.type === undefined) {
      const type = ALL_TYPES.find((name) => KEYWORDS[name]?.some((key) => Object.hasOwn(given, key)));
      if (type === undefined) {
        allow();
        return anyValue(ANY_DEPTH);
      }
      return expressionOf({ ...given, type }, at, open);
    }
    const types = Array.isArray(given.type) ? (given.type as string[]) : [given.type as string];
    allow("type", ...types.flatMap((type) => KEYWORDS[type] ?? []));
    return anyOf(...types.map((type) => typeOf(type, given, at, inner)));
  };

  return expressionOf(root, where, []);
};

/** Any JSON object of at most ANY_DEPTH levels: response_format "json_object". */
export const jsonObjectExpression = (): Expression => anyObject(anyValue(ANY_DEPTH - 1));

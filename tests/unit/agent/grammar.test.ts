import { readFile } from "node:fs/promises";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { loadChatFormat } from "../../../packages/agent/src/chatFormat.ts";
import { AgentError } from "../../../packages/agent/src/errors.ts";
import { type Automaton, compileAutomaton, type Place } from "../../../packages/agent/src/grammar/automaton.ts";
import { jsonObjectExpression, jsonSchemaExpression } from "../../../packages/agent/src/grammar/jsonSchema.ts";
import { regexExpression } from "../../../packages/agent/src/grammar/regex.ts";
import { createTokenGrammar, toVocabulary } from "../../../packages/agent/src/grammar/tokenMask.ts";

const accepts = (automaton: Automaton, text: string | Uint8Array): boolean => {
  let place: Place | undefined = automaton.start;
  for (const byte of typeof text === "string" ? new TextEncoder().encode(text) : text) place = place && automaton.step(place, byte);
  return place !== undefined && automaton.isEnd(place);
};
const regex = (pattern: string): Automaton => compileAutomaton(regexExpression(pattern, "regex"), "regex");
const schema = (value: unknown): Automaton => compileAutomaton(jsonSchemaExpression(value, "schema"), "schema");

describe("a regular expression", () => {
  test("is matched whole, as JavaScript matches it", () => {
    const patterns = ["a|bc", "(ab)*c?", "[0-9]{3}-[a-f]+", "é|€|😀", "[^x]y", "^\\d+\\$$", "\\p{L}{2}"];
    const alphabet = fc.string({ unit: fc.constantFrom(..."abcxy0123-é€😀$Ж"), maxLength: 6 });
    for (const pattern of patterns) {
      const automaton = regex(pattern);
      const native = new RegExp(`^(?:${pattern})$`, "u");
      fc.assert(fc.property(alphabet, (text) => accepts(automaton, text) === native.test(text)));
    }
    expect(accepts(regex("[0-9]{3}-[a-f]+"), "123-abc")).toBe(true);
    expect(accepts(regex("\\p{L}{2}"), "éЖ")).toBe(true);
  });

  test("takes no bytes that are not UTF-8", () => {
    const any = regex("(?:.|\\n)*");
    const decoder = new TextDecoder("utf-8", { fatal: true });
    const isUtf8 = (bytes: Uint8Array): boolean => {
      try {
        decoder.decode(bytes);
        return true;
      } catch {
        return false;
      }
    };
    const byte = fc.oneof(
      fc.integer({ min: 0, max: 255 }),
      fc.constantFrom(0xe0, 0x9f, 0xa0, 0xed, 0xf0, 0x8f, 0x90, 0xf4, 0x80, 0xbf, 0xc0),
    );
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 5 }), (bytes) => {
        const given = Uint8Array.from(bytes);
        // "\r", "\u2028" and "\u2029" are what . leaves out
        const text = new TextDecoder().decode(given);
        if (/[\r\u2028\u2029]/.test(text)) return;
        expect(accepts(any, given)).toBe(isUtf8(given));
      }),
      { numRuns: 2000 },
    );
  });

  test("that needs more than a finite automaton is refused", () => {
    expect(() => regex("(a*)b\\1")).toThrow("regex: must be a regular expression that a finite automaton can match");
    expect(() => regex("a(?=b)")).toThrow("finite automaton");
    expect(() => regex("(")).toThrow("rewrite the pattern");
    expect(() => regex("a\\bb")).toThrow();
    expect(() => regex("(a{1000}){1000}")).toThrow("must fit in an automaton of 50000 states");
    expect(() => regex("[]")).toThrow("must match some text");
  });
});

describe("a JSON Schema", () => {
  const person = {
    type: "object",
    properties: {
      name: { type: "string" },
      age: { type: ["integer", "null"] },
      tags: { type: "array", items: { enum: ["a", "b"] }, maxItems: 2 },
    },
    required: ["name", "tags"],
    additionalProperties: false,
  };

  test("takes what it describes, in the order of its properties", () => {
    const automaton = schema(person);
    for (const good of ['{"name":"x","age":3,"tags":[]}', '{"name": "é\\n😀", "tags": ["a", "b"]}', '{"name":"","age":null,"tags":["b"]}'])
      expect(accepts(automaton, good), good).toBe(true);
    for (const bad of [
      '{"age":3,"name":"x","tags":[]}',
      '{"name":"x"}',
      '{"name":"x","age":1.5,"tags":[]}',
      '{"name":"x","tags":["a","b","a"]}',
      '{"name":"x","tags":["c"]}',
      '{"name":"x","tags":[],"more":1}',
      '{"name":"a"b","tags":[]}',
      '{,"name":"x","tags":[]}',
    ])
      expect(accepts(automaton, bad), bad).toBe(false);
  });

  test("with optional properties takes every selection of them and no stray comma", () => {
    const automaton = schema({ type: "object", properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } } });
    for (let picked = 0; picked < 8; picked++) {
      const members = ["a", "b", "c"].flatMap((name, i) => ((picked >> i) & 1 ? [`"${name}":${i + 1}`] : []));
      expect(accepts(automaton, `{${members.join(",")}}`)).toBe(true);
      expect(accepts(automaton, `{,${members.join(",")}}`)).toBe(false);
      expect(accepts(automaton, `{${members.join(",")},}`)).toBe(false);
    }
  });

  test("numbers, strings and any value are those of JSON", () => {
    const [number, string, value] = [schema({ type: "number" }), schema({ type: "string" }), schema({})];
    fc.assert(fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (x) => accepts(number, JSON.stringify(x))));
    fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => accepts(string, JSON.stringify(text).toWellFormed())));
    fc.assert(fc.property(fc.jsonValue({ maxDepth: 3 }), (json) => accepts(value, JSON.stringify(json).toWellFormed())));
    for (const text of ["01", "1.", "+1", ".5", "1e", "NaN", "--1"]) expect(accepts(number, text), text).toBe(false);
    // whatever is taken can be parsed
    for (const text of ['"\n"', '"a\\x"', '"\\u12g4"', "'a'"]) expect(accepts(string, text), text).toBe(false);
    expect(accepts(value, "[[[[1]]]]")).toBe(false);
    expect(accepts(compileAutomaton(jsonObjectExpression(), "x"), '{"a": [1, {"b": null}]}')).toBe(true);
    expect(accepts(compileAutomaton(jsonObjectExpression(), "x"), "[1]")).toBe(false);
  });

  test("follows references, alternatives, tuples and patterns", () => {
    const automaton = schema({
      $defs: { id: { type: "string", pattern: '^[A-Z]{2}"?\\d$' } },
      type: "object",
      properties: {
        id: { $ref: "#/$defs/id" },
        point: { type: "array", prefixItems: [{ type: "integer" }, { type: "boolean" }] },
        kind: { anyOf: [{ const: "a" }, { type: "null" }] },
      },
      required: ["id", "point", "kind"],
    });
    expect(accepts(automaton, '{"id": "AB7", "point": [1, true], "kind": "a"}')).toBe(true);
    expect(accepts(automaton, '{"id":"AB\\"7","point":[1,true],"kind":null}')).toBe(true);
    expect(accepts(automaton, '{"id":"AB"7","point":[1,true],"kind":null}')).toBe(false);
    expect(accepts(automaton, '{"id":"AB7","point":[1],"kind":null}')).toBe(false);
    expect(accepts(schema({ oneOf: [{ const: 1 }, { type: "string" }] }), '"x"')).toBe(true);
  });

  test("that cannot be kept is refused by the place and the keyword", () => {
    const recursive = { $defs: { tree: { type: "object", properties: { left: { $ref: "#/$defs/tree" } } } }, $ref: "#/$defs/tree" };
    expect(() => schema(recursive)).toThrow("schema.properties.left: a schema must not contain itself");
    expect(() => schema({ type: "integer", minimum: 3 })).toThrow("schema.minimum: is not supported as a constraint, got 3");
    expect(() => schema({ type: "object", properties: { a: { type: "text" } } })).toThrow(
      "schema.properties.a.type: must be one of object",
    );
    expect(() => schema({ oneOf: [{ type: "integer" }, { type: "number" }] })).toThrow("schema.oneOf: its schemas must share no value");
    expect(() => schema({ $ref: "other.json" })).toThrow("only references into the same schema");
    expect(() => schema({ $ref: "#/%" })).toThrow("must be percent-encoded");
    expect(() => schema({ $ref: "#/$defs/none" })).toThrow("must point at a part of the schema");
    expect(() => schema(7)).toThrow("schema: must be a JSON Schema object, got 7");
    expect(() => schema({ type: "object", required: ["a"], properties: {} })).toThrow("must name declared properties");
  });

  test("whatever a schema is, the answer is an automaton or an error of its own", () => {
    fc.assert(
      fc.property(
        fc.jsonValue({ maxDepth: 4 }),
        fc.constantFrom("type", "properties", "items", "anyOf", "enum", "$ref", "pattern"),
        (json, key) => {
          try {
            schema({ [key]: json });
          } catch (error) {
            if (!(error instanceof AgentError)) throw error;
          }
        },
      ),
    );
  });
});

describe("a grammar over the built-in policy's tokens", async () => {
  const folder = new URL("../../../packages/spark/model/", import.meta.url);
  const read = (name: string): Promise<string> => readFile(new URL(name, folder), "utf8");
  const format = loadChatFormat({
    tokenizer: await read("tokenizer.json"),
    tokenizerConfig: await read("tokenizer_config.json"),
    chatTemplate: await read("chat_template.jinja"),
    config: await read("config.json"),
  });
  const vocabulary = toVocabulary(format);
  const allowed = (mask: Uint32Array): number[] =>
    Array.from({ length: format.vocabSize }, (_, id) => id).filter((id) => (mask[id >> 5]! >>> (id & 31)) & 1);

  test("every walk along allowed tokens ends in a value of the schema", () => {
    const automaton = schema({
      type: "object",
      properties: { city: { type: "string", maxLength: 6 }, n: { type: "integer" }, ok: { type: "boolean" } },
      required: ["city", "n"],
    });
    const grammar = createTokenGrammar(automaton, vocabulary, format, 1024);
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat()), (choices) => {
        const walk = grammar.begin();
        const tokens: number[] = [];
        for (let i = 0; i < 400; i++) {
          const ids = allowed(walk.mask());
          expect(ids.length).toBeGreaterThan(0);
          const stop = ids.find((id) => format.stopTokens.includes(id));
          const id = stop !== undefined ? stop : (ids[choices.next().value! % ids.length] as number);
          walk.push(id);
          if (id === stop) break;
          tokens.push(id);
          if (i > 40) return; // a number may go on for ever
        }
        const value = JSON.parse(format.decode(tokens)) as { city: unknown; n: unknown };
        expect(typeof value.city).toBe("string");
        expect(Number.isInteger(value.n)).toBe(true);
      }),
    );
  });

  test("a stop token may come where the text may end and nowhere else, and special tokens never", () => {
    const grammar = createTokenGrammar(regex("ab?"), vocabulary, format, 1024);
    const walk = grammar.begin();
    const [a] = format.encode("a");
    const stop = format.stopTokens[0] as number;
    expect(allowed(walk.mask()).includes(stop)).toBe(false);
    walk.push(a as number);
    const ids = allowed(walk.mask());
    expect(ids).toContain(stop);
    expect(ids.map((id) => (id === stop ? "" : format.decode([id])))).toEqual(expect.arrayContaining(["", "b"]));
    expect(ids).toHaveLength(2);
    expect(() => walk.push(a as number)).toThrow(`takes allowed tokens, got ${a}`);
  });
});

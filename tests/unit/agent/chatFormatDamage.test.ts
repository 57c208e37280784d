// Damaged files of a model's folder: loadChatFormat refuses them with an AgentError, or what it returns works. Never another error, no hang.

import { AgentError, type ChatFormat, type ChatFormatFiles, loadChatFormat } from "@fulgurite/agent";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { STYLES, styleFiles } from "../../golden/templateFiles.ts";

const MESSAGES = [
  { role: "user" as const, text: "a  é\n12 ٣ 🦊<|im_end|>" },
  { role: "assistant" as const, text: "b", calls: [{ id: "call00001", name: "f", arguments: "{}" }] },
];

/** Every door of a format; render alone may refuse. */
const use = (format: ChatFormat): void => {
  const ids = format.encode("I'm  é\n12 ٣ 🦊 <s>");
  expect(ids.every((id) => id >= 0 && id < format.vocabSize)).toBe(true);
  expect(typeof format.decode(ids)).toBe("string");
  expect(typeof format.decode([0, format.vocabSize - 1, format.vocabSize])).toBe("string");
  for (const id of [0, 300, format.vocabSize - 1, format.vocabSize]) format.tokenBytes?.(id);
  for (const tools of [[], [{ name: "f" }]]) {
    try {
      expect(typeof format.render({ messages: MESSAGES, tools }, { addGenerationPrompt: true })).toBe("string");
    } catch (error) {
      expect(error).toBeInstanceOf(AgentError);
      expect((error as AgentError).code).toBe("template-refused");
    }
  }
};

/** Whether it was refused. */
const survives = (files: ChatFormatFiles): boolean => {
  let format: ChatFormat;
  try {
    format = loadChatFormat(files);
  } catch (error) {
    expect(error).toBeInstanceOf(AgentError);
    expect((error as AgentError).code).toBe("bad-format");
    return true;
  }
  use(format);
  return false;
};

const flipped = (text: string, flips: readonly (readonly [number, number])[]): string => {
  const bytes = new TextEncoder().encode(text);
  for (const [at, bit] of flips) bytes[at % bytes.length]! ^= 1 << bit;
  return new TextDecoder().decode(bytes);
};

/** Every place of a JSON value, but of long lists and tables only the first and the last. */
const placesOf = (value: unknown, path: readonly string[] = []): (readonly string[])[] => {
  if (typeof value !== "object" || value === null) return [path];
  const keys = Object.keys(value);
  const some = keys.length > (Array.isArray(value) ? 2 : 20) ? [keys[0]!, keys.at(-1)!] : keys;
  return [path, ...some.flatMap((key) => placesOf((value as Record<string, unknown>)[key], [...path, key]))];
};

const ABSENT = Symbol("absent");
const WRONG = [ABSENT, null, true, -1, 0.5, 1e9, "", "(", [null], { type: "x" }] as const;

/** A copy with one value changed. */
const changed = (value: unknown, path: readonly string[], wrong: unknown): unknown => {
  const [key, ...rest] = path;
  if (key === undefined) return wrong === ABSENT ? undefined : wrong;
  const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as Record<string, unknown>;
  if (rest.length === 0 && wrong === ABSENT) delete copy[key];
  else copy[key] = changed(copy[key], rest, wrong);
  return copy;
};

describe.each(STYLES)("%s", (style) => {
  const files = styleFiles(style);

  test("the files as they are work", () => expect(survives(files)).toBe(false));

  test.each(["tokenizer", "tokenizerConfig", "chatTemplate"] as const)("flipped bits in %s", (file) => {
    const flips = fc.array(fc.tuple(fc.nat({ max: files[file].length }), fc.nat({ max: 7 })), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(flips, (at) => {
        survives({ ...files, [file]: flipped(files[file], at) });
      }),
      { numRuns: 60 },
    );
  });

  test.each(["tokenizer", "tokenizerConfig", "chatTemplate"] as const)("%s cut short", (file) => {
    fc.assert(
      fc.property(fc.nat({ max: files[file].length - 3 }), (length) => {
        expect(survives({ ...files, [file]: files[file].slice(0, length) }) || file === "chatTemplate").toBe(true);
      }),
      { numRuns: 40 },
    );
  });

  test.each(["tokenizer", "tokenizerConfig"] as const)("a wrong value at every place of %s", (file) => {
    // a post-processor is not read
    const { post_processor: _, ...whole } = JSON.parse(files[file]) as Record<string, unknown>;
    const { chatTemplate, ...rest } = files;
    const refused = placesOf(whole).flatMap((path) =>
      WRONG.map((wrong) => survives({ ...rest, chatTemplate, [file]: (changed(whole, path, wrong) ?? "") as object })),
    );
    expect(refused.filter(Boolean).length).toBeGreaterThan(refused.length / 20);
  });
});

test("a template that is no text, or a list of none, is refused", () => {
  const { chatTemplate, tokenizerConfig, tokenizer } = styleFiles("qwen");
  const config = JSON.parse(tokenizerConfig) as object;
  for (const chat_template of [
    null,
    5,
    {},
    [],
    [null],
    [{ name: "default" }],
    [{ name: 1, template: chatTemplate }],
    "{% for %}",
    "{{ (",
  ]) {
    expect(survives({ tokenizer, tokenizerConfig: { ...config, chat_template } }), JSON.stringify(chat_template)).toBe(true);
  }
  expect(survives({ tokenizer, tokenizerConfig: { ...config, chat_template: chatTemplate } })).toBe(false);
});

test("what would encode to nothing or lose text is named", () => {
  const { tokenizer, ...rest } = styleFiles("qwen");
  const whole: unknown = JSON.parse(tokenizer);
  const load = (path: string, wrong: unknown) => () =>
    loadChatFormat({ ...rest, tokenizer: changed(whole, path.split("."), wrong) as object });
  expect(load("pre_tokenizer.pretokenizers.0.pattern", {})).toThrow(/pre_tokenizer/);
  expect(load("model.vocab.a", 1e9)).toThrow(/model\.vocab\["a"\] must be an id below/);
  expect(load("model.merges.3", ["a", "zzz"])).toThrow(/model\.merges\[3\] must be a pair that makes a token/);
  expect(load("pre_tokenizer.pretokenizers.1.pretokenizers", 5)).not.toThrow();
  let nest: object = { type: "NFC" };
  for (let depth = 0; depth < 20000; depth++) nest = { type: "Sequence", normalizers: [nest] };
  expect(load("normalizer", nest)).toThrow(AgentError);
  expect(load("model.unk_token", "x")).not.toThrow();
  expect(load("model.unk_token", "no such")).toThrow(/model\.unk_token must be a token of the vocabulary/);
});

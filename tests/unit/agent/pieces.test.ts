// Whatever was encoded before, a text has the ids that the library gives for the whole of it, for every way of cutting.
import { loadChatFormat } from "@fulgurite/agent";
import { Tokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { expect, test } from "vitest";
import { CHATML, tinyTokenizer } from "./scripted.ts";

type Fields = Record<string, unknown>;

const config = { eos_token: "<|im_end|>" };

/** ▁ for a space, single letters, and a few merges. */
const metaspace = (prepend_scheme: string): Fields => {
  const tokens = ["<unk>", "▁", ..."abcdefghijklmnopqrstuvwxyz<|>_\n ", "▁a", "ab", "▁ab"];
  return {
    ...(tinyTokenizer() as Fields),
    added_tokens: ["<|im_start|>", "<|im_end|>"].map((content, index) => ({ id: tokens.length + index, content, special: true })),
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme },
    decoder: { type: "Metaspace", replacement: "▁", prepend_scheme },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [
        ["▁", "a"],
        ["a", "b"],
        ["▁", "ab"],
      ],
    },
  };
};

const tiny = (change: (fields: Fields) => Fields = (fields) => fields): Fields => change(tinyTokenizer([["a", "b"]]) as Fields);
const added = (fields: Fields, more: readonly Fields[]): Fields => {
  const known = fields.added_tokens as Fields[];
  const first = 1 + Math.max(...known.map(({ id }) => id as number));
  return { ...fields, added_tokens: [...known, ...more.map((token, index) => ({ id: first + index, special: false, ...token }))] };
};
const withEach = (fields: Fields, more: Fields): Fields => ({
  ...fields,
  added_tokens: (fields.added_tokens as Fields[]).map((token) => ({ ...token, ...more })),
});

const tokenizers: [string, Fields][] = [
  ["bytes", tiny()],
  [
    "bytes, with a space before each piece",
    tiny((fields) => ({ ...fields, pre_tokenizer: { type: "ByteLevel", add_prefix_space: true } })),
  ],
  [
    "added tokens that are parts of each other",
    added(tiny(), [{ content: "<|" }, { content: "<|im_" }, { content: "im_start" }, { content: "ab" }]),
  ],
  ["added tokens that are normalized", { ...added(tiny(), [{ content: "AB", normalized: true }]), normalizer: { type: "Lowercase" } }],
  ["added tokens that eat what is before them", withEach(tiny(), { lstrip: true })],
  ["added tokens that eat what is after them", withEach(tiny(), { rstrip: true })],
  [
    "no added tokens but the last",
    { ...tiny(), added_tokens: (tiny().added_tokens as Fields[]).filter(({ content }) => content === "<|im_end|>") },
  ],
  ["Metaspace, each piece marked", metaspace("always")],
  ["Metaspace, the first piece marked", metaspace("first")],
  ["Metaspace, none marked", metaspace("never")],
];

const part = fc.constantFrom(
  ...[
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "start|>",
    "<|",
    "<",
    "|>",
    "<tool_call>",
    "ab",
    "AB",
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "é",
    "日",
    "🦊",
  ],
);

test.each(tokenizers)("%s: a text's ids are the library's, whatever was encoded before", (_, fields) => {
  const format = loadChatFormat({ tokenizer: fields, tokenizerConfig: config, chatTemplate: CHATML });
  const library = new Tokenizer(fields, config);
  fc.assert(
    fc.property(fc.array(part, { maxLength: 12 }), (parts) => {
      const text = parts.join("");
      const ids = text === "" ? [] : library.encode(text, { add_special_tokens: false }).ids;
      expect([...format.encode(text)]).toEqual(ids.map((id: number | undefined) => id ?? 0));
      expect([...format.encode(text)]).toEqual(ids.map((id: number | undefined) => id ?? 0)); // as remembered
    }),
    { numRuns: 200 },
  );
});

test("what is given out is the caller's: writing into it changes no later answer", () => {
  const format = loadChatFormat({ tokenizer: tiny(), tokenizerConfig: config, chatTemplate: CHATML });
  const whole = loadChatFormat({ tokenizer: metaspace("first"), tokenizerConfig: config, chatTemplate: CHATML });
  for (const { encode } of [format, whole]) {
    const first = encode("ab<|im_end|>");
    const kept = [...first];
    first.fill(7);
    expect([...encode("ab<|im_end|>")]).toEqual(kept);
  }
});

test("a conversation is rendered as the template says, also the second time; one that asks for the time is rendered anew", () => {
  const conversation = { messages: [{ role: "user", text: "hi" } as const], tools: [] };
  const format = loadChatFormat({ tokenizer: tiny(), tokenizerConfig: config, chatTemplate: CHATML });
  const text = format.render(conversation, { addGenerationPrompt: true });
  expect(text).toBe("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  expect(format.render(structuredClone(conversation), { addGenerationPrompt: true })).toBe(text);
  expect(format.render(conversation, { addGenerationPrompt: false })).toBe("<|im_start|>user\nhi<|im_end|>\n");
  expect(format.render({ ...conversation, tools: [{ name: "f" }] }, { addGenerationPrompt: false })).toContain("Tools:");
  const calls = (written: string) => ({
    messages: [{ role: "assistant", text: "", calls: [{ id: "c", name: "f", arguments: written }] } as const],
    tools: [],
  });
  expect(format.render(calls('{"n": -0}'), { addGenerationPrompt: false })).not.toBe(
    format.render(calls('{"n": 0.5}'), { addGenerationPrompt: false }),
  );
  const clock = loadChatFormat({ tokenizer: tiny(), tokenizerConfig: config, chatTemplate: "{{ strftime_now('%Y') }}" });
  const at = (iso: string): string => {
    const { Date: real } = globalThis;
    globalThis.Date = class extends real {
      constructor() {
        super(iso);
      }
    } as DateConstructor;
    try {
      return clock.render(conversation, { addGenerationPrompt: false });
    } finally {
      globalThis.Date = real;
    }
  };
  expect([at("2031-06-01T12:00:00Z"), at("2032-06-01T12:00:00Z")]).toEqual(["2031", "2032"]);
});

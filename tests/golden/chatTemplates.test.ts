// Text and ids of the five family styles against transformers: chats, hard texts, random ids, the bytes of tokens, small templates.
// templates.py made the files and says how. Where a package of Hugging Face differs from Python, a line here says how, with the smallest
// example; it fails when the package changes its mind.

import { AgentError, type ChatFormat, type Conversation, loadChatFormat, type Message } from "@fulgurite/agent";
import { describe, expect, test } from "vitest";
import { readTemplateFile, STYLES, type Style, styleFiles } from "./templateFiles.ts";

interface Decoded {
  readonly ids: readonly number[];
  readonly decoded: string;
}
type Rendered = { readonly text: string; readonly ids: readonly number[] } | { readonly refused: string };
interface Expected {
  readonly chats: Readonly<Record<string, { readonly closed: Rendered; readonly prompt: Rendered }>>;
  readonly texts: readonly Decoded[];
  readonly sequences: readonly Decoded[];
}
interface WrittenMessage {
  readonly role: Message["role"];
  readonly content: string;
  readonly name?: string;
  readonly tool_call_id?: string;
  readonly tool_calls?: readonly { readonly id: string; readonly function: { readonly name: string; readonly arguments: object } }[];
}
interface Chat {
  readonly messages: readonly WrittenMessage[];
  readonly tools?: readonly { readonly function: Conversation["tools"][number] }[];
}
interface Inputs {
  readonly texts: readonly string[];
  readonly chats: Readonly<Record<string, Chat>>;
  readonly printedWith: Chat & { readonly prelude: string };
  /** Template → what jinja2 prints. */
  readonly printed: Readonly<Record<string, string>>;
}

const inputs: Inputs = JSON.parse(readTemplateFile("inputs.json"));

/** The canonical form of a chat that transformers was given. */
const conversationOf = ({ messages, tools }: Chat): Conversation => ({
  messages: messages.map(({ role, content, name, tool_call_id, tool_calls }) => ({
    role,
    text: content,
    ...(name !== undefined && { name }),
    ...(tool_call_id !== undefined && { callId: tool_call_id }),
    ...(tool_calls && { calls: tool_calls.map(({ id, function: f }) => ({ id, name: f.name, arguments: JSON.stringify(f.arguments) })) }),
  })),
  tools: (tools ?? []).map((tool) => tool.function),
});

const utf8 = new TextEncoder();
const bytesOf = (format: ChatFormat, ids: readonly number[]): Uint8Array =>
  Uint8Array.from(ids.flatMap((id) => [...(format.tokenBytes?.(id) ?? utf8.encode(format.decode([id])))]));

const isSentencePiece = (style: Style): boolean => style === "mistral" || style === "gemma3";

/** What of a text without special tokens reaches the vocabulary. */
const seen = (style: Style, text: string): string => {
  if (style === "qwen") return text.normalize("NFC");
  const spaces = isSentencePiece(style) ? text.replaceAll("▁", " ") : text;
  return style === "mistral" && !/^( |$)/.test(spaces) ? ` ${spaces}` : spaces;
};

/** The text of tokens by their bytes alone. Mistral's decoder drops the space that its encoder adds. */
const textOfBytes = (style: Style, format: ChatFormat, ids: readonly number[]): string => {
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(format, ids));
  return style === "mistral" ? text.replace(/^ /, "") : text;
};

/** @huggingface/tokenizers' byte fallback loses U+FEFF. */
const withoutMark = (style: Style, text: string): string => (isSentencePiece(style) ? text.replaceAll("\ufeff", "") : text);

describe.each(STYLES)("%s", (style) => {
  const format = loadChatFormat(styleFiles(style));
  const expected: Expected = JSON.parse(readTemplateFile(`${style}/expected.json`));
  const isSpecial = (id: number): boolean => format.tokenBytes?.(id) === undefined;

  test.each(Object.keys(inputs.chats))("a chat: %s", (name) => {
    const conversation = conversationOf(inputs.chats[name]!);
    for (const key of ["closed", "prompt"] as const) {
      const want = expected.chats[name]![key];
      const render = (): string => format.render(conversation, { addGenerationPrompt: key === "prompt" });
      if ("refused" in want) {
        expect(render).toThrow(AgentError);
        expect(render).toThrow(want.refused);
      } else {
        expect(render()).toBe(want.text);
        // a template writes the first token itself: nothing may add another
        expect([...format.encode(want.text)]).toEqual(want.ids);
      }
    }
  });

  test.each(expected.texts.map(({ ids, decoded }, i) => [inputs.texts[i]!, ids, decoded] as const))("the text %j", (text, ids, decoded) => {
    expect([...format.encode(text)]).toEqual(ids);
    expect(format.decode(ids)).toBe(withoutMark(style, decoded));
    if (!ids.some(isSpecial)) expect(bytesOf(format, ids)).toEqual(utf8.encode(seen(style, text)));
    expect(textOfBytes(style, format, ids)).toBe(decoded);
  });

  test("random ids, with halves of characters and special tokens inside", () => {
    let broken = 0;
    for (const { ids, decoded } of expected.sequences) {
      const text = textOfBytes(style, format, ids);
      expect(format.decode(ids)).toBe(text);
      if (decoded.includes("\ufffd")) broken++;
      // see "bytes that are no UTF-8" below
      if (!isSentencePiece(style) || !decoded.includes("\ufffd")) expect(text).toBe(decoded);
    }
    expect(broken).toBeGreaterThan(5);
    expect(broken).toBeLessThan(expected.sequences.length - 5);
  });

  test("every id has bytes or is special, and no id beyond the vocabulary has any", () => {
    const { added_tokens } = JSON.parse(readTemplateFile(`${style}/tokenizer.json`)) as {
      added_tokens: { id: number; special: boolean }[];
    };
    const special = new Set(added_tokens.filter((token) => token.special).map(({ id }) => id));
    for (let id = 0; id < format.vocabSize; id++) expect(isSpecial(id), `id ${id}`).toBe(special.has(id));
    expect(format.tokenBytes?.(format.vocabSize)).toBeUndefined();
  });
});

/** What @huggingface/jinja prints otherwise than jinja2. */
const PRINTED_OTHERWISE: Readonly<Record<string, string | RegExp>> = {
  "{{ '\ufeffa' | trim }}": "a", // JavaScript's white space has U+FEFF and has neither U+001C nor U+0085
  "{{ 'a\x1c' | trim }}": "a\x1c",
  "{{ 'a\x85' | trim }}": "a\x85",
  "{{ text | length }}": "6", // UTF-16 units
  "{{ -7 % 3 }}": "-1", // the sign of the left side
  "{{ none }}": "",
  "{{ true }}": "true",
  "{{ object.list }}": "[0.5, null, true]", // JSON, not Python
  "{{ 'a' * 3 }}": /Unknown operator/,
  "{{ list | map('upper') | join }}": /not currently supported/,
  "{% for m in messages %}x{% break %}{% endfor %}": "", // what the round printed before break or continue is lost
};

test.each(Object.entries(inputs.printed))("%j prints what jinja2 prints, or what is known", (template, python) => {
  const { prelude, ...chat } = inputs.printedWith;
  const format = loadChatFormat({ ...styleFiles("qwen"), chatTemplate: prelude + template });
  const print = (): string => format.render(conversationOf(chat), { addGenerationPrompt: false });
  const known = PRINTED_OTHERWISE[template];
  expect(known).not.toBe(python);
  if (known instanceof RegExp) expect(print).toThrow(known);
  else expect(print()).toBe(known ?? python);
});

test("known: numbers in a call's arguments are JavaScript's: 1.0 is 1, and beyond 2^53 the nearest", () => {
  const format = loadChatFormat({ ...styleFiles("qwen"), chatTemplate: "{{ messages[0].tool_calls[0].function.arguments | tojson }}" });
  const written = '{"a": 1.0, "b": 1e-7, "c": 12345678901234567890}';
  const calls = [{ id: "", name: "f", arguments: written }];
  const text = format.render({ messages: [{ role: "assistant", text: "", calls }], tools: [] }, { addGenerationPrompt: false });
  expect(text).toBe('{"a": 1, "b": 1e-7, "c": 12345678901234567000}'); // Python: 1.0, 1e-07, …890
});

test("known: of bytes that are no UTF-8 @huggingface/tokenizers keeps what is text, Rust makes U+FFFD of every byte of the run", () => {
  const format = loadChatFormat(styleFiles("gemma3"));
  const { vocab } = JSON.parse(readTemplateFile("gemma3/tokenizer.json")).model;
  expect(format.decode([vocab["<0x23>"], vocab["<0xC3>"]])).toBe("#\ufffd"); // Rust: two U+FFFD
});

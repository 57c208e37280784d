import { AgentError, loadChatFormat } from "@fulgurite/agent";
import { expect, test } from "vitest";
import { CHATML, tinyFormat, tinyTokenizer } from "./scripted.ts";

const config = { eos_token: "<|im_end|>" };

test("text survives encode and decode, specials included", () => {
  const format = tinyFormat();
  const text = "<|im_start|>user\nGrüße 🦊, 日本 <tool_call>{}</tool_call><|im_end|>";
  expect(format.decode(format.encode(text))).toBe(text);
  expect([...format.encode("a<|im_end|>")]).toEqual([97, 257]);
  expect(format.encode("")).toHaveLength(0);
  expect(format.decode([])).toBe("");
});

test("nothing is added and nothing is cleaned up", () => {
  const format = tinyFormat();
  expect([...format.encode(" , .")]).toEqual([32, 44, 32, 46]);
  expect(format.decode([97, 32, 44, 32, 110, 39, 116])).toBe("a , n't");
});

test("ids beyond the tokenizer decode to nothing", () => {
  const format = tinyFormat();
  expect(format.vocabSize).toBe(261);
  expect(format.decode([97, 261, 5000, 98])).toBe("ab");
  expect(format.decode([9999])).toBe("");
});

test("stop tokens are the union of eos_token and both eos_token_id", () => {
  const format = loadChatFormat({
    tokenizer: JSON.stringify(tinyTokenizer()),
    tokenizerConfig: JSON.stringify({ eos_token: { content: "<|im_end|>", special: true } }),
    chatTemplate: CHATML,
    generationConfig: { eos_token_id: [257, 258] },
    config: { eos_token_id: 258 },
  });
  expect(format.stopTokens).toEqual([257, 258]);
});

test("the template gets messages in OpenAI's shape, with arguments parsed when they are JSON", () => {
  const render = (written: string): unknown =>
    JSON.parse(
      loadChatFormat({
        tokenizer: tinyTokenizer(),
        tokenizerConfig: { ...config, bos_token: "<s>" },
        chatTemplate: "{{ [messages, tools, bos_token, eos_token, add_generation_prompt] | tojson }}",
      }).render(
        {
          messages: [
            { role: "assistant", text: "", calls: [{ id: "call_1", name: "f", arguments: written }] },
            { role: "tool", text: "ok", callId: "call_1", name: "f" },
          ],
          tools: [{ name: "f", parameters: { type: "object" } }],
        },
        { addGenerationPrompt: true },
      ),
    );
  const expected = (argument: unknown): unknown => [
    [
      { role: "assistant", content: "", tool_calls: [{ id: "call_1", type: "function", function: { name: "f", arguments: argument } }] },
      { role: "tool", content: "ok", tool_call_id: "call_1", name: "f" },
    ],
    [{ type: "function", function: { name: "f", parameters: { type: "object" } } }],
    "<s>",
    "<|im_end|>",
    true,
  ];
  expect(render('{"n": 1.5}')).toEqual(expected({ n: 1.5 }));
  expect(render('{"n": 1')).toEqual(expected('{"n": 1'));
});

test("the template sees the special tokens that the model has, and no others", () => {
  const chatTemplate = "{{ pad_token }} {{ unk_token.content is defined }} {{ unk_token }} {{ 'bos' if bos_token is defined else 'none' }}";
  const tokenizerConfig = { ...config, bos_token: null, pad_token: "<p>", unk_token: { content: "<u>" } };
  const format = loadChatFormat({ tokenizer: tinyTokenizer(), tokenizerConfig, chatTemplate });
  expect(format.render({ messages: [], tools: [] }, { addGenerationPrompt: true })).toBe("<p> false <u> none");
});

test("a named list serves requests with tools by its tool_use template", () => {
  const format = loadChatFormat({
    tokenizer: tinyTokenizer(),
    tokenizerConfig: {
      ...config,
      chat_template: [
        { name: "default", template: "plain" },
        { name: "tool_use", template: "tools" },
      ],
    },
  });
  const messages = [{ role: "user" as const, text: "hi" }];
  expect(format.render({ messages, tools: [] }, { addGenerationPrompt: true })).toBe("plain");
  expect(format.render({ messages, tools: [{ name: "f" }] }, { addGenerationPrompt: true })).toBe("tools");
});

test("chat_template.jinja wins over the template in tokenizer_config.json", () => {
  const format = loadChatFormat({
    tokenizer: tinyTokenizer(),
    tokenizerConfig: { ...config, chat_template: "config" },
    chatTemplate: "file",
  });
  expect(format.render({ messages: [], tools: [] }, { addGenerationPrompt: false })).toBe("file");
});

test("what is missing or broken is named", () => {
  const tokenizer = tinyTokenizer();
  expect(() => loadChatFormat({ tokenizer, tokenizerConfig: config })).toThrow(/a chat template is required/);
  expect(() => loadChatFormat({ tokenizer, tokenizerConfig: {}, chatTemplate: "x" })).toThrow(/a token must end an answer/);
  expect(() => loadChatFormat({ tokenizer: "{", tokenizerConfig: config, chatTemplate: "x" })).toThrow(/tokenizer.json: must be JSON/);
  expect(() => loadChatFormat({ tokenizer: {}, tokenizerConfig: config, chatTemplate: "x" })).toThrow(/tokenizer.json/);
  expect(() => loadChatFormat({ tokenizer, tokenizerConfig: config, chatTemplate: "{% if %}" })).toThrow(/must be Jinja/);
});

test("a template that refuses says so", () => {
  const format = tinyFormat({ template: "{{ raise_exception('roles must alternate') }}" });
  const render = (): string => format.render({ messages: [], tools: [] }, { addGenerationPrompt: true });
  expect(render).toThrow(AgentError);
  expect(render).toThrow(/roles must alternate/);
});

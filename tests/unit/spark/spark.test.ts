// The built-in policy's folder: complete, small, and read by the JavaScript tokenizer and template engine exactly as by transformers.
import { readFile, stat } from "node:fs/promises";
import { sparkFiles } from "@fulgurite/spark";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import fixture from "./fixture.json" with { type: "json" };

const text = (name: string) => readFile(sparkFiles[name]!, "utf8");

let tokenizer: Tokenizer;
let template: Template;
beforeAll(async () => {
  tokenizer = new Tokenizer(JSON.parse(await text("tokenizer.json")), JSON.parse(await text("tokenizer_config.json")));
  template = new Template(await text("chat_template.jinja"));
});

const encode = (source: string) => tokenizer.encode(source, { add_special_tokens: false }).ids;
const decode = (ids: number[]) => tokenizer.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false });

test("all files together stay below 4 MB", async () => {
  const sizes = await Promise.all(Object.values(sparkFiles).map(async (url) => (await stat(url)).size));
  expect(sizes.reduce((a, b) => a + b)).toBeLessThan(4e6);
});

test("config and weights agree: a tied Llama in F16 without holes", async () => {
  const config = JSON.parse(await text("config.json"));
  const bytes = await readFile(sparkFiles["model.safetensors"]!);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const { __metadata__, ...tensors } = JSON.parse(bytes.toString("utf8", 8, 8 + headerLength));
  const { vocab_size: V, hidden_size: D, num_key_value_heads: K, head_dim: C, intermediate_size: F, num_hidden_layers: layers } = config;
  const layer = {
    "input_layernorm.weight": [D],
    "post_attention_layernorm.weight": [D],
    "self_attn.q_proj.weight": [config.num_attention_heads * C, D],
    "self_attn.k_proj.weight": [K * C, D],
    "self_attn.v_proj.weight": [K * C, D],
    "self_attn.o_proj.weight": [D, config.num_attention_heads * C],
    "mlp.gate_proj.weight": [F, D],
    "mlp.up_proj.weight": [F, D],
    "mlp.down_proj.weight": [D, F],
  };
  const expected: Record<string, number[]> = { "model.embed_tokens.weight": [V, D], "model.norm.weight": [D] };
  for (let i = 0; i < layers; i++) for (const [name, shape] of Object.entries(layer)) expected[`model.layers.${i}.${name}`] = shape;
  const shapes = Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, (t as { shape: number[] }).shape]));
  expect(shapes).toEqual(expected);
  expect(new Set(Object.values(tensors).map((t) => (t as { dtype: string }).dtype))).toEqual(new Set(["F16"]));
  expect(config).toMatchObject({ model_type: "llama", tie_word_embeddings: true, rope_theta: 10000, max_position_embeddings: 512 });
  expect(config.eos_token_id).toBe(encode("<|end|>")[0]);
});

describe.each(fixture.prompts)("$name", ({ messages, tools, text: expected, ids }) => {
  test("the template renders transformers' text", () => {
    expect(template.render({ messages, tools, add_generation_prompt: true })).toBe(expected);
  });

  test("the tokenizer gives transformers' ids", () => {
    expect(encode(expected)).toEqual(ids);
    expect(decode(ids)).toBe(expected);
  });
});

test("arguments as JSON text render like arguments as an object", () => {
  const { messages, tools, text: expected } = fixture.prompts[1]!;
  const asText = JSON.parse(JSON.stringify(messages), (key, value) => (key === "arguments" ? '{"expression": "37+85"}' : value));
  expect(template.render({ messages: asText, tools, add_generation_prompt: true })).toBe(expected);
});

test("the second turn begins with the first turn and the tokens of its response", () => {
  const [first, second] = [fixture.prompts[0]!, fixture.prompts[1]!];
  const response = encode('<tool_call>{"name": "calculator", "arguments": {"expression": "37+85"}}</tool_call><|end|>');
  expect(second.ids.slice(0, first.ids.length + response.length)).toEqual([...first.ids, ...response]);
});

test("a tool call costs few tokens, a digit costs one", () => {
  expect(encode('<tool_call>{"name": "calculator", "arguments": {"expression": "37+85"}}</tool_call><|end|>')).toHaveLength(12);
  expect(encode("1234567890")).toHaveLength(10);
});

test.each(fixture.texts)("%j has the ids that the Rust tokenizer gives", ({ text: source, ids }) => {
  expect(encode(source)).toEqual(ids);
  expect(decode(ids)).toBe(source);
});

test("any text survives encode and decode", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", minLength: 1 }), (source) => {
      const wellFormed = source.toWellFormed();
      expect(decode(encode(wellFormed))).toBe(wellFormed);
    }),
  );
});

test("roles that the model never learned are refused", () => {
  expect(() => template.render({ messages: [{ role: "developer", content: "x" }] })).toThrow(/roles are/);
});

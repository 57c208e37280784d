// What the agent room's tests stand on: a byte-level tokenizer of 256 bytes and a few specials, a ChatML template, and a
// sampler that says what a script tells it (the model is a foreign door here). Every logprob is −(j + 1)/8 at token j.
import { type ChatFormat, type EndpointOptions, loadChatFormat, type Sampling } from "@fulgurite/agent";
import type { Completion, GenerateRequest, Sampler } from "@fulgurite/engine";

/** GPT-2's printable stand-ins for the 256 bytes. */
const byteCharacters = (): string[] => {
  const printable = (byte: number): boolean => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let spare = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : spare++));
};

const SPECIALS: readonly string[] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"];

/** Ids 0–255 are the bytes, then the merges in order, then the specials. */
export const tinyTokenizer = (merges: readonly (readonly [string, string])[] = []): object => {
  const tokens = [...byteCharacters(), ...merges.map(([left, right]) => left + right)];
  return {
    version: "1.0",
    added_tokens: SPECIALS.map((content, index) => ({
      id: tokens.length + index,
      content,
      special: index < 3,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: "BPE", dropout: null, unk_token: null, vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges },
  };
};

export const CHATML = `{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- 'Tools:\\n' }}
  {%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>assistant\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
      {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
      {%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif not (loop.first and message.role == 'system') %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}`;

export const tinyFormat = (options: { merges?: readonly (readonly [string, string])[]; template?: string } = {}): ChatFormat =>
  loadChatFormat({
    tokenizer: tinyTokenizer(options.merges),
    tokenizerConfig: { eos_token: "<|im_end|>", clean_up_tokenization_spaces: true },
    chatTemplate: options.template ?? CHATML,
  });

export const logprobAt = (index: number): number => -(index + 1) / 8;

/** Text (ended by <|im_end|>), or the very ids; an Error is thrown by the sampler. */
export type Line = string | readonly number[] | Error;

export class ScriptedSampler implements Sampler {
  readonly limits: { maxContext: number; vocabSize: number };
  policyVersion = 1;
  readonly adapters: string[] = [];
  readonly requests: GenerateRequest[] = [];
  running = 0;
  peak = 0;
  /** Called before each token: a test waits or aborts here. */
  beforeToken: (index: number, request: GenerateRequest) => Promise<void> | void = () => {};
  readonly #format: ChatFormat;
  readonly #script: (prompt: string, call: number) => Line;

  constructor(format: ChatFormat, script: readonly Line[] | ((prompt: string, call: number) => Line), maxContext = 4096) {
    this.#format = format;
    this.#script = typeof script === "function" ? script : (_, call) => script[call] ?? new Error(`the script has no line ${call}`);
    this.limits = { maxContext, vocabSize: format.vocabSize };
  }

  async generate(request: GenerateRequest): Promise<Completion> {
    const line = this.#script(this.#format.decode(request.prompt), this.requests.push(request) - 1);
    if (line instanceof Error) throw line;
    const ids = typeof line === "string" ? [...this.#format.encode(line), ...this.#format.stopTokens.slice(0, 1)] : line;
    const tokens: number[] = [];
    this.running++;
    this.peak = Math.max(this.peak, this.running);
    let finishReason: Completion["finishReason"] = "length";
    for (const [index, token] of ids.entries()) {
      await this.beforeToken(index, request);
      await Promise.resolve();
      if (request.signal?.aborted) {
        finishReason = "aborted";
        break;
      }
      if (tokens.length === request.maxTokens) break;
      tokens.push(token);
      request.onToken?.(token, logprobAt(index));
      if (request.stopTokens.includes(token)) {
        finishReason = "stop";
        break;
      }
    }
    this.running--;
    const logprobs = Float32Array.from(tokens, (_, index) => logprobAt(index));
    return { tokens: Int32Array.from(tokens), logprobs, finishReason, policyVersion: this.policyVersion };
  }
}

export const TRAIN: Sampling = { mode: "train", temperature: 1, maxTokens: 512, seed: 7 };

/** Ids and times that count up, so that answers can be compared. */
export const counting = (): Required<Pick<EndpointOptions, "clock" | "randomBytes">> => {
  let now = 1_790_000_000_000;
  let drawn = 0;
  return {
    clock: () => now++,
    randomBytes: (length) => {
      drawn++;
      return Uint8Array.from({ length }, (_, index) => (drawn >>> (8 * (length - 1 - index))) & 255);
    },
  };
};

interface FunctionTool {
  readonly type: string;
  readonly function: { readonly name: string; readonly description: string; readonly parameters: object };
}

export const WEATHER: FunctionTool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
  },
};

export const callText = (name: string, written: string): string =>
  `<tool_call>\n{"name": "${name}", "arguments": ${written}}\n</tool_call>`;

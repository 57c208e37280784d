// What goes back to a client: OpenAI's chat objects, always with every key that any known client needs, and vLLM's keys
// for token ids. Pure; the stream's framing is sse.ts.

import type { Json } from "@fulgurite/trace";
import { AgentError, type AgentErrorCode, messageOf } from "./errors.ts";
import type { ChatFormat, ToolCall } from "./types.ts";

/** Everything about one answer but its words. */
export interface AnswerHead {
  readonly id: string;
  readonly model: string;
  /** Seconds since 1970. */
  readonly created: number;
  /** In train, or when the client asked. */
  readonly sendTokenIds: boolean;
  readonly sendLogprobs: boolean;
  readonly promptTokens: Int32Array;
}

export interface SampledTokens {
  readonly tokens: readonly number[] | Int32Array;
  readonly logprobs: readonly number[] | Float32Array;
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
}

export const toUsage = (promptLength: number, completionLength: number): Usage => ({
  prompt_tokens: promptLength,
  completion_tokens: completionLength,
  total_tokens: promptLength + completionLength,
});

interface TokenText {
  readonly token: string;
  readonly bytes: readonly number[] | null;
  /** The JSON of its entry, before and after the log-prob. */
  readonly before: string;
  readonly after: string;
}

const tokenTexts = new WeakMap<ChatFormat, Map<number, TokenText>>();
const utf8 = new TextEncoder();

/** Kept for a format's life: at most one a token of its vocabulary, and a decoding costs more than the rest of an answer. */
const tokenTextOf = (format: ChatFormat, id: number): TokenText => {
  let known = tokenTexts.get(format);
  if (known === undefined) {
    known = new Map();
    tokenTexts.set(format, known);
  }
  let text = known.get(id);
  if (text === undefined) {
    const token = format.decode([id]);
    // a token that is part of a character has no text of its own
    const bytes = token.includes("\ufffd") ? null : [...utf8.encode(token)];
    text = {
      token,
      bytes,
      before: `{"token":${JSON.stringify(token)},"logprob":`,
      after: `,"bytes":${JSON.stringify(bytes)},"top_logprobs":[]}`,
    };
    known.set(id, text);
  }
  return text;
};

/** As JSON.stringify writes a number. */
const numberText = (value: number): string => (Number.isFinite(value) ? `${value}` : "null");

/** The JSON of logprobsOf, put together from pieces: an entry a token is most of an answer. */
const logprobsText = (head: AnswerHead, { tokens, logprobs }: SampledTokens, format: ChatFormat): string => {
  if (!head.sendLogprobs) return "null";
  let entries = "";
  for (let index = 0; index < tokens.length; index++) {
    const { before, after } = tokenTextOf(format, tokens[index] as number);
    entries += `${index === 0 ? "" : ","}${before}${numberText(logprobs[index] as number)}${after}`;
  }
  return `{"content":[${entries}],"refusal":null}`;
};

const logprobsOf = (head: AnswerHead, sampled: SampledTokens, format: ChatFormat): Json => {
  if (!head.sendLogprobs) return null;
  return {
    content: Array.from(sampled.tokens, (id, index) => {
      const { token, bytes } = tokenTextOf(format, id);
      return { token, logprob: sampled.logprobs[index] as number, bytes, top_logprobs: [] };
    }),
    refusal: null,
  };
};

const toWrittenCall = (call: ToolCall): Json => ({
  id: call.id,
  type: "function",
  function: { name: call.name, arguments: call.arguments },
});

type Said = { readonly text: string; readonly calls: readonly ToolCall[]; readonly finishReason: string } & SampledTokens;

const messageOfAnswer = ({ text, calls }: Said): Record<string, Json> => ({
  role: "assistant",
  content: text === "" && calls.length > 0 ? null : text,
  refusal: null,
  ...(calls.length > 0 && { tool_calls: calls.map(toWrittenCall) }),
});

/** What was said, without ids and log-probs. */
export const toChatCompletion = (head: AnswerHead, answer: Said): Record<string, Json> => ({
  id: head.id,
  object: "chat.completion",
  created: head.created,
  model: head.model,
  choices: [{ index: 0, finish_reason: answer.finishReason, logprobs: null, message: messageOfAnswer(answer) }],
  usage: { ...toUsage(head.promptTokens.length, answer.tokens.length) },
});

/** The JSON of that, with the ids and log-probs that the head asks for. */
export const toChatText = (head: AnswerHead, answer: Said, format: ChatFormat): string => {
  const { id, created, model, promptTokens, sendTokenIds } = head;
  const prompt = sendTokenIds ? `"prompt_token_ids":[${promptTokens.join()}],` : "";
  const ids = sendTokenIds ? `"token_ids":[${answer.tokens.join()}],` : "";
  const usage = JSON.stringify(toUsage(promptTokens.length, answer.tokens.length));
  return (
    `{"id":${JSON.stringify(id)},"object":"chat.completion","created":${created},"model":${JSON.stringify(model)},${prompt}` +
    `"choices":[{"index":0,"finish_reason":"${answer.finishReason}",${ids}"logprobs":${logprobsText(head, answer, format)},` +
    `"message":${JSON.stringify(messageOfAnswer(answer))}}],"usage":${usage}}`
  );
};

/** One chunk of a stream. `sampled` are the tokens since the last chunk. */
export const toChunk = (
  head: AnswerHead,
  delta: Json,
  sampled: SampledTokens,
  format: ChatFormat,
  options: { first?: boolean; finishReason?: string; usage?: Usage } = {},
): Record<string, Json> => ({
  id: head.id,
  object: "chat.completion.chunk",
  created: head.created,
  model: head.model,
  ...(options.first && head.sendTokenIds && { prompt_token_ids: [...head.promptTokens] }),
  choices: [
    {
      index: 0,
      delta,
      ...(head.sendTokenIds && { token_ids: [...sampled.tokens] }),
      logprobs: sampled.tokens.length > 0 ? logprobsOf(head, sampled, format) : null,
      finish_reason: options.finishReason ?? null,
    },
  ],
  ...(options.usage && { usage: { ...options.usage } }),
});

export const toUsageChunk = (head: AnswerHead, usage: Usage): Record<string, Json> => ({
  id: head.id,
  object: "chat.completion.chunk",
  created: head.created,
  model: head.model,
  choices: [],
  usage: { ...usage },
});

/** Clients repeat 408, 409, 429 and 5xx by themselves: only what may pass by itself has such a status. */
const HTTP = {
  "bad-format": { status: 500, type: "server_error", code: "bad_format" },
  "template-refused": { status: 400, type: "invalid_request_error", code: "template_refused" },
  "bad-request": { status: 400, type: "invalid_request_error", code: "invalid_value" },
  "context-length": { status: 400, type: "invalid_request_error", code: "context_length_exceeded" },
  "not-found": { status: 404, type: "invalid_request_error", code: "not_found" },
  unauthorized: { status: 401, type: "authentication_error", code: "invalid_api_key" },
  closed: { status: 401, type: "authentication_error", code: "attempt_closed" },
  aborted: { status: 499, type: "request_aborted", code: "aborted" },
  "bad-reward": { status: 400, type: "invalid_request_error", code: "bad_reward" },
  timeout: { status: 499, type: "request_aborted", code: "timeout" },
  capture: { status: 500, type: "server_error", code: "capture" },
  sampler: { status: 500, type: "server_error", code: "sampler_failed" },
} as const satisfies Record<AgentErrorCode, { status: number; type: string; code: string }>;

export const toErrorObject = (error: unknown): { status: number; body: { error: Record<string, Json> } } => {
  const known = error instanceof AgentError ? error : new AgentError("sampler", `endpoint: the call failed, got ${messageOf(error)}`);
  const { status, type, code } = HTTP[known.code];
  return { status, body: { error: { message: known.message, type, code, param: known.param ?? null } } };
};

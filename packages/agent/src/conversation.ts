// A chat request as its one canonical meaning, whichever client sent it. The rule behind every line: ignore what does not
// change the meaning, refuse what does, naming the field. Types of fields are zod's business, meaning is ours.
// The temperature and penalties are not decided here: they belong to the run (Sampling).

import type { Json } from "@fulgurite/trace";
import { z } from "zod";
import { AgentError } from "./errors.ts";
import type { GrammarSpec } from "./grammar/spec.ts";
import type { Conversation, Message, Tool, ToolCall } from "./types.ts";

export interface ChatOptions {
  /** What the client calls the model. */
  readonly model?: string;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** The client's own bound; the run's may be lower. */
  readonly maxTokens?: number;
  /** Honoured in val only. */
  readonly seed?: number;
  /** These three: honoured in val only, for a training answer comes from the whole distribution. */
  readonly topP?: number;
  readonly topK?: number;
  readonly logitBias?: readonly (readonly [token: number, bias: number])[];
  readonly stop: readonly string[];
  /** What the answer has to be. Kept in train too: a token that it forced is not trained. */
  readonly grammar?: GrammarSpec;
  readonly logprobs: boolean;
  readonly returnTokenIds: boolean;
}

export interface ChatRequest {
  readonly conversation: Conversation;
  readonly options: ChatOptions;
}

const part = z.looseObject({ type: z.string() });
const content = z.union([z.string(), z.array(z.union([z.string(), part]))]).nullish();
// frameworks send the arguments as text; a few send the object itself
const writtenArguments = z.union([z.string(), z.record(z.string(), z.unknown())]).nullish();
const writtenCall = z.looseObject({
  id: z.string().nullish(),
  type: z.string().nullish(),
  function: z.looseObject({ name: z.string(), arguments: writtenArguments }),
});
const message = z.looseObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool", "function"]),
  content,
  name: z.string().nullish(),
  tool_calls: z.array(writtenCall).nullish(),
  function_call: z.looseObject({ name: z.string(), arguments: writtenArguments }).nullish(),
  tool_call_id: z.string().nullish(),
});
const declaration = z.looseObject({
  name: z.string().min(1),
  description: z.string().nullish(),
  parameters: z.record(z.string(), z.unknown()).nullish(),
});
const tool = z.looseObject({ type: z.string(), function: declaration.optional() });
const positive = z.int().min(1).nullish();

const chatBody = z.looseObject({
  model: z.string().nullish(),
  messages: z.array(message).min(1),
  tools: z.array(tool).nullish(),
  tool_choice: z.union([z.enum(["auto", "none", "required"]), z.looseObject({ type: z.string() })]).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  max_tokens: positive,
  max_completion_tokens: positive,
  seed: z.int().nullish(),
  stop: z.union([z.string(), z.array(z.string())]).nullish(),
  n: z.int().nullish(),
  logprobs: z.boolean().nullish(),
  return_token_ids: z.boolean().nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().nullish(), // vLLM's; −1 and 0: all
  logit_bias: z.record(z.string().regex(/^\d+$/), z.number()).nullish(),
  response_format: z.looseObject({ type: z.string(), json_schema: z.looseObject({ schema: z.unknown().optional() }).nullish() }).nullish(),
  // vLLM's
  structured_outputs: z
    .looseObject({ json: z.unknown().optional(), regex: z.string().nullish(), choice: z.array(z.string()).min(1).nullish() })
    .nullish(),
});
type ChatBody = z.infer<typeof chatBody>;

const pathOf = (path: readonly PropertyKey[]): string =>
  path.reduce<string>(
    (text, key) => (typeof key === "number" ? `${text}[${key}]` : text === "" ? String(key) : `${text}.${String(key)}`),
    "",
  );

const refuse = (param: string, rule: string, got: unknown, next: string): never => {
  throw new AgentError("bad-request", `${param}: ${rule}, got ${JSON.stringify(got)}; ${next}`, { param });
};

const TEXT_PARTS: ReadonlySet<string> = new Set(["text", "input_text", "output_text"]);

const textOf = (value: z.infer<typeof content>, param: string): string => {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  return value
    .map((piece, index) => {
      if (typeof piece === "string") return piece;
      if (TEXT_PARTS.has(piece.type) && typeof piece.text === "string") return piece.text;
      return refuse(
        `${param}[${index}].type`,
        "only text parts can be rendered",
        piece.type,
        "send text; images, audio and files are not supported",
      );
    })
    .join("");
};

const argumentsText = (value: z.infer<typeof writtenArguments>): string =>
  typeof value === "string" ? value : value ? JSON.stringify(value) : "{}";

const callsOf = (written: ChatBody["messages"][number], param: string): ToolCall[] => {
  const calls = (written.tool_calls ?? []).map((call, index) => {
    if (call.type && call.type !== "function") {
      refuse(`${param}.tool_calls[${index}].type`, 'must be "function"', call.type, "hosted and custom tools are not supported");
    }
    return { id: call.id ?? "", name: call.function.name, arguments: argumentsText(call.function.arguments) };
  });
  const legacy = written.function_call;
  return legacy ? [...calls, { id: "", name: legacy.name, arguments: argumentsText(legacy.arguments) }] : calls;
};

/** A tool's answer carries the name of the call it answers, whether the client wrote it or not. */
const toMessages = (written: ChatBody["messages"]): Message[] => {
  const names = new Map<string, string>();
  return written.map((entry, index) => {
    const param = `messages[${index}]`;
    const text = textOf(entry.content, `${param}.content`);
    if (entry.role === "assistant") {
      const calls = callsOf(entry, param);
      for (const call of calls) names.set(call.id, call.name);
      return { role: "assistant", text, ...(calls.length > 0 && { calls }), ...(entry.name && { name: entry.name }) };
    }
    if (entry.role === "tool" || entry.role === "function") {
      const callId = entry.tool_call_id ?? undefined;
      const name = (callId === undefined ? undefined : names.get(callId)) ?? entry.name ?? undefined;
      return { role: "tool", text, ...(callId !== undefined && { callId }), ...(name !== undefined && { name }) };
    }
    return { role: entry.role === "developer" ? "system" : entry.role, text, ...(entry.name && { name: entry.name }) };
  });
};

const toTools = (written: ChatBody["tools"]): Tool[] =>
  (written ?? []).map((entry, index) => {
    const param = `tools[${index}]`;
    if (entry.type !== "function")
      refuse(`${param}.type`, 'must be "function"', entry.type, "hosted tools are not supported: run the tool in the agent");
    // nested as in chat, or flat as in responses
    const found = entry.function ? { success: true as const, data: entry.function } : declaration.safeParse(entry);
    if (!found.success) return refuse(`${param}.function`, "must have a name", entry, "declare { name, description, parameters }");
    const { name, description, parameters } = found.data;
    // which draft of JSON Schema a client's library speaks changes nothing
    const { $schema: _, ...schema } = parameters ?? {};
    return { name, ...(description && { description }), ...(parameters && { parameters: schema as Json }) };
  });

const isEmpty = (value: unknown): boolean =>
  value === null || value === undefined || value === false || (typeof value === "object" && Object.keys(value).length === 0);

const refuseMeaning = (body: ChatBody): void => {
  if (body.n && body.n !== 1) refuse("n", "one choice an answer", body.n, "run more rollouts of the task instead");
  const choice = typeof body.tool_choice === "object" ? body.tool_choice?.type : undefined;
  if (choice && choice !== "function" && choice !== "allowed_tools")
    refuse("tool_choice.type", 'must be "function"', choice, "hosted tools are not supported");
  for (const field of ["web_search_options", "audio", "functions"] as const) {
    if (!isEmpty(body[field])) refuse(field, "is not supported", body[field], field === "functions" ? "send tools" : "leave it out");
  }
  if (Array.isArray(body.modalities) && body.modalities.some((modality) => modality !== "text")) {
    refuse("modalities", 'must be ["text"]', body.modalities, "leave it out");
  }
};

const grammarOf = ({ response_format: format, structured_outputs: structured }: ChatBody): GrammarSpec | undefined => {
  if (structured?.regex) return { kind: "regex", value: structured.regex, where: "structured_outputs.regex" };
  if (structured?.choice) return { kind: "choice", value: structured.choice, where: "structured_outputs.choice" };
  if (structured?.json !== undefined) {
    return { kind: "jsonSchema", value: structured.json as Json, where: "structured_outputs.json" };
  }
  switch (format?.type) {
    case undefined:
    case "text":
      return undefined;
    case "json_object":
      return { kind: "jsonObject", where: "response_format" };
    case "json_schema": {
      const schema = format.json_schema?.schema;
      if (schema === undefined) return refuse("response_format.json_schema.schema", "must be a JSON Schema", schema, "send the schema");
      return { kind: "jsonSchema", value: schema as Json, where: "response_format.json_schema.schema" };
    }
    default:
      return refuse("response_format.type", "must be text, json_object or json_schema", format?.type, "send one of them");
  }
};

const restrictionsOf = ({ top_p, top_k, logit_bias }: ChatBody): Pick<ChatOptions, "topP" | "topK" | "logitBias"> => ({
  ...(typeof top_p === "number" && top_p < 1 && { topP: top_p }),
  ...(typeof top_k === "number" && top_k > 0 && { topK: top_k }),
  ...(!isEmpty(logit_bias) && { logitBias: Object.entries(logit_bias ?? {}).map(([id, bias]) => [Number(id), bias] as const) }),
});

const maxTokensOf = (body: ChatBody): number | undefined => {
  const { max_tokens, max_completion_tokens } = body;
  if (max_tokens && max_completion_tokens && max_tokens !== max_completion_tokens) {
    refuse("max_completion_tokens", `must equal max_tokens (${max_tokens})`, max_completion_tokens, "send one of them");
  }
  return max_completion_tokens ?? max_tokens ?? undefined;
};

/**
 * `tool_choice: "none"` renders no tools and finds no calls; "required" and one function are rendered like "auto", as
 * nothing can force a sampled token without spoiling its log-prob.
 * @throws AgentError "bad-request" naming the field.
 */
export const parseChatRequest = (json: unknown): ChatRequest => {
  const parsed = chatBody.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0] as z.core.$ZodIssue;
    const param = pathOf(issue.path);
    throw new AgentError(
      "bad-request",
      `${param || "body"}: must be a chat completion's, got ${issue.message}; see OpenAI's chat/completions reference`,
      {
        param: param || "body",
      },
    );
  }
  const body = parsed.data;
  refuseMeaning(body);
  const tools = toTools(body.tools);
  const maxTokens = maxTokensOf(body);
  const grammar = grammarOf(body);
  const stop = (typeof body.stop === "string" ? [body.stop] : (body.stop ?? [])).filter((text) => text !== "");
  return {
    conversation: { messages: toMessages(body.messages), tools: body.tool_choice === "none" ? [] : tools },
    options: {
      ...(typeof body.model === "string" && { model: body.model }),
      stream: body.stream === true,
      includeUsage: body.stream_options?.include_usage === true,
      ...(maxTokens !== undefined && { maxTokens }),
      ...(typeof body.seed === "number" && { seed: body.seed >>> 0 }),
      ...restrictionsOf(body),
      stop,
      ...(grammar && { grammar }),
      logprobs: body.logprobs === true,
      returnTokenIds: body.return_token_ids === true,
    },
  };
};

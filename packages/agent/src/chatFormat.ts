// Text ↔ token ids of one model, and its chat template: a Hugging Face folder's tokenizer.json, tokenizer_config.json and
// chat_template.jinja, read with Hugging Face's own parts. No weights, no sampling, no parsing of answers.

import type { Json } from "@fulgurite/trace";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { AgentError, messageOf } from "./errors.ts";
import { createPieceEncoder } from "./pieces.ts";
import { createRecent } from "./recent.ts";
import { readTokenBytes } from "./tokenBytes.ts";
import { readTokenizerFile } from "./tokenizerFile.ts";
import type { ChatFormat, Conversation, Message, Tool } from "./types.ts";

/** Files of a model's folder: JSON as text or already parsed. */
export interface ChatFormatFiles {
  readonly tokenizer: string | object;
  readonly tokenizerConfig: string | object;
  /** The text of chat_template.jinja; wins over the template in tokenizer_config.json. */
  readonly chatTemplate?: string;
  readonly generationConfig?: string | object;
  readonly config?: string | object;
}

type Fields = Readonly<Record<string, unknown>>;

const fieldsOf = (file: string, source: string | object | undefined): Fields => {
  if (source === undefined) return {};
  let parsed: unknown = source;
  if (typeof source === "string") {
    try {
      parsed = JSON.parse(source);
    } catch (cause) {
      throw new AgentError("bad-format", `${file}: must be JSON, got ${messageOf(cause)}; download the file again`, { cause });
    }
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new AgentError("bad-format", `${file}: must be a JSON object, got ${Array.isArray(parsed) ? "a list" : String(parsed)}`);
  }
  return parsed as Fields;
};

/** tokenizer_config.json writes a special token as its text or as { content }. */
const tokenText = (value: unknown): string | undefined => {
  if (typeof value === "string") return value;
  const content = (value as { content?: unknown } | null | undefined)?.content;
  return typeof content === "string" ? content : undefined;
};

const SPECIAL_TOKENS = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] as const;

interface Templates {
  of(hasTools: boolean): Template;
  /** They ask what time it is: what one gave a moment ago may be out of date. */
  readonly haveClock: boolean;
}

const CLOCK = "strftime_now";
/** About 2 MiB of conversations and their texts. */
const KEPT_CHARACTERS = 2 ** 20;

const parseTemplate = (source: string): Template => {
  try {
    return new Template(source);
  } catch (cause) {
    throw new AgentError("bad-format", `chat template: must be Jinja that @huggingface/jinja reads, got ${messageOf(cause)}`, { cause });
  }
};

/** A folder has one template, or a named list in which "tool_use" is for requests with tools. */
const loadTemplates = (given: string | undefined, configured: unknown): Templates => {
  const single = given ?? (typeof configured === "string" ? configured : undefined);
  if (single !== undefined) {
    const template = parseTemplate(single);
    return { of: () => template, haveClock: single.includes(CLOCK) };
  }
  const named = new Map<string, Template>();
  let haveClock = false;
  for (const entry of Array.isArray(configured) ? (configured as { name?: unknown; template?: unknown }[]) : []) {
    if (typeof entry?.name !== "string" || typeof entry.template !== "string") continue;
    named.set(entry.name, parseTemplate(entry.template));
    haveClock ||= entry.template.includes(CLOCK);
  }
  const plain = named.get("default") ?? named.values().next().value;
  if (plain === undefined) {
    throw new AgentError(
      "bad-format",
      "loadChatFormat: a chat template is required, got none in chat_template.jinja or tokenizer_config.json; take an instruction-tuned model, or pass chatTemplate",
    );
  }
  return { of: (hasTools) => (hasTools ? (named.get("tool_use") ?? plain) : plain), haveClock };
};

/** Templates that print arguments do so with `tojson`, so they want the value; text that is no JSON stays text. */
const argumentsValue = (text: string): unknown => {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : text;
  } catch {
    return text;
  }
};

const toTemplateMessage = (message: Message): Record<string, unknown> => ({
  role: message.role,
  content: message.text,
  ...(message.calls?.length && {
    tool_calls: message.calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: argumentsValue(call.arguments) },
    })),
  }),
  ...(message.callId !== undefined && { tool_call_id: message.callId }),
  ...(message.name !== undefined && { name: message.name }),
});

const toTemplateTool = (tool: Tool): { type: "function"; function: Record<string, Json> } => ({
  type: "function",
  function: {
    name: tool.name,
    ...(tool.description !== undefined && { description: tool.description }),
    ...(tool.parameters !== undefined && { parameters: tool.parameters }),
  },
});

/**
 * Reads a model's tokenizer and chat template.
 * @throws AgentError "bad-format" when a file is unreadable, or there is no template, or nothing that ends a turn.
 */
export const loadChatFormat = (files: ChatFormatFiles): ChatFormat => {
  const tokenizerConfig = fieldsOf("tokenizer_config.json", files.tokenizerConfig);
  const templates = loadTemplates(files.chatTemplate, tokenizerConfig.chat_template);
  let read: ReturnType<typeof readTokenizerFile>;
  let tokenizer: Tokenizer;
  try {
    read = readTokenizerFile(fieldsOf("tokenizer.json", files.tokenizer));
    tokenizer = new Tokenizer(read.fields, tokenizerConfig);
  } catch (cause) {
    if (cause instanceof AgentError) throw cause;
    throw new AgentError("bad-format", `tokenizer.json: must be one that @huggingface/tokenizers reads, got ${messageOf(cause)}`, {
      cause,
    });
  }

  // the union: tokenizer_config often names the end of text only, generation_config the end of a turn too
  const stopTokens = new Set<number>();
  // as in transformers, a template sees those that the model has, and no others
  const specialTexts = Object.fromEntries(
    SPECIAL_TOKENS.flatMap((name) => {
      const text = tokenText(tokenizerConfig[name]);
      return text === undefined ? [] : [[name, text] as const];
    }),
  );
  const eosText = tokenText(tokenizerConfig.eos_token);
  const eosId = eosText === undefined ? undefined : tokenizer.token_to_id(eosText);
  if (eosId !== undefined) stopTokens.add(eosId);
  for (const [file, source] of [
    ["generation_config.json", files.generationConfig],
    ["config.json", files.config],
  ] as const) {
    const ids = fieldsOf(file, source).eos_token_id;
    for (const id of Array.isArray(ids) ? ids : [ids]) if (Number.isInteger(id) && id >= 0) stopTokens.add(id);
  }
  if (stopTokens.size === 0) {
    throw new AgentError(
      "bad-format",
      `loadChatFormat: a token must end an answer, got eos_token ${JSON.stringify(eosText)} and no eos_token_id; pass generationConfig`,
    );
  }

  const render = (conversation: Conversation, addGenerationPrompt: boolean): string => {
    try {
      return templates.of(conversation.tools.length > 0).render({
        messages: conversation.messages.map(toTemplateMessage),
        tools: conversation.tools.length > 0 ? conversation.tools.map(toTemplateTool) : null,
        add_generation_prompt: addGenerationPrompt,
        ...specialTexts,
      });
    } catch (cause) {
      throw new AgentError("template-refused", `chat template: must accept the messages, got ${messageOf(cause)}`, {
        cause,
        param: "messages",
      });
    }
  };
  // the first turn of a task is asked for by all of its rollouts
  const rendered = createRecent<string>(KEPT_CHARACTERS);

  return {
    vocabSize: read.vocabSize,
    stopTokens: [...stopTokens],
    encode: createPieceEncoder(read.fields, (text) => tokenizer.encode(text, { add_special_tokens: false }).ids),
    decode: (tokens) => {
      const known = Array.from(tokens).filter((id) => tokenizer.id_to_token(id) !== undefined);
      return known.length === 0 ? "" : tokenizer.decode(known, { skip_special_tokens: false, clean_up_tokenization_spaces: false });
    },
    tokenBytes: readTokenBytes(read.fields, (id) => tokenizer.id_to_token(id)),
    render: (conversation: Conversation, { addGenerationPrompt }) => {
      const key = templates.haveClock ? "" : JSON.stringify([conversation.messages, conversation.tools, addGenerationPrompt]);
      const known = rendered.get(key);
      if (known !== undefined) return known;
      const text = render(conversation, addGenerationPrompt);
      if (!templates.haveClock) rendered.set(key, text, text.length);
      return text;
    },
  };
};

// Which ids are fed for a request. Frameworks rewrite the assistant's output before they send it back, so tokenising the
// history again gives other ids than were sampled. An attempt therefore remembers its answers, recognises them by the ids
// of their tool calls (else by their text), and feeds the very ids again. A change of meaning is never repaired.

import type { Fidelity } from "@fulgurite/trace";
import type { ChatFormat, Conversation, Message, Tool, ToolCall } from "./types.ts";

/** One answer of an attempt, as it went out. Branches of a conversation are several nodes. */
export interface AnswerNode {
  /** The conversation that was answered. */
  readonly conversation: Conversation;
  readonly promptTokens: Int32Array; // [P]
  readonly responseTokens: Int32Array; // [R]
  readonly text: string;
  readonly calls: readonly ToolCall[];
}

/** Why a turn was tokenised afresh: the template rewrites history, the agent changed it, or the answer is not ours. */
export type RetokenisedBecause = "template" | "edited" | "unknown";

export interface Prompt {
  readonly tokens: Int32Array;
  readonly fidelity: Fidelity;
  readonly because?: RetokenisedBecause;
}

/** Every key and element of `replayed` is in `stored`: schemas drop unknown keys, and 1.0 comes back as 1. */
const agrees = (replayed: unknown, stored: unknown): boolean => {
  if (typeof replayed !== "object" || replayed === null || typeof stored !== "object" || stored === null)
    return Object.is(replayed, stored);
  if (Array.isArray(replayed) !== Array.isArray(stored)) return false;
  if (Array.isArray(replayed) && replayed.length !== (stored as unknown[]).length) return false;
  return Object.entries(replayed).every(
    ([key, value]) => Object.hasOwn(stored, key) && agrees(value, (stored as Record<string, unknown>)[key]),
  );
};

const argumentsAgree = (replayed: string, stored: string): boolean => {
  if (replayed.trim() === stored.trim()) return true;
  try {
    return agrees(JSON.parse(replayed), JSON.parse(stored));
  } catch {
    return false;
  }
};

const callsAgree = (replayed: readonly ToolCall[], stored: readonly ToolCall[]): boolean =>
  replayed.length === stored.length &&
  replayed.every((call, index) => {
    const other = stored[index] as ToolCall;
    return call.id === other.id && call.name === other.name && argumentsAgree(call.arguments, other.arguments);
  });

const answersAgree = (
  replayed: { text: string; calls?: readonly ToolCall[] },
  stored: { text: string; calls?: readonly ToolCall[] },
): boolean => replayed.text.trim() === stored.text.trim() && callsAgree(replayed.calls ?? [], stored.calls ?? []);

const messagesAgree = (one: Message, other: Message): boolean =>
  one.role === other.role &&
  (one.role === "assistant"
    ? answersAgree(one, other)
    : one.text === other.text && one.callId === other.callId && (one.role === "tool" || one.name === other.name));

const toolTexts = new WeakMap<readonly Tool[], string>();

/** An attempt's tools are compared with those of each of its answers. */
const textOfTools = (tools: readonly Tool[]): string => {
  let text = toolTexts.get(tools);
  if (text === undefined) {
    text = JSON.stringify(tools);
    toolTexts.set(tools, text);
  }
  return text;
};

const toolsAgree = (one: readonly Tool[], other: readonly Tool[]): boolean =>
  one.length === other.length && textOfTools(one) === textOfTools(other);

/** Is this message that answer, whatever was done to it: the same call ids, or without calls the same text. */
const isAnswer = (message: Message | undefined, node: AnswerNode): boolean => {
  if (message?.role !== "assistant") return false;
  if (node.calls.length === 0) return !message.calls?.length && message.text.trim() === node.text.trim();
  return node.calls.some((call) => message.calls?.some((replayed) => replayed.id === call.id));
};

const continues = (conversation: Conversation, node: AnswerNode): boolean => {
  const { messages } = node.conversation;
  const replayed = conversation.messages[messages.length];
  return (
    replayed?.role === "assistant" &&
    answersAgree(replayed, node) &&
    toolsAgree(conversation.tools, node.conversation.tools) &&
    messages.every((message, index) => messagesAgree(conversation.messages[index] as Message, message))
  );
};

const beginsWith = (tokens: Int32Array, ...parts: readonly Int32Array[]): boolean => {
  let at = 0;
  for (const part of parts) {
    if (at + part.length > tokens.length) return false;
    for (const token of part) if (tokens[at++] !== token) return false;
  }
  return true;
};

/**
 * What the template writes after the node's answer, beginning with the token that ends the turn; undefined when it
 * renders the history otherwise now that more follows (then nothing may be fed in its place).
 */
const restAfter = (
  conversation: Conversation,
  answered: number,
  full: string,
  format: ChatFormat,
): { stop?: number; text: string } | undefined => {
  const upTo = (count: number): string =>
    format.render({ messages: conversation.messages.slice(0, count), tools: conversation.tools }, { addGenerationPrompt: false });
  const before = upTo(answered);
  const withAnswer = upTo(answered + 1);
  if (!full.startsWith(withAnswer) || !withAnswer.startsWith(before)) return undefined;
  let end: { stop?: number; text: string; at: number } = { text: full.slice(withAnswer.length), at: -1 };
  for (const stop of format.stopTokens) {
    const written = format.decode([stop]);
    const at = written === "" ? -1 : withAnswer.lastIndexOf(written);
    if (at >= before.length && at > end.at) end = { stop, text: full.slice(at + written.length), at };
  }
  return end;
};

const concat = (...parts: readonly Int32Array[]): Int32Array => {
  const all = new Int32Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

/**
 * The ids to feed. Smallest example: the model wrote {"n": 1.0} in 5 ids and the client replays {"n":1}, which is 4. Same
 * call id, equal JSON: the 5 ids are fed, "repaired".
 * @throws AgentError "template-refused".
 */
export const toPrompt = (conversation: Conversation, nodes: readonly AnswerNode[], format: ChatFormat): Prompt => {
  const full = format.render(conversation, { addGenerationPrompt: true });
  const plain = format.encode(full);
  // a conversation without an answer, or before the attempt's first answer, continues nothing
  if (nodes.length === 0 || !conversation.messages.some((message) => message.role === "assistant"))
    return { tokens: plain, fidelity: "exact" };

  // the longest, of those the latest: most often the last, and no other is then looked at
  let node: AnswerNode | undefined;
  for (let at = nodes.length - 1; at >= 0; at--) {
    const candidate = nodes[at] as AnswerNode;
    const isLonger = node === undefined || candidate.conversation.messages.length > node.conversation.messages.length;
    if (isLonger && continues(conversation, candidate)) node = candidate;
  }
  if (node === undefined) {
    const edited = nodes.some((candidate) => conversation.messages.some((message) => isAnswer(message, candidate)));
    return { tokens: plain, fidelity: "retokenised", because: edited ? "edited" : "unknown" };
  }
  if (beginsWith(plain, node.promptTokens, node.responseTokens)) return { tokens: plain, fidelity: "exact" };

  const rest = restAfter(conversation, node.conversation.messages.length, full, format);
  if (rest === undefined) return { tokens: plain, fidelity: "retokenised", because: "template" };
  const ended = rest.stop !== undefined && node.responseTokens.at(-1) === rest.stop;
  const between = ended || rest.stop === undefined ? [] : [rest.stop];
  return {
    tokens: concat(node.promptTokens, node.responseTokens, Int32Array.from(between), format.encode(rest.text)),
    fidelity: "repaired",
  };
};

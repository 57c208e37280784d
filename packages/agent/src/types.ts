// The doors of this room: what an agent is given, what it gives back, who runs it. Types only.

import type { Sampler } from "@fulgurite/engine";
import type { AttemptRef, Json, Mode, Rollout, Span, Store } from "@fulgurite/trace";

/** Handed to any OpenAI-style client. `fetch` is bound to one attempt, so that concurrent rollouts are told apart. */
export interface OpenAIOptions {
  readonly baseURL: string;
  readonly apiKey: string;
  readonly fetch: typeof globalThis.fetch;
}

export interface AgentContext {
  readonly openai: OpenAIOptions;
  /** Aborted on timeout, cancellation and disposal. */
  readonly signal: AbortSignal;
  readonly mode: Mode;
  readonly rollout: Rollout;
  readonly attempt: AttemptRef;
  /** Records a reward before the end; the agent's return value, when it is a number, is the last one. */
  reward(value: number, options?: { name?: string; reason?: string; responseId?: string }): void;
}

/** An agent: a task in, the reward out (or undefined when it recorded its rewards itself). */
export type Agent<Task = Json> = (task: Task, context: AgentContext) => Promise<number | void>;

/** Text ↔ ids of one model, with its chat template. Made from a Hugging Face folder by loadChatFormat. */
export interface ChatFormat {
  readonly vocabSize: number;
  /** Ends an assistant turn. */
  readonly stopTokens: readonly number[];
  encode(text: string): Int32Array;
  /** Special tokens are kept as text; ids ≥ the tokenizer's vocabulary decode to nothing. */
  decode(tokens: Int32Array | readonly number[]): string;
  /** The UTF-8 bytes that a token stands for, perhaps a part of a character; undefined for a special token. Absent: no answer can be constrained. */
  tokenBytes?(id: number): Uint8Array | undefined;
  /** The template's text, ready for encode. Throws AgentError when the template refuses the messages. */
  render(conversation: Conversation, options: { addGenerationPrompt: boolean }): string;
}

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** The model's own JSON text, never re-serialised. */
  readonly arguments: string;
}

export interface Message {
  readonly role: "system" | "user" | "assistant" | "tool";
  readonly text: string;
  readonly calls?: readonly ToolCall[];
  readonly callId?: string;
  readonly name?: string;
}

export interface Tool {
  readonly name: string;
  readonly description?: string;
  readonly parameters?: Json;
}

/** A request, whatever client sent it: the canonical form. */
export interface Conversation {
  readonly messages: readonly Message[];
  readonly tools: readonly Tool[];
}

/** How an attempt samples, decided by the run, not by the client. */
export interface Sampling {
  readonly mode: Mode;
  readonly temperature: number;
  readonly maxTokens: number;
  /** u32; each call of the attempt derives its own from it and its turn. */
  readonly seed: number;
}

/** What edge workers give a handler beside the request. */
export interface RequestContext {
  /** Keeps what belongs to a request alive after its answer: there a span that is on its way to a store would be dropped. */
  waitUntil(promise: Promise<unknown>): void;
}

export interface Endpoint {
  /** The OpenAI-compatible server as a function: POST …/chat/completions, GET …/models. Never throws: errors are responses. */
  handle(request: Request, context?: RequestContext): Promise<Response>;
  /** Opens an attempt: its own fetch and key. `close` refuses later calls and resolves when every span was appended. */
  open(attempt: AttemptRef, sampling: Sampling, signal?: AbortSignal): OpenedAttempt;
}

export interface OpenedAttempt {
  readonly openai: OpenAIOptions;
  /** Queues a span (a reward) behind the calls so far, so that the store's order is the order of events. After close: ignored. */
  record(make: () => Span): void;
  close(): Promise<EndpointStats>;
  /**
   * Closes, and ends the attempt: `end` puts its last spans into the store together with its end (Store.finish). Where that fails they
   * are appended, and `end` is called again with none. Resolves with what `end` did.
   */
  finish<T>(end: (last: readonly Span[], stats: EndpointStats) => Promise<T>): Promise<T>;
}

export interface EndpointStats {
  readonly calls: number;
  readonly exact: number;
  readonly repaired: number;
  readonly retokenised: number;
  /** Of the retokenised: the template rewrites history, the agent changed it, or it holds an answer that is not ours. */
  readonly retokenisedBecause: { readonly template: number; readonly edited: number; readonly unknown: number };
  /** Tool calls that did not parse and were handed on as text. */
  readonly malformedCalls: number;
  /** Capture failures: counted, never thrown into the agent. */
  readonly captureFailures: number;
}

export interface EndpointOptions {
  readonly sampler: Sampler;
  readonly format: ChatFormat;
  readonly store: Store;
  readonly modelName?: string; // "policy"
  readonly clock?: () => number;
  /** 128 random bits as needed for ids. Default: crypto.getRandomValues. */
  readonly randomBytes?: (length: number) => Uint8Array;
}

export interface RunnerOptions<Task = Json> {
  readonly store: Store;
  readonly endpoint: Endpoint;
  readonly agent: Agent<Task>;
  /** Rollouts in flight at once. */
  readonly concurrency?: number; // 64
  readonly workerId?: string;
  /** Sampling of a rollout; default: τ 1 in train, 0 in val, 256 tokens, seed hashed from the rollout's id. */
  readonly sampling?: (rollout: Rollout) => Partial<Sampling>;
  readonly clock?: () => number;
}

/** Claims rollouts and executes the agent. An agent that throws, hangs or lies is a failed attempt, never a crash. */
export interface Runner {
  /** Claims and runs until the queue is empty and nothing is running. Rejects only when the store fails or the signal aborts. */
  drain(options?: { signal?: AbortSignal; onEnd?: (rollout: Rollout) => void }): Promise<void>;
}

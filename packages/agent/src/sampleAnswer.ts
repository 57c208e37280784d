// One answer of the policy: tokens from the sampler, and from them text and tool calls as soon as they are certain.

import type { Sampler } from "@fulgurite/engine";
import { AgentError } from "./errors.ts";
import type { TokenGrammar } from "./grammar/index.ts";
import { linkAbort } from "./linkedAbort.ts";
import { createStopMatcher, createTextStream } from "./textStream.ts";
import { type AnswerPart, createCallParser } from "./toolCalls.ts";
import type { ChatFormat, ToolCall } from "./types.ts";

export interface Answer {
  readonly text: string;
  readonly calls: readonly ToolCall[];
  /** Calls that did not parse and are part of the text. */
  readonly malformedCalls: number;
  readonly tokens: Int32Array; // [R]
  readonly logprobs: Float32Array; // [R]
  /** [R], where the answer did not come from the whole distribution. */
  readonly drawnLogprobs?: Float32Array;
  /** Places in `tokens` of those that the grammar left no choice. */
  readonly forced?: Int32Array;
  readonly finishReason: "stop" | "length" | "tool_calls" | "aborted";
  readonly policyVersion: number;
}

export type CertainPart = { readonly kind: "text"; readonly text: string } | { readonly kind: "call"; readonly call: ToolCall };

export interface AnswerRequest {
  readonly prompt: Int32Array;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number;
  readonly adapter?: string;
  readonly stop: readonly string[];
  readonly grammar?: TokenGrammar;
  readonly topP?: number;
  readonly topK?: number;
  readonly logitBias?: readonly (readonly [token: number, bias: number])[];
  /** Empty: nothing is read as a call. */
  readonly toolNames: ReadonlySet<string>;
  readonly signal: AbortSignal;
  readonly mintCallId: () => string;
}

export interface AnswerListener {
  token(token: number, logprob: number): void;
  part(part: CertainPart): void;
}

/** The grammar as the sampler asks for it: it tells the tokens so far, of which the walk knows all but the last. */
const maskOf = (grammar: TokenGrammar): ((tokens: readonly number[]) => Uint32Array) => {
  const walk = grammar.begin();
  let walked = 0;
  return (tokens) => {
    for (; walked < tokens.length; walked++) walk.push(tokens[walked] as number);
    return walk.mask();
  };
};

/**
 * Samples one answer; with a listener, tells it of each token and then of what that token made certain.
 * An answer that a stop string ends keeps the token that completed it, as that token was sampled.
 * @throws AgentError "sampler" when the sampler breaks its contract; its own errors pass.
 */
export const sampleAnswer = async (
  sampler: Sampler,
  format: ChatFormat,
  request: AnswerRequest,
  listener?: AnswerListener,
): Promise<Answer> => {
  const characters = createTextStream(format);
  const stops = createStopMatcher(request.stop);
  const parser = createCallParser(request.toolNames);
  const isStop = (token: number): boolean => format.stopTokens.includes(token);
  const tokens: number[] = []; // taken one by one
  const logprobs: number[] = [];
  const calls: ToolCall[] = [];
  let text = "";

  const settle = (parts: readonly AnswerPart[]): void => {
    for (const part of parts) {
      if (part.kind === "text") {
        text += part.text;
        listener?.part(part);
      } else {
        const call = { id: request.mintCallId(), name: part.name, arguments: part.arguments };
        calls.push(call);
        listener?.part({ kind: "call", call });
      }
    }
  };
  // only a stop string ends an answer from here; only a listener and a stop string need it token by token
  const isStepwise = listener !== undefined || request.stop.length > 0;
  const abort = request.stop.length > 0 ? linkAbort([request.signal]) : undefined;
  const take = (token: number, logprob: number): void => {
    if (stops.stopped) return;
    tokens.push(token);
    logprobs.push(logprob);
    listener?.token(token, logprob);
    if (!isStop(token)) settle(parser.push(stops.push(characters.push(token))));
    if (stops.stopped) abort?.abort();
  };

  const { adapter, topP, topK, logitBias, grammar } = request;
  try {
    const completion = await sampler.generate({
      prompt: request.prompt,
      maxTokens: request.maxTokens,
      temperature: request.temperature,
      stopTokens: format.stopTokens,
      seed: request.seed,
      signal: abort?.signal ?? request.signal,
      ...(adapter !== undefined && { adapter }),
      ...(topP !== undefined && { topP }),
      ...(topK !== undefined && { topK }),
      ...(logitBias && { logitBias }),
      ...(grammar && { mask: maskOf(grammar) }),
      ...(isStepwise && { onToken: take }),
    });
    if (completion.tokens.length !== completion.logprobs.length) {
      throw new AgentError(
        "sampler",
        `sampler: must return one log-prob a token, got ${completion.logprobs.length} for ${completion.tokens.length}; it cannot serve training`,
      );
    }
    if (isStepwise)
      for (let at = tokens.length; at < completion.tokens.length; at++)
        take(completion.tokens[at] as number, completion.logprobs[at] as number);
    else settle(parser.push(characters.pushAll(completion.tokens.filter((token) => !isStop(token)))));
    if (!stops.stopped) settle(parser.push(stops.push(characters.end()) + stops.end()));
    settle(parser.end());

    const { drawnLogprobs, forced } = completion;
    const taken = isStepwise
      ? { tokens: new Int32Array(tokens), logprobs: new Float32Array(logprobs) }
      : { tokens: completion.tokens.slice(), logprobs: completion.logprobs.slice() }; // a sampler may use its arrays again
    const { length } = taken.tokens;
    const ended = stops.stopped ? "stop" : completion.finishReason;
    return {
      text,
      calls,
      malformedCalls: parser.failed,
      ...taken,
      // a stop string may have cut the answer short of what was sampled
      ...(drawnLogprobs && { drawnLogprobs: drawnLogprobs.slice(0, length) }),
      ...(forced && { forced: Int32Array.from({ length }, (_, at) => at).filter((at) => forced[at] === 1) }),
      finishReason: ended === "stop" && calls.length > 0 ? "tool_calls" : ended,
      policyVersion: completion.policyVersion,
    };
  } finally {
    abort?.unlink();
  }
};

// One POST …/chat/completions of one attempt: request → canonical conversation → ids → answer, as JSON or as a stream.
// The span is queued when sampling ends, before the answer does: a client that cancels at [DONE] or never reads is
// recorded all the same, exactly once.

import { type AttemptRef, type Json, mintId, mintSpanId, modelCallSpan, type RandomBytes } from "@fulgurite/trace";
import { type AnswerHead, toChatCompletion, toChatText, toChunk, toErrorObject, toUsage, toUsageChunk } from "./answers.ts";
import type { SpanQueue } from "./capture.ts";
import { type ChatRequest, parseChatRequest } from "./conversation.ts";
import { AgentError, messageOf } from "./errors.ts";
import { type AnswerNode, type Prompt, type RetokenisedBecause, toPrompt } from "./fidelity.ts";
import type { TokenGrammar } from "./grammar/index.ts";
import type { Incoming } from "./incoming.ts";
import { followAbort, type LinkedAbort, linkAbort } from "./linkedAbort.ts";
import { adapterOf, type Served } from "./models.ts";
import { type Answer, type AnswerListener, sampleAnswer } from "./sampleAnswer.ts";
import { seedOfTurn } from "./seeds.ts";
import { createEventStream } from "./sse.ts";
import type { ChatFormat, EndpointStats, Sampling } from "./types.ts";

/** What every call of an endpoint shares. */
export interface Service extends Served {
  readonly format: ChatFormat;
  readonly clock: () => number;
  readonly randomBytes: RandomBytes;
}

export type Counts = {
  -readonly [Name in keyof EndpointStats]: EndpointStats[Name] extends number ? number : Record<RetokenisedBecause, number>;
};

/** An open attempt: what its calls leave for the ones after. */
export interface OpenAttempt {
  readonly ref: AttemptRef;
  readonly sampling: Sampling;
  readonly abort: LinkedAbort;
  readonly spans: SpanQueue;
  readonly nodes: AnswerNode[];
  /** Calls that are being sampled. */
  readonly running: Set<Promise<unknown>>;
  readonly counts: Counts;
  turns: number;
  closed: boolean;
}

/** What goes back: JSON as its text, or events while they come. */
export interface Reply {
  readonly status?: number; // 200
  readonly body: string | ReadableStream<Uint8Array>;
}

/** What a call says, with everything in it that takes time. */
interface Parsed {
  readonly raw: Json;
  readonly chat: ChatRequest;
  readonly grammar?: TokenGrammar;
  /** Who is asked where it is not the policy that is trained. */
  readonly adapter?: string;
}

/** A call that was accepted: nothing in it is undecided but what the policy says. */
interface Call extends Parsed {
  readonly prompt: Prompt;
  readonly turn: number;
  readonly seed: number;
  readonly maxTokens: number;
  readonly head: AnswerHead;
  readonly startMs: number;
  readonly record: boolean;
}

export const closedError = (ref: AttemptRef): AgentError =>
  new AgentError(
    "closed",
    `endpoint: the attempt must be open, got attempt ${ref.id} of rollout ${ref.rolloutId}, which has ended; stop calling the model`,
  );

const parseBody = (text: string): Json => {
  try {
    return JSON.parse(text) as Json;
  } catch (cause) {
    throw new AgentError("bad-request", `body: must be JSON, got ${messageOf(cause)}; send a chat completion request`, {
      cause,
      param: "body",
    });
  }
};

const parse = async (service: Service, text: string): Promise<Parsed> => {
  const raw = parseBody(text);
  const chat = parseChatRequest(raw);
  const { grammar, model } = chat.options;
  const adapter = adapterOf(service, model);
  const said = { raw, chat, ...(adapter !== undefined && { adapter }) };
  if (!grammar) return said;
  const { grammarFor } = await import("./grammar/index.ts");
  return { ...said, grammar: grammarFor(grammar, chat.conversation.tools, service.format, service.sampler.limits.vocabSize) };
};

/** Everything that can be refused is refused until here, before a turn is counted. */
const accept = (service: Service, attempt: OpenAttempt, parsed: Parsed, record: boolean): Call => {
  const { chat } = parsed;
  const prompt = toPrompt(chat.conversation, attempt.nodes, service.format);
  const { maxContext } = service.sampler.limits;
  const room = maxContext - prompt.tokens.length;
  if (room < 1 || prompt.tokens.length === 0) {
    throw new AgentError(
      "context-length",
      `messages: the prompt must have 1 to ${maxContext - 1} tokens, as the context holds ${maxContext}, got ${prompt.tokens.length}; shorten the history`,
      { param: "messages" },
    );
  }
  const { mode, maxTokens, seed } = attempt.sampling;
  const turn = attempt.turns++;
  attempt.counts.calls++;
  attempt.counts[prompt.fidelity]++;
  if (prompt.because) attempt.counts.retokenisedBecause[prompt.because]++;
  const startMs = service.clock();
  return {
    ...parsed,
    prompt,
    turn,
    seed: mode === "val" && chat.options.seed !== undefined ? chat.options.seed : seedOfTurn(seed, turn),
    maxTokens: Math.min(maxTokens, chat.options.maxTokens ?? maxTokens, room),
    head: {
      id: `chatcmpl-${mintId(startMs, service.randomBytes)}`,
      model: parsed.adapter ?? service.modelName,
      created: Math.floor(startMs / 1000),
      sendTokenIds: mode === "train" || chat.options.returnTokenIds,
      sendLogprobs: mode === "train" || chat.options.logprobs,
      promptTokens: prompt.tokens,
    },
    startMs,
    record,
  };
};

/** Samples, remembers and records. A failed call is recorded as one, without tokens. */
const sample = async (
  service: Service,
  attempt: OpenAttempt,
  call: Call,
  signal: AbortSignal,
  listener?: AnswerListener,
): Promise<Answer> => {
  const { head, prompt, chat } = call;
  const { topP, topK, logitBias } = chat.options;
  const restrictions =
    attempt.sampling.mode === "val" ? { ...(topP && { topP }), ...(topK && { topK }), ...(logitBias && { logitBias }) } : {};
  const shared = {
    attempt: attempt.ref,
    startMs: call.startMs,
    model: head.model,
    responseId: head.id,
    turn: call.turn,
    mode: attempt.sampling.mode,
    fidelity: prompt.fidelity,
    temperature: attempt.sampling.temperature,
    ...("topP" in restrictions && { topP: restrictions.topP }),
    ...("topK" in restrictions && { topK: restrictions.topK }),
    maxTokens: call.maxTokens,
    seed: call.seed,
    promptTokens: prompt.tokens,
    request: call.raw,
  };
  let answer: Answer;
  try {
    answer = await sampleAnswer(
      service.sampler,
      service.format,
      {
        prompt: prompt.tokens,
        maxTokens: call.maxTokens,
        temperature: attempt.sampling.temperature,
        seed: call.seed,
        stop: chat.options.stop,
        ...(call.adapter !== undefined && { adapter: call.adapter }),
        ...(call.grammar && { grammar: call.grammar }),
        ...restrictions,
        toolNames: new Set(chat.conversation.tools.map((tool) => tool.name)),
        signal,
        mintCallId: () => `call_${mintId(service.clock(), service.randomBytes)}`,
      },
      listener,
    );
  } catch (error) {
    if (call.record) {
      attempt.spans.record(() =>
        modelCallSpan({
          ...shared,
          id: mintSpanId(service.randomBytes),
          endMs: service.clock(),
          policyVersion: service.sampler.policyVersion,
          finishReason: "aborted",
          errorType: error instanceof Error ? error.name : "unknown",
          response: { error: { message: messageOf(error) } },
        }),
      );
    }
    throw error;
  }
  attempt.counts.malformedCalls += answer.malformedCalls;
  const responseTokens = answer.tokens;
  if (answer.finishReason !== "aborted") {
    attempt.nodes.push({
      conversation: chat.conversation,
      promptTokens: prompt.tokens,
      responseTokens,
      text: answer.text,
      calls: answer.calls,
    });
  }
  if (call.record) {
    const late = attempt.closed;
    attempt.spans.record(() =>
      modelCallSpan({
        ...shared,
        id: mintSpanId(service.randomBytes),
        endMs: service.clock(),
        keys: [head.id, ...answer.calls.map((toolCall) => toolCall.id)],
        policyVersion: answer.policyVersion,
        finishReason: answer.finishReason,
        // another adapter's answer is shown, never trained: its log-probs are not the policy's
        ...(call.adapter === undefined && {
          responseTokens,
          samplerLogprobs: answer.logprobs,
          ...(answer.drawnLogprobs && { drawnLogprobs: answer.drawnLogprobs }),
          ...(answer.forced && { forcedTokens: answer.forced }),
        }),
        response: toChatCompletion(head, answer),
        late,
      }),
    );
  }
  return answer;
};

const abortedError = (signal: AbortSignal): AgentError =>
  signal.reason instanceof AgentError
    ? signal.reason
    : new AgentError("aborted", `endpoint: the call was aborted, got ${messageOf(signal.reason)}`, { cause: signal.reason });

const answerJson = async (service: Service, attempt: OpenAttempt, call: Call, signal: AbortSignal): Promise<Reply> => {
  const answer = await sample(service, attempt, call, signal);
  if (answer.finishReason === "aborted") throw abortedError(signal);
  return { body: toChatText(call.head, answer, service.format) };
};

/** The first chunk waits for what comes first: strict clients want the role and the first call's type in one chunk. */
const answerStream = (service: Service, attempt: OpenAttempt, call: Call, abort: LinkedAbort): { reply: Reply; ended: Promise<void> } => {
  const { head, prompt } = call;
  const { format } = service;
  const stream = createEventStream((reason) => abort.abort(reason));
  const fresh = { tokens: [] as number[], logprobs: [] as number[] };
  const taken = (): typeof fresh => ({ tokens: fresh.tokens.splice(0), logprobs: fresh.logprobs.splice(0) });
  const none = { tokens: [], logprobs: [] };
  let begun = false;
  let calls = 0;
  const begin = (delta: Record<string, Json>): void => {
    stream.send(toChunk(head, begun ? delta : { role: "assistant", content: null, ...delta }, none, format, { first: !begun }));
    begun = true;
  };
  const listener: AnswerListener = {
    token(token, logprob) {
      fresh.tokens.push(token);
      fresh.logprobs.push(logprob);
    },
    part(part) {
      if (part.kind === "text") {
        if (!begun) begin({ content: "" });
        stream.send(toChunk(head, { content: part.text }, taken(), format));
        return;
      }
      const { id, name, arguments: written } = part.call;
      const index = calls++;
      begin({ tool_calls: [{ index, id, type: "function", function: { name, arguments: "" } }] });
      stream.send(toChunk(head, { tool_calls: [{ index, function: { arguments: written } }] }, taken(), format));
    },
  };
  const run = async (): Promise<void> => {
    try {
      const answer = await sample(service, attempt, call, abort.signal, listener);
      if (answer.finishReason === "aborted") return stream.fail(abortedError(abort.signal));
      if (!begun) begin({ content: "" });
      // a chunk without choices only for who asked: naive readers take choices[0]. LangChain counts by itself where it finds
      // no usage at all, with a vocabulary from the network, so the others find it in the last chunk
      const { includeUsage } = call.chat.options;
      const usage = toUsage(prompt.tokens.length, answer.tokens.length);
      stream.send(toChunk(head, {}, taken(), format, { finishReason: answer.finishReason, ...(!includeUsage && { usage }) }));
      if (includeUsage) stream.send(toUsageChunk(head, usage));
      stream.done();
    } catch (error) {
      stream.send(toErrorObject(error).body);
      stream.close();
    }
  };
  return { ended: run(), reply: { body: stream.body } };
};

/** @throws AgentError for what is refused; the sampler's own errors pass. */
export const answerChat = async (service: Service, attempt: OpenAttempt, incoming: Incoming): Promise<Reply> => {
  const parsed = await parse(service, await incoming.text());
  if (attempt.closed) throw closedError(attempt.ref);
  const call = accept(service, attempt, parsed, incoming.header("x-fulgurite-record") !== "off");
  const signals = [incoming.signal, attempt.abort.signal];
  const track = (ended: Promise<unknown>, unlink: () => void): void => {
    const done = ended
      .catch(() => {})
      .finally(() => {
        unlink();
        attempt.running.delete(done);
      });
    attempt.running.add(done);
  };
  if (call.chat.options.stream) {
    const abort = linkAbort(signals);
    const { reply, ended } = answerStream(service, attempt, call, abort);
    track(ended, abort.unlink);
    return reply;
  }
  const { signal, unlink } = followAbort(signals);
  const answered = answerJson(service, attempt, call, signal);
  track(answered, unlink);
  return answered;
};

// The OpenAI-compatible endpoint: one function from Request to Response, no server, no socket. It knows which attempt a call
// belongs to: by the fetch it came through, else by its path, else by its key. It never asks which framework is calling.

import { type AttemptRef, mintId, platformRandom } from "@fulgurite/trace";
import { toErrorObject } from "./answers.ts";
import { createSpanQueue } from "./capture.ts";
import { answerChat, closedError, type OpenAttempt, type Reply, type Service } from "./chatCall.ts";
import { AgentError } from "./errors.ts";
import { fromFetch, fromRequest, type Incoming, ORIGIN } from "./incoming.ts";
import { linkAbort } from "./linkedAbort.ts";
import { findModel, listModels } from "./models.ts";
import { toTextResponse } from "./textResponse.ts";
import type { Endpoint, EndpointOptions, EndpointStats, Sampling } from "./types.ts";

const KEY_PREFIX = "fg_";
const ROUTES = "POST …/chat/completions, GET …/models and GET …/models/{id}";

/** What a client that is refused is to be told. */
const CHAT_INSTEAD = {
  completions: "; send the prompt as messages: only a chat has turns, and each is a transition",
  responses:
    "; tell the client to use chat completions: openai's client.chat.completions, the AI SDK's provider.chat(model), setOpenAIAPI(\"chat_completions\") of OpenAI Agents",
} as const;

// the suffix decides, never the host
const ROUTE = /\/(chat\/completions|completions|responses|models(?:\/[^/]+)?)\/?$/;
const ATTEMPT_PATH = /\/rollout\/([^/]+)\/attempt\/([^/]+)(?:\/|$)/;

const routeOf = ({ pathname }: URL): string | undefined => ROUTE.exec(pathname)?.[1];

const nameOf = (ref: AttemptRef): string => `${encodeURIComponent(ref.rolloutId)}/${encodeURIComponent(ref.id)}`;

const bearerOf = (incoming: Incoming): string | undefined => /^Bearer\s+(\S+)$/i.exec(incoming.header("authorization") ?? "")?.[1];

const toResponse = ({ status = 200, body }: Reply, requestId: string): Response =>
  typeof body === "string"
    ? toTextResponse(body, { status, headers: { "content-type": "application/json", "x-request-id": requestId } })
    : new Response(body, {
        status,
        headers: { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-request-id": requestId },
      });

/** Rejects as fetch does when its signal aborts, even if what it waits for does not care. */
const orAborted = async <T>(promise: Promise<T>, signal: AbortSignal | null | undefined): Promise<T> => {
  if (!signal) return promise;
  let stop = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    const listener = (): void => reject(signal.reason);
    signal.addEventListener("abort", listener, { once: true });
    stop = () => signal.removeEventListener("abort", listener);
  });
  return Promise.race([promise, aborted]).finally(stop);
};

export const createEndpoint = (options: EndpointOptions): Endpoint => {
  const service: Service = {
    sampler: options.sampler,
    format: options.format,
    modelName: options.modelName ?? "policy",
    clock: options.clock ?? Date.now,
    randomBytes: options.randomBytes ?? platformRandom,
  };
  if (service.format.vocabSize > service.sampler.limits.vocabSize) {
    throw new AgentError(
      "bad-format",
      `createEndpoint: the tokenizer's ids must be below the model's vocabulary of ${service.sampler.limits.vocabSize}, got ${service.format.vocabSize}; take both from one folder`,
    );
  }
  const byName = new Map<string, OpenAttempt>();
  const byKey = new Map<string, OpenAttempt>();

  const attributed = (incoming: Incoming): OpenAttempt => {
    const key = bearerOf(incoming);
    const path = ATTEMPT_PATH.exec(incoming.url.pathname);
    if (path) {
      const attempt = byName.get(`${path[1]}/${path[2]}`);
      if (!attempt) {
        throw new AgentError(
          "not-found",
          `endpoint: the path must name an open attempt, got ${path[1]}/${path[2]}, which was never opened or has ended`,
        );
      }
      if (key?.startsWith(KEY_PREFIX) && byKey.get(key) !== attempt) {
        throw new AgentError(
          "unauthorized",
          "endpoint: key and path must name the same attempt, got a key of another one; use the pair that open() returned",
        );
      }
      return attempt;
    }
    const attempt = key === undefined ? undefined : byKey.get(key);
    if (!attempt) {
      throw new AgentError(
        "unauthorized",
        `endpoint: the bearer key must be an open attempt's, got ${key === undefined ? "none" : "an unknown one"}; use the apiKey that open() returned`,
      );
    }
    return attempt;
  };

  const route = async (incoming: Incoming, toAttempt: () => OpenAttempt): Promise<Reply> => {
    const { method, url } = incoming;
    const target = routeOf(url);
    if (target === "chat/completions" && method === "POST") return answerChat(service, toAttempt(), incoming);
    if (target === "models" && method === "GET") return { body: JSON.stringify(listModels(service)) };
    if (target?.startsWith("models/") && method === "GET")
      return { body: JSON.stringify(findModel(service, decodeURIComponent(target.slice("models/".length)))) };
    const next = target === "completions" || target === "responses" ? CHAT_INSTEAD[target] : "";
    throw new AgentError("not-found", `endpoint: must be one of ${ROUTES}, got ${method} ${url.pathname}${next}`);
  };

  const respond = async (incoming: Incoming, toAttempt: () => OpenAttempt): Promise<Response> => {
    let reply: Reply;
    try {
      reply = await route(incoming, toAttempt);
    } catch (error) {
      const { status, body } = toErrorObject(error);
      reply = { status, body: JSON.stringify(body) };
    }
    return toResponse(reply, `req_${mintId(service.clock(), service.randomBytes)}`);
  };

  const open = (ref: AttemptRef, sampling: Sampling, signal?: AbortSignal): ReturnType<Endpoint["open"]> => {
    const name = nameOf(ref);
    if (byName.has(name)) throw new AgentError("bad-request", `endpoint: an attempt is opened once, got ${name} again; close it first`);
    const key = `${KEY_PREFIX}${mintId(service.clock(), service.randomBytes)}`;
    const attempt: OpenAttempt = {
      ref,
      sampling,
      abort: linkAbort([signal]),
      spans: createSpanQueue(options.store),
      nodes: [],
      running: new Set(),
      counts: {
        calls: 0,
        exact: 0,
        repaired: 0,
        retokenised: 0,
        retokenisedBecause: { template: 0, edited: 0, unknown: 0 },
        malformedCalls: 0,
        captureFailures: 0,
      },
      turns: 0,
      closed: false,
    };
    byName.set(name, attempt);
    byKey.set(key, attempt);

    const toAttempt = (): OpenAttempt => {
      if (attempt.closed) throw closedError(ref);
      return attempt;
    };
    const ownFetch: typeof globalThis.fetch = async (input, init) => {
      const incoming = fromFetch(input, init);
      if (routeOf(incoming.url) === undefined && incoming.url.origin !== ORIGIN) return globalThis.fetch(input, init);
      incoming.signal?.throwIfAborted();
      return orAborted(respond(incoming, toAttempt), incoming.signal);
    };

    /** Nothing is asked or recorded any more when it resolves. */
    const shut = async (): Promise<void> => {
      attempt.closed = true;
      byName.delete(name);
      byKey.delete(key);
      if (attempt.running.size > 0) attempt.abort.abort(closedError(ref)); // an error costs more than the rest of closing
      attempt.abort.unlink();
      await Promise.all(attempt.running);
    };
    const stats = (): EndpointStats => ({ ...attempt.counts, captureFailures: attempt.spans.failures });
    const close = async (): Promise<EndpointStats> => {
      await shut();
      await attempt.spans.settled();
      return stats();
    };
    let closing: Promise<EndpointStats> | undefined;
    return {
      openai: { baseURL: `${ORIGIN}/rollout/${name.replace("/", "/attempt/")}/v1`, apiKey: key, fetch: ownFetch },
      record: (make) => {
        if (!attempt.closed) attempt.spans.record(make);
      },
      close: () => {
        closing ??= close();
        return closing;
      },
      finish: async (end) => {
        attempt.spans.hold();
        const ended = shut().then(() => attempt.spans.finish((last) => end(last, stats())));
        closing ??= ended.then(stats, stats);
        return ended;
      },
    };
  };

  const handle: Endpoint["handle"] = (request, context) => {
    const incoming = fromRequest(request, request.signal);
    let asked: OpenAttempt | undefined;
    const toAttempt = (): OpenAttempt => {
      asked = attributed(incoming);
      return asked;
    };
    const response = respond(incoming, toAttempt);
    const recorded = async (): Promise<void> => {
      await response;
      await Promise.all(asked?.running ?? []);
      await asked?.spans.settled();
    };
    context?.waitUntil(recorded());
    return response;
  };
  return { handle, open };
};

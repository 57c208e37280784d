// A store over HTTP: what both sides agree on. Bodies are JSON (and say so in content-type) or, where marked,
// NDJSON (one JSON value a line) or bytes.
//
//   POST /rollouts       { tasks }                                    → { rollouts }
//   GET  /rollouts       ?id=&status=&mode=&metadata=&order=&after=&limit=   → NDJSON, at most `limit` (256)
//   POST /claim          { workerId, limit, claimId? }                → { claims }      those that still run, again for the same claimId
//   GET  /attempts       ?rolloutId=                                  → NDJSON
//   POST /spans          { spans }                                    → 204
//   GET  /spans          ?rolloutId=&attemptId=&after=&limit=         → NDJSON, at most `limit` (64)
//   POST /heartbeat      { attempt }                                  → 204
//   POST /finish         { attempt, outcome, spans? }                 → { rollout }
//   POST /cancel         { rolloutId }                                → { rollout }
//   POST /forget         { rolloutId, seq? }                          → { forgotten }
//   POST /requeue-stale  { beforeMs }                                 → { count }
//   POST /wait           { rolloutIds, timeoutMs }                    → { rollouts }, or { rollouts: null } after timeoutMs
//   POST /resources      { resource }                                 → { resource }
//   GET  /resources                                                   → NDJSON, without files
//   GET  /resource       ?name=&version=                              → { resource }, null where there is none
//   POST /unpublish      { name, version }                            → { unpublished }
//   PUT  /state          ?name=                bytes                  → 204
//   GET  /state          ?name=                                       → bytes, 204 where there is none
//   GET  /states                                                      → { names }
//   POST /adopt          { items }                                    → { outcomes }
//   GET  /stats                                                       → StoreStats
//   GET  /watch          Last-Event-ID                                → server-sent events: `ready` first, then `change` with a StoreEvent
//
// Every path begins with PREFIX. What writes carries an id in the header REQUEST, and when it is sent once more, because its
// answer was lost, the same and AGAIN: it is done once, and gets the first answer, as long as the server remembers it. Every
// answer but a stream says its length in the header LENGTH. A refusal is { error: { code, message } }: a TraceErrorCode with the
// status of STATUSES, or "origin" (403), "no-route" (404), "method" (405), "internal" (500). Spans and files are as
// itemCodec.ts writes them.

import type { TraceErrorCode } from "../errors.ts";

export const PREFIX = "/fulgurite/v1/store";

/** A text of its own for each request that writes. */
export const REQUEST = "fulgurite-request";

/** "1" from the second try of a request on. */
export const AGAIN = "fulgurite-again";

/** The bytes of an answer's body, before any compression on the way. */
export const LENGTH = "fulgurite-length";

export const STATUSES: Readonly<Record<TraceErrorCode, number>> = {
  "bad-input": 400,
  "bad-span": 422,
  denied: 401,
  unknown: 404,
  status: 409,
  conflict: 409,
  "too-large": 413,
  corrupt: 500,
  locked: 503,
  outdated: 503,
  "no-locks": 503,
  closed: 503,
  timeout: 504,
  storage: 507,
  full: 507,
};

export const ROLLOUTS_A_PAGE = 256;
export const SPANS_A_PAGE = 64;
/** A wait is answered at the latest after this, and asked again: shorter than what proxies cut. */
export const WAIT_MS = 25_000;

/** An idle stream of events says something this often, so that proxies keep it; who hears nothing for three times as long has lost it. */
export const PING_MS = 15_000;

export const toNdjson = (values: readonly unknown[]): string => values.map((value) => `${JSON.stringify(value)}\n`).join("");

export const fromNdjson = (text: string): unknown[] =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as unknown);

/** One server-sent event; the data is JSON, so it has no line breaks of its own. */
export interface SentEvent {
  readonly id?: string;
  readonly event: string;
  readonly data: unknown;
}

export const encodeEvent = ({ id, event, data }: SentEvent): string =>
  `${id === undefined ? "" : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;

/** The events of a response's body, until it ends. `onBytes` hears of every sign of life, pings included. */
export async function* readEvents(body: ReadableStream<Uint8Array>, onBytes: () => void = () => {}): AsyncGenerator<SentEvent> {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      text += decoder.decode(value, { stream: true });
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const fields = new Map<string, string>();
        for (const line of text.slice(0, end).split("\n")) {
          const colon = line.indexOf(": ");
          if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 2));
        }
        text = text.slice(end + 2);
        const [event, data, id] = [fields.get("event"), fields.get("data"), fields.get("id")];
        if (event !== undefined && data !== undefined) yield { event, data: JSON.parse(data), ...(id === undefined ? {} : { id }) };
      }
    }
  } finally {
    void reader.cancel().catch(() => {}); // it ended, or nobody listens any more
  }
}

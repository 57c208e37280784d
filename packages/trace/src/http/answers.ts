// What goes out of a served store: answers that say how long they are, so that nobody takes a page of a proxy's for one, or the
// first half for the whole; and the last of them by request, so that a request that comes twice is done once.

import type { TraceErrorCode } from "../errors.ts";
import { LENGTH, toNdjson } from "./protocol.ts";

export interface Answer {
  readonly status: number;
  readonly type?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** A refusal; some are about HTTP and not about the store. */
export interface Refusal {
  readonly status: number;
  readonly code: TraceErrorCode | "origin" | "no-route" | "method" | "aborted" | "internal";
  readonly message: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const textual = (type: string, text: string, status = 200): Answer => ({ status, type, bytes: new TextEncoder().encode(text) });

export const json = (value: unknown, status?: number): Answer => textual("application/json", JSON.stringify(value), status);

export const ndjson = (values: readonly unknown[]): Answer => textual("application/x-ndjson", toNdjson(values));

export const binary = (bytes: Uint8Array): Answer => ({ status: 200, type: "application/octet-stream", bytes: new Uint8Array(bytes) });

export const empty = (): Answer => ({ status: 204, bytes: new Uint8Array() });

export const refused = ({ status, code, message, headers = {} }: Refusal): Answer => ({
  ...json({ error: { code, message } }, status),
  headers,
});

export const toResponse = ({ status, type, headers, bytes }: Answer): Response =>
  new Response(status === 204 ? null : bytes, {
    status,
    headers: {
      ...headers,
      ...(type !== undefined && { "content-type": type }),
      "cache-control": "no-store",
      [LENGTH]: String(bytes.length),
    },
  });

const REMEMBERED = 1_000;
const REMEMBERED_BYTES = 16 * 2 ** 20;

/**
 * Gives the answer of the first time to every request of the same id, as long as it is among the last REMEMBERED of
 * REMEMBERED_BYTES together. What failed is tried anew.
 */
export const createMemory = (): ((id: string, act: () => Promise<Answer>) => Promise<Answer>) => {
  const answers = new Map<string, { readonly answer: Promise<Answer>; byteLength: number }>(); // by age
  let total = 0;
  const forget = (id: string): void => {
    total -= answers.get(id)?.byteLength ?? 0;
    answers.delete(id);
  };
  return (id, act) => {
    const known = answers.get(id);
    if (known) return known.answer;
    const one = { answer: act(), byteLength: 0 };
    answers.set(id, one);
    one.answer.then(
      ({ bytes }) => {
        if (answers.get(id) !== one) return;
        one.byteLength = bytes.length;
        total += bytes.length;
        for (const oldest of answers.keys()) {
          if (answers.size <= REMEMBERED && total <= REMEMBERED_BYTES) break;
          forget(oldest);
        }
      },
      () => forget(id),
    );
    return one.answer;
  };
};

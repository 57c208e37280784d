// One request to a served store: asked again while it may still succeed, and refused with the error of the store over there.

import { TraceError, type TraceErrorCode } from "../errors.ts";
import type { Timer } from "../waitBounds.ts";
import { AGAIN, fromNdjson, PREFIX, STATUSES } from "./protocol.ts";

/** Tries in all, the pause before the second and what it is multiplied by. */
const TRIES = 4;
export const PAUSE_MS = 250;
export const PAUSE_GROWTH = 3;
/** Of servers and proxies that may do better in a moment; of a store only if it has no word of its own. */
const PASSING: readonly number[] = [429, 502, 503, 504];

export interface RequestsOptions {
  readonly baseUrl: string;
  readonly token: string | (() => string | Promise<string>) | undefined;
  readonly fetch: typeof globalThis.fetch | undefined;
  readonly timer: Timer;
  /** Of one try, its body included. */
  readonly timeoutMs: number;
  /** Before each try. */
  readonly guardOpen: () => void;
}

interface Ask {
  readonly search?: URLSearchParams;
  readonly json?: unknown;
  readonly bytes?: Uint8Array<ArrayBuffer>;
  readonly signal?: AbortSignal;
}

/** Ends a try with the caller's signal, or when it takes too long. */
const limitTry = (
  timer: Timer,
  timeoutMs: number,
  outer: AbortSignal | undefined,
): { signal: AbortSignal; isLate(): boolean; clear(): void } => {
  const controller = new AbortController();
  let late = false;
  const end = (): void => controller.abort(outer?.reason);
  const cut = timer(() => {
    late = true;
    controller.abort();
  }, timeoutMs);
  if (outer?.aborted) end();
  outer?.addEventListener("abort", end, { once: true });
  return {
    signal: controller.signal,
    isLate: () => late,
    clear: () => {
      cut();
      outer?.removeEventListener("abort", end);
    },
  };
};

export interface Requests {
  /** One try, whatever the answer. */
  fetched(method: string, path: string, ask: Ask, headers?: Readonly<Record<string, string>>): Promise<Response>;
  /** @throws TraceError of the store over there; "storage" when it cannot be reached. */
  call<T>(method: string, path: string, ask: Ask, read: (response: Response) => Promise<T>): Promise<T>;
  get<T>(path: string, search?: URLSearchParams): Promise<T>;
  /** NDJSON. */
  list(path: string, search?: URLSearchParams): Promise<unknown[]>;
}

const isCode = (code: unknown): code is TraceErrorCode => typeof code === "string" && Object.hasOwn(STATUSES, code);

export const createRequests = ({ baseUrl, token, fetch, timer, timeoutMs, guardOpen }: RequestsOptions): Requests => {
  const base = `${new URL(baseUrl).href.replace(/\/+$/, "")}${PREFIX}`;
  const sleep = (ms: number): Promise<void> => new Promise((resolve) => void timer(resolve, ms));
  const unreachable = (got: string, cause?: unknown): TraceError =>
    new TraceError("storage", `store ${baseUrl}: a server that serves a store, got ${got}; look at the address and the server`, { cause });

  const fetched: Requests["fetched"] = async (method, path, { search, json, bytes, signal }, more = {}) => {
    const headers: Record<string, string> = { ...more };
    if (token !== undefined) headers.authorization = `Bearer ${typeof token === "string" ? token : await token()}`;
    if (json !== undefined) headers["content-type"] = "application/json";
    const body = json === undefined ? bytes : JSON.stringify(json);
    const ask = fetch ?? globalThis.fetch;
    const query = search === undefined || search.size === 0 ? "" : `?${search}`;
    return ask(`${base}${path}${query}`, {
      method,
      headers,
      ...(body === undefined ? {} : { body }),
      ...(signal === undefined ? {} : { signal }),
    });
  };

  /** A refusal as the error it was; undefined for one that may pass. */
  const errorOf = async (response: Response): Promise<TraceError | undefined> => {
    const text = await response.text();
    let told: { code?: unknown; message?: unknown } | undefined;
    try {
      told = (JSON.parse(text) as { error?: typeof told } | null)?.error;
    } catch {
      // a proxy's page: told below
    }
    if (isCode(told?.code)) return new TraceError(told.code, String(told.message));
    if (PASSING.includes(response.status)) return undefined;
    return unreachable(`${response.status} ${told === undefined ? text.slice(0, 80) : `${told.code}: ${told.message}`}`);
  };

  const call: Requests["call"] = async (method, path, ask, read) => {
    for (let tried = 1; ; tried++) {
      guardOpen();
      let failure: TraceError;
      const limit = limitTry(timer, timeoutMs, ask.signal);
      try {
        const response = await fetched(method, path, { ...ask, signal: limit.signal }, tried > 1 ? { [AGAIN]: "1" } : {});
        if (response.ok) return await read(response);
        const error = await errorOf(response);
        if (error) throw error;
        failure = unreachable(`${response.status} ${TRIES} times`);
      } catch (cause) {
        ask.signal?.throwIfAborted();
        if (cause instanceof TraceError) throw cause;
        failure = unreachable(limit.isLate() ? `no whole answer within ${timeoutMs} ms` : String(cause), cause);
      } finally {
        limit.clear();
      }
      if (tried === TRIES) throw failure;
      await sleep(PAUSE_MS * PAUSE_GROWTH ** (tried - 1));
    }
  };

  return {
    fetched,
    call,
    get: <T>(path: string, search?: URLSearchParams) =>
      call("GET", path, search ? { search } : {}, async (response) => (await response.json()) as T),
    list: (path, search) => call("GET", path, search ? { search } : {}, async (response) => fromNdjson(await response.text())),
  };
};

// One request to a served store: asked again while it may still succeed, and refused with the error of the store over there.

import { TraceError, type TraceErrorCode } from "../errors.ts";
import type { Timer } from "../waitBounds.ts";
import { AGAIN, fromNdjson, LENGTH, PREFIX, REQUEST, STATUSES } from "./protocol.ts";

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
  /** Of each request that writes, the same for all its tries. */
  readonly newRequestId: () => string;
}

interface Ask {
  readonly search?: URLSearchParams;
  readonly json?: unknown;
  readonly bytes?: Uint8Array<ArrayBuffer>;
  readonly signal?: AbortSignal;
  /** Changes nothing over there: it needs no id. */
  readonly isQuestion?: boolean;
}

/** A whole answer of a store. */
export interface Heard {
  readonly status: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

export const jsonOf = <T>({ bytes }: Heard): T => JSON.parse(new TextDecoder().decode(bytes)) as T;

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

/** Rejects when it is aborted. */
const aborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

export interface Requests {
  /** One try, whatever the answer. */
  fetched(method: string, path: string, ask: Ask, headers?: Readonly<Record<string, string>>): Promise<Response>;
  /** @throws TraceError of the store over there; "storage" when it cannot be reached. */
  call(method: string, path: string, ask: Ask): Promise<Heard>;
  get<T>(path: string, search?: URLSearchParams): Promise<T>;
  /** NDJSON. */
  list(path: string, search?: URLSearchParams): Promise<unknown[]>;
}

/** What stands before a store may refuse too, in words of its own. */
const REFUSALS: Readonly<Record<number, TraceErrorCode>> = { 401: "denied", 403: "denied", 407: "denied", 413: "too-large" };

const isCode = (code: unknown): code is TraceErrorCode => typeof code === "string" && Object.hasOwn(STATUSES, code);

export const createRequests = ({ baseUrl, token, fetch, timer, timeoutMs, guardOpen, newRequestId }: RequestsOptions): Requests => {
  const base = `${new URL(baseUrl).href.replace(/\/+$/, "")}${PREFIX}`;
  const sleep = (ms: number): Promise<void> => new Promise((resolve) => void timer(resolve, ms));
  const unreachable = (got: string, cause?: unknown): TraceError =>
    new TraceError("storage", `store ${baseUrl}: a server that serves a store, got ${got}; look at the address and the server`, { cause });

  /** Never in a message. @throws TraceError "denied". */
  const authorization = async (): Promise<string> => {
    let given: string | undefined;
    let cause: unknown;
    try {
      given = typeof token === "function" ? await token() : token;
    } catch (error) {
      cause = error;
    }
    if (typeof given === "string" && /^[\x20-\x7e]*$/.test(given)) return `Bearer ${given}`;
    const got = cause === undefined ? `${typeof given} of other characters` : `${cause}`;
    throw new TraceError("denied", `store ${baseUrl}: a token of visible ASCII, got ${got}; look at the token option`, { cause });
  };

  const fetched: Requests["fetched"] = async (method, path, { search, json, bytes, signal }, more = {}) => {
    const headers: Record<string, string> = { ...more };
    if (token !== undefined) headers.authorization = await Promise.race([authorization(), ...(signal ? [aborted(signal)] : [])]);
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

  /** A refusal as the error it was, and whether it is final; another answer may come in a moment. */
  const refusalOf = ({ status }: Response, bytes: Uint8Array): { readonly error: TraceError; readonly isFinal: boolean } => {
    const text = new TextDecoder().decode(bytes);
    let told: { code?: unknown; message?: unknown } | undefined;
    try {
      told = (JSON.parse(text) as { error?: typeof told } | null)?.error;
    } catch {
      // a proxy's page: told below
    }
    if (isCode(told?.code)) return { error: new TraceError(told.code, String(told.message)), isFinal: true };
    const got = `${status} ${told === undefined ? text.slice(0, 80) : `${told.code}: ${told.message}`}`;
    const code = REFUSALS[status];
    if (code === undefined) return { error: unreachable(got), isFinal: !PASSING.includes(status) && status >= 300 };
    const advice = code === "denied" ? "look at its rules" : "send less at once, or raise its limit";
    const rule = "a request that what stands before the store lets through";
    return { error: new TraceError(code, `store ${baseUrl}: ${rule}, got ${got}; ${advice}`), isFinal: true };
  };

  const call: Requests["call"] = async (method, path, ask) => {
    const id = method === "GET" || ask.isQuestion ? {} : { [REQUEST]: newRequestId() };
    for (let tried = 1; ; tried++) {
      guardOpen();
      let failure: TraceError;
      let isFinal = false;
      const limit = limitTry(timer, timeoutMs, ask.signal);
      try {
        const response = await fetched(method, path, { ...ask, signal: limit.signal }, { ...id, ...(tried > 1 && { [AGAIN]: "1" }) });
        const bytes = new Uint8Array(await response.arrayBuffer());
        // a proxy's page in its place is not an answer, nor is the first half of one
        if (response.ok && response.headers.get(LENGTH) === String(bytes.length)) return { status: response.status, bytes };
        ({ error: failure, isFinal } = refusalOf(response, bytes));
      } catch (cause) {
        ask.signal?.throwIfAborted();
        failure =
          cause instanceof TraceError
            ? cause
            : unreachable(limit.isLate() ? `no whole answer within ${timeoutMs} ms` : String(cause), cause);
      } finally {
        limit.clear();
      }
      if (isFinal || tried === TRIES) throw failure;
      await sleep(PAUSE_MS * PAUSE_GROWTH ** (tried - 1));
    }
  };

  return {
    fetched,
    call,
    get: async <T>(path: string, search?: URLSearchParams) => jsonOf<T>(await call("GET", path, search ? { search } : {})),
    list: async (path, search) => fromNdjson(new TextDecoder().decode((await call("GET", path, search ? { search } : {})).bytes)),
  };
};

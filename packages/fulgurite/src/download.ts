// One file over HTTP: a plain GET, and where the connection breaks one `Range: bytes=a-` at a time for the rest.
// It decides nothing about caches or models; what an answer means for the load is its caller's.
//
// What a server may do, and what happens then
// - 206: the rest is appended. 200 to a range: the whole body again; it is skipped to where we were.
// - another ETag, date or size than before: the file was changed meanwhile; what we have is thrown away, the new one is taken.
// - 408, 429, 5xx, a broken connection, a body shorter than announced: again after a pause, at most ATTEMPTS times in a row
//   without a new byte.
// - 401, 403: an error that names the token. 404, 410, a page of HTML (how servers of single-page apps say 404): absent.

import { EngineError, type WeightReceiver } from "@fulgurite/engine";

export interface Answer {
  /** ETag, else date of the last change. Across origins a browser shows only the latter. */
  readonly version?: string;
  /** The hub's commit that the file belongs to. */
  readonly commit?: string;
  /** Bytes of the whole file; absent where the server does not say, or says it of a compressed form. */
  readonly totalBytes?: number;
}

export interface DownloadOptions {
  readonly headers?: Readonly<Record<string, string>>;
  /** If-Range saves one request when a file was changed; across origins it would cost a browser a preflight, which hubs refuse. */
  readonly sendsIfRange: boolean;
  /** Default "no-store": the browser's own cache would keep weights a second time, and give an old config.json to new ones. */
  readonly browserCache?: RequestCache;
  readonly signal?: AbortSignal | undefined;
  /** Gets the bytes as they come, instead of the result; it begins anew when the file was changed meanwhile. */
  readonly receiver?: WeightReceiver;
  /** After each part: bytes of the file that are here. */
  readonly onBytes?: (bytes: number, totalBytes: number | undefined) => void;
  /** Asked once, between the first answer and its body: bytes end the download. */
  readonly known?: (answer: Answer) => Promise<Uint8Array | undefined>;
  readonly fetch?: typeof fetch;
  /** Waits between attempts; rejects when the signal fires. */
  readonly sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
}

export type Downloaded =
  | { readonly kind: "file"; readonly bytes: Uint8Array; readonly answer: Answer; readonly isKnown: boolean }
  /** `got`: what came in its place, for messages. */
  | { readonly kind: "absent"; readonly got: string };

const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 500;
const MAX_PAUSE_MS = 30_000;

/** Trouble of the way, not of the file: trying again may help. */
class Interruption extends Error {
  readonly pauseMs: number;
  constructor(message: string, pauseMs = 0, options?: ErrorOptions) {
    super(message, options);
    this.pauseMs = pauseMs;
  }
}

const carry = async <T>(pending: Promise<T>): Promise<T> => {
  try {
    return await pending;
  } catch (cause) {
    // fetch hides its reason one level down: "fetch failed" is caused by ECONNREFUSED
    const { message, cause: reason } = cause as Error;
    throw new Interruption(reason instanceof Error ? `${message}: ${reason.message}` : message, 0, { cause });
  }
};

const pause = (ms: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const end = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", end);
      resolve();
    }, ms);
    signal?.addEventListener("abort", end, { once: true });
  });

/** Bytes that arrive. */
interface Body {
  readonly length: number;
  /** Before the first of them: how many there will be. */
  reserve(totalBytes: number): void;
  push(part: Uint8Array): Promise<void>;
  /** What came so far is of no use. */
  clear(): void;
  /** All of them, or as many as tell what it is. */
  take(): Uint8Array;
}

/** Passes them on; an interrupted file goes on where it was. */
const createPassage = (receiver: WeightReceiver): Body => {
  let [length, hasBegun] = [0, false];
  let totalBytes: number | undefined;
  let start = new Uint8Array(0);
  const begin = (): void => {
    if (!hasBegun) receiver.begin(totalBytes);
    hasBegun = true;
  };
  return {
    get length() {
      return length;
    },
    reserve: (bytes) => {
      totalBytes = bytes;
    },
    push: async (part) => {
      begin();
      if (length < 64) start = Uint8Array.of(...start, ...part.subarray(0, 64 - length));
      await receiver.part(part);
      length += part.length;
    },
    clear: () => {
      [length, hasBegun, totalBytes, start] = [0, false, undefined, new Uint8Array(0)];
    },
    take: () => {
      begin(); // an empty file is one too
      return start;
    },
  };
};

/** Keeps them in one array that is as long as the file where that is known. */
const createBody = (url: URL): Body => {
  let bytes = new Uint8Array(0);
  let length = 0;
  const reserve = (capacity: number): void => {
    if (capacity <= bytes.length) return;
    let larger: Uint8Array<ArrayBuffer>;
    try {
      larger = new Uint8Array(capacity);
    } catch (cause) {
      throw new EngineError(
        "device",
        `loadPolicy: ${url} fits in one array of this runtime, got ${capacity} bytes; take a checkpoint in shards, or a smaller model`,
        { cause },
      );
    }
    larger.set(bytes.subarray(0, length));
    bytes = larger;
  };
  return {
    get length() {
      return length;
    },
    reserve,
    push: async (part) => {
      if (length + part.length > bytes.length) reserve(Math.max(length + part.length, 2 * bytes.length));
      bytes.set(part, length);
      length += part.length;
    },
    clear: () => {
      bytes = new Uint8Array(0);
      length = 0;
    },
    take: () => (bytes.length === length ? bytes : bytes.slice(0, length)),
  };
};

/** bytes 100-199/200 → [100, 200]; a total may be unknown (*). */
const readContentRange = (header: string | null): { from?: number; total?: number } => {
  const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(header ?? "") ?? [];
  return { ...(from !== undefined && { from: Number(from) }), ...(total !== undefined && total !== "*" && { total: Number(total) }) };
};

const toAnswer = ({ status, headers }: Response, from: number): Answer => {
  const version = headers.get("etag") ?? headers.get("last-modified") ?? undefined;
  const commit = headers.get("x-repo-commit") ?? undefined;
  const isEncoded = (headers.get("content-encoding") ?? "identity") !== "identity";
  const announced = headers.has("content-length") ? Number(headers.get("content-length")) : undefined;
  const whole = status === 206 ? (readContentRange(headers.get("content-range")).total ?? (announced && from + announced)) : announced;
  return {
    ...(version !== undefined && { version }),
    ...(commit !== undefined && { commit }),
    ...(whole !== undefined && Number.isSafeInteger(whole) && !isEncoded && { totalBytes: whole }),
  };
};

/** Retry-After in seconds; its other form, a date, is not worth a clock. */
const retryAfterMs = (response: Response): number => {
  const seconds = Number(response.headers.get("retry-after"));
  return seconds > 0 ? seconds * 1000 : 0;
};

const startOf = (bytes: Uint8Array): string => new TextDecoder().decode(bytes.subarray(0, 64)).trimStart().toLowerCase();
const isPage = (bytes: Uint8Array): boolean => /^<(!doctype html|html)/.test(startOf(bytes));

const fail = (url: URL, rule: string, got: string, advice: string, options?: ErrorOptions): EngineError =>
  new EngineError("bad-file", `loadPolicy: ${url} ${rule}, got ${got}; ${advice}`, options);

/**
 * Downloads a file. Throws EngineError: bad-file (no access, a server that does not answer, a file that is none),
 * aborted, device (no array is that large).
 */
export const download = async (url: URL, options: DownloadOptions): Promise<Downloaded> => {
  const {
    headers = {},
    sendsIfRange,
    browserCache = "no-store",
    signal,
    onBytes,
    known,
    sleep = pause,
    fetch: send = globalThis.fetch,
  } = options;
  const body = options.receiver ? createPassage(options.receiver) : createBody(url);
  let first: Answer | undefined;

  const request = (from: number): Promise<Response> => {
    // an ETag that begins with W/ promises the same meaning, not the same bytes
    const validator = sendsIfRange && !first?.version?.startsWith("W/") ? first?.version : undefined;
    return carry(
      send(url, {
        // Compressed bytes cannot be resumed. Browsers drop this header without asking anyone.
        headers: {
          ...headers,
          "accept-encoding": "identity",
          ...(from > 0 && { range: `bytes=${from}-` }),
          ...(from > 0 && validator !== undefined && { "if-range": validator }),
        },
        cache: browserCache,
        ...(signal && { signal }),
      }),
    );
  };

  /** The statuses that bring no part of the file; undefined: this one does. */
  const refuse = (response: Response): Downloaded | undefined => {
    const { status } = response;
    if (status === 401 || status === 403) {
      const advice =
        "authorization" in headers
          ? "the given token does not open it: accept the model's licence on its page, or check its name"
          : "if the model is gated or private, pass the option token; if not, check its name";
      throw fail(url, "may be read", `status ${status}`, advice);
    }
    if (status === 404 || status === 410) return { kind: "absent", got: `status ${status}` };
    if (status === 408 || status === 429 || status >= 500) throw new Interruption(`status ${status}`, retryAfterMs(response));
    if (status === 416) {
      body.clear(); // the file ends before the byte that we wanted: it is another one
      throw new Interruption("status 416, the file became shorter");
    }
    if (status !== 200 && status !== 206) throw fail(url, "is a file", `status ${status}`, "check the address");
    if (response.headers.get("content-type")?.startsWith("text/html")) return { kind: "absent", got: `status ${status}, a page of HTML` };
    return undefined;
  };

  /** How many bytes of this answer's body we have already. Another file than before: forgets the old one first. */
  const align = (response: Response, from: number, answer: Answer): number => {
    if (from === 0) return 0;
    const before = first as Answer;
    const hasOtherSize = answer.totalBytes !== undefined && before.totalBytes !== undefined && answer.totalBytes !== before.totalBytes;
    const isOther = answer.version !== before.version || hasOtherSize;
    if (response.status === 200) {
      if (!isOther && answer.version !== undefined) return from;
      body.clear(); // nothing says that it is the same file, and all of it comes anyway
      return 0;
    }
    const start = readContentRange(response.headers.get("content-range")).from ?? from;
    if (isOther || start !== from) {
      body.clear();
      throw new Interruption(isOther ? "another file than before" : `bytes from ${start} on instead of ${from}`);
    }
    return 0;
  };

  const receive = async (stream: ReadableStream<Uint8Array>, alreadyHere: number, totalBytes: number | undefined): Promise<void> => {
    const reader = stream.getReader();
    let skip = alreadyHere;
    // Node's fetch forgets a read that waits while the signal fires when the body has already come.
    let end = (): void => {};
    const aborted = new Promise<never>((_, reject) => {
      end = () => reject(signal?.reason);
    });
    aborted.catch(() => {});
    signal?.addEventListener("abort", end, { once: true });
    try {
      for (;;) {
        if (signal?.aborted) end();
        const { done, value } = await carry(Promise.race([aborted, reader.read()]));
        if (done) return;
        if (value.length > skip) {
          await body.push(value.subarray(skip));
          onBytes?.(body.length, totalBytes);
        }
        skip = Math.max(0, skip - value.length);
      }
    } finally {
      signal?.removeEventListener("abort", end);
      reader.cancel().catch(() => {}); // a listener that threw, or nothing left to cancel
    }
  };

  const attempt = async (): Promise<Downloaded> => {
    const from = body.length;
    const response = await request(from);
    const drop = (): void => void response.body?.cancel().catch(() => {});
    let alreadyHere: number;
    const answer = toAnswer(response, from);
    try {
      const refused = refuse(response);
      if (refused) {
        drop();
        return refused;
      }
      alreadyHere = align(response, from, answer);
    } catch (error) {
      drop();
      throw error;
    }
    const isFirst = first === undefined;
    first = answer;
    const bytes = isFirst ? await known?.(answer) : undefined;
    if (bytes) {
      drop();
      return { kind: "file", bytes, answer, isKnown: true };
    }
    const { totalBytes } = answer;
    if (totalBytes !== undefined) body.reserve(totalBytes);
    const isResumable = (response.headers.get("content-encoding") ?? "identity") === "identity";
    try {
      if (response.body) await receive(response.body, alreadyHere, totalBytes);
    } catch (error) {
      if (!isResumable) body.clear();
      throw error;
    }
    if (totalBytes !== undefined && body.length < totalBytes) throw new Interruption(`${body.length} of ${totalBytes} bytes`);
    // Only of a resumed file: a browser may be shown the length of a compressed form and given the plain one.
    if (totalBytes !== undefined && body.length > totalBytes && from > 0)
      throw fail(url, `has ${totalBytes} bytes`, `${body.length}`, "the server's ranges are wrong; host the files elsewhere");
    const got = body.take();
    if (isPage(got)) return { kind: "absent", got: "a page of HTML" };
    if (startOf(got).startsWith("version https://git-lfs"))
      throw fail(url, "is the file itself", "a Git LFS pointer", "run `git lfs pull` where it is hosted, or use the hub's name");
    return { kind: "file", bytes: got, answer, isKnown: false };
  };

  let failures = 0;
  let most = 0;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (signal?.aborted) throw new EngineError("aborted", `loadPolicy: aborted while reading ${url}`, { cause: error });
      if (!(error instanceof Interruption)) throw error;
      failures = body.length > most ? 1 : failures + 1;
      most = Math.max(most, body.length);
      if (failures >= ATTEMPTS)
        throw fail(url, `comes within ${ATTEMPTS} attempts`, error.message, "check the address and the network (in a page: CORS too)", {
          cause: error.cause ?? error,
        });
      const waitMs = Math.min(Math.max(FIRST_PAUSE_MS * 2 ** (failures - 1), error.pauseMs), MAX_PAUSE_MS);
      await sleep(waitMs, signal).catch((cause: unknown) => {
        if (signal?.aborted) throw new EngineError("aborted", `loadPolicy: aborted while waiting for ${url}`, { cause });
        throw cause;
      });
    }
  }
};

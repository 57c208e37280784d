// A store behind HTTP, as a function from Request to Response: any server that speaks web standards can hold it. The paths
// are in protocol.ts. Not a policy on who may do what: `authorize` lets a request in or not. Not CORS either: the server around it knows its origins.

import { TraceError } from "../errors.ts";
import { platformRandom } from "../ids.ts";
import { decodeFiles, decodeItem, decodeSpan, encodeFiles, encodeSpan } from "../itemCodec.ts";
import type {
  AttemptRef,
  Json,
  Outcome,
  Resource,
  ResourceInput,
  RolloutQuery,
  RolloutStatus,
  Span,
  Store,
  StoreEvent,
  TaskInput,
} from "../vocabulary.ts";
import { platformTimer } from "../waitBounds.ts";
import { encodeEvent, PREFIX, ROLLOUTS_A_PAGE, SPANS_A_PAGE, STATUSES, toNdjson, WAIT_MS } from "./protocol.ts";

export interface ServeOptions {
  /** Whether to let a request in; without it everyone may do everything. */
  readonly authorize?: (request: Request) => boolean | Promise<boolean>;
  /** What a request may carry. */
  readonly maxBodyBytes?: number; // 64 MiB
  /** Hears what became of a 500. Default: console.error. */
  readonly onError?: (error: unknown) => void;
  /** Runs `act` once after `ms`; returns the way to stop it. Default: setTimeout. */
  readonly timer?: (act: () => void, ms: number) => () => void;
}

/** Answers that are given again for the same id, and events that a listener may have missed. */
const REMEMBERED = 1_000;
/** An idle stream says something this often, so that proxies keep it and a listener that is gone is noticed. */
const PING_MS = 15_000;

/** A refusal that is about HTTP and not about the store. */
interface Refusal {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const json = (value: unknown, status = 200, headers: Readonly<Record<string, string>> = {}): Response =>
  new Response(JSON.stringify(value), { status, headers: { "content-type": "application/json", ...headers } });

const ndjson = (values: readonly unknown[]): Response =>
  new Response(toNdjson(values), { headers: { "content-type": "application/x-ndjson" } });

const empty = (): Response => new Response(null, { status: 204 });

const refused = ({ status, code, message, headers }: Refusal): Response => json({ error: { code, message } }, status, headers);

const bad = (where: string, rule: string, got: unknown): never => {
  throw new TraceError("bad-input", `${where}: ${rule}, got ${String(JSON.stringify(got)).slice(0, 80)}; correct the client`);
};

// ---- what comes in --------------------------------------------------------------------------------------------------------

const readBytes = async (request: Request, maxBytes: number): Promise<Uint8Array> => {
  const guard = (byteLength: number, atLeast: string): void => {
    if (byteLength > maxBytes)
      throw new TraceError(
        "too-large",
        `body: at most ${maxBytes} bytes, got ${atLeast}${byteLength}; send less at once, or raise maxBodyBytes`,
      );
  };
  guard(Number(request.headers.get("content-length") ?? 0), "");
  const parts: Uint8Array[] = [];
  let byteLength = 0;
  const reader = request.body?.getReader();
  for (let part = await reader?.read(); part !== undefined && !part.done; part = await reader?.read()) {
    parts.push(part.value);
    byteLength += part.value.length;
    try {
      guard(byteLength, "at least ");
    } catch (error) {
      void reader?.cancel().catch(() => {}); // the rest is nobody's
      throw error;
    }
  }
  const all = new Uint8Array(byteLength);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

type Fields = Readonly<Record<string, unknown>>;

const isFields = (value: unknown): value is Fields => typeof value === "object" && value !== null && !Array.isArray(value);

const parseBody = (bytes: Uint8Array): Fields => {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return bad("body", "JSON in UTF-8", `${bytes.length} other bytes`);
  }
  return isFields(value) ? value : bad("body", "a JSON object", value);
};

const textIn = (body: Fields, name: string): string => {
  const value = body[name];
  return typeof value === "string" ? value : bad(`body.${name}`, "a string", value);
};

const numberIn = (body: Fields, name: string): number => {
  const value = body[name];
  return typeof value === "number" ? value : bad(`body.${name}`, "a number", value);
};

const fieldsIn = (body: Fields, name: string): Fields => {
  const value = body[name];
  return isFields(value) ? value : bad(`body.${name}`, "an object", value);
};

const listIn = (body: Fields, name: string): readonly unknown[] => {
  const value = body[name];
  return Array.isArray(value) ? value : bad(`body.${name}`, "a list", value);
};

const attemptIn = (body: Fields): AttemptRef => {
  const attempt = fieldsIn(body, "attempt");
  return { rolloutId: textIn(attempt, "rolloutId"), id: textIn(attempt, "id") };
};

/** What cannot be decoded is the client's mistake here, not damage to the store. */
const decoded = <T>(decode: () => T): T => {
  try {
    return decode();
  } catch (error) {
    if (error instanceof TraceError && error.code === "corrupt") throw new TraceError("bad-input", error.message);
    throw error;
  }
};

const needed = (search: URLSearchParams, name: string): string => search.get(name) ?? bad(`?${name}`, "a value", null);

const wholeIn = (search: URLSearchParams, name: string): number | undefined => {
  const text = search.get(name);
  if (text === null) return undefined;
  return /^\d{1,15}$/.test(text) ? Number(text) : bad(`?${name}`, "a whole number ≥ 0", text);
};

const STATUS_NAMES: readonly string[] = ["queued", "running", "succeeded", "failed", "cancelled"] satisfies RolloutStatus[];

const rolloutQuery = (search: URLSearchParams): RolloutQuery => {
  const [ids, status, mode, order, metadata] = [
    search.getAll("id"),
    search.getAll("status"),
    search.get("mode"),
    search.get("order"),
    search.get("metadata"),
  ];
  for (const name of status) if (!STATUS_NAMES.includes(name)) bad("?status", `one of ${STATUS_NAMES.join(", ")}`, name);
  if (mode !== null && mode !== "train" && mode !== "val") return bad("?mode", "train or val", mode);
  if (order !== null && order !== "oldest" && order !== "newest") return bad("?order", "oldest or newest", order);
  const after = wholeIn(search, "after");
  return {
    ...(ids.length > 0 && { ids }),
    ...(status.length > 0 && { status: status as RolloutStatus[] }),
    ...(mode !== null && { mode }),
    ...(order !== null && { order }),
    ...(metadata !== null && { metadata: parseBody(new TextEncoder().encode(metadata)) as Record<string, Json> }),
    ...(after !== undefined && { after }),
    limit: Math.min(wholeIn(search, "limit") ?? ROLLOUTS_A_PAGE, ROLLOUTS_A_PAGE),
  };
};

// ---- what goes out --------------------------------------------------------------------------------------------------------

const encodeResource = (resource: Resource) => ({ ...resource, files: encodeFiles(resource.files) });

const taken = async <T>(items: AsyncIterable<T>, limit: number): Promise<T[]> => {
  const found: T[] = [];
  if (limit > 0)
    for await (const item of items) {
      found.push(item);
      if (found.length >= limit) break;
    }
  return found;
};

/** Gives the same promise again for the same request and id; what failed is tried anew. */
const createMemory = () => {
  const answers = new Map<string, Promise<unknown>>();
  return <T>(what: string, given: unknown, act: () => Promise<T>): Promise<T> => {
    if (typeof given !== "string") return act();
    const id = `${what} ${given}`;
    const known = answers.get(id) as Promise<T> | undefined;
    if (known) return known;
    const answer = act();
    answers.set(id, answer);
    answer.catch(() => answers.delete(id));
    for (const oldest of answers.keys()) {
      if (answers.size <= REMEMBERED) break;
      answers.delete(oldest);
    }
    return answer;
  };
};

/** The store's events for whoever is connected, and the last of them for who was not for a moment. */
const createBroadcast = (store: Store, timer: NonNullable<ServeOptions["timer"]>) => {
  const epoch = Array.from(platformRandom(6), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const past: StoreEvent[] = [];
  let count = 0; // of all events; past holds the last of them
  const listeners = new Set<(event: StoreEvent, id: string) => void>();
  store.watch((event) => {
    count += 1;
    past.push(event);
    if (past.length > REMEMBERED) past.shift();
    for (const listener of listeners) listener(event, `${epoch}.${count}`);
  });

  return (lastEventId: string | null, signal: AbortSignal): Response => {
    let stop = (): void => {};
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          const encoder = new TextEncoder();
          const send = (text: string): void => {
            // who does not read is sent away, and may come back with the id of the last that was read
            if ((controller.desiredSize ?? 0) < -REMEMBERED) end();
            else controller.enqueue(encoder.encode(text));
          };
          const listener = (event: StoreEvent, id: string) => send(encodeEvent({ id, event: "change", data: event as unknown as Json }));
          let stopPing = (): void => {};
          const ping = (): void => {
            stopPing = timer(() => {
              ping();
              send(": ping\n\n");
            }, PING_MS);
          };
          stop = () => {
            listeners.delete(listener);
            signal.removeEventListener("abort", end);
            stopPing();
          };
          const end = (): void => {
            stop();
            controller.close();
          };
          signal.addEventListener("abort", end, { once: true });
          const [lastEpoch, last] = (lastEventId ?? "").split(".");
          const since = lastEpoch === epoch ? count - Number(last) : 0;
          const missed = since > 0 && since <= past.length ? since : 0; // of another epoch, or too long ago: they were hints
          send(encodeEvent({ id: `${epoch}.${count - missed}`, event: "ready", data: {} }));
          if (missed > 0)
            for (const [index, event] of past.slice(-missed).entries()) listener(event, `${epoch}.${count - missed + index + 1}`);
          listeners.add(listener);
          ping();
          if (signal.aborted) end();
        },
        cancel: () => stop(),
      },
      { highWaterMark: 0 },
    );
    return new Response(body, { headers: { "content-type": "text/event-stream", "cache-control": "no-store" } });
  };
};

// ---- the routes -----------------------------------------------------------------------------------------------------------

interface Call {
  readonly request: Request;
  readonly search: URLSearchParams;
  readonly bytes: () => Promise<Uint8Array>;
  readonly body: () => Promise<Fields>;
}

type Route = (call: Call) => Promise<Response>;

const routesOf = (store: Store, options: ServeOptions): Readonly<Record<string, Readonly<Record<string, Route>>>> => {
  const once = createMemory();
  const broadcast = createBroadcast(store, options.timer ?? platformTimer);
  return {
    "/rollouts": {
      POST: async ({ body }) => {
        const tasks = listIn(await body(), "tasks").map((task, index) =>
          isFields(task) ? task : bad(`body.tasks[${index}]`, "a task", task),
        );
        return json({ rollouts: await store.enqueue(tasks as unknown as TaskInput[]) });
      },
      GET: async ({ search }) => {
        const query = rolloutQuery(search);
        return ndjson(await taken(store.rollouts(query), query.limit as number));
      },
    },
    "/claim": {
      POST: async ({ body }) => {
        const given = await body();
        const workerId = textIn(given, "workerId");
        const limit = given.limit === undefined ? 1 : numberIn(given, "limit");
        return json({ claims: await once("claim", given.claimId, () => store.claim(workerId, limit)) });
      },
    },
    "/attempts": { GET: async ({ search }) => ndjson(await store.attempts(needed(search, "rolloutId"))) },
    "/spans": {
      POST: async ({ body }) => {
        await store.append(
          listIn(await body(), "spans").map((span, index) => decoded(() => decodeSpan<Span>(span, `body.spans[${index}]`))),
        );
        return empty();
      },
      GET: async ({ search }) => {
        const attemptId = search.get("attemptId");
        const spans = store.spans({
          rolloutId: needed(search, "rolloutId"),
          after: wholeIn(search, "after") ?? 0,
          ...(attemptId !== null && { attemptId }),
        });
        return ndjson((await taken(spans, Math.min(wholeIn(search, "limit") ?? SPANS_A_PAGE, SPANS_A_PAGE))).map(encodeSpan));
      },
    },
    "/heartbeat": {
      POST: async ({ body }) => {
        await store.heartbeat(attemptIn(await body()));
        return empty();
      },
    },
    "/finish": {
      POST: async ({ body }) => {
        const given = await body();
        const outcome = fieldsIn(given, "outcome");
        if (outcome.error !== undefined) fieldsIn(outcome, "error");
        return json({ rollout: await store.finish(attemptIn(given), outcome as unknown as Outcome) });
      },
    },
    "/cancel": { POST: async ({ body }) => json({ rollout: await store.cancel(textIn(await body(), "rolloutId")) }) },
    "/forget": {
      POST: async ({ body }) => {
        const given = await body();
        const rolloutId = textIn(given, "rolloutId");
        return json({ forgotten: await once("forget", given.requestId, () => store.forget(rolloutId)) });
      },
    },
    "/requeue-stale": {
      POST: async ({ body }) => {
        const given = await body();
        const beforeMs = numberIn(given, "beforeMs");
        return json({ count: await once("requeue-stale", given.requestId, () => store.requeueStale(beforeMs)) });
      },
    },
    "/wait": {
      POST: async ({ request, body }) => {
        const given = await body();
        const rolloutIds = listIn(given, "rolloutIds").map((id) => (typeof id === "string" ? id : bad("body.rolloutIds", "strings", id)));
        const timeoutMs = Math.max(0, Math.min(numberIn(given, "timeoutMs"), WAIT_MS));
        const rollouts = await store.waitFor(rolloutIds, { signal: request.signal, timeoutMs }).catch((error) => {
          if (error instanceof TraceError && error.code === "timeout") return null;
          throw error;
        });
        return json({ rollouts });
      },
    },
    "/resources": {
      POST: async ({ body }) => {
        const given = await body();
        const resource = fieldsIn(given, "resource");
        const input = { ...resource, files: decoded(() => decodeFiles(resource.files, "body.resource")) } as unknown as ResourceInput;
        return json({ resource: encodeResource(await once("publish", given.requestId, () => store.publish(input))) });
      },
      GET: async () => ndjson(await taken(store.resources(), Number.POSITIVE_INFINITY)),
    },
    "/resource": {
      GET: async ({ search }) => {
        const resource = await store.resource(needed(search, "name"), wholeIn(search, "version"));
        return json({ resource: resource === undefined ? null : encodeResource(resource) });
      },
    },
    "/unpublish": {
      POST: async ({ body }) => {
        const given = await body();
        const [name, version] = [textIn(given, "name"), numberIn(given, "version")];
        return json({ unpublished: await once("unpublish", given.requestId, () => store.unpublish(name, version)) });
      },
    },
    "/state": {
      PUT: async ({ search, bytes }) => {
        await store.putState(needed(search, "name"), await bytes());
        return empty();
      },
      GET: async ({ search }) => {
        const bytes = await store.getState(needed(search, "name"));
        if (bytes === undefined) return empty();
        return new Response(new Uint8Array(bytes), { headers: { "content-type": "application/octet-stream" } });
      },
    },
    "/states": { GET: async () => json({ names: await store.states() }) },
    "/adopt": {
      POST: async ({ body }) => {
        const items = listIn(await body(), "items").map((item, index) => decoded(() => decodeItem(item, `body.items[${index}]`)));
        return json({ outcomes: await store.adopt(items) });
      },
    },
    "/stats": { GET: async () => json(await store.stats()) },
    "/watch": { GET: async ({ request }) => broadcast(request.headers.get("last-event-id"), request.signal) },
  };
};

/**
 * The handler never throws: what goes wrong is a Response. It listens to the store until the store is closed.
 * A lost answer strands nothing while this handler lives: claims, publications and deletions that carry an id are answered
 * again; after a restart requeueStale finds what nobody heard of.
 */
export const serveStore = (store: Store, options: ServeOptions = {}): ((request: Request) => Promise<Response>) => {
  const { authorize, maxBodyBytes = 64 * 2 ** 20, onError = (error: unknown) => console.error(error) } = options;
  const routes = routesOf(store, options);
  return async (request) => {
    try {
      const { pathname, searchParams } = new URL(request.url);
      const path = pathname.startsWith(`${PREFIX}/`) ? pathname.slice(PREFIX.length) : "";
      // before anything else: who may not come in does not learn what is there
      if (authorize !== undefined && !(await authorize(request)))
        throw new TraceError(
          "denied",
          `${request.method} ${pathname}: the server's key is needed, got none or another; give openHttpStore its token`,
        );
      const methods = Object.hasOwn(routes, path) ? routes[path] : undefined;
      if (methods === undefined)
        return refused({
          status: 404,
          code: "no-route",
          message: `${pathname}: a path of a store below ${PREFIX}, got none of them; look at its version`,
        });
      const route = Object.hasOwn(methods, request.method) ? methods[request.method] : undefined;
      if (route === undefined) {
        const allow = Object.keys(methods).join(", ");
        return refused({
          status: 405,
          code: "method",
          message: `${pathname}: ${allow}, got ${request.method}; correct the client`,
          headers: { allow },
        });
      }
      const bytes = () => readBytes(request, maxBodyBytes);
      return await route({ request, search: searchParams, bytes, body: async () => parseBody(await bytes()) });
    } catch (error) {
      if (error instanceof TraceError) return refused({ status: STATUSES[error.code], code: error.code, message: error.message });
      if (request.signal.aborted) return refused({ status: 499, code: "aborted", message: "the client left" });
      onError(error);
      return refused({
        status: 500,
        code: "internal",
        message: `${request.method} ${request.url}: the server's store failed; its log says why`,
      });
    }
  };
};

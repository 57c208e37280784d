// A store behind HTTP, as a function from Request to Response: any server that speaks web standards can hold it. The paths
// are in protocol.ts. Not a policy on who may do what: `authorize` lets a request in or not, `origins` says which pages may ask.

import { TraceError } from "../errors.ts";
import { decodeFiles, decodeItem, encodeFiles, encodeSpan } from "../itemCodec.ts";
import { manifestOf } from "../manifest.ts";
import { checkedResource, sameContent } from "../values.ts";
import type { Outcome, Resource, ResourceInput, Store, TaskInput } from "../vocabulary.ts";
import { platformTimer } from "../waitBounds.ts";
import { type Answer, binary, createMemory, empty, json, ndjson, refused, toResponse } from "./answers.ts";
import { createBroadcast } from "./broadcast.ts";
import {
  attemptIn,
  bad,
  decoded,
  type Fields,
  fieldsIn,
  guardJson,
  isFields,
  listIn,
  needed,
  numberIn,
  parseBody,
  readBytes,
  rolloutQuery,
  spansIn,
  textIn,
  wholeIn,
} from "./incoming.ts";
import { createOrigins } from "./origins.ts";
import { AGAIN, PREFIX, REQUEST, SPANS_A_PAGE, STATUSES, WAIT_MS } from "./protocol.ts";

export interface ServeOptions {
  /** Whether to let a request in; without it everyone may do everything. */
  readonly authorize?: (request: Request) => boolean | Promise<boolean>;
  /** Pages of which origins may ask, or "*" for all. Default: none is told that it may; then only programs and pages of this origin can. */
  readonly origins?: "*" | readonly string[];
  /** Aborted when the server goes: event streams end, waits are answered, so that what is under way comes to its end. */
  readonly closing?: AbortSignal;
  /** What a request may carry. */
  readonly maxBodyBytes?: number; // 64 MiB
  /** Hears what became of a 500. Default: console.error. */
  readonly onError?: (error: unknown) => void;
  /** Runs `act` once after `ms`; returns the way to stop it. Default: setTimeout. */
  readonly timer?: (act: () => void, ms: number) => () => void;
}

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

/** The latest version, if it is what is to be published once more: the answer to the first time was lost, perhaps with the server that gave it. */
const publishedBefore = async (store: Store, input: ResourceInput): Promise<Resource | undefined> => {
  if (input.version !== undefined) return undefined; // the store itself knows it
  const checked = checkedResource(input);
  const latest = await store.resource(checked.name);
  return latest && sameContent(latest, { ...checked, manifest: await manifestOf(checked.files) }) ? latest : undefined;
};

// ---- the routes -----------------------------------------------------------------------------------------------------------

interface Call {
  readonly request: Request;
  readonly search: URLSearchParams;
  readonly bytes: () => Promise<Uint8Array>;
  readonly body: () => Promise<Fields>;
}

/** A Response: a stream. */
type Route = (call: Call) => Promise<Answer | Response>;

/** Ends with the request, or with the server. */
const until = (request: Request, closing: AbortSignal | undefined): AbortSignal =>
  closing === undefined ? request.signal : AbortSignal.any([request.signal, closing]);

const routesOf = (store: Store, options: ServeOptions): Readonly<Record<string, Readonly<Record<string, Route>>>> => {
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
        const claimId = given.claimId === undefined ? undefined : textIn(given, "claimId");
        return json({ claims: await store.claim(workerId, limit, claimId) });
      },
    },
    "/attempts": { GET: async ({ search }) => ndjson(await store.attempts(needed(search, "rolloutId"))) },
    "/spans": {
      POST: async ({ body }) => {
        await store.append(spansIn(await body()));
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
        const last = given.spans === undefined ? [] : spansIn(given);
        return json({ rollout: await store.finish(attemptIn(given), outcome as unknown as Outcome, last) });
      },
    },
    "/cancel": { POST: async ({ body }) => json({ rollout: await store.cancel(textIn(await body(), "rolloutId")) }) },
    "/forget": {
      POST: async ({ request, body }) => {
        const given = await body();
        const rolloutId = textIn(given, "rolloutId");
        const seq = given.seq === undefined ? undefined : numberIn(given, "seq");
        const isForgotten = await store.forget(rolloutId, seq === undefined ? undefined : { seq });
        // who names a seq has seen it there: if it is gone when asked again, the first asking deleted it
        return json({ forgotten: isForgotten || (seq !== undefined && request.headers.has(AGAIN)) });
      },
    },
    "/requeue-stale": {
      POST: async ({ body }) => {
        const given = await body();
        const beforeMs = numberIn(given, "beforeMs");
        return json({ count: await store.requeueStale(beforeMs) });
      },
    },
    "/wait": {
      POST: async ({ request, body }) => {
        const given = await body();
        const rolloutIds = listIn(given, "rolloutIds").map((id) => (typeof id === "string" ? id : bad("body.rolloutIds", "strings", id)));
        const timeoutMs = Math.max(0, Math.min(numberIn(given, "timeoutMs"), WAIT_MS));
        const signal = until(request, options.closing);
        const rollouts = await store.waitFor(rolloutIds, { signal, timeoutMs }).catch((error) => {
          const isOver = error instanceof TraceError && error.code === "timeout";
          if (isOver || options.closing?.aborted) return null; // ask again
          throw error;
        });
        return json({ rollouts });
      },
    },
    "/resources": {
      POST: async ({ request, body }) => {
        const given = await body();
        const resource = fieldsIn(given, "resource");
        const input = { ...resource, files: decoded(() => decodeFiles(resource.files, "body.resource")) } as unknown as ResourceInput;
        const before = request.headers.has(AGAIN) ? await publishedBefore(store, input) : undefined;
        return json({ resource: encodeResource(before ?? (await store.publish(input))) });
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
        return json({ unpublished: await store.unpublish(name, version) });
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
        return binary(bytes);
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
    "/watch": { GET: async ({ request }) => broadcast(request.headers.get("last-event-id"), until(request, options.closing)) },
  };
};

/**
 * The handler never throws: what goes wrong is a Response. It listens to the store until the store is closed.
 *
 * A request that comes twice (its answer was lost, or a proxy sent it again) is done once while this handler remembers its
 * answer: the last 1000 of 16 MiB together. After that, and after a restart, the store itself knows: a rollout, a span, an end or
 * a cancelling that is sent again is there already, a claim gets the same attempts, a publication its version, and forgetting
 * means the rollout that was there when it was first asked. Two answers are then of the second time alone: how many attempts were
 * requeued (each is ended once all the same; with a `beforeMs` still to come also those that began meanwhile) and whether a
 * version was there to be unpublished. Both only inform.
 */
export const serveStore = (store: Store, options: ServeOptions = {}): ((request: Request) => Promise<Response>) => {
  const { authorize, maxBodyBytes = 64 * 2 ** 20, onError = (error: unknown) => console.error(error) } = options;
  const routes = routesOf(store, options);
  const origins = options.origins === undefined ? undefined : createOrigins(options.origins);
  const once = createMemory();

  const answer = async (request: Request): Promise<Answer | Response> => {
    const { pathname, searchParams } = new URL(request.url);
    const path = pathname.startsWith(`${PREFIX}/`) ? pathname.slice(PREFIX.length) : "";
    if (origins?.admits(request) === false)
      return refused({
        status: 403,
        code: "origin",
        message: `${request.method} ${pathname}: a page of an origin that may ask, got ${request.headers.get("origin")}; add it to the server's origins`,
      });
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
    const body = async (): Promise<Fields> => {
      guardJson(request);
      return parseBody(await bytes());
    };
    const act = () => route({ request, search: searchParams, bytes, body });
    const id = request.headers.get(REQUEST);
    return id === null || request.method === "GET" ? act() : once(`${path} ${id}`, act as () => Promise<Answer>); // streams are got
  };

  const refusalOf = (request: Request, error: unknown): Answer => {
    if (error instanceof TraceError) return refused({ status: STATUSES[error.code], code: error.code, message: error.message });
    if (request.signal.aborted) return refused({ status: 499, code: "aborted", message: "the client left" });
    onError(error);
    return refused({
      status: 500,
      code: "internal",
      message: `${request.method} ${request.url}: the server's store, or its authorize, failed; its log says why`,
    });
  };

  return async (request) => {
    const told = origins?.preflight(request) ?? (await answer(request).catch((error) => refusalOf(request, error)));
    const response = told instanceof Response ? told : toResponse(told);
    return origins?.opened(request, response) ?? response;
  };
};

// agent as a worker, in both ways: agents that run in it (POST /drain), and the endpoint served to agents elsewhere (/open, …/v1, /close),
// once kept by the module and once by a Durable Object. The path's first parts say where state lives: /module or /object, /memory or /http.
import { type OpenedAttempt, type RequestContext, seedOf } from "@fulgurite/agent";
import { createMemoryStore, type Json, type Store, type TaskInput } from "@fulgurite/trace";
import { openHttpStore } from "@fulgurite/trace/http";
import { drain, plainTransitions, rehearse, rehearsedRunner, spansOf } from "./rehearsal.ts";

interface Env {
  readonly STORE: string;
  readonly TOKEN: string;
  readonly Rollouts: { idFromName(name: string): unknown; get(id: unknown): { fetch(request: Request): Promise<Response> } };
}

/** An endpoint on which attempts are opened and closed from elsewhere. */
const createRoom = (store: Store): ((request: Request, path: string, context: RequestContext) => Promise<Response>) => {
  const { endpoint, running } = rehearse(store);
  const opened = new Map<string, OpenedAttempt>();
  return async (request, path, context) => {
    const id = new URL(request.url).searchParams.get("id") ?? "";
    if (path === "/open") {
      await store.enqueue([{ id, input: "ask" }]);
      const [claim] = await store.claim("served");
      if (!claim) throw new Error(`rollout ${id} must be queued, got none`);
      const attempt = endpoint.open(
        { rolloutId: id, id: claim.attempt.id },
        { mode: "train", temperature: 1, maxTokens: 256, seed: seedOf(id) },
      );
      opened.set(id, attempt);
      return Response.json({ apiKey: attempt.openai.apiKey });
    }
    if (path === "/close") return Response.json(await opened.get(id)?.close());
    if (path === "/running") return Response.json(running());
    if (path === "/spans") {
      const spans = await spansOf(store, id);
      const reasons = spans.flatMap(({ attributes }) => attributes["gen_ai.response.finish_reasons"] as string[]);
      return Response.json({ transitions: plainTransitions(spans), reasons });
    }
    return endpoint.handle(request, context);
  };
};

type Room = ReturnType<typeof createRoom>;

const remote = (env: Env): Store => openHttpStore(env.STORE, { token: env.TOKEN });

const rooms = (memory: Room): ((request: Request, env: Env, context: RequestContext) => Promise<Response>) => {
  let http: Room | undefined; // what it needs comes with the first request
  return async (request, env, context) => {
    const [, kind, path] = /^\/(?:module|object)\/(memory|http)(\/.*)$/.exec(new URL(request.url).pathname) ?? [];
    if (kind !== "memory") http ??= createRoom(remote(env));
    return (http && kind !== "memory" ? http : memory)(request, path ?? "", context);
  };
};

// made while the worker loads, when nothing may be asked of the world yet
const inModule = rooms(createRoom(createMemoryStore()));
const queue = createMemoryStore();
const runner = rehearsedRunner(queue);

export class Rollouts {
  readonly #env: Env;
  readonly #context: RequestContext;
  readonly #answer = rooms(createRoom(createMemoryStore()));
  constructor(context: RequestContext, env: Env) {
    this.#context = context;
    this.#env = env;
  }
  fetch(request: Request): Promise<Response> {
    return this.#answer(request, this.#env, this.#context);
  }
}
export default {
  async fetch(request: Request, env: Env, context: RequestContext): Promise<Response> {
    const { pathname } = new URL(request.url);
    if (pathname === "/about") {
      return Response.json(["process", "Buffer", "require", "setImmediate", "indexedDB", "document"].filter((name) => name in globalThis));
    }
    if (pathname === "/drain/memory") {
      const tasks = (await request.json()) as TaskInput[];
      await queue.enqueue(tasks);
      const ended = await drain(runner);
      const transitions: Record<string, Json> = {};
      for (const { id } of tasks) transitions[id as string] = plainTransitions(await spansOf(queue, id as string));
      return Response.json({ ended, transitions });
    }
    if (pathname === "/drain/http") {
      const own = remote(env);
      const ended = await drain(rehearsedRunner(own));
      await own.close();
      return Response.json({ ended });
    }
    if (pathname.startsWith("/object/")) return env.Rollouts.get(env.Rollouts.idFromName("one")).fetch(request);
    return inModule(request, env, context);
  },
};

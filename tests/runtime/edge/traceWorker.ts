// trace as a worker: a memory store, served over fetch to whoever has the key.
import { createMemoryStore, mintId } from "@fulgurite/trace";
import { serveStore } from "@fulgurite/trace/http";

// when the worker loads: a handler is not asked for yet, and randomness and timers are refused
let token = "";
const serve = serveStore(createMemoryStore(), { authorize: (asked) => asked.headers.get("authorization") === `Bearer ${token}` });

export default {
  async fetch(request: Request, env: { TOKEN: string }): Promise<Response> {
    token = env.TOKEN;
    const found = ["process", "Buffer", "require", "indexedDB", "document"].filter((name) => name in globalThis);
    return new URL(request.url).pathname === "/about" ? Response.json({ found, id: mintId(Date.now()) }) : serve(request);
  },
};

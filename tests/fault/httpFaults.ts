// Everything that can happen between clients and a served folder: a request or an answer that is lost, a server that goes down
// after the work and comes back, a proxy's page in its place, an answer that is cut, a request that is sent twice; at each
// request of a life, once and for a while; to two clients that want one queue; and kill -9 of a server process that two clients
// ask through sockets.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Span, type Store, TraceError } from "@fulgurite/trace";
import { openHttpStore, serveStore } from "@fulgurite/trace/http";
import { openFileStore } from "@fulgurite/trace/node";
import { bundleChild } from "../bundle.ts";
import { randoms } from "../randoms.ts";
import type { Progress } from "./fileFaults.ts";
import { createLedger, type Ledger, sum, type Tally, takeInventory } from "./ledger.ts";
import { uponEnd } from "./uponEnd.ts";

const FAULTS = [
  ...(["request lost", "answer lost", "answer lost, server restarted", "bad gateway", "answer cut"] as const),
  ...(["answer cut without a word", "another's page", "request sent twice"] as const),
];
type Fault = (typeof FAULTS)[number];

const open = (folder: string): Promise<Store> => openFileStore(folder, { onReport: () => {} });

const failedFetch = () => new TypeError("fetch failed");

/** A server on a folder that can go down, with everything that is under way in it, and come back. */
const createServer = async (folder: string) => {
  let inner = await open(folder);
  let serve = serveStore(inner);
  let up: Promise<unknown> = Promise.resolve();
  let life = 0;
  return {
    ask: async (url: string, init: RequestInit | undefined): Promise<Response> => {
      await up;
      const mine = life;
      const response = await serve(new Request(url, init));
      if (life !== mine) throw failedFetch(); // it went down under this request
      return response;
    },
    restart: (): Promise<unknown> => {
      life += 1;
      up = up.then(async () => {
        await inner.close();
        inner = await open(folder);
        serve = serveStore(inner);
      });
      return up;
    },
    close: () => inner.close(),
  };
};

/** A way to a server on which faults happen. */
const createLine = (server: Awaited<ReturnType<typeof createServer>>, faultAt: (request: number) => Fault | undefined) => {
  let requests = 0;
  let fired = 0;
  const ask: typeof fetch = async (url, init) => {
    requests += 1;
    const fault = faultAt(requests);
    if (fault !== undefined) fired += 1;
    if (fault === "request lost") throw failedFetch();
    if (fault === "bad gateway") return new Response("<html>502", { status: 502 });
    if (fault === "another's page") return new Response("<html>Sign in to the network");
    const response = await server.ask(String(url), init);
    if (fault === undefined) return response;
    if (fault === "request sent twice") {
      void response.body?.cancel();
      return server.ask(String(url), init);
    }
    const bytes = await response.arrayBuffer(); // the work is done
    if (fault === "answer cut")
      return new Response(
        new ReadableStream({
          start: (controller) => {
            controller.enqueue(new Uint8Array(bytes.slice(0, bytes.byteLength >> 1)));
            controller.error(new TypeError("terminated"));
          },
        }),
        response.status === 204 ? { status: 200 } : response,
      );
    if (fault === "answer cut without a word")
      return new Response(bytes.byteLength === 0 ? null : bytes.slice(0, bytes.byteLength >> 1), response);
    if (fault === "answer lost, server restarted") await server.restart();
    throw failedFetch();
  };
  return { ask, fired: () => fired };
};

/** Waits between two tries are over at once; what bounds a try is not. */
const atOnce = (act: () => void, ms: number): (() => void) => {
  const timer = setTimeout(act, ms > 10_000 ? ms : 0);
  return () => clearTimeout(timer);
};

const clientOf = (baseUrl: string, ask: typeof fetch): Store => openHttpStore(baseUrl, { fetch: ask, timer: atOnce });

const spanOf = (rolloutId: string, attemptId: string, id: string): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "n",
  startMs: 1,
  endMs: 1,
  status: "ok",
  attributes: { tokens: Int32Array.of(1, 2, 3) },
});

/** The same life each time. */
const live = async (store: Store, ledger: Ledger): Promise<void> => {
  const tasks = await store.enqueue([{ id: "a", input: 0 }, { id: "b", input: 0 }, { input: 0 }]);
  ledger.acknowledge(...tasks.map(({ id }) => `rollout/${id}`));
  for (const limit of [2, 1, 1])
    for (const { rollout, attempt } of await store.claim("w", limit)) {
      ledger.claimed(rollout.id, attempt.id);
      ledger.acknowledge(`attempt/${rollout.id}/${attempt.id}`);
      await store.append(["x", "y"].map((id) => spanOf(rollout.id, attempt.id, id)));
      ledger.acknowledge(`span/${rollout.id}/x`, `span/${rollout.id}/y`);
      await store.finish(attempt, { status: "succeeded" });
      ledger.acknowledge(`ended/${rollout.id}/${attempt.id}/succeeded`);
    }
  for (const version of [1, 2]) {
    await store.publish({ name: "p", version, kind: "lora", files: { f: Uint8Array.of(version), same: Uint8Array.of(9) } });
    ledger.acknowledge(`resource/p/${version}`);
  }
  ledger.release("resource/p/1");
  await store.unpublish("p", 1);
  ledger.gone("resource/p/1");
  const { id } = tasks[1] as { id: string };
  ledger.release(`rollout/${id}`);
  for (const attempt of await store.attempts(id))
    ledger.release(`attempt/${id}/${attempt.id}`, `ended/${id}/${attempt.id}/succeeded`, ...["x", "y"].map((span) => `span/${id}/${span}`));
  if (!(await store.forget(id))) throw new Error(`forget ${id}: it was there, got another answer`);
  ledger.gone(`rollout/${id}`);
  if ((await store.resource("p"))?.files.same?.[0] !== 9) throw new Error("resource p 2: its files stay, got others");
};

/** What the folder holds in the end; it is deleted. Every rollout has one attempt: a claim whose answer was lost strands none. */
const lookAtEnd = async (folder: string, ledger: Ledger, count: number): Promise<Tally> => {
  const store = await open(folder);
  ledger.check(await takeInventory(store));
  const { rollouts, attempts } = await store.stats();
  if (rollouts.succeeded !== count || attempts !== count)
    throw new Error(`${count} rollouts succeed in ${count} attempts, got ${rollouts.succeeded} in ${attempts}: a claim was stranded`);
  await store.close();
  rmSync(folder, { recursive: true });
  return ledger.tally();
};

/** Each fault at each request of a life. */
const failEach = async (newFolder: () => string): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (const fault of FAULTS)
    for (const times of [1, 3])
      for (let at = 1; ; at++) {
        const folder = newFolder();
        const server = await createServer(folder);
        const line = createLine(server, (request) => (request >= at && request < at + times ? fault : undefined));
        const ledger = createLedger("http");
        const store = clientOf("http://store.test", line.ask);
        await live(store, ledger);
        await store.close();
        await server.close();
        ledger.fault(line.fired());
        tallies.push(await lookAtEnd(folder, ledger, 2));
        if (line.fired() === 0) break;
      }
  return tallies;
};

const QUEUED = 12;

const fillQueue = async (store: Store, ledger: Ledger): Promise<void> => {
  const tasks = await insist(() => store.enqueue(Array.from({ length: QUEUED }, (_, index) => ({ id: `q${index}`, input: index }))));
  ledger.acknowledge(...tasks.map(({ id }) => `rollout/${id}`));
};

/** A client gives up after four tries; whoever uses it asks for the same once more. */
const insist = async <T>(act: () => Promise<T>): Promise<T> => {
  for (;;)
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof TraceError && error.code === "storage")) throw error;
    }
};

/** Claims, writes and ends until nothing is queued. */
const workOff = async (store: Store, me: string, ledger: Ledger): Promise<void> => {
  for (let round = 0; ; round++) {
    const claims = await insist(() => store.claim(me, 2, `${me}-${round}`));
    if (claims.length === 0) return;
    for (const { rollout, attempt } of claims) {
      ledger.claimed(rollout.id, attempt.id);
      ledger.acknowledge(`attempt/${rollout.id}/${attempt.id}`);
    }
    await Promise.all(
      claims.map(async ({ rollout, attempt }) => {
        await Promise.all(
          ["x", "y"].map(async (id) => {
            await insist(() => store.append([spanOf(rollout.id, attempt.id, id)]));
            ledger.acknowledge(`span/${rollout.id}/${id}`);
          }),
        );
        await insist(() => store.finish(attempt, { status: "succeeded" }));
        ledger.acknowledge(`ended/${rollout.id}/${attempt.id}/succeeded`);
      }),
    );
  }
};

/** Two clients, one queue, and much of what they ask or hear goes wrong. */
const failFights = async (newFolder: () => string, fights: number): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (let fight = 0; fight < fights; fight++) {
    const folder = newFolder();
    const ledger = createLedger("http");
    const server = await createServer(folder);
    const lines = ["one", "two"].map((me, index) => {
      const random = randoms(2 * fight + index);
      const line = createLine(server, () => (random() < 0.4 ? FAULTS[Math.floor(random() * FAULTS.length)] : undefined));
      return { me, line, store: clientOf("http://store.test", line.ask) };
    });
    await fillQueue(lines[0]!.store, ledger);
    await Promise.all(lines.map(({ store, me }) => workOff(store, me, ledger)));
    for (const { store, line } of lines) {
      await store.close();
      ledger.fault(line.fired());
    }
    await server.close();
    tallies.push(await lookAtEnd(folder, ledger, QUEUED));
  }
  return tallies;
};

/** A server process that is killed under its clients and started again at the same address. */
const createProcess = async (program: string, folder: string) => {
  let port = 0;
  const start = async () => {
    const child = spawn(process.execPath, [program, folder, String(port)], { stdio: ["ignore", "pipe", "inherit"] });
    const isOver = uponEnd(() => child.kill("SIGKILL"));
    const [line] = await Promise.race([
      once(child.stdout, "data"),
      once(child, "exit").then(() => {
        throw new Error("a server starts, got its end; run httpServer by hand");
      }),
    ]);
    port = Number(String(line));
    return { child, isOver };
  };
  let running = start();
  await running;
  const stop = async (): Promise<void> => {
    const { child, isOver } = await running;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
    isOver();
  };
  return {
    url: `http://127.0.0.1:${port}`,
    isUp: () => running,
    kill: (): void => {
      running = stop().then(start);
    },
    stop,
  };
};

const killServers = async (newFolder: () => string, program: string, queues: number): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (let queue = 0; queue < queues; queue++) {
    const folder = newFolder();
    const ledger = createLedger("http");
    const server = await createProcess(program, folder);
    let requests = 0;
    const ask: typeof fetch = async (url, init) => {
      await server.isUp();
      requests += 1;
      const answer = fetch(url, init);
      answer.catch(() => {}); // it is the client's to see
      if (requests % 7 === queue % 7) {
        const isKilled = requests;
        // somewhere between the request's way in and the answer's way out
        for (let turn = 0; turn < (queue * 5 + isKilled) % 12; turn++) await new Promise(setImmediate);
        server.kill();
        ledger.fault();
      }
      return answer;
    };
    const stores = [clientOf(server.url, ask), clientOf(server.url, ask)];
    await fillQueue(stores[0]!, ledger);
    await Promise.all(stores.map((store, index) => workOff(store, `w${index}`, ledger)));
    for (const store of stores) await store.close();
    await server.stop();
    tallies.push(await lookAtEnd(folder, ledger, QUEUED));
  }
  return tallies;
};

/** @throws what is no fault of the store's. */
export const faultHttp = async (progress: Progress): Promise<Tally> => {
  const root = mkdtempSync(join(tmpdir(), "fulgurite-faults-"));
  const remove = () => rmSync(root, { recursive: true, force: true });
  const isDone = uponEnd(remove);
  let folders = 0;
  const newFolder = (): string => join(root, String(++folders));
  try {
    const tallies: Tally[] = [];
    const part = async (what: string, act: () => Promise<readonly Tally[]>): Promise<void> => {
      const found = sum("http", await act());
      tallies.push(found);
      progress(`http: ${what}: ${found.faults} faults, ${found.lost} lost`);
    };
    await part("each fault at each request of a life", () => failEach(newFolder));
    await part("two clients, one queue, random faults", () => failFights(newFolder, 40));
    const program = await bundleChild(import.meta.dirname, "httpServer", join(root, "bundle"));
    await part("two clients, one queue, kill -9 of the server", () => killServers(newFolder, program, 6));
    return sum("http", tallies);
  } finally {
    isDone();
    remove();
  }
};

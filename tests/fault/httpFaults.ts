// Everything that can happen between a client and a served folder: a request or an answer that is lost, a server that goes down
// after the work and comes back, one that is a proxy's page for a moment; at each request of a life, once and for a while.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Span, Store } from "@fulgurite/trace";
import { openHttpStore, serveStore } from "@fulgurite/trace/http";
import { openFileStore } from "@fulgurite/trace/node";
import type { Progress } from "./fileFaults.ts";
import { createLedger, type Ledger, sum, type Tally, takeInventory } from "./ledger.ts";
import { uponEnd } from "./uponEnd.ts";

const FAULTS = ["request lost", "answer lost", "answer lost, server restarted", "bad gateway", "answer cut"] as const;
type Fault = (typeof FAULTS)[number];

const open = (folder: string): Promise<Store> => openFileStore(folder, { onReport: () => {} });

/** A server on a folder that can go down and come back, and a way to it on which faults happen. */
const createLine = async (folder: string, faultAt: (request: number) => Fault | undefined) => {
  let inner = await open(folder);
  let serve = serveStore(inner);
  let requests = 0;
  let fired = 0;
  const ask: typeof fetch = async (url, init) => {
    requests += 1;
    const fault = faultAt(requests);
    if (fault !== undefined) fired += 1;
    if (fault === "request lost") throw new TypeError("fetch failed");
    if (fault === "bad gateway") return new Response("<html>502", { status: 502 });
    const response = await serve(new Request(url, init));
    if (fault === undefined) return response;
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
    if (fault === "answer lost, server restarted") {
      await inner.close();
      inner = await open(folder);
      serve = serveStore(inner);
    }
    throw new TypeError("fetch failed");
  };
  return { ask, requests: () => requests, fired: () => fired, close: () => inner.close() };
};

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
  if ((await store.resource("p"))?.files.same?.[0] !== 9) throw new Error("resource p 2: its files stay, got others");
};

/** Every rollout has one attempt: a claim whose answer was lost strands none. */
const checkStranded = async (store: Store): Promise<void> => {
  const { rollouts, attempts } = await store.stats();
  if (rollouts.succeeded !== 3 || attempts !== 3)
    throw new Error(`3 rollouts succeed in 3 attempts, got ${rollouts.succeeded} in ${attempts}: a claim was stranded`);
};

/** @throws what is no fault of the store's. */
export const faultHttp = async (progress: Progress): Promise<Tally> => {
  const root = mkdtempSync(join(tmpdir(), "fulgurite-faults-"));
  const remove = () => rmSync(root, { recursive: true, force: true });
  const isDone = uponEnd(remove);
  const tallies: Tally[] = [];
  try {
    for (const fault of FAULTS)
      for (const times of [1, 3])
        for (let at = 1; ; at++) {
          const folder = join(root, `${fault}-${times}-${at}`);
          const line = await createLine(folder, (request) => (request >= at && request < at + times ? fault : undefined));
          const ledger = createLedger("http");
          const atOnce = (act: () => void, ms: number) => {
            const timer = setTimeout(act, ms > 10_000 ? ms : 0);
            return () => clearTimeout(timer);
          };
          const store = openHttpStore("http://store.test", { fetch: line.ask, timer: atOnce });
          await live(store, ledger);
          await store.close();
          await line.close();
          ledger.fault(line.fired());
          const again = await open(folder);
          ledger.check(await takeInventory(again));
          await checkStranded(again);
          await again.close();
          tallies.push(ledger.tally());
          rmSync(folder, { recursive: true });
          if (line.fired() === 0) break;
        }
    const found = sum("http", tallies);
    progress(`http: lost requests and answers, restarted servers: ${found.faults} faults, ${found.lost} lost`);
    return found;
  } finally {
    isDone();
    remove();
  }
};

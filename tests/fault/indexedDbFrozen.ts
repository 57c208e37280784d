// Tabs that a browser freezes: one stands still in the middle of its writing while another works on the same database, and goes on
// afterwards. Over the debugger's pipe and without playwright-core, which keeps every page it sees awake.
import { spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import type { PageActions, Round } from "./indexedDbPage.ts";
import { createLedger, type Tally } from "./ledger.ts";
import { uponEnd } from "./uponEnd.ts";

interface Tab {
  /** The value of an expression, awaited. */
  evaluate<T>(expression: string): Promise<T>;
  call<K extends keyof PageActions>(name: K, ...args: Parameters<PageActions[K]>): Promise<Awaited<ReturnType<PageActions[K]>>>;
  live(state: "frozen" | "active"): Promise<unknown>;
}

interface Message {
  readonly id?: number;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

const launch = async (profile: string) => {
  const path = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";
  const quiet = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"];
  const child = spawn(path, [...quiet, "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    detached: true,
  });
  const isOver = uponEnd(() => process.kill(-(child.pid as number), "SIGKILL"));
  const gone = new Promise<void>((resolve) => child.on("close", () => resolve()));
  const [, , , toBrowser, fromBrowser] = child.stdio as unknown as [null, null, null, Writable, Readable];
  const waiting = new Map<number, (message: Message) => void>();
  let text = "";
  fromBrowser.on("data", (chunk) => {
    text += chunk;
    for (let end = text.indexOf("\0"); end >= 0; end = text.indexOf("\0")) {
      const message = JSON.parse(text.slice(0, end)) as Message;
      text = text.slice(end + 1);
      if (message.id !== undefined) waiting.get(message.id)?.(message);
    }
  });
  let last = 0;
  const send = <T>(method: string, params: object, sessionId?: string): Promise<T> =>
    new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, ({ result, error }) => (error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result as T)));
      void gone.then(() => reject(new Error(`${method}: Chromium answers, got its end; run ${path} by hand`)));
      toBrowser.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });

  const openTab = async (url: string): Promise<Tab> => {
    const { targetId } = await send<{ targetId: string }>("Target.createTarget", { url });
    const { sessionId } = await send<{ sessionId: string }>("Target.attachToTarget", { targetId, flatten: true });
    const evaluate: Tab["evaluate"] = async <T>(expression: string) => {
      const { result, exceptionDetails } = await send<{
        result: { value: T };
        exceptionDetails?: { exception?: { description?: string } };
      }>("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true }, sessionId);
      if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`);
      return result.value;
    };
    while (!(await evaluate<boolean>('"actions" in globalThis'))) await new Promise((resolve) => setTimeout(resolve, 20));
    return {
      evaluate,
      call: (name, ...args) => evaluate(`actions.${name}(...${JSON.stringify(args)})`),
      live: (state) => send("Page.setWebLifecycleState", { state }, sessionId),
    };
  };
  return {
    openTab,
    kill: async (): Promise<void> => {
      process.kill(-(child.pid as number), "SIGKILL");
      await gone;
      isOver();
    },
  };
};

/** So long a tab may be kept waiting by one that stands still. */
const PATIENCE_MS = 20_000;

const inTime = <T>(what: string, act: Promise<T>): Promise<T> =>
  Promise.race([
    act,
    new Promise<never>((_, reject) => {
      setTimeout(() => reject(new Error(`${what}: done beside a frozen tab within ${PATIENCE_MS} ms, got nothing`)), PATIENCE_MS).unref();
    }),
  ]);

/** `rounds` times frozen, each time after other words. */
export const freezeTabs = async (profile: string, origin: string, rounds: number): Promise<Tally> => {
  const ledger = createLedger("freeze");
  const browser = await launch(profile);
  try {
    const writer = await browser.openTab(origin);
    const worker = await browser.openTab(origin); // in front of the other, which can be frozen for it
    await writer.evaluate("globalThis.told = []; globalThis.acknowledged = (_me, keys) => void told.push(...keys)");
    const told = (): Promise<number> => writer.evaluate<number>("told.length");
    const hear = async (more: number): Promise<void> => {
      for (const enough = (await told()) + more; (await told()) < enough; ) await new Promise((resolve) => setTimeout(resolve, 3));
    };
    await writer.call("writeUntilKilled", "freeze", "writer");
    for (let round = 0; round < rounds; round++) {
      await hear(1 + ((round * 13) % 40));
      await writer.live("frozen");
      const before = await told();
      const found: Round = await inTime("work", worker.call("workBeside", "freeze", `beside${round}`));
      ledger.acknowledge(...found.acknowledged);
      for (const [rolloutId, attemptId] of found.claims) ledger.claimed(rolloutId, attemptId);
      if ((await told()) > before) throw new Error(`a frozen tab stands still, got ${(await told()) - before} more words of it`);
      ledger.fault();
      await writer.live("active");
    }
    await hear(20);
    ledger.acknowledge(...(await writer.evaluate<string[]>("told")));
    ledger.check(await worker.call("inventory", "freeze"));
    return ledger.tally();
  } finally {
    await browser.kill();
  }
};

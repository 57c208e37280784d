// IndexedDB in a real Chromium: our store beside Dexie and idb, which do the same job or less (browserPage.ts), in one tab, all
// relaxed ("handed to the system").
import { join } from "node:path";
import { launchChromium, servePage } from "../fault/chromium.ts";
import type { BrowserActions, Kind } from "./browserPage.ts";
import { type Bench, inRounds } from "./figures.ts";

const PEERS = [
  ["dexie", "Dexie 4.4, the same job"],
  ["idb", "idb 8.0, the same job"],
  ["dexiePut", "Dexie 4.4, a put"],
  ["idbPut", "idb 8.0, a put"],
] as const;
const KINDS: readonly Kind[] = ["ours", ...PEERS.map(([kind]) => kind)];

export const benchBrowser = async (bench: Bench, root: string): Promise<void> => {
  if (!bench.wants("IndexedDB")) return;
  const server = await servePage(import.meta.dirname, "browserPage", join(root, "page"), {
    dexie: bench.peerPath("dexie"),
    idb: bench.peerPath("idb"),
  });
  const browser = await launchChromium(join(root, "profile"));
  try {
    const page = await browser.context.newPage();
    await page.goto(server.origin);
    await page.waitForFunction(() => "actions" in globalThis);
    const call = <K extends keyof BrowserActions>(name: K, ...args: Parameters<BrowserActions[K]>): Promise<number> =>
      page.evaluate(
        ({ name, args }) =>
          (globalThis as unknown as { actions: Record<string, (...args: readonly unknown[]) => Promise<number>> }).actions[name]!(...args),
        { name: name as string, args: args as readonly unknown[] },
      );
    const rounds = bench.isQuick ? 2 : 15;
    const all = (measure: (kind: Kind, round: number) => Promise<number>) =>
      inRounds(
        rounds,
        Object.fromEntries(KINDS.map((kind) => [kind, (round: number) => measure(kind, round)])) as Record<
          Kind,
          (round: number) => Promise<number>
        >,
      );
    const print = (name: string, found: Record<Kind, number>): void => {
      for (const [peer, peerName] of PEERS) bench.print({ name, ours: found.ours, peer: found[peer], peerName, unit: "spans/s" });
    };
    const few = bench.isQuick ? 30 : 60;
    const many = bench.isQuick ? 320 : 960;
    const one = await all((kind, round) => call("append", kind, "one", round * few, few, 1));
    print("IndexedDB append, one writer", one);
    const crowd = await all((kind, round) => call("append", kind, "crowd", round * many, many, 64));
    print("IndexedDB append, 64 writers", crowd);
    print("IndexedDB scan", await all((kind) => call("scan", kind, "crowd", rounds * many)));
  } finally {
    await browser.kill();
    await server.close();
  }
};

// Everything that can happen to a browser's store, in a real Chromium: its writers ended in the middle, its tabs crashed, the
// whole browser killed, transactions aborted, handles closed, disks full, tabs frozen, tabs that want one queue, and upgrades
// under some of it.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BrowserContext, Page } from "playwright-core";
import { launchChromium, servePage } from "./chromium.ts";
import type { Progress } from "./fileFaults.ts";
import { freezeTabs } from "./indexedDbFrozen.ts";
import type { PageActions, Round } from "./indexedDbPage.ts";
import { createLedger, type Ledger, sum, type Tally } from "./ledger.ts";
import { uponEnd } from "./uponEnd.ts";

/** Calls one of the page's actions in it. */
const call = <K extends keyof PageActions>(
  page: Page,
  name: K,
  ...args: Parameters<PageActions[K]>
): Promise<Awaited<ReturnType<PageActions[K]>>> =>
  page.evaluate(
    ({ name, args }) =>
      (globalThis as unknown as { actions: Record<string, (...args: readonly unknown[]) => unknown> }).actions[name]!(...args),
    { name: name as string, args: args as readonly unknown[] },
  ) as Promise<Awaited<ReturnType<PageActions[K]>>>;

const openTab = async (context: BrowserContext, origin: string): Promise<Page> => {
  const page = await context.newPage();
  await page.goto(origin);
  await page.waitForFunction(() => "actions" in globalThis);
  return page;
};

const take = (ledger: Ledger, { faults, acknowledged, claims, gone = [] }: Round): void => {
  ledger.fault(faults);
  ledger.gone(...gone);
  ledger.acknowledge(...acknowledged);
  for (const [rolloutId, attemptId] of claims) ledger.claimed(rolloutId, attemptId);
};

const endWriters = async (page: Page, count: number): Promise<Tally> => {
  const ledger = createLedger("writers");
  for (let done = 0; done < count; done += 50) {
    take(ledger, await call(page, "endWriters", "writers", `w${done}`, Math.min(50, count - done)));
    ledger.check(await call(page, "inventory", "writers"));
  }
  return ledger.tally();
};

/** Two tabs on one queue; in each, claimers are ended in the middle and followed by others. */
const fight = async (tabs: readonly Page[], tasks: number): Promise<Tally> => {
  const ledger = createLedger("queue");
  const ids = Array.from({ length: tasks }, (_, index) => `q${index}`);
  await call(tabs[0] as Page, "enqueue", "queue", ids);
  ledger.acknowledge(...ids.map((id) => `rollout/${id}`));
  for (const round of await Promise.all(tabs.map((tab, index) => call(tab, "endClaimers", "queue", `tab${index}`)))) take(ledger, round);
  ledger.check(await call(tabs[0] as Page, "inventory", "queue"));
  return ledger.tally();
};

const strikes = async (page: Page): Promise<Tally[]> => {
  const tallies: Tally[] = [];
  for (const blow of ["abort", "quota", "close"] as const)
    for (const times of [1, 2])
      for (let at = 1; ; at++) {
        const round = await call(page, "liveUnder", `blow-${blow}-${times}-${at}`, blow, at, times);
        const ledger = createLedger(blow);
        take(ledger, round);
        ledger.check(round.found);
        tallies.push(ledger.tally());
        if (round.faults === 0) break;
      }
  return tallies;
};

const QUOTA_STEP_BYTES = 3_000_000;

/**
 * A disk that is full, gets a little room, and is full again. Room is made by raising the quota: after a deletion Chromium
 * counts the bytes until it compacts, which nothing can ask of it.
 */
const fill = async (page: Page, origin: string, cycles: number, refusals: number, progress: Progress): Promise<Tally> => {
  const ledger = createLedger("quota");
  const codes: Record<string, number> = {};
  const session = await page.context().newCDPSession(page);
  for (let cycle = 0; cycle < cycles; cycle++) {
    const { usage } = await session.send("Storage.getUsageAndQuota", { origin });
    await session.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: Math.ceil(usage) + QUOTA_STEP_BYTES });
    const victim = cycle === 0 ? undefined : `full-${cycle - 1}-short`;
    const round = await call(page, "fill", "full", `full-${cycle}`, victim, refusals);
    take(ledger, round);
    ledger.release(...round.released);
    for (const [code, count] of Object.entries(round.codes)) codes[code] = (codes[code] ?? 0) + count;
    const found = await call(page, "inventory", "full");
    if (victim !== undefined && found.keys.includes(`rollout/${victim}`)) throw new Error(`${victim}: it was forgotten, got it back`);
    ledger.check(found);
  }
  progress(`indexedDb: a full disk was named ${JSON.stringify(codes)}`);
  await session.send("Storage.overrideQuotaForOrigin", { origin }); // as it was
  await session.detach();
  return ledger.tally();
};

const UPGRADED_SPANS = 3_000;

/** Each origin its own quota, from its first byte on: Chromium finds these names at home. */
const originOf = (origin: string, name: string): string => origin.replace("127.0.0.1", `${name}.localhost`);

/** Databases of past releases, opened by this one without a byte of room: refused by name, whole, and upgraded when there is room. */
const upgradeFull = async (
  browser: { readonly context: BrowserContext },
  origin: string,
  restart: () => Promise<BrowserContext>,
): Promise<Tally[]> => {
  const cases = ([1, 2] as const).flatMap((version) => [1, 2].map((index) => ({ version, name: `full-${version}-${index}` })));
  const ledgers = new Map<string, Ledger>();
  for (const { version, name } of cases) {
    const ledger = createLedger("upgrade");
    ledgers.set(name, ledger);
    const tab = await openTab(browser.context, originOf(origin, name));
    ledger.acknowledge(...(await call(tab, "makeOld", name, version, 400)));
    await tab.close();
  }
  const context = await restart(); // it goes by what an origin was once allotted for half a minute, and by nothing afterwards
  for (const { version, name } of cases) {
    const ledger = ledgers.get(name) as Ledger;
    const tab = await openTab(context, originOf(origin, name));
    const session = await context.newCDPSession(tab);
    await session.send("Storage.overrideQuotaForOrigin", { origin: originOf(origin, name), quotaSize: 1 });
    for (let tries = 0; tries < 5; tries++) {
      const code = await call(tab, "tryOpen", name);
      if (code !== "full") throw new Error(`${name}: an upgrade without room is refused with "full", got ${code}`);
      ledger.fault();
      const found = await call(tab, "look", name);
      if (found.version !== version || found.spans !== 400)
        throw new Error(`${name}: version ${version} with 400 spans stays, got ${found.version} with ${found.spans}`);
    }
    await session.send("Storage.overrideQuotaForOrigin", { origin: originOf(origin, name) });
    for (let tries = 1; (await call(tab, "tryOpen", name)) !== "opened"; tries++) {
      if (tries === 100) throw new Error(`${name}: with room it is upgraded, got refused for 10 s`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    ledger.check(await call(tab, "inventory", name));
    await tab.close();
  }
  return [...ledgers.values()].map((ledger) => ledger.tally());
};

/** Lets a tab write until `enough` keys have come out of the browser, then lets `end` happen to it. */
const writeAndEnd = async (
  page: Page,
  ledger: Ledger,
  name: string,
  me: string,
  enough: number,
  end: () => Promise<void>,
): Promise<void> => {
  let heard = 0;
  let ring = () => {};
  const rung = new Promise<void>((resolve) => {
    ring = resolve;
  });
  await page.exposeFunction("acknowledged", (_me: string, keys: readonly string[]) => {
    ledger.acknowledge(...keys);
    heard += keys.length;
    if (heard >= enough) ring();
  });
  await call(page, "writeUntilKilled", name, me);
  await rung;
  await end();
  ledger.fault();
};

/** @throws what is no fault of the store's: a browser that does not start, an error of its own that it should not have made. */
export const faultIndexedDb = async (progress: Progress): Promise<Tally> => {
  const root = mkdtempSync(join(tmpdir(), "fulgurite-faults-"));
  const remove = () => rmSync(root, { recursive: true, force: true, maxRetries: 5 });
  const isRemoved = uponEnd(remove);
  const profile = join(root, "profile");
  mkdirSync(profile);
  const server = await servePage(import.meta.dirname, "indexedDbPage", join(root, "bundle"));
  let browser = await launchChromium(profile);
  const tallies: Tally[] = [];
  const part = async (what: string, act: () => Promise<Tally | readonly Tally[]>): Promise<void> => {
    const found = sum("indexedDb", [await act()].flat());
    tallies.push(found);
    progress(`indexedDb: ${what}: ${found.faults} faults, ${found.lost} lost`);
  };
  try {
    const page = await openTab(browser.context, server.origin);
    await part("aborted transactions, refused requests, closed handles", () => strikes(page));
    await part("writers ended in the middle", () => endWriters(page, 450));
    await part("two tabs, one queue, claimers ended in the middle", async () => {
      const other = await openTab(browser.context, server.origin);
      const tally = await fight([page, other], 500);
      await other.close();
      return tally;
    });
    await part("a full disk", async () => {
      // Chromium goes by what an origin was once allotted for half a minute: another origin was allotted nothing yet
      const origin = server.origin.replace("127.0.0.1", "localhost");
      const other = await openTab(browser.context, origin);
      const tally = await fill(other, origin, 10, 20, progress);
      await other.close();
      return tally;
    });
    await part("crashed tabs", async () => {
      const ledger = createLedger("crash");
      for (let index = 0; index < 40; index++) {
        const tab = await openTab(browser.context, server.origin);
        const session = await browser.context.newCDPSession(tab);
        await writeAndEnd(tab, ledger, "crash", `tab${index}`, 1 + ((index * 7) % 40), async () => {
          const crashed = new Promise((resolve) => tab.once("crash", resolve));
          session.send("Page.crash").catch(() => {}); // there is nobody left to answer
          await crashed;
        });
        await tab.close();
      }
      const after = await openTab(browser.context, server.origin);
      ledger.check(await call(after, "inventory", "crash"));
      await after.close();
      return ledger.tally();
    });
    await part("SIGKILL of the browser", async () => {
      const lives: Tally[] = [];
      let ledger = createLedger("kill");
      const look = async (tab: Page): Promise<void> => {
        if (await call(tab, "isMarked")) return ledger.check(await call(tab, "inventory", "kill"));
        // rare, on a machine that is busy: Chromium comes back without the folder of any database of the origin
        progress("indexedDb: the browser threw the origin's data away, a plain database's with it; what follows begins anew");
        lives.push(ledger.tally());
        ledger = createLedger("kill");
      };
      for (let index = 0; index < 15; index++) {
        const tab = await openTab(browser.context, server.origin);
        if (index > 0) await look(tab);
        await call(tab, "mark");
        await writeAndEnd(tab, ledger, "kill", `life${index}`, 1 + ((index * 31) % 150), () => browser.kill());
        browser = await launchChromium(profile);
      }
      await look(await openTab(browser.context, server.origin));
      return [...lives, ledger.tally()];
    });
    await part("frozen tabs", () => freezeTabs(join(root, "frozen"), server.origin, 20));
    await part("upgrades on a full disk", () =>
      upgradeFull(browser, server.origin, async () => {
        await browser.kill();
        browser = await launchChromium(profile);
        return browser.context;
      }),
    );
    await part("SIGKILL of the browser in the middle of an upgrade", async () => {
      const lives: Tally[] = [];
      const versions: number[] = [];
      for (let index = 0; index < 16; index++) {
        const name = `upgrade-${index}`;
        const version = (1 + (index % 2)) as 1 | 2;
        const ledger = createLedger("upgrade");
        const tab = await openTab(browser.context, server.origin);
        await call(tab, "mark");
        ledger.acknowledge(...(await call(tab, "makeOld", name, version, UPGRADED_SPANS)));
        let ring = () => {};
        const rung = new Promise<void>((resolve) => {
          ring = resolve;
        });
        await tab.exposeFunction("acknowledged", () => ring());
        await call(tab, "upgradeUntilKilled", name, index % 4 < 2 ? 1_000 : 0); // before the commit; somewhere around it
        await rung;
        await new Promise((resolve) => setTimeout(resolve, index % 4 < 2 ? 20 * index : 3 * index));
        await browser.kill();
        ledger.fault();
        browser = await launchChromium(profile);
        const after = await openTab(browser.context, server.origin);
        if (await call(after, "isMarked")) {
          const found = await call(after, "look", name);
          versions.push(found.version);
          if ((found.version !== version && found.version !== 3) || found.spans !== UPGRADED_SPANS)
            throw new Error(`${name}: version ${version} or 3 with ${UPGRADED_SPANS} spans, got ${found.version} with ${found.spans}`);
          ledger.check(await call(after, "inventory", name));
        } else progress("indexedDb: the browser threw the origin's data away, a plain database's with it");
        await after.close();
        lives.push(ledger.tally());
      }
      progress(`indexedDb: versions that were found after an upgrade was killed: ${versions.join(" ")}`);
      return lives;
    });
    return sum("indexedDb", tallies);
  } finally {
    await browser.kill();
    await server.close();
    isRemoved();
    remove();
  }
};

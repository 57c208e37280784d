// A Chromium that is killed like a process, not closed like a guest: spawned in a group of its own on a profile that stays,
// driven by CDP through playwright-core. Also the page that it shows, from a server of ours.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type BrowserContext, chromium } from "playwright-core";
import { build } from "vite";
import { uponEnd } from "./uponEnd.ts";

export interface KillableBrowser {
  readonly context: BrowserContext;
  /** SIGKILL to all of its processes; resolves when the browser is gone. */
  kill(): Promise<void>;
}

const START_MS = 60_000;

/** @throws when Chromium is not there or does not start within a minute. */
export const launchChromium = async (profile: string): Promise<KillableBrowser> => {
  const path = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";
  const portFile = join(profile, "DevToolsActivePort");
  rmSync(portFile, { force: true });
  for (const name of ["SingletonLock", "SingletonSocket", "SingletonCookie"]) rmSync(join(profile, name), { force: true }); // of the killed one
  const child: ChildProcess = spawn(
    path,
    [
      "--headless=new",
      "--no-sandbox",
      "--disable-dev-shm-usage",
      "--disable-gpu",
      "--no-first-run",
      "--remote-debugging-port=0",
      `--user-data-dir=${profile}`,
      "about:blank",
    ],
    { stdio: "ignore", detached: true },
  );
  const isOver = uponEnd(() => process.kill(-(child.pid as number), "SIGKILL")); // of a group of its own: nobody else would end it
  const gone = new Promise<void>((resolve) =>
    child.on("close", () => {
      isOver();
      resolve();
    }),
  );
  let failed: Error | undefined;
  child.on("error", (error) => {
    failed = error;
  });
  const until = Date.now() + START_MS;
  while (!existsSync(portFile) || readFileSync(portFile, "utf8").split("\n").length < 2) {
    if (failed) throw new Error(`${path}: Chromium must start, got ${failed.message}; set CHROMIUM_PATH`, { cause: failed });
    if (Date.now() > until || child.exitCode !== null)
      throw new Error(`${path}: Chromium must start within ${START_MS} ms, got exit ${child.exitCode}; run it by hand`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const [port] = readFileSync(portFile, "utf8").split("\n");
  const browser = await chromium.connectOverCDP(`http://127.0.0.1:${port}`);
  return {
    context: browser.contexts()[0] as BrowserContext,
    kill: async () => {
      process.kill(-(child.pid as number), "SIGKILL");
      await gone;
      await browser.close().catch(() => {}); // our end of a dead line
    },
  };
};

/** Bundles `<folder>/<name>.ts` for a tab, with the packages' sources, and serves it at `/` of a free port. */
export const servePage = async (
  folder: string,
  name: string,
  outDir: string,
  alias: Readonly<Record<string, string>> = {},
): Promise<{ origin: string; close(): Promise<void> }> => {
  await build({
    configFile: false,
    logLevel: "silent",
    resolve: { alias, conditions: ["@fulgurite/source", "module", "browser", "import", "default"] },
    build: {
      outDir,
      emptyOutDir: false,
      target: "es2022",
      lib: { entry: join(folder, `${name}.ts`), formats: ["es"], fileName: () => "page.js" },
    },
  });
  const script = readFileSync(join(outDir, "page.js"));
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.writeHead(200, { "content-type": isScript ? "text/javascript" : "text/html", "cache-control": "no-store" });
    response.end(isScript ? script : '<!doctype html><title>a page of the tests</title><script type="module" src="/page.js"></script>');
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
};

// The real page in a real browser: it trains an agent, shows the curve, survives a reload, and hands out adapter and model.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { unzipSync } from "fflate";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { createServer, type ViteDevServer } from "vite";
import { afterAll, beforeAll, expect, test } from "vitest";

const executablePath = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";
const hasBrowser = existsSync(executablePath);

let server: ViteDevServer;
let browser: Browser;
let context: BrowserContext;
let page: Page;
const problems: string[] = [];

const open = async (): Promise<void> => {
  await page.goto(server.resolvedUrls?.local[0] as string);
};
const status = () => page.getByTestId("status");
const steps = async (): Promise<number> => Number(await page.getByTestId("curve").getAttribute("data-steps"));

beforeAll(async () => {
  if (!hasBrowser) return;
  const root = join(import.meta.dirname, "../../apps/studio");
  server = await createServer({ root, configFile: join(root, "vite.config.ts"), server: { port: 0 }, logLevel: "error" });
  await server.listen();
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-webgpu"] });
  context = await browser.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true });
  page = await context.newPage();
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
});
afterAll(async () => {
  await browser?.close();
  await server?.close();
});

const scenario = hasBrowser ? test : test.skip;

scenario("the page opens, says where it runs, and has nothing to show yet", async () => {
  await open();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toContain("Ready.");
  expect(await page.getByTestId("device").textContent()).toMatch(/WASM|WebGPU/);
  expect(await page.getByTestId("memory").textContent()).toMatch(/^≤ \d+ MiB\b/);
  expect(await page.getByTestId("memory").getAttribute("title")).toMatch(/weights .*, adapter state .*, activations .*, KV cache /);
  expect(await steps()).toBe(0);
});

scenario("it trains a few steps: the curve and the rollouts grow", async () => {
  await page.getByLabel("Size").selectOption("smoke");
  await page.getByRole("button", { name: "Start training" }).click();
  await expect.poll(() => status().textContent(), { timeout: 100_000 }).toContain("Finished: 3 steps.");
  expect(await steps()).toBe(3);
  await expect.poll(() => page.getByTestId("rollouts").locator("tbody tr").count()).toBeGreaterThan(20);
  expect(await page.getByTestId("score-sampled").textContent()).toMatch(/\d %→\d/);
});

scenario("a rollout shows its calls, token by token with log-probs", async () => {
  await page.getByTestId("rollouts").locator("tbody a").first().click();
  await expect.poll(() => page.getByTestId("rollout").locator(".token[title]").count()).toBeGreaterThan(0);
  expect(await page.getByTestId("rollout").locator(".token[title]").first().getAttribute("title")).toMatch(/log-prob -?\d/);
});

scenario("after a reload everything is still there", async () => {
  await page.reload();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toContain("Finished: 3 steps.");
  expect(await steps()).toBe(3);
  expect(await page.getByTestId("rollouts").locator("tbody tr").count()).toBeGreaterThan(20);
  await expect.poll(() => page.getByTestId("rollout").locator(".token[title]").count()).toBeGreaterThan(0);
});

scenario("the adapter downloads as a zip of a PEFT directory", async () => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download adapter" }).click()]);
  expect(download.suggestedFilename()).toMatch(/^fulgurite-calculator-adapter-v3\.zip$/);
});

scenario("the trained model downloads as the folder that transformers.js loads", async () => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download model" }).click()]);
  expect(download.suggestedFilename()).toMatch(/^fulgurite-calculator-model-v3\.zip$/);
  const files = unzipSync(new Uint8Array(readFileSync(await download.path())));
  expect(Object.keys(files)).toEqual(expect.arrayContaining(["config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"]));
  expect(files["onnx/model.onnx"]!.length).toBeGreaterThan(3e6);
});

scenario("a run that is paused goes on after a reload", async () => {
  await page.getByRole("button", { name: "New run" }).click();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toContain("Ready.");
  await page.getByLabel("Size").selectOption("smoke");
  await page.getByRole("button", { name: "Start training" }).click();
  await expect.poll(steps, { timeout: 100_000 }).toBeGreaterThan(0);
  await page.getByRole("button", { name: "Pause" }).click();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toMatch(/Paused|Finished/);
  const before = await steps();
  await page.reload();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toMatch(/Paused|Finished/);
  expect(await steps()).toBe(before);
  const go = page.getByRole("button", { name: "Continue" });
  if (await go.isVisible()) await go.click();
  await expect.poll(() => status().textContent(), { timeout: 100_000 }).toContain("Finished: 3 steps.");
});

scenario("while another tab trains, this one says so and starts nothing; when it has ended, it may", async () => {
  const other = await context.newPage();
  await other.goto(server.resolvedUrls?.local[0] as string);
  await other.evaluate(async () => {
    let isHeld = () => {};
    const held = new Promise<void>((resolve) => {
      isHeld = resolve;
    });
    void navigator.locks.request("fulgurite/studio/trainer", () => {
      isHeld();
      return new Promise(() => {}); // as long as the tab lives
    });
    await held;
  });
  await page.getByRole("button", { name: "New run" }).click();
  await expect.poll(() => status().textContent(), { timeout: 60_000 }).toContain("Ready.");
  await page.getByLabel("Size").selectOption("smoke");
  await page.getByRole("button", { name: "Start training" }).click();
  await expect.poll(() => page.getByText("another tab is training").count(), { timeout: 60_000 }).toBe(1);
  expect(await steps()).toBe(0);
  await other.close();
  await page.getByRole("button", { name: /Start training|Continue/ }).click();
  await expect.poll(() => status().textContent(), { timeout: 100_000 }).toContain("Finished: 3 steps.");
  expect(await page.getByText("another tab is training").count()).toBe(0);
});

scenario("it fits a phone without scrolling sideways, in light and dark", async () => {
  await page.setViewportSize({ width: 390, height: 844 });
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    const [inner, full] = await page.evaluate(() => [document.documentElement.clientWidth, document.documentElement.scrollWidth]);
    expect(full).toBeLessThanOrEqual(inner as number);
  }
});

scenario("no error was thrown or logged on the way", () => {
  expect(problems).toEqual([]);
});

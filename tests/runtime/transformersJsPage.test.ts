// A trained policy in somebody else's page: @huggingface/transformers in a real browser loads the exported folder, on WASM and on WebGPU,
// and answers what the policy answers. The library comes from tests/peers/onnx.

import { createReadStream, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { exportModel, loadPolicy } from "fulgurite";
import { onnxFolder } from "fulgurite/onnx";
import { type Browser, chromium, type Page } from "playwright-core";
import { createServer, type ViteDevServer } from "vite";
import { afterAll, beforeAll, expect, test } from "vitest";
import { bytesOf, missing } from "../golden/onnxSession.ts";
import { teach } from "../golden/taughtSpark.ts";

const executablePath = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";
const reason = existsSync(executablePath) ? missing : "no Chromium";
const packages = join(import.meta.dirname, "../peers/onnx/node_modules");
const QUESTIONS = ["What is 12 + 30?", "Ana has 37 pens and gets 85 more. How many pens now?"];
const MAX_NEW = 32;

const PAGE = `<link rel="icon" href="data:,"><script type="module">
import { env, pipeline } from "@huggingface/transformers";
Object.assign(env, { allowLocalModels: true, localModelPath: "/models/", allowRemoteModels: false });
Object.assign(env.backends.onnx.wasm, { wasmPaths: location.origin + "/runtime/", numThreads: 1 });
window.answers = async (name, device, questions) => {
  const pipe = await pipeline("text-generation", name, { device });
  const answers = [];
  for (const content of questions)
    answers.push((await pipe([{ role: "user", content }], { max_new_tokens: ${MAX_NEW}, do_sample: false }))[0].generated_text.at(-1).content);
  await pipe.dispose();
  return answers;
};
window.isReady = true;
</script>`;

let folder: string;
let server: ViteDevServer;
let browser: Browser;
let page: Page;
let want: string[];
const problems: string[] = [];

/** A policy far from its base, what it answers, and its exports: whole, and with weights in files of their own. */
const makeModels = async (): Promise<string[]> => {
  const policy = await loadPolicy("spark", { device: "wasm", threads: 1, slots: 1, seed: 2 });
  await teach(policy);
  await policy.publish(1);
  const answers: string[] = [];
  for (const text of QUESTIONS) {
    const rendered = policy.format.render({ messages: [{ role: "user", text }], tools: [] }, { addGenerationPrompt: true });
    const { tokens } = await policy.sampler.generate({
      prompt: policy.format.encode(rendered),
      maxTokens: MAX_NEW,
      temperature: 0,
      stopTokens: policy.format.stopTokens,
      seed: 0,
    });
    answers.push(policy.format.decode(tokens).replace("<|end|>", ""));
  }
  const adapter = await policy.trainer.exportAdapter();
  const exports = {
    whole: await exportModel(policy, { format: "onnx" }),
    apart: await onnxFolder(await policy.readModel(), adapter, { maxFileBytes: 1e6 }),
  };
  for (const [name, files] of Object.entries(exports)) {
    for (const file of files) {
      const path = join(folder, "public/models", name, file.name);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, bytesOf(file));
    }
  }
  await policy.dispose();
  return answers;
};

beforeAll(async () => {
  if (reason !== undefined) return;
  folder = mkdtempSync(join(tmpdir(), "fulgurite-page-"));
  want = await makeModels();
  writeFileSync(join(folder, "index.html"), PAGE);
  server = await createServer({
    root: folder,
    configFile: false,
    logLevel: "error",
    server: { port: 0, fs: { strict: false } },
    resolve: { alias: { "@huggingface/transformers": join(packages, "@huggingface/transformers/dist/transformers.web.js") } },
    optimizeDeps: { noDiscovery: true },
    plugins: [
      {
        name: "onnxruntime-web beside the page, as a site would host it",
        configureServer: ({ middlewares }) => {
          middlewares.use("/runtime", (request, response) => {
            const file = basename((request.url ?? "").split("?")[0]!);
            response.setHeader("Content-Type", file.endsWith(".wasm") ? "application/wasm" : "text/javascript");
            createReadStream(join(packages, "onnxruntime-web/dist", file)).pipe(response);
          });
        },
      },
    ],
  });
  await server.listen();
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-webgpu"] });
  page = await browser.newPage();
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(server.resolvedUrls!.local[0]!);
  await page.waitForFunction("window.isReady", undefined, { timeout: 60_000 });
});
afterAll(async () => {
  await browser?.close();
  await server?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

const scenario = reason === undefined ? test : test.skip;
const answers = (name: string, device: string, questions: readonly string[] = QUESTIONS): Promise<string[]> =>
  page.evaluate(([n, d, q]) => (window as unknown as { answers: (...given: unknown[]) => Promise<string[]> }).answers(n, d, q), [
    name,
    device,
    questions,
  ] as const);

scenario(`a page answers what the policy answers${reason ? ` (skipped: ${reason})` : ""}`, async () => {
  expect(new Set(want).size).toBe(2);
  expect(await answers("whole", "wasm")).toEqual(want);
  expect(await answers("apart", "wasm")).toEqual(want);
  expect(problems).toEqual([]);
});

scenario(
  `and on WebGPU${reason ? ` (skipped: ${reason})` : ""}`,
  async (context) => {
    if (!(await page.evaluate(async () => (await navigator.gpu?.requestAdapter()) ?? null))) context.skip("the browser has no GPU adapter");
    // one short answer: without a GPU the browser emulates one, and each of its kernels is compiled first
    expect(await answers("apart", "webgpu", QUESTIONS.slice(0, 1))).toEqual(want.slice(0, 1));
    expect(problems).toEqual([]);
  },
  300_000,
);

// engine in the runtime of Cloudflare's workers, where nothing may be compiled at run time: on kernels that came compiled with the worker
// a policy samples and learns, in the numbers of Node.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createBackend } from "@fulgurite/engine";
import { afterAll, beforeAll, expect } from "vitest";
import { sampleAndTrain } from "./engineRehearsal.ts";
import { isWorkerdThere, type RunningWorker, scenario, startWorker } from "./workerd.ts";

let worker: RunningWorker;

beforeAll(async () => {
  if (!isWorkerdThere) return;
  const kernels = readFileSync(createRequire(import.meta.url).resolve("@fulgurite/engine/kernels.wasm"));
  worker = await startWorker("engineWorker.ts", { wasm: { "kernels.wasm": kernels } });
}, 120_000);

afterAll(() => worker?.stop());

scenario("a policy samples and takes a training step, bit for bit as in Node", async () => {
  const response = await fetch(worker.url);
  const text = await response.text();
  expect(response.status, text).toBe(200);
  expect(JSON.parse(text)).toEqual(await sampleAndTrain(await createBackend("wasm")));
});

scenario("kernels that would be compiled there are refused by workerd", async () => {
  const response = await fetch(`${worker.url}/compiledHere`);
  expect(await response.text()).toContain("CompileError");
});

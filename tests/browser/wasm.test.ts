// The WASM executor in Chromium: on a page it is complete on one thread; in a worker of a cross-origin isolated page it has threads.

import { expect, test } from "vitest";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { createWasmBackend } from "../../packages/engine/src/wasm/backend.ts";
import { opCase, opCases, runCase } from "../unit/engine/opCases.ts";
import type { WorkerFindings } from "./wasmWorker.ts";

test("a page, which may not sleep, gets one thread, and every operation agrees with the reference", async () => {
  const backend = await createWasmBackend({ threads: 4 });
  expect(backend.device.description).toBe("WASM SIMD, 1 thread");
  for (const { name } of opCases()) {
    const [a, b] = [opCase(name), opCase(name)];
    const want = await runCase(createReferenceBackend(), a);
    const got = await runCase(backend, b);
    for (const [i, output] of a.outputs.entries()) {
      const [x, y] = [want.get(output)!, got.get(b.outputs[i]!)!];
      const far = x.findIndex((value, j) => !(Object.is(value, y[j]) || Math.abs(value - y[j]!) <= b.tolerance * (1 + Math.abs(value))));
      expect(far, `${name}: ${output.name}`).toBe(-1);
    }
  }
  await backend.dispose();
});

test("a worker of a cross-origin isolated page gets two threads with the reference's numbers and one thread's bits", async () => {
  expect(crossOriginIsolated).toBe(true);
  const worker = new Worker(new URL("./wasmWorker.ts", import.meta.url), { type: "module" });
  const findings = await new Promise<WorkerFindings>((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
  });
  worker.terminate();
  expect(findings).toEqual({ description: "WASM SIMD, 2 threads", cases: opCases().length, wrong: [], different: [] });
});

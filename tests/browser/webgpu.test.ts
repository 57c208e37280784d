// The same operations in a browser: Chromium's WebGPU against the reference, on the cases of tests/unit/engine/opCases.ts.
// Without a GPU this is SwiftShader, a second implementation of the whole path: other limits, other rounding, other compiler.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend, HostArray } from "../../packages/engine/src/plan/backend.ts";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { createWebGpuBackend } from "../../packages/engine/src/webgpu/backend.ts";
import { opCases, runCase } from "../unit/engine/opCases.ts";

const reason = !navigator.gpu
  ? "this browser has no navigator.gpu"
  : (await navigator.gpu.requestAdapter()) === null
    ? "navigator.gpu has no adapter"
    : undefined;

const worst = (got: HostArray, want: HostArray): number => {
  let largest = got.length === want.length ? 0 : Number.POSITIVE_INFINITY;
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i]!, want[i]!];
    if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
    const error = Math.abs(a - b) / (1 + Math.abs(b));
    largest = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(largest, error);
  }
  return largest;
};

describe.skipIf(reason !== undefined)(`WebGPU in the browser${reason ? ` (skipped: ${reason})` : ""}`, () => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await createWebGpuBackend(navigator.gpu);
  });
  afterAll(async () => {
    await backend?.dispose();
  });

  for (const [index, { name }] of opCases().entries()) {
    test(`${name}: agrees with the reference, twice with the same bits`, async () => {
      // New tensors for every run: a backend allocates each of them once.
      const [first, second, spec] = [opCases()[index]!, opCases()[index]!, opCases()[index]!];
      const want = await runCase(createReferenceBackend(), spec);
      const got = await runCase(backend, first);
      const again = await runCase(backend, second);
      for (const [i, tensor] of first.outputs.entries()) {
        expect(worst(got.get(tensor)!, want.get(spec.outputs[i]!)!), tensor.name).toBeLessThanOrEqual(first.tolerance);
        expect(again.get(second.outputs[i]!)!).toEqual(got.get(tensor)!);
      }
    });
  }
});

// A device that a browser takes away in the middle of a step: the run gives the bytes of the run that kept its device.

import { describe, expect, test, vi } from "vitest";
import { createPolicy } from "../../packages/engine/src/policy.ts";
import { withRecovery } from "../../packages/engine/src/recovery.ts";
import { createWebGpuBackend } from "../../packages/engine/src/webgpu/backend.ts";
import { tinyLlama } from "../unit/engine/tinyLlama.ts";

const reason = !navigator.gpu
  ? "this browser has no navigator.gpu"
  : (await navigator.gpu.requestAdapter()) === null
    ? "navigator.gpu has no adapter"
    : undefined;

const model = tinyLlama({ num_hidden_layers: 1 });

/** Opens policies whose device is destroyed after so many submits, all of them together. */
const opener = (budget: { left: number }) =>
  vi.fn(async () => {
    const { gpu } = navigator;
    const requestAdapter = async (options?: GPURequestAdapterOptions) => {
      const adapter = (await gpu.requestAdapter(options))!;
      const { info, limits, features } = adapter;
      const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
        const device = await adapter.requestDevice(descriptor);
        const submit = device.queue.submit.bind(device.queue);
        device.queue.submit = (buffers): undefined => {
          submit(buffers);
          if (--budget.left === 0) device.destroy();
        };
        return device;
      };
      return { info, limits, features, requestDevice };
    };
    const backend = await createWebGpuBackend({ requestAdapter, wgslLanguageFeatures: gpu.wgslLanguageFeatures } as unknown as GPU);
    return createPolicy({ backend, model, lora: { rank: 2, alpha: 4 }, slots: 1, maxContext: 16, microBatchTokens: 16 });
  });

const script = async (open: ReturnType<typeof opener>) => {
  const policy = await withRecovery(open, { pause: async () => {} });
  const data = [{ tokens: Int32Array.of(5, 9, 2, 30, 7), targetStart: 2, weights: new Float32Array(3).fill(1) }];
  const heard: number[] = [];
  const completion = policy.sampler.generate({
    ...{ prompt: Int32Array.of(5, 9), maxTokens: 6, temperature: 1, stopTokens: [], seed: 7 },
    onToken: (token) => heard.push(token),
  });
  const updates = [];
  for (let step = 0; step < 2; step++) {
    updates.push(await policy.trainer.forwardBackward(data, { name: "crossEntropy" }));
    updates.push(await policy.trainer.optimStep({ learningRate: 0.02 }));
  }
  const { tokens, logprobs } = await completion;
  expect(heard).toEqual([...tokens]);
  const state = await policy.trainer.saveState();
  await policy.dispose();
  return { updates, tokens, logprobs, state };
};

describe.skipIf(reason !== undefined)(`a lost device in the browser${reason ? ` (skipped: ${reason})` : ""}`, () => {
  test("changes no number", { timeout: 240_000 }, async () => {
    const whole = { left: Number.MAX_SAFE_INTEGER };
    const expected = await script(opener(whole));
    const submits = Number.MAX_SAFE_INTEGER - whole.left;
    const open = opener({ left: Math.floor(submits * 0.6) });
    expect(await script(open)).toEqual(expected);
    expect(open).toHaveBeenCalledTimes(2);
  });
});

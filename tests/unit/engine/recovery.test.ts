// A run whose device goes away somewhere gives the bytes of the run whose device stayed: at every point of a run on WASM (whose loss is
// made up), at many on a WebGPU device that is really destroyed.

import { describe, expect, test, vi } from "vitest";
import type { Datum, Loss, Policy } from "../../../packages/engine/src/contract.ts";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { type RecoveryOptions, withRecovery } from "../../../packages/engine/src/recovery.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { createWebGpuBackend } from "../../../packages/engine/src/webgpu/backend.ts";
import { probe } from "./backends.ts";
import { tinyLlama } from "./tinyLlama.ts";
import { createTestBackend, openTestGpu } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());

const model = tinyLlama({ num_hidden_layers: 1 });
const policyOn = (backend: Backend): Promise<Policy> =>
  createPolicy({ backend, model, lora: { rank: 2, alpha: 4 }, seed: 3, slots: 2, maxContext: 24, microBatchTokens: 24 });
const atOnce: RecoveryOptions = { pause: async () => {} };

const PROMPT = [5, 9, 2, 30];
const CROSS_ENTROPY: Loss = { name: "crossEntropy" };
const datum = (...tokens: number[]): Datum => ({
  tokens: Int32Array.of(...PROMPT, ...tokens),
  targetStart: PROMPT.length,
  weights: new Float32Array(tokens.length).fill(1),
});

/** A run that uses everything: three completions on two slots beside training, two steps of two calls each, a publish in between. */
const script = async (policy: Policy) => {
  const { trainer, sampler } = policy;
  const heard: number[][] = [[], [], []];
  const generate = (seed: number, adapter?: string) =>
    sampler.generate({
      prompt: Int32Array.from(PROMPT),
      ...{ maxTokens: 6, temperature: 1, stopTokens: [], seed, ...(adapter && { adapter }) },
      onToken: (token) => heard[seed]!.push(token),
    });
  const learn = async (tokens: number[]) => {
    // three rows of 24 fit into a micro-batch of 24: the second call has two
    const first = await trainer.forwardBackward([datum(...tokens)], CROSS_ENTROPY);
    const second = await trainer.forwardBackward([datum(1, 2, 3, 4, 5, 6, 7, 8), datum(...tokens), datum(9, 8, 7, 6)], CROSS_ENTROPY);
    return { first, second, step: await trainer.optimStep({ learningRate: 0.05 }) };
  };
  const [one, completions] = await Promise.all([learn([1, 2, 3, 4]), Promise.all([0, 1, 2].map((seed) => generate(seed)))]);
  await policy.publish(1);
  const published = await generate(0);
  const two = await learn([4, 3, 2]);
  // the served adapter is one step behind the trained one
  const stale = await generate(1);
  const waiting = await trainer.forwardBackward([datum(7, 7)], CROSS_ENTROPY);
  const adapter = await trainer.exportAdapter();
  const scores = await trainer.forward([datum(3, 1)]);
  await policy.loadAdapter("beside", adapter);
  expect(policy.sampler.adapters).toEqual(["beside"]);
  const [beside, again] = await Promise.all([generate(1, "beside"), generate(1)]);
  expect(again.tokens).toEqual(stale.tokens);
  await policy.unloadAdapter("beside");
  expect(policy.sampler.adapters).toEqual([]);
  const three = await trainer.optimStep({ learningRate: 0.01 });
  const state = await trainer.saveState();
  expect(heard[2]).toEqual([...completions[2]!.tokens]);
  expect(heard[0]).toEqual([...completions[0]!.tokens, ...published.tokens]);
  return { one, completions, published, two, stale, waiting, adapter, scores, beside, three, state, version: sampler.policyVersion };
};

describe("at every point", () => {
  interface Budget {
    left: number;
    readonly onSpend?: (left: number) => void;
  }
  /** A backend that is lost for good when `left` runs and reads have been made. */
  const fragile = async (budget: Budget): Promise<Backend> => {
    const backend = await createWasmBackend({ threads: 1 });
    let isLost = false;
    const spend = (): void => {
      if (!isLost && --budget.left === 0) isLost = true;
      if (isLost) throw new EngineError("lost", "fragile: it was lost (unknown: as planned); create another backend");
      budget.onSpend?.(budget.left);
    };
    return {
      ...backend,
      compile: async (plan) => {
        const executable = await backend.compile(plan);
        return {
          run: async (vars) => {
            spend();
            await executable.run(vars);
          },
          dispose: () => executable.dispose(),
        };
      },
      read: async (tensor, length) => {
        spend();
        return backend.read(tensor, length);
      },
      write: (tensor, data, offset) => {
        if (isLost) spend();
        backend.write(tensor, data, offset);
      },
    };
  };
  const opener = (budget: Budget) => vi.fn(async () => policyOn(await fragile(budget)));

  test("a loss at any point changes no number", async () => {
    const whole = { left: Number.MAX_SAFE_INTEGER };
    const expected = await script(await withRecovery(opener(whole), atOnce));
    const points = Number.MAX_SAFE_INTEGER - whole.left;
    expect(points).toBeGreaterThan(60);
    for (let point = 1; point <= points; point++) {
      const open = opener({ left: point });
      const policy = await withRecovery(open, atOnce);
      expect(await script(policy), `lost at ${point} of ${points}`).toEqual(expected);
      expect(open, `lost at ${point}`).toHaveBeenCalledTimes(2);
      await policy.dispose();
    }
  });

  test("a second loss while the first is being repaired changes nothing either", async () => {
    const expected = await script(await withRecovery(opener({ left: Number.MAX_SAFE_INTEGER }), atOnce));
    for (const [first, second] of [
      [60, 1],
      [60, 2],
      [75, 4],
      [80, 9],
    ] as const) {
      const budgets = [{ left: first }, { left: second }, { left: Number.MAX_SAFE_INTEGER }];
      const open = vi.fn(async () => policyOn(await fragile(budgets[open.mock.calls.length - 1]!)));
      expect(await script(await withRecovery(open, atOnce))).toEqual(expected);
      expect(open).toHaveBeenCalledTimes(3);
    }
  });

  test("a completion that runs while a version is published ends under its own version, whenever the device is lost", async () => {
    const START = 1000;
    const run = async (left: number) => {
      const budget = { left };
      const policy = await withRecovery(opener(budget), atOnce);
      await policy.trainer.forwardBackward([datum(1, 2, 3, 4)], CROSS_ENTROPY);
      await policy.trainer.optimStep({ learningRate: 0.5 });
      const trained = left - budget.left;
      const request = { prompt: Int32Array.from(PROMPT), maxTokens: 8, temperature: 1, stopTokens: [], seed: 1 };
      const publishing: Promise<void>[] = [];
      const onToken = (): void => {
        if (publishing.length === 0) publishing.push(policy.publish(1));
      };
      const running = await policy.sampler.generate({ ...request, onToken });
      await Promise.all(publishing);
      const next = await policy.sampler.generate(request);
      await policy.dispose();
      return { outcome: { running, next }, trained, spent: left - budget.left };
    };
    const whole = await run(START);
    expect([whole.outcome.running.policyVersion, whole.outcome.next.policyVersion]).toEqual([0, 1]);
    expect(whole.outcome.next.tokens).not.toEqual(whole.outcome.running.tokens);
    for (let point = whole.trained + 1; point <= whole.spent; point++)
      expect((await run(point)).outcome, `lost at ${point} of ${whole.spent}`).toEqual(whole.outcome);
  });

  test("gradients that an abort cleared stay cleared", async () => {
    const START = 1000;
    const eight = [1, 2, 3, 4, 5, 6, 7, 8];
    const run = async (lostAt: number) => {
      const controller = new AbortController();
      // The first call spends 4; the second is aborted in the first of its two micro-batches.
      const first: Budget = { left: START, onSpend: (left) => left === START - 6 && controller.abort() };
      const open = vi.fn(async () => policyOn(await fragile(open.mock.calls.length === 1 ? first : { left: START })));
      const policy = await withRecovery(open, atOnce);
      const { trainer } = policy;
      await trainer.forwardBackward([datum(1, 2, 3, 4)], CROSS_ENTROPY);
      const aborted = trainer.forwardBackward([datum(...eight), datum(...eight), datum(...eight)], CROSS_ENTROPY, controller);
      await expect(aborted).rejects.toMatchObject({ code: "aborted", clearsGradients: true });
      expect(first.left).toBe(START - 8);
      first.left = lostAt;
      await trainer.forwardBackward([datum(4, 3)], CROSS_ENTROPY);
      const step = await trainer.optimStep({ learningRate: 0.05 });
      const calls = open.mock.calls.length;
      await policy.dispose();
      return { step, calls };
    };
    const whole = await run(START);
    expect(whole.calls).toBe(1);
    for (const lostAt of [1, 3, 5, 6, 7]) expect(await run(lostAt)).toEqual({ ...whole, calls: 2 });

    const alone = await withRecovery(opener({ left: START }), atOnce);
    await alone.trainer.forwardBackward([datum(4, 3)], CROSS_ENTROPY);
    expect(await alone.trainer.optimStep({ learningRate: 0.05 })).toEqual(whole.step);
    await alone.dispose();
  });

  test("a device that is lost again and again ends with an error that names the loss", async () => {
    const open = async (): Promise<Policy> => policyOn(await fragile({ left: 1 }));
    const losses = vi.fn();
    const first = await withRecovery(open, atOnce);
    const second = await withRecovery(open, { ...atOnce, maxRecoveries: 2, onRecovery: losses });
    for (const lost of [first, second])
      await expect(lost.trainer.forwardBackward([datum(1, 2)], CROSS_ENTROPY)).rejects.toMatchObject({
        code: "lost",
        message: expect.stringMatching(/one call takes at most [23] new devices, got one more loss .*as planned/),
      });
    expect(losses.mock.calls.map(([, attempt]) => attempt)).toEqual([1, 1]);
    await Promise.all([first, second].map((one) => one.dispose()));
  });

  test("a device that does not come back ends with an error that names the attempts", async () => {
    const budgets = [{ left: 3 }];
    const open = vi.fn(async () => {
      const budget = budgets[open.mock.calls.length - 1];
      if (!budget) throw new EngineError("device", "webgpu: requestAdapter() must find an adapter, got null");
      return policyOn(await fragile(budget));
    });
    const pauses: number[] = [];
    const policy = await withRecovery(open, { pause: async (attempt) => void pauses.push(attempt) });
    const calls = [
      script(policy),
      policy.sampler.generate({ ...{ prompt: Int32Array.of(1), maxTokens: 9, temperature: 1, stopTokens: [], seed: 1 } }),
    ];
    for (const call of calls)
      await expect(call).rejects.toMatchObject({
        code: "lost",
        message: expect.stringMatching(/within 3 attempts, got "webgpu: requestAdapter/),
      });
    expect(pauses).toEqual([1, 2, 3]);
    await policy.dispose();
  });

  test("an error that is no loss reaches the caller at once, and changes nothing", async () => {
    const open = opener({ left: Number.MAX_SAFE_INTEGER });
    const policy = await withRecovery(open, atOnce);
    await expect(policy.trainer.forwardBackward([datum(99)], CROSS_ENTROPY)).rejects.toMatchObject({ code: "bad-request" });
    await expect(policy.trainer.loadState(new Uint8Array(3))).rejects.toMatchObject({ code: "bad-file" });
    await expect(policy.publish(-1)).rejects.toMatchObject({ code: "bad-request" });
    expect(open).toHaveBeenCalledTimes(1);
    await policy.dispose();
  });

  test("dispose ends a recovery that is under way, and everything that waits for it", async () => {
    let proceed = (): void => {};
    const policy = await withRecovery(opener({ left: 2 }), {
      pause: () =>
        new Promise((resolve) => {
          proceed = resolve;
        }),
    });
    const call = policy.trainer.forwardBackward([datum(1, 2)], CROSS_ENTROPY);
    call.catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 20));
    const ended = policy.dispose();
    proceed();
    await expect(call).rejects.toMatchObject({ code: "disposed" });
    await ended;
    await expect(policy.trainer.saveState()).rejects.toMatchObject({ code: "disposed" });
  });
});

describe.skipIf(skip !== undefined)(`on WebGPU in Node${skip ? ` (skipped: ${skip})` : ""}`, () => {
  /** Destroys the device right after its `at`-th submit: what the submit was for is lost. */
  const destroyedAfter = async (budget: { left: number }): Promise<Backend> => {
    const { gpu, release } = await openTestGpu();
    const requestAdapter = async (options?: GPURequestAdapterOptions) => {
      const adapter = (await gpu.requestAdapter(options))!;
      const { info, limits, features } = adapter;
      const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
        const device = await adapter.requestDevice(descriptor);
        const { queue } = device;
        const submit = queue.submit.bind(queue);
        queue.submit = (buffers): undefined => {
          submit(buffers);
          if (--budget.left === 0) device.destroy();
        };
        Object.defineProperty(device, "queue", { value: queue }); // Dawn gives a new wrapper at every look
        return device;
      };
      return { info, limits, features, requestDevice };
    };
    return createWebGpuBackend({ requestAdapter, wgslLanguageFeatures: gpu.wgslLanguageFeatures } as unknown as GPU, {
      onDispose: release,
    });
  };

  test("a device that is destroyed in the middle of a step or of a completion: the same bytes", async () => {
    const whole = { left: Number.MAX_SAFE_INTEGER };
    const untouched = await withRecovery(async () => policyOn(await destroyedAfter(whole)), atOnce);
    const expected = await script(untouched);
    await untouched.dispose();
    const submits = Number.MAX_SAFE_INTEGER - whole.left;
    expect(submits).toBeGreaterThan(60);
    for (const point of [2, 7, 13, 19, 28, 37, 49, 58, submits - 1].filter((at) => at < submits)) {
      const budget = { left: point };
      const open = vi.fn(async () => policyOn(await destroyedAfter(budget)));
      const policy = await withRecovery(open, atOnce);
      expect(await script(policy), `destroyed at submit ${point} of ${submits}`).toEqual(expected);
      expect(open).toHaveBeenCalledTimes(2);
      await policy.dispose();
    }
  });
});

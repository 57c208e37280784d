import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Datum, Policy } from "../../../packages/engine/src/contract.ts";
import { openBackend } from "../../../packages/engine/src/device.ts";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { createBackend } from "../../../packages/engine/src/node/index.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createPolicy, type PolicyOptions } from "../../../packages/engine/src/policy.ts";
import { uniform } from "../../../packages/engine/src/random.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { BACKENDS, GPU_KERNELS } from "./backends.ts";
import { tinyLlama } from "./tinyLlama.ts";

const policies: Policy[] = [];
afterEach(async () => {
  for (const policy of policies.splice(0)) await policy.dispose();
});

const model = { ...tinyLlama(), tokenizer: new TextEncoder().encode("{}"), name: "tests/tiny" };
const open = async (options: Partial<PolicyOptions> = {}): Promise<Policy> => {
  const policy = await createPolicy({
    backend: createReferenceBackend(),
    model,
    lora: { rank: 4, alpha: 8 },
    seed: 3,
    slots: 4,
    microBatchTokens: 64,
    ...options,
  });
  policies.push(policy);
  return policy;
};

const request = { prompt: Int32Array.of(5, 9, 2, 30), maxTokens: 10, temperature: 1, stopTokens: [], seed: 7 };
const sample = async (policy: Policy, seed = 7, temperature = 1): Promise<number[]> => [
  ...(await policy.sampler.generate({ ...request, seed, temperature })).tokens,
];
const datum = (tokens: readonly number[]): Datum => ({
  tokens: Int32Array.of(...request.prompt, ...tokens),
  targetStart: request.prompt.length,
  weights: new Float32Array(tokens.length).fill(1),
});
const train = async (policy: Policy, steps = 1): Promise<number> => {
  let loss = Number.NaN;
  for (let i = 0; i < steps; i++) {
    ({ lossSum: loss } = await policy.trainer.forwardBackward([datum([1, 2, 3, 4])], { name: "crossEntropy" }));
    await policy.trainer.optimStep({ learningRate: 0.05 });
  }
  return loss;
};

const meanDifference = (a: Float32Array, b: Float32Array): number => a.reduce((sum, x, i) => sum + Math.abs(x - b[i]!), 0) / a.length;

const largestDifference = (a: Float32Array, b: Float32Array): number => a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

for (const { name, create, skip } of [...BACKENDS.filter(({ name }) => name !== "wasm, 1 thread"), GPU_KERNELS]) {
  describe.skipIf(skip !== undefined)(skip ? `on ${name} (skipped: ${skip})` : `on ${name}`, () => {
    let policy: Policy;
    let fresh: Uint8Array;
    beforeAll(async () => {
      policy = await createPolicy({ backend: await create(), model, lora: { rank: 4, alpha: 8 }, seed: 3, slots: 4, microBatchTokens: 64 });
      fresh = await policy.trainer.saveState();
    });
    afterAll(() => policy.dispose());

    test("the trainer gives a completion the log-probs that it was sampled with, before and after training", async () => {
      for (const version of [1, 2]) {
        await train(policy, 2);
        await policy.publish(version);
        for (const temperature of [1, 0.7]) {
          const completions = await Promise.all(
            Array.from({ length: 6 }, (_, seed) => policy.sampler.generate({ ...request, maxTokens: 4 + seed, seed, temperature })),
          );
          const { logprobs } = await policy.trainer.forward(
            completions.map(({ tokens }) => datum([...tokens])),
            { temperature },
          );
          for (const [i, completion] of completions.entries()) {
            expect(completion.policyVersion).toBe(version);
            expect(largestDifference(logprobs[i]!, completion.logprobs)).toBeLessThan(1e-3);
          }
        }
      }
      // The unpublished adapter is another policy: the check above can fail.
      const stale = await policy.sampler.generate(request);
      await train(policy, 2);
      const { logprobs } = await policy.trainer.forward([datum([...stale.tokens])]);
      expect(largestDifference(logprobs[0]!, stale.logprobs)).toBeGreaterThan(1e-3);
    });

    test("a completion is the same alone and among neighbours", async () => {
      const alone = await policy.sampler.generate({ ...request, seed: 1 });
      const together = await Promise.all([1, 2, 3, 4, 5, 6, 7].map((seed) => policy.sampler.generate({ ...request, seed })));
      expect(together[0]).toEqual(alone);
      expect(new Set(together.map(({ tokens }) => String([...tokens]))).size).toBe(7);
    });

    test("the same seed gives the same completion again, another seed another", async () => {
      const first = await policy.sampler.generate({ ...request, seed: 11 });
      expect(await policy.sampler.generate({ ...request, seed: 11 })).toEqual(first);
      expect(await sample(policy, 12)).not.toEqual([...first.tokens]);
    });

    test("a few steps of supervised training make the greedy completion the target", async () => {
      await policy.trainer.loadState(fresh);
      const first = await train(policy);
      expect(await train(policy, 25)).toBeLessThan(first / 4);
      await policy.publish(3);
      expect((await sample(policy, 0, 0)).slice(0, 4)).toEqual([1, 2, 3, 4]);
    });
  });
}

describe("serving", () => {
  test("training changes no completion until it is published", async () => {
    const policy = await open();
    const before = await sample(policy);
    const running = policy.sampler.generate(request);
    await train(policy, 3);
    expect([...(await running).tokens]).toEqual(before);
    expect(await sample(policy)).toEqual(before);
    await policy.publish(1);
    expect(policy.sampler.policyVersion).toBe(1);
    expect(await sample(policy)).not.toEqual(before);
  });

  test("a fresh adapter computes nothing: any seed and rank sample the base model", async () => {
    const tokens = await sample(await open());
    expect(await sample(await open({ seed: 99, lora: { rank: 2, alpha: 1 } }))).toEqual(tokens);
  });

  test("limits come from the model and the options", async () => {
    expect((await open()).sampler.limits).toEqual({ maxContext: 64, vocabSize: 48 });
    expect((await open({ maxContext: 20 })).sampler.limits.maxContext).toBe(20);
  });
});

describe("adapters and states", () => {
  test("an exported adapter imported elsewhere samples the same", async () => {
    const [a, b] = [await open(), await open({ seed: 50 })];
    await train(a, 3);
    await a.publish(4);
    const files = await a.trainer.exportAdapter();
    expect(JSON.parse(new TextDecoder().decode(files["fulgurite.json"]))).toMatchObject({
      adapterVersion: 4,
      step: 3,
      base: { name: "tests/tiny" },
    });
    await b.trainer.importAdapter(files);
    await b.publish(4);
    expect(await sample(b)).toEqual(await sample(a));
    expect((await b.trainer.exportAdapter())["adapter_model.safetensors"]).toEqual(files["adapter_model.safetensors"]);
  });

  test("an import resets the optimiser and discards waiting gradients", async () => {
    const [a, b] = [await open(), await open()];
    const files = await a.trainer.exportAdapter();
    await train(a, 2);
    await a.trainer.forwardBackward([datum([9, 9])], { name: "crossEntropy" });
    await a.trainer.importAdapter(files);
    expect(await a.trainer.saveState()).toEqual(await b.trainer.saveState());
    await train(a);
    await train(b);
    expect(await a.trainer.saveState()).toEqual(await b.trainer.saveState());
  });

  test("an adapter of another base is refused and changes nothing", async () => {
    const [a, other] = [await open(), await open({ model: { ...model, ...tinyLlama({}, 77) } })];
    const before = await a.trainer.saveState();
    await expect(a.trainer.importAdapter(await other.trainer.exportAdapter())).rejects.toMatchObject({ code: "bad-file" });
    expect(await a.trainer.saveState()).toEqual(before);
  });

  test("a run that is saved and loaded goes on as the run that was not interrupted", async () => {
    const [a, b] = [await open(), await open({ seed: 50 })];
    await train(a, 3);
    const saved = await a.trainer.saveState();
    await b.trainer.loadState(saved);
    expect(await b.trainer.saveState()).toEqual(saved);
    expect(readSafetensors(saved, "s").metadata.adamStep).toBe("3");
    // The reference keeps its state in f64, files in f32: the paths agree to f32's rounding, not to the bit.
    const [lossA, lossB] = [await train(a, 3), await train(b, 3)];
    expect(lossB).toBeCloseTo(lossA, 4);
    const [stateA, stateB] = [await a.trainer.saveState(), await b.trainer.saveState()].map((bytes) => readSafetensors(bytes, "s").tensors);
    for (const [name, tensor] of stateA!)
      expect(meanDifference(toFloat32(tensor, "s"), toFloat32(stateB!.get(name)!, "s"))).toBeLessThan(1e-4);
  });

  test("loading a saved state changes nothing", async () => {
    const policy = await open();
    await train(policy, 2);
    const saved = await policy.trainer.saveState();
    await policy.trainer.loadState(saved);
    expect(await policy.trainer.saveState()).toEqual(saved);
    await expect(policy.trainer.loadState(saved.slice(0, 50))).rejects.toMatchObject({ code: "bad-file" });
  });

  test("calls made together take turns", async () => {
    const policy = await open();
    const results = await Promise.all([
      policy.sampler.generate(request),
      train(policy, 2),
      policy.trainer.saveState(),
      policy.sampler.generate({ ...request, seed: 8 }),
      policy.trainer.exportAdapter(),
      policy.trainer.forward([datum([1, 2])]),
    ]);
    expect(results).toHaveLength(6);
  });
});

describe("faults", () => {
  const wrong: [string, Partial<PolicyOptions>, string, string][] = [
    ["rank 0", { lora: { rank: 0, alpha: 1 } }, "bad-request", "lora.rank"],
    ["a negative alpha", { lora: { rank: 1, alpha: -1 } }, "bad-request", "lora.alpha"],
    ["a seed that is no u32", { seed: 1.5 }, "bad-request", "seed"],
    ["no slots", { slots: 0 }, "bad-request", "slots"],
    ["more context than the model has", { maxContext: 65 }, "bad-request", "maxContext ≤ 64 (max_position_embeddings), got 65"],
    ["a broken weight file", { model: { ...model, weights: model.weights.slice(0, 99) } }, "bad-file", "model.safetensors"],
    ["another family", { model: { ...model, config: new TextEncoder().encode('{"model_type":"bert"}') } }, "unsupported", "known: llama"],
  ];
  test.each(wrong)("%s is refused, and the backend goes with it", async (_, options, code, message) => {
    let isDisposed = false;
    const reference = createReferenceBackend();
    const backend: Backend = {
      ...reference,
      dispose: async () => {
        isDisposed = true;
        await reference.dispose();
      },
    };
    const result = open({ backend, ...options });
    await expect(result).rejects.toMatchObject({ code });
    await expect(result).rejects.toThrow(message);
    expect(isDisposed).toBe(true);
  });

  test("a version that is no count is refused", async () => {
    const policy = await open();
    for (const version of [-1, 0.5, Number.NaN]) await expect(policy.publish(version)).rejects.toMatchObject({ code: "bad-request" });
  });

  test("disposal rejects whatever is pending, frees the backend and may be repeated", async () => {
    const backend = createReferenceBackend();
    const policy = await open({ backend });
    const data = Array.from({ length: 30 }, (_, i) => datum(Array.from({ length: 40 }, (_, j) => Math.floor(uniform(i, j) * 48))));
    const pending = [
      policy.sampler.generate({ ...request, maxTokens: 60 }),
      policy.trainer.forwardBackward(data, { name: "crossEntropy" }),
      policy.trainer.optimStep({ learningRate: 1 }),
      policy.trainer.saveState(),
      policy.publish(1),
    ];
    const settled = Promise.allSettled(pending);
    await Promise.all([policy.dispose(), policy.dispose()]);
    for (const result of await settled) expect(result).toMatchObject({ status: "rejected", reason: { code: "disposed" } });
    await expect(policy.sampler.generate(request)).rejects.toMatchObject({ code: "disposed" });
    await expect(policy.trainer.exportAdapter()).rejects.toMatchObject({ code: "disposed" });
    await expect(policy.publish(2)).rejects.toMatchObject({ code: "disposed" });
    expect(backend.byteLength).toBe(0);
  });

  test("a signal ends a training call and leaves the policy usable", async () => {
    const policy = await open();
    const aborted = policy.trainer.forward([datum([1, 2])], { signal: AbortSignal.abort() });
    await expect(aborted).rejects.toMatchObject({ code: "aborted" });
    expect(await train(policy)).toBeGreaterThan(0);
  });
});

describe("devices", () => {
  const backend = (description: string): Backend & { isDisposed: boolean } => {
    const reference = createReferenceBackend();
    const result = { ...reference, device: { kind: "webgpu" as const, description }, isDisposed: false };
    result.dispose = async () => {
      result.isDisposed = true;
    };
    return result;
  };
  const [wasm, reference] = [backend("WASM"), backend("Reference")];
  const edges = (webgpu: () => Promise<Backend>): Parameters<typeof openBackend>[1] => ({
    webgpu,
    wasm: async () => wasm,
    reference: async () => reference,
  });

  test("auto takes WebGPU on a GPU, else WASM", async () => {
    const gpu = backend("WebGPU, NVIDIA H100");
    expect(
      await openBackend(
        "auto",
        edges(async () => gpu),
      ),
    ).toBe(gpu);
    const none = edges(() => Promise.reject(new EngineError("device", "none")));
    expect(await openBackend("auto", none)).toBe(wasm);
    const software = backend("WebGPU, SwiftShader (software)");
    expect(
      await openBackend(
        "auto",
        edges(async () => software),
      ),
    ).toBe(wasm);
    expect(software.isDisposed).toBe(true);
  });

  test("a kind by name is opened or fails; trouble that is no missing device is not hidden", async () => {
    const none = edges(() => Promise.reject(new EngineError("device", "none")));
    await expect(openBackend("webgpu", none)).rejects.toMatchObject({ code: "device" });
    expect(await openBackend("reference", none)).toBe(reference);
    await expect(
      openBackend(
        "auto",
        edges(() => Promise.reject(new TypeError("bug"))),
      ),
    ).rejects.toThrow("bug");
  });

  test("only precision f16 lets kernels in that round more than f32 does", async () => {
    const asked: unknown[] = [];
    const opened = edges(async () => wasm);
    const webgpu: typeof opened.webgpu = async ({ check }) =>
      check!(async (options) => {
        asked.push(options?.allowsInexact);
        return wasm as never;
      });
    await openBackend("webgpu", { ...opened, webgpu });
    await openBackend("webgpu", { ...opened, webgpu }, { precision: "f16" });
    // a self-test looks at every kernel, whatever is used afterwards
    await openBackend("webgpu", { ...opened, webgpu }, { check: (open) => open({ allowsInexact: true }) });
    expect(asked).toEqual([false, true, true]);
    await expect(openBackend("webgpu", { ...opened, webgpu }, { precision: "f8" as "f16" })).rejects.toThrow(
      'precision: one of f32, f16, got "f8"; leave it out for f32',
    );
  });

  test("an unknown kind is an error that lists the known ones", async () => {
    for (const kind of ["cuda", "toString"])
      await expect(createBackend(kind as "wasm")).rejects.toThrow(`known kinds are auto, webgpu, wasm, reference, got "${kind}"`);
  });
});

test("a model with damaged values never becomes a policy", async () => {
  const stored = [...readSafetensors(model.weights, "m").tensors.values()];
  const weights = writeSafetensors(
    stored.map((tensor, i) => ({
      name: tensor.name,
      shape: tensor.shape,
      data: i === 5 ? toFloat32(tensor, "m").with(0, Number.POSITIVE_INFINITY) : toFloat32(tensor, "m"),
    })),
  );
  await expect(open({ model: { ...model, weights } })).rejects.toThrow("are finite, got Infinity at element 0");
});

// Several adapters on one base: served side by side, each as if it were alone, at the price of its own bytes.

import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { GenerateRequest, PeftFiles, Policy } from "../../../packages/engine/src/contract.ts";
import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import { loraTensors } from "../../../packages/engine/src/model/tensors.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { sizeOf } from "../../../packages/engine/src/plan/step.ts";
import { createPolicy, type PolicyOptions } from "../../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { exposePolicy, wrapPolicy } from "../../../packages/engine/src/worker.ts";
import { BACKENDS } from "./backends.ts";
import { TINY_CONFIG, tinyLlama } from "./tinyLlama.ts";

const model = { ...tinyLlama(), name: "tests/tiny" };
const lora = { rank: 4, alpha: 8 };
const shape = { model, lora, slots: 4, microBatchTokens: 64 };
const policies: Policy[] = [];
afterEach(async () => {
  for (const policy of policies.splice(0)) await policy.dispose();
});
const open = async (options: Partial<PolicyOptions> = {}): Promise<Policy> => {
  const policy = await createPolicy({ backend: createReferenceBackend(), ...shape, ...options });
  policies.push(policy);
  return policy;
};

/** An adapter that was trained towards some tokens, by a policy of its own, and the policy that serves it. */
const trained = async (target: number, options: Partial<PolicyOptions> = {}): Promise<{ files: PeftFiles; policy: Policy }> => {
  const policy = await open({ seed: target, ...options });
  const datum = { tokens: Int32Array.of(5, 9, 2, 30, target, target, target), targetStart: 4, weights: Float32Array.of(1, 1, 1) };
  for (let i = 0; i < 6; i++) {
    await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
    await policy.trainer.optimStep({ learningRate: 0.05 });
  }
  await policy.publish(target);
  return { files: await policy.trainer.exportAdapter(), policy };
};

const request = (overrides: Partial<GenerateRequest> = {}): GenerateRequest => ({
  prompt: Int32Array.of(5, 9, 2, 30),
  maxTokens: 10,
  temperature: 1,
  stopTokens: [],
  seed: 7,
  ...overrides,
});

/** Completions of one policy equal another's: the tokens, and the log-probs to rounding of what stood in f64 before it was a file. */
const expectSame = async (policy: Policy, adapter: string | undefined, alone: Policy): Promise<void> => {
  for (const seed of [1, 2]) {
    const got = await policy.sampler.generate(request({ seed, ...(adapter !== undefined && { adapter }) }));
    const want = await alone.sampler.generate(request({ seed }));
    expect([...got.tokens]).toEqual([...want.tokens]);
    expect(Math.max(...got.logprobs.map((x, i) => Math.abs(x - want.logprobs[i]!)))).toBeLessThan(1e-5);
  }
};

for (const { name, create, skip } of BACKENDS.filter(({ name }) => name !== "wasm, 1 thread")) {
  describe.skipIf(skip !== undefined)(skip ? `on ${name} (skipped: ${skip})` : `on ${name}`, () => {
    let backend: Backend;
    let policy: Policy;
    beforeAll(async () => {
      backend = await create();
      policy = await createPolicy({ backend, ...shape });
    });
    afterAll(() => policy.dispose());

    test("adapters live side by side, in one batch with the published one, each as if it were alone", async () => {
      const [one, two] = [await trained(11), await trained(40)];
      await policy.loadAdapter("one", one.files);
      await policy.loadAdapter("two", two.files);
      const names = [undefined, "one", "two", "one", "two", undefined, "one"];
      const ask = (name: string | undefined, seed: number): GenerateRequest =>
        request({ seed, ...(name !== undefined && { adapter: name }) });
      const alone = [];
      for (const [seed, name] of names.entries()) alone.push(await policy.sampler.generate(ask(name, seed)));
      // seven requests on four rows: they share ticks, wait for each other's rows, and meet each other's prompts in the cache
      const together = await Promise.all(names.map((name, seed) => policy.sampler.generate(ask(name, seed))));
      expect(together).toEqual(alone);
      expect(together.map(({ policyVersion }) => policyVersion)).toEqual([0, 11, 40, 11, 40, 0, 11]);
      const base = await open();
      await expectSame(policy, "one", one.policy);
      await expectSame(policy, "two", two.policy);
      await expectSame(policy, undefined, base);
      const shown = await policy.sampler.generate(request({ adapter: "one" }));
      expect([...shown.tokens]).not.toEqual([...(await policy.sampler.generate(request({ adapter: "two" }))).tokens]);
    });

    test("an adapter costs its own bytes, and gives them back", async () => {
      const { files } = await trained(3);
      const before = backend.byteLength;
      await policy.loadAdapter("guest", files);
      const cost = backend.byteLength - before;
      const flat = sizeOf(loraTensors(parseConfig(TINY_CONFIG, "c"), lora, "l").flat) * (backend.device.kind === "reference" ? 8 : 4);
      expect(cost).toBeGreaterThanOrEqual(backend.device.kind === "wasm" ? 0 : flat); // the WASM heap grows in pages, and has room of old plans
      expect(cost).toBeLessThan(flat + 2 ** 16);
      for (let i = 0; i < 20; i++) {
        await policy.unloadAdapter("guest");
        await policy.loadAdapter("guest", files);
      }
      expect(backend.byteLength).toBe(before + cost);
      await policy.unloadAdapter("guest");
      if (backend.device.kind !== "wasm") expect(backend.byteLength).toBe(before);
    });
  });
}

describe("names", () => {
  test("an unknown name is refused with the known ones", async () => {
    const policy = await open();
    await expect(policy.sampler.generate(request({ adapter: "guest" }))).rejects.toThrow('a loaded one (none), got "guest"');
    await policy.loadAdapter("a", (await trained(3)).files);
    await policy.loadAdapter("b", (await trained(4)).files);
    await expect(policy.sampler.generate(request({ adapter: "guest" }))).rejects.toThrow("(a, b)");
    await expect(policy.sampler.generate(request({ adapter: "" }))).rejects.toMatchObject({ code: "bad-request" });
    await expect(policy.unloadAdapter("guest")).rejects.toMatchObject({ code: "bad-request" });
    await expect(policy.loadAdapter("", {})).rejects.toThrow("name is a string of one character or more");
  });

  test("the sampler says which there are", async () => {
    const policy = await open();
    expect(policy.sampler.adapters).toEqual([]);
    const { files } = await trained(3);
    for (const name of ["a", "b", "a"]) await policy.loadAdapter(name, files);
    expect(policy.sampler.adapters).toEqual(["a", "b"]);
    await expect(policy.loadAdapter("c", {})).rejects.toThrow();
    await policy.unloadAdapter("a");
    expect(policy.sampler.adapters).toEqual(["b"]);
  });

  test("unloading and replacing wait for what runs, and later requests get the new one", async () => {
    const [one, two] = [await trained(11), await trained(40)];
    const policy = await open();
    await policy.loadAdapter("a", one.files);
    const want = await policy.sampler.generate(request({ adapter: "a", maxTokens: 40 }));
    const order: string[] = [];
    const running = Array.from({ length: 6 }, async () => {
      const got = await policy.sampler.generate(request({ adapter: "a", maxTokens: 40 }));
      order.push("completion");
      return got;
    });
    await policy.loadAdapter("a", two.files).then(() => order.push("replaced"));
    for (const got of await Promise.all(running)) expect(got).toEqual(want);
    expect(order).toEqual([...Array<string>(6).fill("completion"), "replaced"]);
    await expectSame(policy, "a", two.policy);
    const last = policy.sampler.generate(request({ adapter: "a" }));
    const unloading = policy.unloadAdapter("a");
    await expect(policy.sampler.generate(request({ adapter: "a" }))).rejects.toThrow("(none)");
    expect((await last).tokens).toHaveLength(10);
    await unloading;
  });

  test("training and publishing touch the published adapter alone", async () => {
    const one = await trained(11);
    const policy = await open();
    await policy.loadAdapter("a", one.files);
    const before = await policy.sampler.generate(request());
    const running = policy.sampler.generate(request({ adapter: "a", maxTokens: 40 }));
    await policy.trainer.importAdapter((await trained(40)).files);
    await policy.publish(5);
    expect((await running).policyVersion).toBe(11);
    await expectSame(policy, "a", one.policy);
    expect([...(await policy.sampler.generate(request())).tokens]).not.toEqual([...before.tokens]);
  });
});

describe("refused", () => {
  test("an adapter of another base by the sidecar's hash, of other shapes, or of a larger rank; nothing is served under the name", async () => {
    const policy = await open();
    const before = await policy.trainer.saveState();
    const other = await trained(3, { model: { ...model, ...tinyLlama({}, 77) } });
    await expect(policy.loadAdapter("a", other.files)).rejects.toThrow(/fulgurite\.json: the adapter's base is the loaded one/);
    const wide = await trained(3, { model: { ...model, ...tinyLlama({ intermediate_size: 96 }) } });
    const { "fulgurite.json": _, ...foreign } = wide.files;
    await expect(policy.loadAdapter("a", foreign)).rejects.toThrow(/is \[64,4\], got \[96,4\]/);
    const large = await trained(3, { lora: { rank: 8, alpha: 8 } });
    await expect(policy.loadAdapter("a", large.files)).rejects.toThrow("the rank of a is at most the policy's, 4, got 8");
    await expect(policy.sampler.generate(request({ adapter: "a" }))).rejects.toThrow("(none)");
    expect(await policy.trainer.saveState()).toEqual(before);
  });

  test("a smaller rank and another alpha are served as they were trained", async () => {
    const small = await trained(11, { lora: { rank: 2, alpha: 3 } });
    const policy = await open();
    await policy.loadAdapter("small", small.files);
    await expectSame(policy, "small", small.policy);
  });

  test("a disposed policy serves nobody", async () => {
    const policy = await open();
    await policy.loadAdapter("a", (await trained(3)).files);
    const pending = [policy.sampler.generate(request({ adapter: "a", maxTokens: 40 })), policy.unloadAdapter("a")];
    const settled = Promise.allSettled(pending);
    await policy.dispose();
    for (const result of await settled) expect(result).toMatchObject({ status: "rejected", reason: { code: "disposed" } });
    await expect(policy.loadAdapter("a", {})).rejects.toMatchObject({ code: "disposed" });
  });
});

test("a policy in a worker loads, serves and unloads adapters", async () => {
  const { port1, port2 } = new MessageChannel();
  exposePolicy<object>(port2, () => createPolicy({ backend: createReferenceBackend(), ...shape }));
  const policy = await wrapPolicy(port1, {});
  const { files, policy: alone } = await trained(11);
  await policy.loadAdapter("a", files);
  expect(files["adapter_model.safetensors"]!.byteLength).toBeGreaterThan(0);
  expect(policy.sampler.adapters).toEqual(["a"]);
  await expectSame(policy, "a", alone);
  await policy.unloadAdapter("a");
  expect(policy.sampler.adapters).toEqual([]);
  await expect(policy.sampler.generate(request({ adapter: "a" }))).rejects.toMatchObject({ code: "bad-request" });
  await policy.dispose();
  port1.close();
  port2.close();
});

// What a policy owes its neighbours and its process: two of them side by side, memory that runs out, an end that leaves nothing behind.

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";
import { describe, expect, test } from "vitest";
import type { Datum, Policy } from "../../../packages/engine/src/contract.ts";
import { nodeThreads } from "../../../packages/engine/src/node/wasmThreads.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { createHeap } from "../../../packages/engine/src/wasm/memory.ts";
import type { ThreadSpawner } from "../../../packages/engine/src/wasm/threads.ts";
import { createWebGpuBackend } from "../../../packages/engine/src/webgpu/backend.ts";
import { BACKENDS, probe } from "./backends.ts";
import { tinyLlama } from "./tinyLlama.ts";
import { createTestBackend, openTestGpu } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());
const why = skip ? ` (skipped: ${skip})` : "";

const model = tinyLlama();
const policyOn = (backend: Backend, microBatchTokens = 32): Promise<Policy> =>
  createPolicy({ backend, model, lora: { rank: 2, alpha: 4 }, slots: 2, maxContext: 32, microBatchTokens });

const datum = (...tokens: number[]): Datum => ({
  tokens: Int32Array.of(5, 9, ...tokens),
  targetStart: 2,
  weights: new Float32Array(tokens.length).fill(1),
});
const learn = async ({ trainer }: Policy, ...tokens: number[]) => {
  const { lossSum } = await trainer.forwardBackward([datum(...tokens)], { name: "crossEntropy" });
  return { lossSum, ...(await trainer.optimStep({ learningRate: 0.05 })) };
};
const generate = ({ sampler }: Policy, seed = 1) =>
  sampler.generate({ prompt: Int32Array.of(5, 9, 2), maxTokens: 6, temperature: 1, stopTokens: [], seed });

/** Everything that a policy does, with its numbers. */
const use = async (policy: Policy, ...tokens: number[]) => {
  const [step, early] = await Promise.all([learn(policy, ...tokens), generate(policy)]);
  await policy.publish(1);
  return { step, early, late: await generate(policy), state: await policy.trainer.saveState() };
};

for (const { name, create, skip: reason } of BACKENDS) {
  describe.skipIf(reason !== undefined)(`two policies on ${name}${reason ? ` (skipped: ${reason})` : ""}`, () => {
    test("train and sample at once as each alone, and one outlives the other", async () => {
      const alone = [];
      for (const tokens of [
        [1, 2, 3],
        [7, 6, 5, 4],
      ]) {
        const policy = await policyOn(await create());
        alone.push(await use(policy, ...tokens));
        await policy.dispose();
      }
      const [one, two] = await Promise.all([policyOn(await create()), policyOn(await create())]);
      expect(await Promise.all([use(one, 1, 2, 3), use(two, 7, 6, 5, 4)])).toEqual(alone);
      const running = generate(two, 9);
      await one.dispose();
      await expect(generate(one)).rejects.toMatchObject({ code: "disposed" });
      const { tokens } = await running;
      expect((await generate(two, 9)).tokens).toEqual(tokens);
      expect((await learn(two, 1)).applied).toBe(true);
      await two.dispose();
    });
  });
}

describe.skipIf(skip !== undefined)(`memory that runs out on WebGPU${why}`, () => {
  /** A device that has no room for the buffers whose label matches. */
  const short = async (label: RegExp): Promise<{ backend: Backend; refused: string[]; refuse: (label: RegExp | undefined) => void }> => {
    let matching: RegExp | undefined = label;
    const refused: string[] = [];
    const { gpu, release } = await openTestGpu();
    const requestAdapter = async (options?: GPURequestAdapterOptions) => {
      const adapter = (await gpu.requestAdapter(options))!;
      const { info, limits, features } = adapter;
      const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
        const device = await adapter.requestDevice(descriptor);
        const [createBuffer, pushErrorScope, popErrorScope] = [device.createBuffer, device.pushErrorScope, device.popErrorScope];
        const scopes: { filter: string; error: string | undefined }[] = [];
        device.createBuffer = (of) => {
          if (of.label && matching?.test(of.label)) {
            refused.push(of.label);
            const scope = scopes.findLast(({ filter }) => filter === "out-of-memory");
            if (!scope) throw new Error(`${of.label} was asked for outside of an out-of-memory scope`);
            scope.error = `no room for ${of.label}`;
          }
          return createBuffer.call(device, of);
        };
        device.pushErrorScope = (filter): undefined => {
          scopes.push({ filter, error: undefined });
          pushErrorScope.call(device, filter);
        };
        device.popErrorScope = async () => {
          const { error } = scopes.pop()!;
          const found = await popErrorScope.call(device);
          return error === undefined ? found : ({ message: error } as GPUError);
        };
        return device;
      };
      return { info, limits, features, requestDevice };
    };
    const backend = await createWebGpuBackend({ requestAdapter, wgslLanguageFeatures: gpu.wgslLanguageFeatures } as unknown as GPU, {
      onDispose: release,
    });
    const refuse = (next: RegExp | undefined): void => {
      matching = next;
    };
    return { backend, refused, refuse };
  };

  test.each([
    ["a weight", /gate_proj/, /"model\.layers\.0\.mlp\.gate_proj\.weight" .*; take a smaller model or a denser weight format/],
    ["the adapter", /^lora\.p/, /"lora\.p" .*; lower lora\.rank/],
    ["the cache", /^cache\.k\.1/, /"cache\.k\.1" .*; lower slots or maxContext/],
    ["the arena of a plan", /^arena/, /"arena .*infer.* .*; lower microBatchTokens or set checkpoint/],
    ["the parameters of a plan", /^parameters/, /"parameters of .*; lower microBatchTokens/],
  ])("for %s: an error with both sizes that says what to lower, and nothing stays", async (_, label, message) => {
    const { backend, refused } = await short(label);
    const failure = await policyOn(backend).catch((error: Error) => error);
    expect(failure).toMatchObject({ code: "device", message: expect.stringMatching(message) });
    expect((failure as Error).message).toMatch(/must have \d+ bytes \([\d.]+ MiB\) free for .* beside the \d+ bytes/);
    expect(refused).toHaveLength(1);
    expect(backend.byteLength).toBe(0);
  });

  test("for the larger arena of training: the step fails, sampling goes on, and so does training when there is room again", async () => {
    const { backend, refuse } = await short(/^nothing/);
    const policy = await policyOn(backend, 1024);
    const before = await generate(policy);
    for (let i = 0; i < 3; i++) await generate(policy); // each buffer of the readback ring is made at its first use
    const { byteLength } = backend;
    refuse(/^arena \(plan "train/);
    for (let attempt = 0; attempt < 2; attempt++)
      await expect(learn(policy, 1, 2)).rejects.toMatchObject({
        code: "device",
        message: expect.stringMatching(/lower microBatchTokens or set checkpoint/),
      });
    expect((await generate(policy)).tokens).toEqual(before.tokens);
    expect(backend.byteLength).toBe(byteLength);
    refuse(undefined);
    expect((await learn(policy, 1, 2)).applied).toBe(true);
    await policy.dispose();
  });

  test("for a readback: the read fails, the next one works", async () => {
    const { backend, refuse } = await short(/^readback/);
    const policy = await policyOn(backend);
    await expect(policy.trainer.saveState()).rejects.toMatchObject({ code: "device", message: expect.stringContaining("readback 0") });
    refuse(undefined);
    expect((await policy.trainer.saveState()).length).toBeGreaterThan(1000);
    await policy.dispose();
  });
});

describe("memory that runs out on WASM", () => {
  test("when the system gives less than 4 GiB: the bytes, and what to lower", () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 4 });
    const heap = createHeap(memory, 1024);
    const first = heap.allocate(100_000, '"lora.p"', "state");
    expect(() => heap.allocate(300_000, "the arena", "arena")).toThrow(
      expect.objectContaining({
        code: "device",
        message: expect.stringMatching(/the arena needs 300000 bytes, .*; lower microBatchTokens or set checkpoint/),
      }),
    );
    expect(() => heap.allocate(200_000, '"cache.k.0"', "kv")).toThrow(/"cache\.k\.0" needs .*; lower slots or maxContext/);
    heap.free(first);
    expect(heap.allocate(200_000, "the arena", "arena")).toBe(first);
  });
});

describe("dispose", () => {
  test("gives everything back: no bytes, no threads", async () => {
    let threads = 0;
    const counting: ThreadSpawner = {
      ...nodeThreads,
      spawn: async (job) => {
        const thread = await nodeThreads.spawn(job);
        threads++;
        return {
          stop: async () => {
            await thread.stop();
            threads--;
          },
        };
      },
    };
    const backend = await createWasmBackend({ threads: 3, spawn: counting, minThreadedFlop: 0 });
    const policy = await policyOn(backend);
    await use(policy, 1, 2, 3);
    expect(threads).toBe(2);
    expect(backend.byteLength).toBeGreaterThan(0);
    await policy.dispose();
    expect(threads).toBe(0);
    expect(backend.byteLength).toBe(0);
  });

  test.skipIf(skip !== undefined)(
    `lets the process end, whatever was collected in between: WebGPU and WASM threads, with garbage collected between all steps${why}`,
    { timeout: 60_000 },
    async () => {
      // Node 20 runs no TypeScript: the entry is bundled, the package webgpu stays outside.
      const folder = mkdtempSync(join(tmpdir(), "fulgurite-exit-"));
      const file = (path: string): string => JSON.stringify(fileURLToPath(new URL(path, import.meta.url)));
      writeFileSync(
        join(folder, "entry.ts"),
        `
        export { openNodeWebGpu } from ${file("../../../packages/engine/src/node/webgpu.ts")};
        export { nodeThreads } from ${file("../../../packages/engine/src/node/wasmThreads.ts")};
        export { createWasmBackend } from ${file("../../../packages/engine/src/wasm/backend.ts")};
        export { createPolicy } from ${file("../../../packages/engine/src/policy.ts")};
        export { tinyLlama } from ${file("./tinyLlama.ts")};
      `,
      );
      const bundled = (await build({
        configFile: false,
        logLevel: "silent",
        build: {
          write: false,
          ssr: true,
          target: "node20",
          rolldownOptions: { input: join(folder, "entry.ts"), external: ["webgpu"], output: { codeSplitting: false } },
        },
        ssr: { noExternal: true },
      })) as { output: { code: string }[] };
      rmSync(folder, { recursive: true });
      const source = `${bundled.output[0]!.code}
        const collect = async () => { for (let i = 0; i < 5; i++) { gc(); await new Promise((resolve) => setTimeout(resolve, 5)); } };
        // What keeps Dawn from being collected, which would crash the process (node/webgpu.ts).
        const dawns = () => globalThis[Symbol.for("fulgurite.dawn")]?.size ?? 0;
        const model = tinyLlama();
        const round = async (backend) => {
          await collect();
          const policy = await createPolicy({ backend, model, slots: 2, maxContext: 32, microBatchTokens: 32 });
          await collect();
          const { tokens } = await policy.sampler.generate({ prompt: Int32Array.of(5), maxTokens: 4, temperature: 0, stopTokens: [], seed: 1 });
          await collect();
          const data = [{ tokens: Int32Array.of(5, 6, 7), targetStart: 1, weights: Float32Array.of(1, 1) }];
          await policy.trainer.forwardBackward(data, { name: "crossEntropy" });
          await collect();
          const { applied } = await policy.trainer.optimStep({ learningRate: 0.1 });
          const during = dawns();
          await policy.dispose();
          await collect();
          return [tokens.length, applied, during, dawns(), backend.byteLength].join(" ");
        };
        const gpu = await round(await openNodeWebGpu());
        const wasm = await round(await createWasmBackend({ threads: 2, spawn: nodeThreads }));
        const again = await round(await openNodeWebGpu());
        console.log([gpu, wasm, again].join(", "));
      `;
      const child = spawnSync(process.execPath, ["--expose-gc", "--input-type=module"], {
        input: source,
        encoding: "utf8",
        timeout: 50_000,
        cwd: fileURLToPath(new URL("../../..", import.meta.url)),
      });
      expect(child.stdout.trim(), child.stderr).toBe("4 true 1 0 0, 4 true 0 0 0, 4 true 1 0 0");
      expect([child.status, child.signal]).toEqual([0, null]);
    },
  );
});

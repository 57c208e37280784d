// Budgets: what memoryOf says against what an executor holds after everything was used once; and the settings that fitMemory chooses.

import { describe, expect, test } from "vitest";
import type { Datum } from "../../../packages/engine/src/contract.ts";
import { byTime, describeMemory, fitMemory, limitsOf, type MemoryOptions, memoryOf } from "../../../packages/engine/src/memory.ts";
import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import { nodeThreads } from "../../../packages/engine/src/node/wasmThreads.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { wasmCosts } from "../../../packages/engine/src/wasm/costs.ts";
import { startMachine } from "../../../packages/engine/src/wasm/machine.ts";
import { probe } from "./backends.ts";
import { TINY_CONFIG, tinyLlama } from "./tinyLlama.ts";
import { TINY } from "./tinyModel.ts";
import { createTestBackend } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());
const MIB = 2 ** 20;

/** SmolLM2-135M's shape with three of its layers: what is refused or chosen is so for the same reasons, and counted faster. */
const LAYERS = 3;
const SHORT = {
  ...TINY,
  ...{ width: 576, layers: LAYERS, heads: 9, kvHeads: 3, headWidth: 64, feedForward: 1536, vocab: 49_152, maxPositions: 2048 },
};

describe("memoryOf", () => {
  const settings = { lora: { rank: 3, alpha: 6 }, maxContext: 40, slots: 5, microBatchTokens: 48 };
  const shape = { vocab_size: 301, num_hidden_layers: 3, num_key_value_heads: 4 };
  const spec = parseConfig({ ...TINY_CONFIG, ...shape }, "config.json");
  const datum: Datum = {
    tokens: Int32Array.of(1, 2, 3, 4, 5),
    targetStart: 2,
    oldLogprobs: new Float32Array(3),
    advantages: new Float32Array(3),
  };

  /** Bytes that the backend holds when every plan has run. */
  const used = async (backend: Backend, checkpoint: boolean): Promise<number> => {
    const policy = await createPolicy({ ...settings, checkpoint, backend, model: tinyLlama(shape) });
    await policy.sampler.generate({ prompt: Int32Array.of(1, 2), maxTokens: 3, temperature: 1, stopTokens: [], seed: 1 });
    await policy.trainer.forward([datum]);
    await policy.trainer.forwardBackward([datum], { name: "ppoClip", clipLow: 0.2, clipHigh: 0.2, dualClip: 3 });
    await policy.trainer.optimStep({ learningRate: 0.1 });
    await policy.publish(1);
    const { byteLength } = backend;
    await policy.dispose();
    expect(backend.byteLength).toBe(0);
    return byteLength;
  };

  test.each([false, true])("on WASM is what is held, to the byte (checkpoint %s)", async (checkpoint) => {
    for (const threads of [1, 2]) {
      const backend = await createWasmBackend({ threads, spawn: nodeThreads });
      expect(await used(backend, checkpoint)).toBe((await memoryOf(spec, { ...settings, checkpoint, device: "wasm", threads })).byteLength);
    }
  });

  test.skipIf(skip !== undefined)(`on WebGPU is what is held but for the readback ring${skip ? ` (skipped: ${skip})` : ""}`, async () => {
    for (const checkpoint of [false, true]) {
      const held = await used(await createTestBackend(), checkpoint);
      const { byteLength } = await memoryOf(spec, { ...settings, checkpoint, device: "webgpu" });
      // three buffers of 4 KiB or more; partial sums by the features of the device
      expect(held - byteLength).toBeGreaterThanOrEqual(0);
      expect(held - byteLength).toBeLessThan(64 * 1024);
    }
  });

  test("knows the scratch of the kernels that are built", async () => {
    const { kernels } = await startMachine(0, undefined, false);
    const { scratchBytes } = wasmCosts(3);
    expect(scratchBytes({ name: "empty", steps: [] })).toBe(3 * Math.ceil(kernels.gemmScratch() / 256) * 256);
  });

  test("adds up by hand: weights, five adapter planes, the cache, and the largest tensor", async () => {
    const { items, largest } = await memoryOf(SHORT, { device: "webgpu", lora: { rank: 16, alpha: 32 }, slots: 8, microBatchTokens: 512 });
    const perLayer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576 + 2 * 576;
    const ropes = 512 * 64;
    expect(items.weights).toBe(4 * (49_152 * 576 + LAYERS * perLayer + 576 + ropes));
    const perRank = 4 * 576 + 2 * (576 + 192) + 3 * (576 + 1536);
    expect(items.adapters).toBe(5 * 4 * 16 * LAYERS * perRank);
    expect(items.cache).toBe(2 * LAYERS * 8 * 512 * 192 * 4);
    // the embedding is cut where it must be; a slice of logits is not, and has 8 MiB whatever the vocabulary
    expect(largest).toEqual({ name: "logits", byteLength: 4 * 512 * 4096 });
    expect((await memoryOf(SHORT, { device: "wasm" })).largest).toEqual({
      name: "model.embed_tokens.weight",
      byteLength: 4 * 49_152 * 576,
    });
  });
});

describe("fitMemory", () => {
  const all = { slots: 1, microBatchTokens: 0, checkpoint: false };

  test("orders runs by time: small ones cost a little, checkpoints a third", () => {
    const runs = [64, 256, 512, 1024].flatMap((microBatchTokens) =>
      [false, true].map((checkpoint) => ({ ...all, microBatchTokens, checkpoint })),
    );
    expect(byTime(runs).map(({ microBatchTokens, checkpoint }) => `${microBatchTokens}${checkpoint ? "c" : ""}`)).toEqual([
      ...["1024", "512", "256", "1024c", "512c", "256c", "64", "64c"],
    ]);
  });

  const options: MemoryOptions = { device: "reference", slots: 4, lora: { rank: 8, alpha: 16 } };
  const chosen = async (mebibytes: number, more: MemoryOptions = {}) => {
    const { microBatchTokens, checkpoint, slots, byteLength } = await fitMemory(SHORT, { ...options, ...more }, { bytes: mebibytes * MIB });
    expect(byteLength).toBeLessThanOrEqual(mebibytes * MIB);
    return { microBatchTokens, checkpoint, slots };
  };

  test("takes the fastest run that fits, and checkpoints only then", async () => {
    const [plain, half, checkpointed] = await Promise.all(
      [
        { microBatchTokens: 1024, checkpoint: false },
        { microBatchTokens: 512, checkpoint: false },
        { microBatchTokens: 1024, checkpoint: true },
      ].map(async (run) => (await memoryOf(SHORT, { ...options, ...run })).byteLength / MIB),
    );
    expect(await chosen(plain!)).toEqual({ microBatchTokens: 1024, checkpoint: false, slots: 4 });
    expect(await chosen(plain! - 1)).toEqual({ microBatchTokens: 512, checkpoint: false, slots: 4 });
    expect(await chosen(half! - 1)).toEqual({ microBatchTokens: 1024, checkpoint: true, slots: 4 });
    expect(await chosen(checkpointed! - 1)).toEqual({ microBatchTokens: 512, checkpoint: true, slots: 4 });
    // what the caller has said is kept
    expect(await chosen(half! - 1, { checkpoint: true })).toEqual({ microBatchTokens: 1024, checkpoint: true, slots: 4 });
    expect(await chosen(half!, { microBatchTokens: 512 })).toEqual({ microBatchTokens: 512, checkpoint: false, slots: 4 });
  });

  test("gives slots away last, and only those that nobody asked for", async () => {
    const { slots: _, ...open } = options;
    const least = await memoryOf(SHORT, { ...options, slots: 16, microBatchTokens: 512, checkpoint: true });
    const { slots, microBatchTokens, checkpoint } = await fitMemory(SHORT, open, { bytes: least.byteLength });
    expect({ slots, microBatchTokens, checkpoint }).toEqual({ slots: 16, microBatchTokens: 512, checkpoint: true });
  });

  test("keeps activations within one buffer and tensors within one binding", async () => {
    const half = await memoryOf(SHORT, { ...options, microBatchTokens: 512 });
    const ARENA = half.items.activations - 1;
    const memory = await fitMemory(SHORT, options, { arenaBytes: ARENA });
    expect(memory.checkpoint).toBe(true);
    expect(memory.items.activations).toBeLessThanOrEqual(ARENA);
    await expect(fitMemory(SHORT, options, { tensorBytes: 80 * MIB })).rejects.toThrow(
      /limit 80 MiB for one tensor, got 108 MiB for model\.embed_tokens\.weight; set weightFormat to bf16/,
    );
    expect(limitsOf({ maxTensorBytes: 3, maxArenaBytes: 4 } as Backend, 5)).toEqual({ tensorBytes: 3, arenaBytes: 4, bytes: 5 });
  });

  test("refuses with every item, the limit, and the next smaller setting that fits", async () => {
    const fixed = { ...options, slots: 64, name: "tests/short" };
    const { byteLength } = await memoryOf(SHORT, { ...fixed, slots: 17, microBatchTokens: 512, checkpoint: true });
    const refused = fitMemory(SHORT, fixed, { bytes: byteLength });
    await expect(refused).rejects.toMatchObject({
      code: "device",
      message: expect.stringMatching(
        /^memory: tests\/short needs \d+ MiB: weights \d+ MiB \(f32\), adapter state [\d.]+ MiB, activations \d+ MiB \(512 tokens at once, checkpointed\), KV cache 144 MiB \(64 × 512\), other [\d.]+ MiB; limit \d+ MiB; lower slots to 16$/,
      ),
    });
    // the advice is true
    expect((await fitMemory(SHORT, { ...fixed, slots: 16 }, { bytes: byteLength })).slots).toBe(16);
  });

  test("names several settings where one is not enough, and another model where none is", async () => {
    const fixed = { ...options, slots: 64, microBatchTokens: 1024, checkpoint: false };
    const { byteLength } = await memoryOf(SHORT, { ...fixed, slots: 1, microBatchTokens: 512, checkpoint: true });
    await expect(fitMemory(SHORT, fixed, { bytes: byteLength })).rejects.toThrow(
      /; set checkpoint to true and lower slots to 1 and lower microBatchTokens to 512$/,
    );
    await expect(fitMemory(SHORT, options, { bytes: 16 * MIB })).rejects.toThrow(
      /; limit 16 MiB; take a smaller model, or a device with more memory$/,
    );
  });

  test("on WASM never goes beyond 32-bit addresses", async () => {
    const large = { ...SHORT, vocab: 600_000, maxPositions: 512 };
    await expect(fitMemory(large, { ...options, device: "wasm", slots: 1300 }, { bytes: 2 ** 40 })).rejects.toThrow(
      /limit 4096 MiB; lower slots to \d+$/,
    );
  });

  test("a budget is said in one line", async () => {
    expect(describeMemory(await memoryOf(SHORT, { ...options, microBatchTokens: 512 }))).toMatch(
      /^\d+ MiB: weights 149 MiB \(f32\), adapter state 4\.7 MiB, activations \d+ MiB \(512 tokens at once\), KV cache 9\.0 MiB \(4 × 512\), other 0\.\d MiB$/,
    );
  });
});

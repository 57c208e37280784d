// Builds a policy of a real model's shape with random weights, uses all of it once, and says what it was computed to take and what it took:
// {"computed","held","memory","resident"} in bytes. `held`: what the backend counted at most; `memory`: the WASM memory, where there
// is one; `resident`: the growth of the process. The weights are made as they are read: no checkpoint exists. FULGURITE_MEMORY_CASE: a MemoryCase as JSON.
import { memoryOf } from "../../packages/engine/src/memory.ts";
import { parseConfig } from "../../packages/engine/src/model/families.ts";
import { modelTensors, storedTensors } from "../../packages/engine/src/model/tensors.ts";
import { nodeThreads } from "../../packages/engine/src/node/wasmThreads.ts";
import { openNodeWebGpu } from "../../packages/engine/src/node/webgpu.ts";
import type { Backend } from "../../packages/engine/src/plan/backend.ts";
import { sizeOf } from "../../packages/engine/src/plan/step.ts";
import { createPolicy } from "../../packages/engine/src/policy.ts";
import { createWasmBackend } from "../../packages/engine/src/wasm/backend.ts";
import type { WeightSource } from "../../packages/engine/src/weights/source.ts";
import type { MemoryCase } from "./memory.bench.ts";

const { config, device, weightFormat, settings } = JSON.parse(process.env.FULGURITE_MEMORY_CASE!) as MemoryCase;
const spec = parseConfig(config, "config.json");

/** The same 4 MiB of small bfloat16 numbers again and again, behind the header that a checkpoint of this model has. */
const randomWeights = (): WeightSource => {
  const part = new Uint16Array(2 << 20);
  let state = 1;
  for (let i = 0; i < part.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    part[i] = ((state >>> 16) & 0x8000) | 0x3c00 | (state >>> 24);
  }
  const header: Record<string, unknown> = {};
  let end = 0;
  for (const tensor of storedTensors(modelTensors(spec))) {
    const begin = end;
    end += 2 * sizeOf(tensor);
    header[tensor.name] = { dtype: "BF16", shape: tensor.shape, data_offsets: [begin, end] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8 + text.length);
  new DataView(head.buffer).setBigUint64(0, BigInt(text.length), true);
  head.set(text, 8);
  const bytes = new Uint8Array(part.buffer);
  return {
    read: async (_, receiver) => {
      receiver.begin(head.length + end);
      await receiver.part(head);
      for (let at = 0; at < end; at += bytes.length) await receiver.part(bytes.subarray(0, Math.min(bytes.length, end - at)));
    },
  };
};

const MAX_RSS_UNIT = 1024;
const before = process.memoryUsage().rss;
const computed = (await memoryOf(spec, { ...settings, device, weightFormat, threads: 2 })).byteLength;

let memory: WebAssembly.Memory | undefined;
const open = async (): Promise<Backend> => {
  if (device === "webgpu") return openNodeWebGpu();
  const spawn = {
    ...nodeThreads,
    spawn: (job: Parameters<typeof nodeThreads.spawn>[0]) => {
      ({ memory } = job);
      return nodeThreads.spawn(job);
    },
  };
  return createWasmBackend({ threads: 2, spawn });
};
const backend = await open();
let held = 0;
const look = (stage: string): void => {
  held = Math.max(held, backend.byteLength);
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  process.stderr.write(
    `${stage}: ${mebibytes(backend.byteLength)} held, process grown by ${mebibytes(process.memoryUsage().rss - before)} MiB\n`,
  );
};
const policy = await createPolicy({
  ...settings,
  ...{ backend, weightFormat },
  model: { config: new TextEncoder().encode(JSON.stringify(config)), weights: randomWeights() },
});
look("loaded");
const length = settings.microBatchTokens;
const tokens = Int32Array.from({ length }, (_, i) => (i * 7919 + 11) % spec.vocab);
await policy.sampler.generate({ prompt: tokens.subarray(0, 8), maxTokens: 4, temperature: 1, stopTokens: [], seed: 1 });
look("sampled");
const targets = new Float32Array(length - 8).fill(1);
await policy.trainer.forwardBackward([{ tokens, targetStart: 8, weights: targets }], { name: "crossEntropy" });
look("gradients");
await policy.trainer.optimStep({ learningRate: 1e-4 });
look("step");
const resident = process.resourceUsage().maxRSS * MAX_RSS_UNIT - before;
process.stdout.write(`${JSON.stringify({ computed, held, memory: memory?.buffer.byteLength, resident })}\n`);
await policy.dispose();

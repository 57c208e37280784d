// The engine itself, as its users run it: a policy that holds the workload's adapter, its trainer and its sampler; and its GEMM alone.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Datum, DeviceKind, Policy } from "@fulgurite/engine";
import { createPolicy } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import type { Step, Tensor } from "../../packages/engine/src/plan/step.ts";
import { ADAM, LORA, SPARK, type TrainBatch, type Workload } from "./engineWorkload.ts";

export const openOurs = async ({ adapter }: Workload, device: DeviceKind, context: number): Promise<Policy> => {
  const policy = await createPolicy({
    backend: await createBackend(device),
    model: { config: await readFile(join(SPARK, "config.json")), weights: await readFile(join(SPARK, "model.safetensors")) },
    lora: LORA,
    maxContext: context,
    microBatchTokens: 1024,
    slots: 32,
  });
  await policy.trainer.importAdapter(adapter);
  await policy.publish(1);
  return policy;
};

/** One forward, backward and AdamW. Resolves with the loss (token sum). */
export const trainStep = async ({ trainer }: Policy, { rows, length, targetStart, tokens }: TrainBatch): Promise<number> => {
  const data = Array.from(
    { length: rows },
    (_, row): Datum => ({
      tokens: tokens.slice(row * length, (row + 1) * length),
      targetStart,
      weights: new Float32Array(length - targetStart).fill(1),
    }),
  );
  const { lossSum } = await trainer.forwardBackward(data, { name: "crossEntropy" });
  await trainer.optimStep(ADAM);
  return lossSum;
};

/** Greedy completions of all prompts at once, as many tokens each: [prompts][count]. */
export const decode = async ({ sampler }: Policy, prompts: readonly Int32Array[], count: number): Promise<Int32Array[]> =>
  Promise.all(
    prompts.map(async (prompt) => (await sampler.generate({ prompt, maxTokens: count, temperature: 0, stopTokens: [], seed: 0 })).tokens),
  );

const tensor = (name: string, home: Tensor["home"], ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home });

/** x·wᵀ of two [n, n] matrices, `repeats` times in one plan, as a model's plan has many. */
export const openGemm = async (
  device: DeviceKind,
  n: number,
  values: Float32Array,
  repeats: number,
): Promise<{ run(): Promise<void>; result(): Promise<ArrayLike<number>>; dispose(): Promise<void> }> => {
  const backend = await createBackend(device);
  const rows = { count: "rows", base: 0, capacity: n } as const;
  const [x, y, w] = [tensor("x", "io", n, n), tensor("y", "io", n, n), tensor("w", "weights", n, n)];
  await backend.allocate(w, values);
  const step: Step = { op: "linear", rows, x, w, y, scale: 1 };
  const executable = await backend.compile({ name: "gemm", steps: Array.from({ length: repeats }, () => step) });
  backend.write(x, values);
  return {
    async run() {
      await executable.run({ rows: n });
      // the run of a GPU is only submitted: reading waits for it
      await backend.read(y, 1);
    },
    result: () => backend.read(y),
    dispose: () => backend.dispose(),
  };
};

// Gradient checkpointing is a choice about memory alone: on every backend the checkpointed plan gives the bits of the plain one.

import { describe, expect, test } from "vitest";
import type { Datum, Loss } from "../../../packages/engine/src/contract.ts";
import { trainPlan } from "../../../packages/engine/src/model/plans.ts";
import type { ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import { loraTensors, modelTensors } from "../../../packages/engine/src/model/tensors.ts";
import { createTrainer } from "../../../packages/engine/src/optimizer/trainer.ts";
import { planArena } from "../../../packages/engine/src/plan/arena.ts";
import { createLock } from "../../../packages/engine/src/plan/lock.ts";
import type { Step } from "../../../packages/engine/src/plan/step.ts";
import { BACKENDS } from "./backends.ts";
import { createTinyModel, TINY, TINY_LORA, TINY_SWITCHED } from "./tinyModel.ts";

const PPO: Loss = { name: "ppoClip", clipLow: 0.2, clipHigh: 0.28, dualClip: 3 };
const MODELS: readonly (readonly [string, ModelSpec])[] = [
  ["four plain layers", { ...TINY, layers: 4 }],
  ["three layers with every switch", TINY_SWITCHED],
];

/** Two sequences; every third target is masked. */
const data: readonly Datum[] = [13, 20].map((length, which) => {
  const numbers = (center: number, spread: number): Float32Array =>
    Float32Array.from({ length: length - 2 }, (_, i) => center + spread * Math.sin(which + 2.3 * i));
  return {
    tokens: Int32Array.from({ length }, (_, i) => (7 * i + 3 * which + i * i) % TINY.vocab),
    targetStart: 2,
    mask: Uint8Array.from({ length: length - 2 }, (_, i) => (i % 3 === 2 ? 0 : 1)),
    oldLogprobs: numbers(-4, 1),
    advantages: numbers(0, 1),
  };
});

const planOf = (spec: ModelSpec, rows: number, checkpoint: boolean) => {
  const [lora, grads] = [loraTensors(spec, TINY_LORA, "p"), loraTensors(spec, TINY_LORA, "g")];
  return trainPlan(spec, modelTensors(spec), { tensors: lora, spec: TINY_LORA }, grads, "ppoClip", { rows, outRows: rows, checkpoint })
    .plan;
};

for (const { name, create, skip } of BACKENDS) {
  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    test.each(MODELS)("%s: log-probs, gradients and the step after them are bitwise those of the plain plan", async (_, spec) => {
      const outcomes = [];
      for (const checkpoint of [false, true]) {
        const backend = await create();
        const model = await createTinyModel(backend, spec);
        const trainer = await createTrainer({ backend, ...model, microBatchTokens: 64, checkpoint, lock: createLock() });
        const update = await trainer.forwardBackward(data, PPO);
        const gradient = await backend.read(trainer.state.gradients.flat);
        const step = await trainer.optimStep({ learningRate: 0.01 });
        outcomes.push({ update, gradient, step, parameters: await backend.read(trainer.state.parameters.flat) });
        await backend.dispose();
      }
      expect(outcomes[1]).toEqual(outcomes[0]);
      expect(outcomes[0]!.gradient.filter((value) => value !== 0).length).toBeGreaterThan(1000);
    });
  });
}

test("every layer but the top one is computed a second time, each right before its gradient", () => {
  const spec: ModelSpec = { ...TINY, layers: 4 };
  const attentions = planOf(spec, 8, true).steps.filter(({ op }) => op === "attention" || op === "attentionDelta");
  expect(attentions.map(({ op }) => op)).toEqual([
    ...Array.from({ length: 4 }, () => "attention"),
    "attentionDelta",
    ...Array.from({ length: 3 }, () => ["attention", "attentionDelta"]).flat(),
  ]);
  // what is computed again stops where no gradient reads it: no residual stream is made a second time
  const written = (steps: readonly Step[]): string[] => steps.flatMap((step) => ("y" in step ? [step.y.name] : []));
  expect(written(planOf(spec, 8, true).steps).filter((y) => /^x\.\d+\.again$/.test(y))).toEqual([]);
});

test("the arena grows with the layers by little more than their inputs", () => {
  const rows = 256;
  const bytes = (layers: number, checkpoint: boolean): number => planArena(planOf({ ...TINY, layers }, rows, checkpoint)).byteLength;
  const input = rows * TINY.width * 4;
  expect(bytes(12, true) - bytes(6, true)).toBe(6 * input);
  // x, x1, q, k, v, o, gate, up, lse and seven h: more than eight inputs
  expect(bytes(12, false) - bytes(6, false)).toBeGreaterThan(6 * 8 * input);
});

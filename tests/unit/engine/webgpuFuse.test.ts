// Which neighbouring steps become one dispatch, and how many dispatches a layer takes. That fused kernels compute right is held by
// the self-test's cases, here, and by whole models in model.test.ts and trainer.test.ts.

import { describe, expect, test } from "vitest";
import { forwardPlan, inferPlan, kvCache, trainPlan } from "../../../packages/engine/src/model/plans.ts";
import type { ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import { loraTensors, modelTensors } from "../../../packages/engine/src/model/tensors.ts";
import type { Plan, Step } from "../../../packages/engine/src/plan/step.ts";
import { selfTest } from "../../../packages/engine/src/selfTest.ts";
import { createDecisions } from "../../../packages/engine/src/webgpu/decisions.ts";
import { lowerSteps } from "../../../packages/engine/src/webgpu/kernels/fuse.ts";
import { lower } from "../../../packages/engine/src/webgpu/kernels/lower.ts";
import { PORTABLE, type Target } from "../../../packages/engine/src/webgpu/kernels/target.ts";
import { TINY, TINY_LORA, TINY_SWITCHED } from "./tinyModel.ts";
import { createTestBackend, featuresOfTestGpu } from "./webgpuDevice.ts";

const SOFTWARE: Target = { ...PORTABLE, isSoftware: true };

const plansOf = (spec: ModelSpec): Readonly<Record<"infer" | "score" | "train", Plan>> => {
  const weights = modelTensors(spec);
  const lora = { tensors: loraTensors(spec, TINY_LORA, "p"), spec: TINY_LORA };
  const capacity = { rows: 64, outRows: 16 };
  return {
    infer: inferPlan(spec, weights, lora, kvCache(spec, { slots: 2, positions: 64 }), capacity).plan,
    score: forwardPlan(spec, weights, lora, capacity).plan,
    train: trainPlan(spec, weights, lora, loraTensors(spec, TINY_LORA, "g"), "ppoClip", capacity).plan,
  };
};

/** Dispatches that one more layer takes: [as single steps, as they run]. */
const layerOf = (spec: ModelSpec, name: "infer" | "score" | "train"): [number, number] => {
  const [few, many] = [4, 5].map((layers) => {
    const [first] = spec.layerKinds;
    const { steps } = plansOf({ ...spec, layers, layerKinds: Array(layers).fill(first) })[name];
    return [steps.flatMap((step) => lower(step, SOFTWARE)).length, lowerSteps(steps, SOFTWARE).length] as const;
  });
  return [many![0] - few![0], many![1] - few![1]];
};

describe("dispatches of one layer, as single steps and fused", () => {
  test.each([
    ["Llama", TINY, { infer: [28, 26], score: [27, 26], train: [88, 85] }],
    ["norms of heads, post-norms", TINY_SWITCHED, { infer: [32, 30], score: [31, 29], train: [100, 94] }],
  ] as const)("%s", (_, spec, wanted) => {
    for (const name of ["infer", "score", "train"] as const) expect(layerOf(spec, name), name).toEqual(wanted[name]);
  });
});

test("steps that only look alike stay apart", () => {
  const { steps } = plansOf(TINY).infer;
  const at = steps.findIndex(({ op }) => op === "rope");
  const [q, k, append] = steps.slice(at, at + 3) as [
    Extract<Step, { op: "rope" }>,
    Extract<Step, { op: "rope" }>,
    Extract<Step, { op: "kvAppend" }>,
  ];
  const count = (...list: Step[]): number => lowerSteps(list, SOFTWARE).length;
  expect(count(q, k, append)).toBe(1);
  expect(count(q, k)).toBe(1);
  expect(count(q)).toBe(1);
  expect(count(q, q)).toBe(2); // in place, twice
  expect(count(q, { ...k, direction: -1 })).toBe(2);
  expect(count(q, { ...k, rows: { ...k.rows, base: 64 } })).toBe(2);
  expect(count(q, k, { ...append, k: q.x })).toBe(2); // another tensor goes into the cache
});

const { reason } = await featuresOfTestGpu();
describe.skipIf(reason !== undefined)(`fused kernels${reason ? ` (skipped: ${reason})` : ""}`, () => {
  test("compute what the reference computes step by step", async () => {
    const decisions = createDecisions();
    const backend = await createTestBackend({ choose: decisions.choose });
    const cases = [
      "rope of queries and keys, kvAppend",
      "rope of two gradients",
      "rmsNorm and rope of queries and keys",
      "attention, heads of 32",
    ];
    const { entries } = await selfTest(backend, decisions, { cases });
    await backend.dispose();
    expect(entries.filter(({ error }) => !(error < 5e-6))).toEqual([]);
    expect(new Set(entries.map(({ name }) => name)).size).toBe(cases.length);
  });
});

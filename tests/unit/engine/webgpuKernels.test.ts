// The WGSL text of a policy's plans, without a device. Few kernels that do not depend on the model are what makes a policy start fast.

import { expect, test } from "vitest";
import { forwardPlan, inferPlan, kvCache, optimPlan, prefixPlan, trainPlan } from "../../../packages/engine/src/model/plans.ts";
import type { LoraSpec, ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import { loraTensors, modelTensors } from "../../../packages/engine/src/model/tensors.ts";
import type { Plan } from "../../../packages/engine/src/plan/step.ts";
import { lowerSteps } from "../../../packages/engine/src/webgpu/kernels/fuse.ts";
import { type Dispatch, PARAMS_BYTES, SHARED_PARAMS } from "../../../packages/engine/src/webgpu/kernels/kernel.ts";
import { lower } from "../../../packages/engine/src/webgpu/kernels/lower.ts";
import { PORTABLE, type Target } from "../../../packages/engine/src/webgpu/kernels/target.ts";
import { opCases } from "./opCases.ts";
import { TINY, TINY_SWITCHED } from "./tinyModel.ts";

/** Short texts: a software device compiles slowly. */
const SOFTWARE: Target = { ...PORTABLE, isSoftware: true };

/** Everything that a policy compiles when it samples, scores, learns with one loss and publishes. */
const kernelsOf = (spec: ModelSpec, lora: LoraSpec, target: Target = SOFTWARE): Dispatch[] => {
  const weights = modelTensors(spec);
  const tensors = (name: string) => loraTensors(spec, lora, name);
  const [p, served, g, m, v] = [tensors("p"), tensors("served"), tensors("g"), tensors("m"), tensors("v")];
  const adapter = { tensors: p, spec: lora };
  const capacity = { rows: 256, outRows: 64 };
  const cache = kvCache(spec, { slots: 64, positions: 128 });
  const plans: Plan[] = [
    inferPlan(spec, weights, adapter, cache, capacity).plan,
    prefixPlan(cache).plan,
    forwardPlan(spec, weights, adapter, capacity).plan,
    trainPlan(spec, weights, adapter, g, "ppoClip", capacity).plan,
    optimPlan(p, g, m, v).plan,
    { name: "publish", steps: [{ op: "copy", x: p.flat, y: served.flat }] },
  ];
  return plans.flatMap(({ steps }) => lowerSteps(steps, target));
};

const textsOf = (kernels: readonly Dispatch[]): Set<string> => new Set(kernels.map(({ source }) => source));

test("a policy needs 38 kernels on a software device, and another model needs the same ones", () => {
  const tiny = textsOf(kernelsOf(TINY, { rank: 4, alpha: 8 }));
  const other: ModelSpec = { ...TINY, width: 90, layers: 3, heads: 6, kvHeads: 3, headWidth: 30, feedForward: 111, vocab: 1001 };
  expect(tiny.size).toBe(38);
  expect(textsOf(kernelsOf(other, { rank: 7, alpha: 3 }))).toEqual(tiny);
});

test("on a GPU kernels come in variants for row counts and shapes: a policy of half a billion weights needs 55", () => {
  const qwen: ModelSpec = { ...TINY, width: 896, layers: 24, heads: 14, kvHeads: 2, headWidth: 64, feedForward: 4864, vocab: 151936 };
  const texts = textsOf(kernelsOf(qwen, { rank: 16, alpha: 32 }, PORTABLE));
  expect(texts.size).toBe(55);
  expect(textsOf(kernelsOf({ ...qwen, layers: 2 }, { rank: 8, alpha: 32 }, PORTABLE))).toEqual(texts);
});

test("windows, tanh-GELU, scales and rope bases are numbers: they add no kernel", () => {
  const lora = { rank: 4, alpha: 8 };
  const plain = textsOf(kernelsOf(TINY, lora));
  const numbers: ModelSpec = { ...TINY_SWITCHED, qkNorm: false, postNorms: false, biases: [] };
  expect(textsOf(kernelsOf(numbers, lora))).toEqual(plain);
  // A linear with a bias, a head's norm with its rope, and a norm that adds to the residual.
  const added = kernelsOf(TINY_SWITCHED, lora).filter(({ source }) => !plain.has(source));
  expect(new Set(added.map(({ label }) => label))).toEqual(
    new Set(["linear 64x64 16x8 f32 bias", "rmsNorm rope", "kvAppend", "rmsNorm residual"]),
  );
});

test("labels name a kernel: one label, one text", () => {
  for (const spec of [TINY, TINY_SWITCHED]) {
    for (const target of [SOFTWARE, PORTABLE]) {
      const kernels = kernelsOf(spec, { rank: 4, alpha: 8 }, target);
      expect(new Set(kernels.map(({ label }) => label)).size).toBe(textsOf(kernels).size);
    }
  }
});

test("every step's constants fit its parameter slot", () => {
  const kernels = opCases().flatMap(({ step }) => lower(step));
  for (const { label, constants } of kernels) {
    expect((SHARED_PARAMS.length + constants.length) * 4, label).toBeLessThanOrEqual(PARAMS_BYTES);
    for (const { type, value } of constants) if (type === "u32") expect(value, label).toBe(value >>> 0);
  }
});

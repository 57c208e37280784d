// The same operations in a browser: Chromium's WebGPU against the reference, then a policy that samples and learns.
// Without a GPU this is SwiftShader, a second implementation of the whole path: other limits, other rounding, other compiler.
// One case for each kernel text, since compiling is what takes the time there; all cases run in Node (unit/engine/ops.test.ts).

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend, HostArray } from "../../packages/engine/src/plan/backend.ts";
import { OPERANDS } from "../../packages/engine/src/plan/step.ts";
import { createPolicy } from "../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { createWebGpuBackend } from "../../packages/engine/src/webgpu/backend.ts";
import { opCase, runCase } from "../unit/engine/opCases.ts";
import { tinyLlama } from "../unit/engine/tinyLlama.ts";

const reason = !navigator.gpu
  ? "this browser has no navigator.gpu"
  : (await navigator.gpu.requestAdapter()) === null
    ? "navigator.gpu has no adapter"
    : undefined;

const CASES = [
  "embed, 37 rows of 20, base 0",
  "rmsNorm, 37 rows of 20, base 0",
  "rmsNormBackward, 37 rows of 20, base 0",
  "embed, scaled",
  "rmsNorm, 37 rows of 4 groups of 20, added to a residual",
  "rmsNormBackward, 37 rows of 4 groups of 20, overwrites",
  "glu, silu, 6 rows of 32, base 64",
  "gluBackward, silu, 6 rows of 32, base 64",
  "glu, tanhGelu, gates far from zero",
  "gluBackward, tanhGelu, 37 rows of 20, base 0",
  "gatherRows, 5 of 37 rows of 32",
  "scatterRows, 5 into 37 rows of 32",
  "linear, 70 rows, 64 to 130",
  "linear, bias and another residual, scale 0.25",
  "linear, residual is y, weight is a view of a state buffer, scale 2",
  "linearBackward, 70 rows, 130 to 64, overwrites",
  "linearBackward, 37 rows, 96 to 4, accumulates, scale 0.5",
  "weightGrad, 70 rows, 130 by 64, scale 2",
  "weightGrad, 37 rows, 4 by 96, scale 2",
  "weightGrad, 300 rows",
  "rope, 37 rows, 2 heads of 16, direction -1",
  "attention, sequences of 40+100, 6/2 heads of 8",
  "attentionDelta, sequences of 40+100, 6/2 heads of 8",
  "attentionBackwardQ, sequences of 40+100, 6/2 heads of 8",
  "attentionBackwardKv, sequences of 40+100, 6/2 heads of 8",
  "attentionCached, sequences of 40+100, 6/2 heads of 8",
  "attention, sequences of 40+100, 2/1 heads of 8, window 66",
  "attentionBackwardQ, sequences of 40+100, 2/1 heads of 8, window 66",
  "attentionBackwardKv, sequences of 40+100, 2/1 heads of 8, window 66",
  "attentionCached, sequences of 40+100, 2/1 heads of 8, window 66",
  "kvAppend, 37 rows of 20",
  "kvCopy, 3 pairs of slots, rows of 20",
  "advance, 9 lanes with 3 stop tokens",
  "logprob, 70 rows, vocabulary 2100 of 40, base 0",
  "logprob, logits kept, 5 rows, vocabulary 83 of 30, base 0",
  "logprobBackward, slices of 2048, 70 rows, vocabulary 2100 of 40, base 0",
  "logprobBackward, slices of 83, 5 rows, vocabulary 83 of 30, base 0",
  "sample, 5 rows, vocabulary 83 of 30, base 0",
  "sample, 2 rows, vocabulary 33000 of 16, base 0",
  "tokenLoss, crossEntropy, dual clip 3, base 0",
  "tokenLoss, importanceSampling, dual clip 3, base 0",
  "tokenLoss, ppoClip, dual clip 3, base 64",
  "sumSquares, 5000 elements",
  "zero, 1000 elements",
  "copy, 1000 elements",
  "adamW, later step, decay and clipping",
  "adamW, a norm that is NaN changes nothing",
  ...["f16", "bf16", "q8", "q4"].flatMap((dtype) => [
    `linear, 37 rows, 96 to 33, ${dtype} weights`,
    `linear, weights so small that their scales are subnormal halves, ${dtype} weights`,
    `linearBackward, 37 rows, 33 to 96, overwrites, ${dtype} weights`,
    `embed, 5 rows of 64 out of 50, ${dtype} weights`,
  ]),
];

const worst = (got: HostArray, want: HostArray): number => {
  let largest = got.length === want.length ? 0 : Number.POSITIVE_INFINITY;
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i]!, want[i]!];
    if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
    const error = Math.abs(a - b) / (1 + Math.abs(b));
    largest = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(largest, error);
  }
  return largest;
};

test("the chosen cases cover every operation", () => {
  expect(new Set(CASES.map((name) => opCase(name).step.op))).toEqual(new Set(Object.keys(OPERANDS)));
});

describe.skipIf(reason !== undefined)(`WebGPU in the browser${reason ? ` (skipped: ${reason})` : ""}`, () => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await createWebGpuBackend(navigator.gpu);
  });
  afterAll(async () => {
    await backend?.dispose();
  });

  for (const name of CASES) {
    test(`${name}: agrees with the reference, twice with the same bits`, async () => {
      // New tensors for every run: a backend allocates each of them once.
      const [first, second, spec] = [opCase(name), opCase(name), opCase(name)];
      const want = await runCase(createReferenceBackend(), spec);
      const got = await runCase(backend, first);
      const again = await runCase(backend, second);
      for (const [i, tensor] of first.outputs.entries()) {
        expect(worst(got.get(tensor)!, want.get(spec.outputs[i]!)!), tensor.name).toBeLessThanOrEqual(first.tolerance);
        expect(again.get(second.outputs[i]!)!).toEqual(got.get(tensor)!);
      }
    });
  }

  // Last: the backend belongs to the policy from here on. Its kernels are compiled already.
  test("a policy samples what its trainer scores, and learns from one step", async () => {
    const policy = await createPolicy({
      backend,
      model: tinyLlama({ num_hidden_layers: 1 }),
      lora: { rank: 4, alpha: 8 },
      slots: 2,
      microBatchTokens: 64,
    });
    const prompt = Int32Array.of(5, 9, 2, 30);
    const generate = () => policy.sampler.generate({ prompt, maxTokens: 4, temperature: 1, stopTokens: [], seed: 7 });
    const [completion, neighbour] = await Promise.all([generate(), generate()]);
    expect(neighbour).toEqual(completion);

    const datum = { tokens: Int32Array.of(...prompt, ...completion.tokens), targetStart: 4, weights: new Float32Array(4).fill(1) };
    const { logprobs, lossSum } = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
    for (const [i, logprob] of completion.logprobs.entries()) expect(Math.abs(logprobs[0]![i]! - logprob)).toBeLessThan(1e-3);
    expect((await policy.trainer.optimStep({ learningRate: 0.02 })).applied).toBe(true);
    const after = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
    expect(after.lossSum).toBeLessThan(lossSum - 0.01);

    await policy.publish(1);
    expect((await generate()).policyVersion).toBe(1);
    await policy.dispose();
  });
});

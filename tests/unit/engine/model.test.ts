// The plans of a whole model: gradients against finite differences of the reference, the head in slices, and sampling with a
// cache against scoring without one.

import { describe, expect, test } from "vitest";
import { forwardPlan, inferPlan, kvCache, optimPlan, type TrainPlan, trainPlan } from "../../../packages/engine/src/model/plans.ts";
import { LINEARS, type ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import { loraTensors, modelTensors } from "../../../packages/engine/src/model/tensors.ts";
import { liveRanges } from "../../../packages/engine/src/plan/arena.ts";
import type { LossName } from "../../../packages/engine/src/plan/step.ts";
import { HEAD_SLICE, operandsOf, sizeOf } from "../../../packages/engine/src/plan/step.ts";
import { createReferenceBackend, type ReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { BACKENDS } from "./backends.ts";
import { createRandom } from "./opCases.ts";
import { createTinyModel, TINY, TINY_LORA, TINY_SWITCHED } from "./tinyModel.ts";

/** Two packed sequences of `lengths`, with the last `scored` rows of each reaching the head. */
const packed = (lengths: readonly number[], scored: number) => {
  const random = createRandom(5);
  const [tokens, positions, start, end, outIndex]: [number[], number[], number[], number[], number[]] = [[], [], [], [], []];
  for (const length of lengths) {
    const first = tokens.length;
    for (let i = 0; i < length; i++) {
      tokens.push(Math.floor(random() * TINY.vocab));
      positions.push(i);
      start.push(first);
      end.push(first + length);
      if (i >= length - scored) outIndex.push(first + i);
    }
  }
  const n = outIndex.length;
  return {
    rows: tokens.length,
    outRows: n,
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(positions),
    start: Int32Array.from(start),
    end: Int32Array.from(end),
    outIndex: Int32Array.from(outIndex),
    target: Int32Array.from({ length: n }, () => Math.floor(random() * TINY.vocab)),
    inverseTemperature: Float32Array.from({ length: n }, (_, i) => (i % 2 === 0 ? 1 : 1 / 0.7)),
    advantage: Float32Array.from({ length: n }, (_, i) => (i % 3 === 0 ? -0.6 : 0.8)),
    old: new Float32Array(n),
    lossParams: Float32Array.of(0.2, 0.28, 3, 0),
  };
};
type Packed = ReturnType<typeof packed>;

const write = (backend: ReferenceBackend, plan: TrainPlan, batch: Packed): void => {
  for (const name of [
    "tokens",
    "positions",
    "start",
    "end",
    "outIndex",
    "target",
    "inverseTemperature",
    "advantage",
    "old",
    "lossParams",
  ] as const) {
    backend.write(plan[name], batch[name]);
  }
};

const setup = async (loss: LossName, batch: Packed, { spec = TINY, headBytes }: { spec?: ModelSpec; headBytes?: number } = {}) => {
  const backend = createReferenceBackend();
  const model = await createTinyModel(backend, spec);
  const grads = loraTensors(model.spec, TINY_LORA, "lora.g");
  await backend.allocate(grads.flat);
  const capacity = { rows: batch.rows + 5, outRows: batch.outRows + 3, ...(headBytes !== undefined && { headBytes }) };
  const plan = trainPlan(model.spec, model.weights, model.lora, grads, loss, capacity);
  const executable = await backend.compile(plan.plan);
  write(backend, plan, batch);
  const run = (): Promise<void> => executable.run({ rows: batch.rows, outRows: batch.outRows });
  return { backend, model, grads, plan, run };
};

describe("the gradient of every LoRA matrix equals finite differences", () => {
  for (const [loss, spec] of [
    ["crossEntropy", TINY],
    ["importanceSampling", TINY],
    ["ppoClip", { ...TINY, tiedHead: false, layers: 3, heads: 4, kvHeads: 2, headWidth: 8 }],
    ["crossEntropy", TINY_SWITCHED],
  ] as const) {
    test(`${loss}, ${spec.layers} layers, ${spec.tiedHead ? "tied" : "untied"} head${spec.postNorms ? ", all switches" : ""}`, async () => {
      const batch = packed([7, 5], 4);
      const { backend, model, grads, plan, run } = await setup(loss, batch, { spec });
      await run();
      // old close to logprob: ratios of 1.05, 0.95 and, where i % 4 = 3, one beyond the clip.
      const logprob = await backend.read(plan.logprob, batch.outRows);
      backend.write(
        plan.old,
        Float32Array.from(logprob, (value, i) => value + [-0.05, 0.05, 0.02, -0.5][i % 4]!),
      );
      backend.values(grads.flat).fill(0);
      await run();
      const gradient = backend.values(grads.flat).slice();
      const parameters = backend.values(model.lora.parameters.flat);
      const objective = async (): Promise<number> => {
        await run();
        return Array.from(backend.values(plan.tokenLoss).subarray(0, batch.outRows)).reduce((sum, value) => sum + value, 0);
      };
      const random = createRandom(3);
      let checked = 0;
      for (const layer of model.lora.parameters.layers) {
        for (const name of LINEARS) {
          for (const { shape, view } of [layer[name].a, layer[name].b]) {
            const at = view!.offset + Math.floor(random() * shape[0]! * shape[1]!);
            const [value, h] = [parameters[at]!, 1e-5];
            parameters[at] = value + h;
            const above = await objective();
            parameters[at] = value - h;
            const below = await objective();
            parameters[at] = value;
            const numeric = (above - below) / (2 * h);
            expect(Math.abs(gradient[at]! - numeric), `${name} at ${at}`).toBeLessThan(1e-7 + 1e-6 * Math.abs(numeric));
            if (Math.abs(numeric) > 1e-4) checked++;
          }
        }
      }
      // Nearly every sampled derivative is far from zero: agreement is not agreement on nothing.
      expect(checked).toBeGreaterThan(spec.layers * 14 * 0.8);
    });
  }
});

test("the head's gradient in slices of the vocabulary is that of all logits at once", async () => {
  const batch = packed([7, 5], 4);
  const results = [];
  for (const headBytes of [1 << 20, 0]) {
    const { backend, grads, plan, run } = await setup("crossEntropy", batch, { spec: { ...TINY, vocab: 2500 }, headBytes });
    const logits = plan.plan.steps.find((step) => step.op === "logprobBackward")!.z;
    expect(logits.shape[1]).toBe(headBytes === 0 ? HEAD_SLICE : 2500);
    await run();
    results.push({ gradient: backend.values(grads.flat).slice(), logprob: await backend.read(plan.logprob, batch.outRows) });
  }
  expect(results[0]).toEqual(results[1]);
  expect(results[0]!.gradient.some((value) => value !== 0)).toBe(true);
});

test("a run adds its gradient to what is there", async () => {
  const { backend, grads, run } = await setup("crossEntropy", packed([7, 5], 4));
  await run();
  const once = backend.values(grads.flat).slice();
  await run();
  const twice = backend.values(grads.flat);
  expect(Math.max(...twice.map((value, i) => Math.abs(value - 2 * once[i]!)))).toBeLessThan(1e-12);
});

test("nothing is differentiated below the first layer's adapted linears", async () => {
  const backend = createReferenceBackend();
  const { spec, weights, lora } = await createTinyModel(backend);
  const grads = loraTensors(spec, TINY_LORA, "lora.g");
  const { plan } = trainPlan(spec, weights, lora, grads, "crossEntropy", { rows: 8, outRows: 8 });
  const backwards = plan.steps.filter((step) => step.op === "linearBackward" || step.op === "rmsNormBackward");
  const readsOf = (tensor: object): number => backwards.filter((step) => operandsOf(step).reads.includes(tensor as never)).length;
  for (const name of ["q_proj", "k_proj", "v_proj"] as const) {
    expect(readsOf(weights.layers[0]!.linear[name])).toBe(0);
    expect(readsOf(weights.layers[1]!.linear[name])).toBe(1);
  }
  expect(readsOf(weights.layers[0]!.inputNorm)).toBe(0);
  expect(plan.steps.filter((step) => step.op === "weightGrad")).toHaveLength(spec.layers * LINEARS.length * 2);
});

test("no plan holds logits that grow with rows × vocabulary", async () => {
  const spec: ModelSpec = { ...TINY, vocab: 151_936 };
  const [weights, lora] = [modelTensors(spec), { tensors: loraTensors(spec, TINY_LORA, "lora"), spec: TINY_LORA }];
  for (const outRows of [1, 64, 1024, 5000]) {
    const capacity = { rows: outRows, outRows };
    const plans = [
      forwardPlan(spec, weights, lora, capacity),
      trainPlan(spec, weights, lora, loraTensors(spec, TINY_LORA, "lora.g"), "crossEntropy", capacity),
      inferPlan(spec, weights, lora, kvCache(spec, { slots: 4, positions: 8 }), capacity),
    ];
    for (const { plan } of plans) {
      const largest = Math.max(
        ...liveRanges(plan)
          .filter(({ tensor }) => tensor.name === "logits" || tensor.name === "parts")
          .map(({ tensor }) => 4 * sizeOf(tensor)),
      );
      expect(largest).toBeLessThanOrEqual(Math.max(8 << 20, 8192 * outRows));
    }
  }
});

test("optimPlan steps, reports the norm and clears the gradients", async () => {
  const backend = createReferenceBackend();
  const { spec, lora } = await createTinyModel(backend);
  const [g, m, v] = [loraTensors(spec, TINY_LORA, "g"), loraTensors(spec, TINY_LORA, "m"), loraTensors(spec, TINY_LORA, "v")];
  const gradient = new Float32Array(g.flat.shape[0]!);
  gradient.set([3, -4], 0);
  await backend.allocate(g.flat, gradient);
  await backend.allocate(m.flat);
  await backend.allocate(v.flat);
  const before = backend.values(lora.parameters.flat).slice();
  const { plan, sumSquares } = optimPlan(lora.parameters, g, m, v);
  const executable = await backend.compile(plan);
  await executable.run({ learningRate: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0, gradClipNorm: 0, adamStep: 1 });
  expect((await backend.read(sumSquares))[0]).toBe(25);
  const after = backend.values(lora.parameters.flat);
  expect(after[0]! - before[0]!).toBeCloseTo(-0.1, 6);
  expect(after[1]! - before[1]!).toBeCloseTo(0.1, 6);
  expect(after.subarray(2)).toEqual(before.subarray(2));
  expect(backend.values(g.flat).every((value) => value === 0)).toBe(true);
});

const cachedRuns = BACKENDS.flatMap((backend) =>
  [
    { of: "", tiny: TINY },
    { of: ", all switches", tiny: TINY_SWITCHED },
  ].map((model) => ({ ...backend, ...model })),
);
for (const { name, create, skip, of, tiny } of cachedRuns) {
  test.skipIf(skip !== undefined)(
    `${name}: sampling with the cache, prefill and decode rows mixed, reports the log-probs of scoring${of}${skip ? ` (skipped: ${skip})` : ""}`,
    async () => {
      const backend = await create();
      const { spec, weights, lora } = await createTinyModel(backend, tiny);
      const cache = kvCache(spec, { slots: 3, positions: 24 });
      for (const { k, v } of cache.layers) {
        await backend.allocate(k);
        await backend.allocate(v);
      }
      const infer = inferPlan(spec, weights, lora, cache, { rows: 12, outRows: 3 });
      const executable = await backend.compile(infer.plan);
      const random = createRandom(21);

      // Three sequences that begin at different runs, in slots that are not their order; one is greedy.
      const sequences = [
        { slot: 2, begins: 0, prompt: [1, 5, 9, 40, 3], inverse: 1, tokens: [] as number[], logprobs: [] as number[] },
        { slot: 0, begins: 1, prompt: [7], inverse: 1 / 0.6, tokens: [] as number[], logprobs: [] as number[] },
        { slot: 1, begins: 2, prompt: [49, 2, 2, 11, 30, 8, 8, 0, 17], inverse: 0, tokens: [] as number[], logprobs: [] as number[] },
      ];
      for (let run = 0; run < 9; run++) {
        const live = sequences.filter(({ begins }) => begins <= run);
        const rows = live.flatMap((sequence) => {
          const all = [...sequence.prompt, ...sequence.tokens];
          const from = run === sequence.begins ? 0 : all.length - 1;
          return all.slice(from).map((token, i) => ({ sequence, token, position: from + i, isLast: from + i === all.length - 1 }));
        });
        backend.write(
          infer.tokens,
          Int32Array.from(rows, ({ token }) => token),
        );
        backend.write(
          infer.positions,
          Int32Array.from(rows, ({ position }) => position),
        );
        backend.write(
          infer.slots,
          Int32Array.from(rows, ({ sequence }) => sequence.slot),
        );
        backend.write(infer.outIndex, Int32Array.from(rows.flatMap(({ isLast }, i) => (isLast ? [i] : []))));
        backend.write(
          infer.inverseTemperature,
          Float32Array.from(live, ({ inverse }) => inverse),
        );
        backend.write(
          infer.uniform,
          Float32Array.from(live, () => random()),
        );
        await executable.run({ rows: rows.length, outRows: live.length });
        const [token, logprob] = [await backend.read(infer.token, live.length), await backend.read(infer.logprob, live.length)];
        for (const [i, sequence] of live.entries()) {
          sequence.tokens.push(token[i]!);
          sequence.logprobs.push(logprob[i]!);
        }
      }

      const score = forwardPlan(spec, weights, lora, { rows: 24, outRows: 12 });
      const scoring = await backend.compile(score.plan);
      for (const { prompt, tokens, logprobs, inverse } of sequences) {
        const all = [...prompt, ...tokens];
        const n = tokens.length;
        backend.write(score.tokens, Int32Array.from(all.slice(0, -1)));
        backend.write(
          score.positions,
          Int32Array.from(all.slice(0, -1), (_, i) => i),
        );
        backend.write(score.start, new Int32Array(all.length - 1));
        backend.write(
          score.outIndex,
          Int32Array.from(tokens, (_, i) => prompt.length - 1 + i),
        );
        backend.write(score.target, Int32Array.from(tokens));
        backend.write(score.inverseTemperature, new Float32Array(n).fill(inverse === 0 ? 1 : inverse));
        await scoring.run({ rows: all.length - 1, outRows: n });
        const want = await backend.read(score.logprob, n);
        for (const [i, value] of logprobs.entries()) expect(Math.abs(value - want[i]!)).toBeLessThan(2e-5);
        expect(Math.max(...logprobs)).toBeLessThanOrEqual(0);
        expect(new Set(logprobs).size).toBe(n);
      }
      await backend.dispose();
    },
  );
}

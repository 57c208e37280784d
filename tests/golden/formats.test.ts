// The five families with packed base weights. Two questions: how far a format moves a model from the f32 numbers of PyTorch (bounds that
// are measured, of tiny random models, whose weights are as hard to quantise as weights get), and whether an executor computes with
// packed weights what it computes with the same values in f32 (only storage changed: much tighter).

import { describe, expect, test } from "vitest";
import type { Datum } from "../../packages/engine/src/contract.ts";
import { initLora } from "../../packages/engine/src/lora/init.ts";
import { type Adapter, fromPeft } from "../../packages/engine/src/lora/peft.ts";
import { parseConfig } from "../../packages/engine/src/model/families.ts";
import { FAMILIES, type Family } from "../../packages/engine/src/model/spec.ts";
import { loraTensors, modelTensors, storedTensors } from "../../packages/engine/src/model/tensors.ts";
import { createTrainer } from "../../packages/engine/src/optimizer/trainer.ts";
import type { Backend } from "../../packages/engine/src/plan/backend.ts";
import { createLock } from "../../packages/engine/src/plan/lock.ts";
import type { PackedDtype } from "../../packages/engine/src/plan/step.ts";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { byteLengthOf, isPacked, packInto, unpack, type WeightFormat } from "../../packages/engine/src/weights/formats.ts";
import { loadModel } from "../../packages/engine/src/weights/load.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../../packages/engine/src/weights/safetensors.ts";
import { BACKENDS } from "../unit/engine/backends.ts";
import { peftFiles, readExpected, readFamily, worst } from "./familyFiles.ts";

/** Largest |Δ| relative to the largest value, from the f32 fixtures: log-probs, gradients of the LoRA, the LoRA after three AdamW steps. */
const BOUNDS: Readonly<Record<PackedDtype, readonly [number, number, number]>> = {
  bf16: [0.01, 0.02, 0.02],
  f16: [0.001, 0.003, 0.01],
  q8: [0.03, 0.12, 0.03],
  q4: [0.3, 1.5, 0.15],
};
/** From the same executor on the dequantised weights. */
const STORAGE_ONLY = 1e-3;

const model = (family: Family) => ({ config: readFamily(family, "config.json"), weights: readFamily(family, "model.safetensors") });

/** The checkpoint with every matrix as the format leaves it, in f32. */
const dequantised = (family: Family, format: PackedDtype) => {
  const { config, weights } = model(family);
  const spec = parseConfig(JSON.parse(new TextDecoder().decode(config)), "config.json");
  const dtypes = new Map(storedTensors(modelTensors(spec, format)).map((tensor) => [tensor.name, tensor]));
  const tensors = [...readSafetensors(weights, "w").tensors.values()].map((stored) => {
    const values = toFloat32(stored, "w");
    const tensor = dtypes.get(stored.name);
    if (!tensor || !isPacked(tensor.dtype)) return { name: stored.name, shape: stored.shape, data: values };
    const words = new Uint32Array(byteLengthOf(tensor) / 4);
    packInto(tensor, words, values);
    return { name: stored.name, shape: stored.shape, data: unpack(tensor, words) };
  });
  return { config, weights: writeSafetensors(tensors) };
};

interface Outcome {
  readonly logprobs: readonly Float32Array[];
  readonly gradients: Float32Array;
  readonly trained: Float32Array;
}

const run = async (backend: Backend, family: Family, files: ReturnType<typeof model>, weightFormat: WeightFormat): Promise<Outcome> => {
  const { lora, data: wanted, steps, adam } = readExpected(family);
  const { spec, weights } = await loadModel(files, backend, { weightFormat });
  const layout = loraTensors(spec, lora, "lora.p");
  const fresh: Adapter = { values: initLora(layout, 0), layout, lora, base: { name: family, configSha256: "", weightsSha256: "" } };
  await backend.allocate(layout.flat, await fromPeft(peftFiles(family), fresh));
  const options = { backend, spec, weights, lora: { spec: lora, parameters: layout }, microBatchTokens: 48, lock: createLock() };
  const trainer = await createTrainer(options);
  const data = wanted.map(
    ({ tokens, weights: w }): Datum => ({ tokens: Int32Array.from(tokens), targetStart: 1, weights: Float32Array.from(w) }),
  );
  const { logprobs } = await trainer.forward(data);
  let gradients = new Float32Array(0);
  for (const [i] of steps.entries()) {
    await trainer.forwardBackward(data, { name: "crossEntropy" });
    if (i === 0) gradients = Float32Array.from(await backend.read(trainer.state.gradients.flat));
    await trainer.optimStep(adam);
  }
  const trained = Float32Array.from(await backend.read(trainer.state.parameters.flat));
  trainer.dispose();
  await backend.dispose();
  return { logprobs, gradients, trained };
};

const distance = (got: Outcome, want: Outcome): readonly [number, number, number] => [
  Math.max(...got.logprobs.map((values, i) => worst(values, want.logprobs[i]!))),
  worst(got.gradients, want.gradients),
  worst(got.trained, want.trained),
];

/** In f32 on the reference, which families.test.ts holds to PyTorch; the same for every backend and format. */
const exactRuns = new Map<Family, Promise<Outcome>>();
const exactOf = (family: Family): Promise<Outcome> => {
  const found = exactRuns.get(family) ?? run(createReferenceBackend(), family, model(family), "f32");
  exactRuns.set(family, found);
  return found;
};

for (const { name, create, skip, refusals } of BACKENDS) {
  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    for (const format of ["bf16", "f16", "q8", "q4"] as const) {
      const refusal = refusals.get(format);
      for (const family of FAMILIES) {
        const title = `${family} in ${format}: log-probs, gradients and three steps${refusal ? ` (skipped: ${refusal})` : ""}`;
        test.skipIf(refusal !== undefined)(title, async () => {
          const got = await run(await create(), family, model(family), format);
          const storage = distance(got, await run(await create(), family, dequantised(family, format), "f32"));
          const moved = distance(got, await exactOf(family));
          for (const [i, bound] of BOUNDS[format].entries()) {
            expect(storage[i], `storage: ${storage}`).toBeLessThan(STORAGE_ONLY);
            expect(moved[i], `moved: ${moved}`).toBeLessThan(bound);
          }
          const { data } = readExpected(family);
          expect(Math.max(...got.logprobs.map((values, i) => worst(values, data[i]!.logprobs)))).toBeLessThan(BOUNDS[format][0]);
        });
      }
    }
  });
}

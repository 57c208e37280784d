// The five families against PyTorch, transformers and peft: tiny random checkpoints with a random adapter, files as those
// libraries write them. families.py made the numbers and says how.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Datum } from "../../packages/engine/src/contract.ts";
import { initLora, partOf } from "../../packages/engine/src/lora/init.ts";
import { type Adapter, fromPeft, peftName, toPeft } from "../../packages/engine/src/lora/peft.ts";
import { FAMILIES, type Family, LINEARS } from "../../packages/engine/src/model/spec.ts";
import { type LoraTensors, loraTensors } from "../../packages/engine/src/model/tensors.ts";
import { createTrainer } from "../../packages/engine/src/optimizer/trainer.ts";
import type { Backend } from "../../packages/engine/src/plan/backend.ts";
import { createLock } from "../../packages/engine/src/plan/lock.ts";
import { createPolicy } from "../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { loadModel } from "../../packages/engine/src/weights/load.ts";
import { readSafetensors, toFloat32 } from "../../packages/engine/src/weights/safetensors.ts";
import { BACKENDS } from "../unit/engine/backends.ts";
import { peftFiles, readExpected, readFamily, worst } from "./familyFiles.ts";

/** Largest |got − want| relative to the largest |want| of a tensor. f32 on both sides, so rounding alone gives 10⁻⁶. */
const LIMIT = 1e-4;

/** A safetensors file under peft's names. */
const tensorsOf = (family: Family, file: string): Map<string, Float32Array> =>
  new Map([...readSafetensors(readFamily(family, file), file).tensors].map(([name, tensor]) => [name, toFloat32(tensor, file)]));

/** The same of a flat buffer. */
const named = (values: Float32Array, layout: LoraTensors): Map<string, Float32Array> =>
  new Map(
    layout.layers.flatMap((layer, i) =>
      LINEARS.flatMap((linear) => [
        [peftName(i, linear, "A"), partOf(values, layer[linear].a)] as const,
        [peftName(i, linear, "B"), partOf(values, layer[linear].b)] as const,
      ]),
    ),
  );

const worstOf = (got: ReadonlyMap<string, Float32Array>, want: ReadonlyMap<string, Float32Array>): number => {
  expect([...got.keys()].sort()).toEqual([...want.keys()].sort());
  return Math.max(...[...want].map(([name, values]) => worst(got.get(name)!, values)));
};

const open = async (backend: Backend, family: Family, config = readFamily(family, "config.json")) => {
  const expected = readExpected(family);
  const { lora } = expected;
  const { spec, weights } = await loadModel({ config, weights: readFamily(family, "model.safetensors") }, backend);
  const layout = loraTensors(spec, lora, "lora.p");
  const base = { name: family, configSha256: "", weightsSha256: "" };
  const fresh: Adapter = { values: initLora(layout, 0), layout, lora, base };
  const values = await fromPeft(peftFiles(family), fresh);
  await backend.allocate(layout.flat, values);
  const trainer = await createTrainer({
    backend,
    spec,
    weights,
    lora: { spec: lora, parameters: layout },
    microBatchTokens: 48,
    lock: createLock(),
  });
  const data = expected.data.map(
    ({ tokens, weights: w }): Datum => ({ tokens: Int32Array.from(tokens), targetStart: 1, weights: Float32Array.from(w) }),
  );
  return { expected, layout, fresh, trainer, data };
};

/** Where to leave trained adapters for `families.py --check-adapter`. */
const adaptersOut = process.env.ADAPTERS_OUT;

test("there is a folder for every family", () => {
  for (const family of FAMILIES) expect(JSON.parse(new TextDecoder().decode(readFamily(family, "config.json"))).model_type).toBe(family);
});

/** What the fixtures can tell apart: one value of config.json changed, by far more than rounding, makes other log-probs. */
const llama3 = { rope_type: "llama3", rope_theta: 10000, factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
const [full, sliding] = [
  { rope_type: "linear", factor: 2, rope_theta: 1000 },
  { rope_type: "default", rope_theta: 100 },
];
const CHANGES: readonly (readonly [Family, object])[] = [
  ["llama", { rms_norm_eps: 1e-2 }],
  ["llama", { hidden_act: "gelu_pytorch_tanh" }],
  ["llama", { rope_parameters: { ...llama3, original_max_position_embeddings: 64, rope_type: "default" } }],
  ["llama", { rope_parameters: { ...llama3, original_max_position_embeddings: 80 } }],
  ["llama", { rope_parameters: { ...llama3, original_max_position_embeddings: 64, factor: 4 } }],
  ["llama", { rope_parameters: { ...llama3, original_max_position_embeddings: 64, high_freq_factor: 3 } }],
  ["mistral", { sliding_window: 4 }],
  ["mistral", { sliding_window: 6 }],
  ["mistral", { rope_parameters: { rope_type: "default", rope_theta: 1100 } }],
  ["qwen2", { layer_types: null, max_window_layers: 0 }],
  ["qwen2", { layer_types: null, use_sliding_window: false }],
  ["qwen2", { sliding_window: 5 }],
  ["qwen3", { rope_parameters: { rope_type: "default", rope_theta: 1100 } }],
  ["gemma3_text", { hidden_activation: "silu" }],
  ["gemma3_text", { query_pre_attn_scalar: 16 }],
  ["gemma3_text", { sliding_window: 5 }],
  ["gemma3_text", { layer_types: ["sliding_attention", "full_attention", "sliding_attention"] }],
  ["gemma3_text", { rope_parameters: { full_attention: sliding, sliding_attention: full } }],
  ["gemma3_text", { rope_parameters: { full_attention: { ...full, factor: 1 }, sliding_attention: sliding } }],
];
test.each(CHANGES)("the fixture of %s does not fit a config with %j", async (family, change) => {
  const config = { ...JSON.parse(new TextDecoder().decode(readFamily(family, "config.json"))), ...change };
  const { trainer, data, expected } = await open(createReferenceBackend(), family, new TextEncoder().encode(JSON.stringify(config)));
  const { logprobs } = await trainer.forward(data);
  expect(Math.max(...logprobs.map((got, i) => worst(got, expected.data[i]!.logprobs)))).toBeGreaterThan(10 * LIMIT);
});

for (const { name, create, skip } of BACKENDS) {
  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    for (const family of FAMILIES) {
      describe(family, () => {
        let backend: Backend;
        let opened: Awaited<ReturnType<typeof open>>;
        beforeAll(async () => {
          backend = await create();
          opened = await open(backend, family);
        });
        afterAll(async () => {
          opened?.trainer.dispose();
          await backend?.dispose();
        });

        test("log-prob and entropy at every position of two packed sequences", async () => {
          const { trainer, data, expected } = opened;
          const { logprobs, entropies } = await trainer.forward(data);
          for (const [i, want] of expected.data.entries()) {
            expect(worst(logprobs[i]!, want.logprobs)).toBeLessThan(LIMIT);
            expect(worst(entropies[i]!, want.entropies)).toBeLessThan(LIMIT);
          }
        });

        test("the gradient of every LoRA matrix, then three AdamW steps", async () => {
          const { trainer, data, expected, layout, fresh } = opened;
          const { gradients, parameters } = trainer.state;
          const errors: number[] = [];
          for (const [i, step] of expected.steps.entries()) {
            const { lossSum } = await trainer.forwardBackward(data, { name: "crossEntropy" });
            errors.push(worst([lossSum], [step.loss]));
            if (i === 0) {
              const got = Float32Array.from(await backend.read(gradients.flat));
              errors.push(worstOf(named(got, gradients), tensorsOf(family, "gradients.safetensors")));
            }
            const { gradNorm } = await trainer.optimStep(expected.adam);
            errors.push(worst([gradNorm], [step.gradNorm]));
          }
          const trained = Float32Array.from(await backend.read(parameters.flat));
          errors.push(worstOf(named(trained, layout), tensorsOf(family, "trained.safetensors")));
          expect(Math.max(...errors), errors.join(", ")).toBeLessThan(LIMIT);

          const exported = await toPeft({ ...fresh, values: trained }, { adapterVersion: 1, step: expected.steps.length });
          expect(await fromPeft(exported, fresh)).toEqual(trained);
          if (adaptersOut && name === "reference") {
            mkdirSync(join(adaptersOut, family), { recursive: true });
            for (const [file, bytes] of Object.entries(exported)) writeFileSync(join(adaptersOut, family, file), bytes);
          }
        });

        test("greedy completions of a published policy, sampled together, are those of transformers' generate", async () => {
          const { lora, greedy } = readExpected(family);
          const model = { config: readFamily(family, "config.json"), weights: readFamily(family, "model.safetensors") };
          const policy = await createPolicy({ backend: await create(), model, lora, maxContext: 32, slots: 2, microBatchTokens: 32 });
          await policy.trainer.importAdapter(peftFiles(family));
          await policy.publish(1);
          const shared = { temperature: 0, stopTokens: [], seed: 0 };
          const completions = await Promise.all(
            greedy.map(({ prompt, tokens }) =>
              policy.sampler.generate({ ...shared, prompt: Int32Array.from(prompt), maxTokens: tokens.length }),
            ),
          );
          for (const [i, want] of greedy.entries()) {
            expect([...completions[i]!.tokens]).toEqual(want.tokens);
            expect(worst(completions[i]!.logprobs, want.logprobs)).toBeLessThan(LIMIT);
          }
          await policy.dispose();
        });
      });
    }
  });
}

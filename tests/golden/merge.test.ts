// Merged models against peft's merge_and_unload, and against the adapter that they were made of. families.py made the numbers;
// MERGED_OUT=DIR leaves the folders for its --check-merged.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type FileToWrite, mergedFolder, openMerged } from "../../packages/engine/src/lora/merge.ts";
import { FAMILIES } from "../../packages/engine/src/model/spec.ts";
import { createPolicy } from "../../packages/engine/src/policy.ts";
import { readSafetensors, toFloat32 } from "../../packages/engine/src/weights/safetensors.ts";
import { BACKENDS } from "../unit/engine/backends.ts";
import { familyModel, peftFiles, readExpected, readFamily, worst } from "./familyFiles.ts";

const mergedOut = process.env.MERGED_OUT;
const whole = (file: FileToWrite): Uint8Array => Uint8Array.from(Buffer.concat([...file.parts()]));

describe.each(FAMILIES)("%s", (family) => {
  test("every linear of the last block is what merge_and_unload makes of it", async () => {
    const merged = await openMerged(familyModel(family), peftFiles(family));
    const want = readSafetensors(readFamily(family, "merged.safetensors"), "merged").tensors;
    expect(want.size).toBe(7);
    const base = await openMerged(familyModel(family));
    for (const [name, tensor] of want) {
      const values = toFloat32(tensor, "merged");
      expect(worst(merged.values(name), values)).toBeLessThan(3e-7);
      expect(worst(base.values(name), values)).toBeGreaterThan(0.01); // the adapter matters
    }
  });

  test.each(["F32", "BF16", "F16", "original"] as const)(
    "a folder in %s holds every tensor once, and only adapted ones changed",
    async (dtype) => {
      const [config, weights] = await mergedFolder(familyModel(family), peftFiles(family), { dtype });
      const bytes = whole(weights!);
      expect(bytes.byteLength).toBe(weights!.byteLength);
      const stored = readSafetensors(readFamily(family, "model.safetensors"), "m").tensors;
      const got = readSafetensors(bytes, "merged");
      expect(got.metadata).toEqual({ format: "pt" });
      expect([...got.tensors.keys()].sort()).toEqual([...stored.keys()].sort());
      for (const [name, tensor] of got.tensors) {
        expect(tensor.dtype).toBe(dtype === "original" ? "BF16" : dtype);
        const error = worst(toFloat32(tensor, "m"), toFloat32(stored.get(name)!, "m"));
        if (name.endsWith("_proj.weight")) expect(error).toBeGreaterThan(0.01);
        else expect(error).toBeLessThan(1e-6);
      }
      const json = JSON.parse(new TextDecoder().decode(whole(config!)));
      expect(json.dtype).toBe({ F32: "float32", BF16: "bfloat16", F16: "float16", original: "bfloat16" }[dtype]);
      if (mergedOut) {
        const folder = join(mergedOut, `${family}-${dtype}`);
        mkdirSync(folder, { recursive: true });
        for (const file of [config!, weights!]) writeFileSync(join(folder, file.name), whole(file));
      }
    },
  );
});

for (const { name, create, skip } of BACKENDS.filter(({ name }) => name !== "wasm, 1 thread")) {
  describe.skipIf(skip !== undefined)(skip ? `on ${name} (skipped: ${skip})` : `on ${name}`, () => {
    test.each(FAMILIES)("%s: a merged model gives the log-probs of base and adapter", async (family) => {
      const [config, weights] = await mergedFolder(familyModel(family), peftFiles(family), { dtype: "F32" });
      const model = { config: whole(config!), weights: whole(weights!) };
      const policy = await createPolicy({
        backend: await create(),
        model,
        lora: { rank: 1, alpha: 1 },
        maxContext: 32,
        slots: 2,
        microBatchTokens: 48,
      });
      const { data, greedy } = readExpected(family);
      const { logprobs } = await policy.trainer.forward(data.map(({ tokens }) => ({ tokens: Int32Array.from(tokens), targetStart: 1 })));
      for (const [i, got] of logprobs.entries()) expect(worst(got, data[i]!.logprobs)).toBeLessThan(1e-4);
      for (const { prompt, tokens } of greedy) {
        const request = { prompt: Int32Array.from(prompt), maxTokens: tokens.length, temperature: 0, stopTokens: [], seed: 0 };
        expect([...(await policy.sampler.generate(request)).tokens]).toEqual(tokens);
      }
      await policy.dispose();
    });
  });
}

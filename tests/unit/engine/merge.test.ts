import { describe, expect, test } from "vitest";
import { type FileToWrite, type MergeOptions, mergedFolder, openMerged } from "../../../packages/engine/src/lora/merge.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { encode, TINY_CONFIG, tinyLlama } from "./tinyLlama.ts";

const model = tinyLlama();
const whole = (file: FileToWrite): Uint8Array => Uint8Array.from(Buffer.concat([...file.parts()]));
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const Q = "model.layers.1.self_attn.q_proj";

/** One module of rank 2 by hand: A [2, 32], B [32, 2]; everything else is left to the base. */
const a = Float32Array.from({ length: 64 }, (_, i) => (i % 7) - 3);
const b = Float32Array.from({ length: 64 }, (_, i) => (i % 5) - 2);
const adapter = (change: object = {}) => ({
  "adapter_config.json": encode({ peft_type: "LORA", r: 2, lora_alpha: 4, target_modules: ["q_proj"], ...change }),
  "adapter_model.safetensors": writeSafetensors(
    [0, 1].flatMap((layer) => [
      {
        name: `base_model.model.model.layers.${layer}.self_attn.q_proj.lora_A.weight`,
        shape: [2, 32],
        data: layer === 1 ? a : new Float32Array(64),
      },
      { name: `base_model.model.model.layers.${layer}.self_attn.q_proj.lora_B.weight`, shape: [32, 2], data: b },
    ]),
  ),
});
const product = (scale: number): Float32Array =>
  Float32Array.from({ length: 32 * 32 }, (_, at) => {
    const [o, i] = [Math.floor(at / 32), at % 32];
    return scale * (b[o * 2]! * a[i]! + b[o * 2 + 1]! * a[32 + i]!);
  });
const difference = async (change: object): Promise<Float32Array> => {
  const [base, merged] = [await openMerged(model), await openMerged(model, adapter(change))];
  const before = base.values(`${Q}.weight`);
  return merged.values(`${Q}.weight`).map((x, i) => x - before[i]!);
};
const near = (got: Float32Array, want: Float32Array): number => Math.max(...got.map((x, i) => Math.abs(x - want[i]!)));

describe("W + s·B·A", () => {
  test.each([
    [{}, 2],
    [{ lora_alpha: 3 }, 1.5],
    [{ use_rslora: true }, 4 / Math.SQRT2],
    [{ alpha_pattern: { "layers.1.self_attn.q_proj": 1 } }, 0.5],
  ])("%j scales by %d", async (change, scale) => {
    expect(near(await difference(change), product(scale))).toBeLessThan(1e-5);
  });

  test("what is not adapted is the base's, bit for bit", async () => {
    const [base, merged] = [await openMerged(model), await openMerged(model, adapter())];
    for (const name of [
      "model.embed_tokens.weight",
      "model.norm.weight",
      "model.layers.1.self_attn.k_proj.weight",
      "model.layers.0.self_attn.q_proj.weight",
    ])
      expect(merged.values(name)).toEqual(base.values(name));
    expect(() => merged.values("model.lost")).toThrow("got none named model.lost");
  });

  test("an adapter of another base is refused by the sidecar's hash", async () => {
    const policy = await createPolicy({
      backend: createReferenceBackend(),
      model: { ...model, ...tinyLlama({}, 77) },
      slots: 1,
      microBatchTokens: 64,
    });
    const files = await policy.trainer.exportAdapter();
    await expect(openMerged(model, files)).rejects.toThrow(/fulgurite\.json: the adapter's base is the loaded one/);
    await policy.dispose();
  });
});

describe("the folder", () => {
  test("shards hold as much as they may, in the checkpoint's order, and the index names each tensor", async () => {
    const maxShardBytes = 20_000;
    const files = await mergedFolder(model, adapter(), { dtype: "F32", maxShardBytes });
    const names = files.map(({ name }) => name);
    const count = names.length - 2;
    expect(count).toBeGreaterThan(3);
    expect(names).toEqual([
      "config.json",
      ...Array.from({ length: count }, (_, i) => `model-0000${i + 1}-of-0000${count}.safetensors`),
      "model.safetensors.index.json",
    ]);
    const shards = Object.fromEntries(files.slice(1).map((file) => [file.name, whole(file)]));
    const single = await openMerged(model, adapter());
    const joined = await openMerged({ config: whole(files[0]!), weights: shards });
    for (const name of [`${Q}.weight`, "model.norm.weight"]) expect(joined.values(name)).toEqual(single.values(name));
    const stored = files.slice(1, -1).map(({ name }) => [...readSafetensors(shards[name]!, name).tensors.values()]);
    const sizes = stored.map((tensors) => tensors.reduce((sum, { bytes }) => sum + bytes.length, 0));
    expect(Math.max(...sizes)).toBeLessThanOrEqual(maxShardBytes);
    expect(JSON.parse(text(shards["model.safetensors.index.json"]!)).metadata.total_size).toBe(sizes.reduce((x, y) => x + y));
  });

  test("it is made tensor by tensor: no part is larger than the largest tensor", async () => {
    const [, weights] = await mergedFolder(model, adapter(), { dtype: "F32" });
    const largest = 64 * 32 * 4;
    let parts = 0;
    for (const part of weights!.parts()) {
      parts++;
      expect(part.byteLength).toBeLessThanOrEqual(largest);
    }
    expect(parts).toBe(1 + readSafetensors(model.weights, "m").tensors.size);
    expect(whole(weights!)).toEqual(whole(weights!));
  });

  test("config.json says the dtype wherever it said one, and is untouched when nothing is cast", async () => {
    const config = async (options: MergeOptions, change: object = {}): Promise<Record<string, unknown>> =>
      JSON.parse(text(whole((await mergedFolder({ ...model, config: encode({ ...TINY_CONFIG, ...change }) }, undefined, options))[0]!)));
    expect(await config({ dtype: "F16" })).toEqual({ ...TINY_CONFIG, torch_dtype: "float16" });
    expect(await config({ dtype: "BF16" }, { dtype: "float32" })).toEqual({ ...TINY_CONFIG, dtype: "bfloat16" });
    expect(await config({ dtype: "BF16" }, { dtype: "float32", torch_dtype: "float32" })).toMatchObject({
      dtype: "bfloat16",
      torch_dtype: "bfloat16",
    });
    expect(whole((await mergedFolder(model))[0]!)).toEqual(model.config);
  });

  test("a vision checkpoint keeps its tower and its names; the adapter finds the text model in it", async () => {
    const stored = [...readSafetensors(model.weights, "m").tensors.values()];
    const tensors = stored.map((tensor) => ({ name: `language_model.${tensor.name}`, shape: tensor.shape, data: toFloat32(tensor, "m") }));
    const tower = { name: "vision_tower.patch.weight", shape: [3], data: Float32Array.of(1, 2, 3) };
    const vision = {
      config: encode({ model_type: "gemma3", torch_dtype: "float32", text_config: TINY_CONFIG, vision_config: { torch_dtype: "float32" } }),
      weights: writeSafetensors([...tensors, tower]),
    };
    const [config, weights] = await mergedFolder(vision, adapter(), { dtype: "F16" });
    const got = readSafetensors(whole(weights!), "m").tensors;
    expect([...got.keys()].sort()).toEqual([...tensors, tower].map(({ name }) => name).sort());
    expect([...toFloat32(got.get(tower.name)!, "m")]).toEqual([1, 2, 3]);
    const plain = (await openMerged(model, adapter())).values(`${Q}.weight`);
    expect(near(toFloat32(got.get(`language_model.${Q}.weight`)!, "m"), plain)).toBeLessThan(0.02);
    expect(JSON.parse(text(whole(config!)))).toMatchObject({
      torch_dtype: "float16",
      text_config: TINY_CONFIG,
      vision_config: { torch_dtype: "float16" },
    });
  });

  test("a tied head that another tool stored beside its embedding is left out", async () => {
    const stored = [...readSafetensors(model.weights, "m").tensors.values()].map((tensor) => ({ ...tensor, data: toFloat32(tensor, "m") }));
    const head = { ...stored.find(({ name }) => name === "model.embed_tokens.weight")!, name: "lm_head.weight" };
    const [, weights] = await mergedFolder({ ...model, weights: writeSafetensors([...stored, head]) });
    expect(whole(weights!)).toEqual(model.weights);
  });

  test.each([
    [{ maxShardBytes: 0 }, "maxShardBytes"],
    [{ dtype: "F8" as "F16" }, 'dtype is one of original, F32, F16, BF16, got "F8"'],
  ])("%j is refused", async (options, message) => {
    await expect(mergedFolder(model, undefined, options)).rejects.toThrow(message);
  });

  test("a value beyond the dtype is refused by name", async () => {
    const huge = { ...adapter(), "adapter_config.json": encode({ peft_type: "LORA", r: 2, lora_alpha: 1e6, target_modules: ["q_proj"] }) };
    const [, weights] = await mergedFolder(model, huge, { dtype: "F16" });
    expect(() => whole(weights!)).toThrow(/"model\.layers\.1\.self_attn\.q_proj\.weight" fit in F16/);
  });
});

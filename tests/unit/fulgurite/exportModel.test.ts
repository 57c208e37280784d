// exportModel on a real policy: the formats, where adapter and checkpoint come from, and what is refused.

import { exportModel, type FileToWrite, type LoadedPolicy, loadPolicy } from "fulgurite";
import { afterAll, beforeAll, expect, test } from "vitest";

let policy: LoadedPolicy;
beforeAll(async () => {
  policy = await loadPolicy("spark", { device: "wasm", threads: 1, slots: 1, seed: 4 });
});
afterAll(() => policy?.dispose());

const whole = (files: readonly FileToWrite[], name: string): Uint8Array =>
  Uint8Array.from(Buffer.concat([...files.find((file) => file.name === name)!.parts()]));
const names = (files: readonly FileToWrite[]): string[] => files.map(({ name }) => name).sort();
const FOLDER = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

test("an untrained policy exports its base, byte for byte; a trained one other weights of the same layout", async () => {
  const base = await exportModel("spark");
  expect(names(base)).toEqual([...FOLDER, "model.safetensors"].sort());
  const before = await exportModel(policy);
  for (const name of names(base)) expect(whole(before, name)).toEqual(whole(base, name));
  const datum = { tokens: Int32Array.of(5, 9, 12, 30), targetStart: 1, weights: Float32Array.of(1, 1, 1) };
  for (let i = 0; i < 3; i++) {
    await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
    await policy.trainer.optimStep({ learningRate: 0.01 });
  }
  const after = await exportModel(policy);
  expect(whole(after, "model.safetensors").length).toBe(whole(base, "model.safetensors").length);
  expect(whole(after, "model.safetensors")).not.toEqual(whole(base, "model.safetensors"));
});

test("a merged model, loaded again, samples what the trained policy samples", async () => {
  await policy.publish(1);
  const files = await exportModel(policy, { dtype: "f32" });
  const request = { prompt: policy.format.encode("Ana has 3 pens"), maxTokens: 24, temperature: 0, stopTokens: [], seed: 1 };
  const want = await policy.sampler.generate(request);
  const { createPolicy } = await import("@fulgurite/engine");
  const { createBackend } = await import("@fulgurite/engine/node");
  const model = { config: whole(files, "config.json"), weights: whole(files, "model.safetensors") };
  const merged = await createPolicy({ backend: await createBackend("wasm", { threads: 1 }), model, slots: 1 });
  const got = await merged.sampler.generate(request);
  expect([...got.tokens]).toEqual([...want.tokens]);
  expect(Math.max(...got.logprobs.map((x, i) => Math.abs(x - want.logprobs[i]!)))).toBeLessThan(1e-4);
  await merged.dispose();
});

test("peft is the adapter alone, and takes it to a source without a policy", async () => {
  const adapter = await policy.trainer.exportAdapter();
  const files = await exportModel(policy, { format: "peft" });
  expect(names(files)).toEqual(Object.keys(adapter).sort());
  for (const { name } of files) expect(whole(files, name)).toEqual(adapter[name]);
  const elsewhere = await exportModel("spark", { adapter });
  expect(whole(elsewhere, "model.safetensors")).toEqual(whole(await exportModel(policy), "model.safetensors"));
});

test("an adapter in 16 bits is half as large, and is still the base's own", async () => {
  const [full, half] = [await exportModel(policy, { format: "peft" }), await exportModel(policy, { format: "peft", dtype: "f16" })];
  const size = (files: readonly FileToWrite[]): number => whole(files, "adapter_model.safetensors").length;
  expect(size(half) / size(full)).toBeLessThan(0.6);
  await policy.loadAdapter("half", Object.fromEntries(half.map(({ name }) => [name, whole(half, name)])));
  const request = { prompt: policy.format.encode("Ana has 3 pens"), maxTokens: 8, temperature: 0, stopTokens: [], seed: 1 };
  const [want, got] = [await policy.sampler.generate(request), await policy.sampler.generate({ ...request, adapter: "half" })];
  expect(Math.abs(got.logprobs[0]! - want.logprobs[0]!)).toBeLessThan(0.01);
  expect(got.policyVersion).toBe(want.policyVersion);
});

test("onnx lies in the folder that transformers.js reads", async () => {
  expect(names(await exportModel(policy, { format: "onnx" }))).toEqual([...FOLDER, "onnx/model.onnx"].sort());
  expect(names(await exportModel(policy, { format: "onnx", dtype: "f16" }))).toEqual([...FOLDER, "onnx/model_fp16.onnx"].sort());
});

test.each([
  [{ format: "gguf" as "onnx" }, 'format is one of safetensors, onnx, peft, got "gguf"'],
  [{ dtype: "q4" as "f16" }, 'dtype is one of original, f32, f16, bf16, got "q4"'],
  [{ format: "onnx", dtype: "bf16" } as const, 'dtype of onnx is f32 or f16, got "bf16"'],
  [{ format: "peft", dtype: "bf16" } as const, 'dtype of peft is original, f32 or f16, got "bf16"'],
])("%j is refused", async (options, message) => {
  await expect(exportModel(policy, options)).rejects.toThrow(message);
  await expect(exportModel(policy, options)).rejects.toMatchObject({ code: "bad-request" });
});

test("a source has no adapter of its own, and an aborted export says so", async () => {
  await expect(exportModel("spark", { format: "peft" })).rejects.toThrow("adapter is given where a source has none");
  await expect(exportModel(policy, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "aborted" });
});

// What a policy is said to hold against what one allocates, and the refusals with both numbers.

import { type Backend, createPolicy, memoryOf, parseConfig } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import { describe, expect, test } from "vitest";
import { refuseTooLarge } from "../../../packages/fulgurite/src/memoryFit.ts";
import { modelFiles } from "./modelFolder.ts";

const specOf = (family: string) => parseConfig(JSON.parse(new TextDecoder().decode(modelFiles(family)["config.json"])), "config.json");

test.each(["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])("memoryOf %s is what its policy allocates", async (family) => {
  const files = modelFiles(family);
  const backend = await createBackend("reference");
  const sizes: number[] = [];
  const allocate: Backend["allocate"] = async (tensor, data) => {
    sizes.push(tensor.shape.reduce((a, b) => a * b, 4));
    await backend.allocate(tensor, data);
  };
  const options = { lora: { rank: 3, alpha: 6 }, maxContext: 40, slots: 5 };
  const counting = Object.assign(Object.create(backend) as Backend, { allocate });
  const model = { config: files["config.json"]!, weights: files["model.safetensors"]! };
  const policy = await createPolicy({ ...options, backend: counting, model });
  const memory = memoryOf(specOf(family), options);
  expect(memory.byteLength).toBe(sizes.reduce((a, b) => a + b));
  expect(memory.largest.byteLength).toBe(Math.max(...sizes));
  expect(memory.weightBytes).toBeLessThan(memory.byteLength);
  await policy.dispose();
});

describe("a model that cannot fit", () => {
  const GIB = 2 ** 30;
  const memory = (byteLength: number, largest: number) => ({
    byteLength,
    weightBytes: byteLength - 1000,
    largest: { name: "model.embed_tokens.weight", byteLength: largest },
  });
  /** A device with this limit, which counts its openings and closings. */
  const deviceWith = (kind: "webgpu" | "wasm", maxTensorBytes?: number) => {
    const calls: string[] = [];
    const backend = {
      device: { kind, description: kind },
      ...(maxTensorBytes !== undefined && { maxTensorBytes }),
      dispose: async () => void calls.push("dispose"),
    } as Backend;
    const openDevice = async (device: string): Promise<Backend> => {
      calls.push(`open ${device}`);
      return backend;
    };
    return { calls, openDevice };
  };

  test("on WebGPU by its largest tensor", async () => {
    const { calls, openDevice } = deviceWith("webgpu", 2 * GIB);
    await refuseTooLarge("m", memory(8 * GIB, 2 * GIB), { device: "webgpu", openDevice });
    const refused = refuseTooLarge("m", memory(3 * GIB, 2 * GIB + 4), { device: "auto", openDevice });
    await expect(refused).rejects.toThrow(
      /fits in the 2147483648 bytes \(2048\.0 MiB\) of this webgpu device, got 2147483652 bytes .* for model\.embed_tokens\.weight/,
    );
    expect(calls).toEqual(["open webgpu", "dispose", "open auto", "dispose"]);
  });

  test("on WASM by everything together, whether it was asked for or is what there is", async () => {
    const { openDevice } = deviceWith("wasm");
    const rule = /fits in the 4294967296 bytes .* got 4294967300 bytes/;
    await expect(refuseTooLarge("m", memory(4 * GIB + 4, GIB), { device: "auto", openDevice })).rejects.toThrow(rule);
    await expect(refuseTooLarge("m", memory(4 * GIB + 4, GIB), { device: "wasm", openDevice })).rejects.toThrow(rule);
    await refuseTooLarge("m", memory(4 * GIB, GIB), { device: "wasm", openDevice });
    await refuseTooLarge("m", memory(5 * GIB, GIB), { device: "reference", openDevice });
  });

  test("is looked for only where a device could be too small", async () => {
    const { calls, openDevice } = deviceWith("webgpu", 1);
    await refuseTooLarge("m", memory(4 * GIB, GIB / 8), { device: "auto", openDevice });
    expect(calls).toEqual([]);
  });
});

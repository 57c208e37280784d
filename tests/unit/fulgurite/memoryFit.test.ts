// Which models are looked at before their weights are downloaded, and what is said of those that cannot fit.

import { type Backend, parseConfig } from "@fulgurite/engine";
import { loadPolicy } from "fulgurite";
import { describe, expect, test, vi } from "vitest";
import { budgetFor } from "../../../packages/fulgurite/src/memoryFit.ts";
import { modelFiles } from "./modelFolder.ts";
import { inFolder, startModelServer } from "./modelServer.ts";

const MIB = 2 ** 20;
const specOf = (family: string) => parseConfig(JSON.parse(new TextDecoder().decode(modelFiles(family)["config.json"])), "config.json");
const tiny = specOf("llama");
/** What a feed-forward layer makes of 1024 rows is 129 MiB. */
const wide = { ...tiny, feedForward: (129 * MIB) / 4 / 1024 };

/** A device with these limits, which counts its openings and closings. */
const deviceWith = (kind: "webgpu" | "wasm", limits: Partial<Backend> = {}) => {
  const calls: string[] = [];
  const openDevice = async (device: string): Promise<Backend> => {
    calls.push(`open ${device}`);
    return { device: { kind, description: kind }, ...limits, dispose: async () => void calls.push("dispose") } as Backend;
  };
  return { calls, openDevice };
};

describe("a budget", () => {
  test("of a model that fits everywhere is made without opening a device: the larger of what auto may mean", async () => {
    const { calls, openDevice } = deviceWith("webgpu", { maxTensorBytes: 1 });
    const [auto, webgpu, wasm] = await Promise.all(
      (["auto", "webgpu", "wasm"] as const).map((device) => budgetFor("m", tiny, { device, openDevice, slots: 3 })),
    );
    expect(wasm!.byteLength).toBeGreaterThan(webgpu!.byteLength);
    expect(auto).toEqual(wasm);
    expect(auto!.slots).toBe(3);
    expect(calls).toEqual([]);
  });

  test("of a tensor that some WebGPU device cannot bind takes a look at this one, and closes it again", async () => {
    const large = deviceWith("webgpu", { maxTensorBytes: 129 * MIB });
    expect((await budgetFor("m", wide, { ...large, device: "auto" })).largest.byteLength).toBe(129 * MIB);
    expect(large.calls).toEqual(["open auto", "dispose"]);
    const small = deviceWith("webgpu", { maxTensorBytes: 129 * MIB - 4 });
    await expect(budgetFor("tiny/wide", wide, { ...small, device: "webgpu", microBatchTokens: 1024 })).rejects.toMatchObject({
      code: "device",
      message: expect.stringMatching(/^memory: tiny\/wide needs .*; limit 129 MiB for one tensor, got 129 MiB for gate_proj\.0/),
    });
    expect(small.calls).toEqual(["open webgpu", "dispose"]);
  });

  test("of WASM ends at 32-bit addresses, whether it was asked for or is what there is", async () => {
    const huge = { ...tiny, width: 1024, vocab: 1_200_000 };
    const { calls, openDevice } = deviceWith("wasm");
    for (const device of ["auto", "wasm"] as const)
      await expect(budgetFor("m", huge, { device, openDevice })).rejects.toThrow(
        /^memory: m needs \d+ MiB: .*; limit 4096 MiB; set weightFormat to bf16/,
      );
    expect(calls).toEqual(["open auto", "dispose"]);
    await budgetFor("m", huge, { device: "reference", openDevice });
  });

  test("within given bytes chooses what fits", async () => {
    const { openDevice } = deviceWith("webgpu");
    const device = "wasm";
    const all = await budgetFor("m", tiny, { device, openDevice });
    expect(all.checkpoint).toBe(false);
    const less = await budgetFor("m", tiny, { device, openDevice, memoryBytes: all.byteLength - 1 });
    expect(less.byteLength).toBeLessThan(all.byteLength);
    expect(less.microBatchTokens).toBeLessThan(all.microBatchTokens);
  });
});

describe("loadPolicy", () => {
  test("tells the budget, or refuses, before the weights are asked for", async () => {
    const server = await startModelServer(inFolder("m", modelFiles("llama")));
    const options = { device: "wasm", cache: false, slots: 2, maxContext: 32, threads: 1 } as const;
    const onMemory = vi.fn(() => expect(server.askedFor("model.safetensors")).toEqual([]));
    const policy = await loadPolicy(`${server.url}/m`, { ...options, onMemory });
    expect(server.askedFor("model.safetensors")).toHaveLength(1);
    expect(onMemory).toHaveBeenCalledOnce();
    await policy.dispose();

    server.asked.length = 0;
    await expect(loadPolicy(`${server.url}/m`, { ...options, memoryBytes: 4096 })).rejects.toThrow(
      /\/m needs [\d.]+ MiB: weights .*; limit 0\.0 MiB; take a smaller model/,
    );
    expect(server.asked.map(({ path }) => path)).toEqual(["/m/config.json"]);
    await server.close();
  });
});

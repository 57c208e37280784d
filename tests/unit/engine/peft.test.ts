import { describe, expect, test } from "vitest";
import type { PeftFiles } from "../../../packages/engine/src/contract.ts";
import { initLora, partOf } from "../../../packages/engine/src/lora/init.ts";
import { type Adapter, fromPeft, peftName, toPeft } from "../../../packages/engine/src/lora/peft.ts";
import { loadState, saveState } from "../../../packages/engine/src/lora/state.ts";
import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import { LINEARS } from "../../../packages/engine/src/model/spec.ts";
import { loraTensors } from "../../../packages/engine/src/model/tensors.ts";
import { uniform } from "../../../packages/engine/src/random.ts";
import { readSafetensors, type TensorToWrite, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { TINY_CONFIG } from "./tinyLlama.ts";

const spec = parseConfig(TINY_CONFIG, "config.json");
const lora = { rank: 4, alpha: 8 };
const layout = loraTensors(spec, lora, "p");
const base = { name: "tests/tiny", configSha256: "c0", weightsSha256: "d0", tokenizerSha256: "e0" };

/** An adapter whose A and B are both random, gaps zero. */
const trained = (seed = 5): Adapter => {
  const values = initLora(layout, seed);
  for (const layer of layout.layers)
    for (const linear of LINEARS)
      partOf(values, layer[linear].b).forEach((_, i, part) => {
        part[i] = uniform(seed + 1, i) - 0.5;
      });
  return { values, layout, lora, base };
};
const fresh: Adapter = { values: initLora(layout, 9), layout, lora, base };
const options = { adapterVersion: 3, step: 12 };

const json = (files: PeftFiles, name: string): Record<string, unknown> => JSON.parse(new TextDecoder().decode(files[name]));
const withConfig = (files: PeftFiles, change: object): PeftFiles => ({
  ...files,
  "adapter_config.json": new TextEncoder().encode(JSON.stringify({ ...json(files, "adapter_config.json"), ...change })),
});
/** The same directory without our sidecar, as PEFT itself writes it, with changed tensors. */
const withTensors = (files: PeftFiles, change: (tensors: TensorToWrite[]) => TensorToWrite[]): PeftFiles => {
  const stored = [...readSafetensors(files["adapter_model.safetensors"]!, "a").tensors.values()];
  const tensors = stored.map((tensor) => ({ name: tensor.name, shape: tensor.shape, data: toFloat32(tensor, "a") }));
  return {
    "adapter_config.json": files["adapter_config.json"]!,
    "adapter_model.safetensors": writeSafetensors(change(tensors), { format: "pt" }),
  };
};

describe("initialisation", () => {
  test("A is uniform in ±1/√I, B is zero, the seed decides", () => {
    const values = initLora(layout, 1);
    const a = partOf(values, layout.layers[0]!.down_proj.a); // I = 64, bound 0.125
    expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(0.125);
    expect(Math.max(...a)).toBeGreaterThan(0.11);
    expect(Math.min(...a)).toBeLessThan(-0.11);
    expect(Math.abs(a.reduce((x, y) => x + y, 0) / a.length)).toBeLessThan(0.02);
    for (const layer of layout.layers)
      for (const linear of LINEARS) expect(partOf(values, layer[linear].b).every((x) => x === 0)).toBe(true);
    expect(initLora(layout, 1)).toEqual(values);
    expect(initLora(layout, 2)).not.toEqual(values);
  });
});

describe("export", () => {
  test("names, shapes and metadata are PEFT's", async () => {
    const files = await toPeft(trained(), options);
    expect(Object.keys(files)).toEqual(["adapter_model.safetensors", "adapter_config.json", "fulgurite.json"]);
    const { tensors, metadata } = readSafetensors(files["adapter_model.safetensors"]!, "a");
    expect(metadata).toEqual({ format: "pt" });
    expect(tensors.size).toBe(2 * 7 * 2);
    expect(tensors.get("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")!.shape).toEqual([4, 32]);
    expect(tensors.get("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight")!.shape).toEqual([4, 64]);
    expect(tensors.get("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight")!.shape).toEqual([64, 4]);
    expect(json(files, "adapter_config.json")).toMatchObject({
      peft_type: "LORA",
      r: 4,
      lora_alpha: 8,
      use_dora: false,
      modules_to_save: null,
      target_modules: LINEARS,
    });
    expect(json(files, "fulgurite.json")).toMatchObject({ formatVersion: 1, base, adapterVersion: 3, step: 12, dtype: "F32" });
  });
});

describe("import", () => {
  test("PEFT → here → PEFT is byte-equal, in F32 and in F16", async () => {
    for (const dtype of ["F32", "F16"] as const) {
      const files = await toPeft(trained(), { ...options, dtype });
      const values = await fromPeft(files, fresh);
      const again = await toPeft({ ...fresh, values }, { ...options, dtype });
      expect(again).toEqual(files);
      if (dtype === "F32") expect(values).toEqual(trained().values);
    }
  });

  test("alpha, rsLoRA and alpha_pattern are folded into B", async () => {
    const files = await toPeft(trained(), options);
    const { "fulgurite.json": _, ...plain } = files;
    const b = layout.layers[0]!.q_proj.b;
    const before = partOf(trained().values, b);
    // Ours: s = 8/4 = 2.
    const folded = async (change: object): Promise<Float32Array> => partOf(await fromPeft(withConfig(plain, change), fresh), b);
    expect(await folded({ lora_alpha: 16 })).toEqual(before.map((x) => x * 2));
    expect(await folded({ use_rslora: true })).toEqual(before.map((x) => x * 2)); // 8/√4 = 4
    expect(await folded({ alpha_pattern: { q_proj: 4 } })).toEqual(before.map((x) => x / 2));
    expect(await folded({ alpha_pattern: { "layers.1.self_attn.q_proj": 4 } })).toEqual(before);
    await expect(folded({ alpha_pattern: { ".*q_proj": 4 } })).rejects.toMatchObject({ code: "unsupported" });
  });

  test("a module of a smaller rank in rank_pattern is padded with zeros", async () => {
    const files = withTensors(await toPeft(trained(), options), (all) =>
      all.map((t) => {
        if (!t.name.includes("k_proj")) return t;
        return t.name.includes("lora_A")
          ? { ...t, shape: [2, 32], data: t.data.slice(0, 64) }
          : { ...t, shape: [32, 2], data: Float32Array.from({ length: 64 }, (_, i) => i) };
      }),
    );
    const values = await fromPeft(withConfig(files, { rank_pattern: { k_proj: 2 } }), fresh);
    const { a, b } = layout.layers[1]!.k_proj;
    expect(
      partOf(values, a)
        .subarray(64)
        .every((x) => x === 0),
    ).toBe(true);
    // s of the file: 8/2 = 4, ours 2: B doubles.
    expect([...partOf(values, b).subarray(0, 8)]).toEqual([0, 2, 0, 0, 4, 6, 0, 0]);
    await expect(fromPeft(files, fresh)).rejects.toThrow("is [4,32], got [2,32]");
  });

  test("modules that the file does not adapt keep a fresh A and a zero B", async () => {
    const files = withTensors(await toPeft(trained(), options), (all) => all.filter(({ name }) => /[qv]_proj/.test(name)));
    const values = await fromPeft(withConfig(files, { target_modules: ["q_proj", "v_proj"] }), fresh);
    const { o_proj, q_proj } = layout.layers[0]!;
    expect(partOf(values, o_proj.a)).toEqual(partOf(fresh.values, o_proj.a));
    expect(partOf(values, o_proj.b).every((x) => x === 0)).toBe(true);
    expect(partOf(values, q_proj.b)).toEqual(partOf(trained().values, q_proj.b));
    await expect(fromPeft(files, fresh)).rejects.toThrow("missing");
  });

  const foreign: [string, object, string][] = [
    ["DoRA", { use_dora: true }, "no DoRA"],
    ["saved modules", { modules_to_save: ["lm_head"] }, 'modules_to_save is absent, got ["lm_head"]'],
    ["biases", { bias: "all" }, 'bias is absent or "none", got "all"'],
    ["an unknown target", { target_modules: ["q_proj", "lm_head"] }, "got lm_head"],
    ["adapters on some layers", { layers_to_transform: [0] }, "layers_to_transform"],
  ];
  test.each(foreign)("%s is refused", async (_, change, message) => {
    const files = await toPeft(trained(), options);
    const error = fromPeft(withConfig(files, change), fresh);
    await expect(error).rejects.toMatchObject({ code: "unsupported" });
    await expect(error).rejects.toThrow(message);
  });

  test("another rank is refused", async () => {
    const wider = { rank: 16, alpha: 8 };
    const larger = loraTensors(spec, wider, "p");
    const files = await toPeft({ values: initLora(larger, 1), layout: larger, lora: wider, base }, options);
    const error = fromPeft(files, fresh);
    await expect(error).rejects.toMatchObject({ code: "unsupported" });
    await expect(error).rejects.toThrow("the adapter's rank is the policy's, 4, got 16; create the policy with lora.rank 16");
    await expect(fromPeft(withConfig(files, { r: 4 }), fresh)).rejects.toThrow("is [4,32], got [16,32]");
  });

  test("another kind of adapter, missing files and damaged JSON are bad files", async () => {
    const files = await toPeft(trained(), options);
    await expect(fromPeft(withConfig(files, { peft_type: "IA3" }), fresh)).rejects.toThrow("peft_type");
    await expect(fromPeft(withConfig(files, { target_modules: undefined }), fresh)).rejects.toThrow("target_modules");
    await expect(fromPeft({ "adapter_config.json": files["adapter_config.json"]! }, fresh)).rejects.toThrow("adapter_model.safetensors");
    await expect(fromPeft({ ...files, "fulgurite.json": Uint8Array.of(123) }, fresh)).rejects.toMatchObject({ code: "bad-file" });
  });

  test("an adapter of another base is refused with both hashes, a replaced weight file too", async () => {
    const files = await toPeft({ ...trained(), base: { ...base, weightsSha256: "ff" } }, options);
    await expect(fromPeft(files, fresh)).rejects.toThrow(/weightsSha256 d0….*got tests\/tiny, ff…/);
    const ours = await toPeft(trained(), options);
    const other = await toPeft(trained(77), options);
    await expect(fromPeft({ ...ours, "adapter_model.safetensors": other["adapter_model.safetensors"]! }, fresh)).rejects.toThrow("sha256");
  });

  test("wrong shapes and foreign names are refused", async () => {
    const files = await toPeft(trained(), options);
    const name = peftName(0, "q_proj", "A");
    const reversed = withTensors(files, (all) => all.map((t) => (t.name === name ? { ...t, shape: [32, 4] } : t)));
    await expect(fromPeft(reversed, fresh)).rejects.toThrow(`${name} is [4,32], got [32,4]`);
    const extra = withTensors(files, (all) => [
      ...all,
      { name: "base_model.model.lm_head.lora_A.weight", shape: [1], data: new Float32Array(1) },
    ]);
    await expect(fromPeft(extra, fresh)).rejects.toThrow("lm_head");
    const deeper = withTensors(files, (all) => [...all, { name: peftName(2, "q_proj", "A"), shape: [1], data: new Float32Array(1) }]);
    await expect(fromPeft(deeper, fresh)).rejects.toThrow("2 layers");
  });
});

describe("training state", () => {
  const plane = (seed: number): Float32Array => trained(seed).values;
  const state = { p: plane(1), m: plane(2), v: plane(3).map(Math.abs), adamStep: 41 };

  test("a saved state loads exactly", () => {
    expect(loadState(saveState(state, layout, lora), layout, lora)).toEqual(state);
  });

  test("the file names what it holds", () => {
    const { metadata, tensors } = readSafetensors(saveState(state, layout, lora), "s");
    expect(metadata).toEqual({ "fulgurite.state": "1", rank: "4", alpha: "8", adamStep: "41" });
    expect(tensors.has(`${peftName(1, "up_proj", "B")}.v`)).toBe(true);
  });

  test("another version, shape, rank or file is refused", async () => {
    const saved = saveState(state, layout, lora);
    const wide = loraTensors({ ...spec, feedForward: 96 }, lora, "p");
    expect(() => loadState(saved, wide, lora)).toThrow("gate_proj.lora_B.weight.p is F32 [96,4], got F32 [64,4]");
    expect(() => loadState(saved, layout, { rank: 4, alpha: 4 })).toThrow("rank / alpha are the policy's, 4 / 4, got 4 / 8");
    expect(() => loadState((saved as Uint8Array).slice(0, 100), layout, lora)).toThrow("training state:");
    const adapter = (await toPeft(trained(), options))["adapter_model.safetensors"]!;
    expect(() => loadState(adapter, layout, lora)).toThrow("fulgurite.state 1, got none");
  });
});

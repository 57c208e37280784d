import { describe, expect, test } from "vitest";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import type { Backend, HostArray } from "../../../packages/engine/src/plan/backend.ts";
import type { Tensor } from "../../../packages/engine/src/plan/step.ts";
import { loadModel, ropeTable } from "../../../packages/engine/src/weights/load.ts";
import { readSafetensors, type TensorToWrite, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { encode, TINY_CONFIG, tinyLlama } from "./tinyLlama.ts";

const failure = (run: () => unknown): EngineError => {
  try {
    run();
  } catch (error) {
    return error as EngineError;
  }
  throw new Error("nothing was thrown");
};

/** A backend that only remembers what was allocated. */
const recording = (): Backend & { readonly allocated: Map<string, { tensor: Tensor; data: HostArray }> } => {
  const allocated = new Map<string, { tensor: Tensor; data: HostArray }>();
  const never = (): never => {
    throw new Error("not part of loading");
  };
  return {
    allocated,
    device: { kind: "reference", description: "recording" },
    allocate: async (tensor, data) => {
      if (allocated.has(tensor.name)) throw new Error(`${tensor.name} twice`);
      allocated.set(tensor.name, { tensor, data: data! });
    },
    compile: never,
    write: never,
    read: never,
    byteLength: 0,
    dispose: async () => {},
  };
};

describe("config.json", () => {
  test("SmolLM2-135M's config gives its numbers", () => {
    const spec = parseConfig(
      {
        architectures: ["LlamaForCausalLM"],
        attention_bias: false,
        hidden_act: "silu",
        hidden_size: 576,
        intermediate_size: 1536,
        max_position_embeddings: 8192,
        mlp_bias: false,
        model_type: "llama",
        num_attention_heads: 9,
        num_hidden_layers: 30,
        num_key_value_heads: 3,
        rms_norm_eps: 1e-5,
        rope_scaling: null,
        rope_theta: 100000,
        tie_word_embeddings: true,
        torch_dtype: "bfloat16",
        vocab_size: 49152,
      },
      "config.json",
    );
    expect(spec).toEqual({
      family: "llama",
      width: 576,
      layers: 30,
      heads: 9,
      kvHeads: 3,
      headWidth: 64,
      feedForward: 1536,
      vocab: 49152,
      normEps: 1e-5,
      ropeTheta: 100000,
      tiedHead: true,
      maxPositions: 8192,
    });
  });

  test("absent keys take the defaults of LlamaConfig", () => {
    expect(parseConfig({ model_type: "llama", rope_theta: 10000 }, "c")).toMatchObject({
      width: 4096,
      layers: 32,
      heads: 32,
      kvHeads: 32,
      headWidth: 128,
      feedForward: 11008,
      vocab: 32000,
      normEps: 1e-6,
      tiedHead: false,
      maxPositions: 2048,
    });
  });

  test("rope_theta is read in the spellings of transformers 4 and 5, and never assumed", () => {
    const { rope_theta, ...rest } = TINY_CONFIG;
    expect(parseConfig({ ...rest, rope_theta: 5 }, "c").ropeTheta).toBe(5);
    expect(parseConfig({ ...rest, rope_parameters: { rope_type: "default", rope_theta: 7 } }, "c").ropeTheta).toBe(7);
    expect(failure(() => parseConfig(rest, "c")).message).toContain("rope_theta");
    expect(failure(() => parseConfig({ ...rest, rope_parameters: { rope_theta: null } }, "c")).code).toBe("bad-file");
  });

  test("head_dim wins over hidden_size / heads", () => {
    expect(parseConfig({ ...TINY_CONFIG, head_dim: 16 }, "c").headWidth).toBe(16);
  });

  const foreign: [string, object, string][] = [
    ["another family", { model_type: "qwen2" }, 'got "qwen2"; known: llama'],
    ["no family", { model_type: undefined }, "known: llama"],
    ["rope scaling", { rope_scaling: { rope_type: "llama3", factor: 8 } }, 'got "llama3"'],
    ["rope scaling under its old key", { rope_scaling: { type: "yarn" } }, 'got "yarn"'],
    ["rope scaling in version 5's spelling", { rope_parameters: { rope_type: "linear", rope_theta: 1e4 } }, 'got "linear"'],
    ["a quantised checkpoint", { quantization_config: { bits: 4 } }, 'quantization_config is absent or null, got {"bits":4}'],
    ["experts", { num_local_experts: 8 }, "num_local_experts"],
    ["a bias in attention", { attention_bias: true }, "attention_bias"],
    ["a bias in the MLP", { mlp_bias: true }, "mlp_bias"],
    ["another activation", { hidden_act: "gelu" }, 'got "gelu"'],
    ["widths that the kernels cannot take", { hidden_size: 36, head_dim: 16 }, "hidden_size is a multiple of 32, got 36"],
    ["an odd head width", { head_dim: 9 }, "head_dim is even"],
  ];
  test.each(foreign)("%s is refused with key and value", (_, overrides, message) => {
    const error = failure(() => parseConfig({ ...TINY_CONFIG, ...overrides }, "config.json"));
    expect(error).toBeInstanceOf(EngineError);
    expect(error.code).toBe("unsupported");
    expect(error.message).toContain(message);
  });

  const broken: [string, unknown, string][] = [
    ["a list", [], "config.json is an object"],
    [
      "a width that is text",
      { ...TINY_CONFIG, hidden_size: "32" },
      'hidden_size: Invalid input: expected number, received string, got "32"',
    ],
    ["no layers", { ...TINY_CONFIG, num_hidden_layers: 0 }, "num_hidden_layers"],
    ["KV heads that do not divide the heads", { ...TINY_CONFIG, num_key_value_heads: 3 }, "divides num_attention_heads (4), got 3"],
    ["heads that do not divide the width", { ...TINY_CONFIG, num_attention_heads: 5, num_key_value_heads: 5 }, "add head_dim"],
  ];
  test.each(broken)("%s is a bad file", (_, json, message) => {
    const error = failure(() => parseConfig(json, "config.json"));
    expect(error.code).toBe("bad-file");
    expect(error.message).toContain(message);
  });
});

describe("loading a model", () => {
  const tiny = tinyLlama();
  const rewrite = (change: (tensors: TensorToWrite[]) => TensorToWrite[]): Uint8Array => {
    const stored = [...readSafetensors(tiny.weights, "m").tensors.values()];
    return writeSafetensors(change(stored.map((tensor) => ({ name: tensor.name, shape: tensor.shape, data: toFloat32(tensor, "m") }))));
  };
  const load = (weights: Uint8Array): Promise<unknown> => loadModel({ config: tiny.config, weights }, recording());

  test("every tensor of the config is allocated once, a tied head not at all", async () => {
    const backend = recording();
    const { spec, weights } = await loadModel(tiny, backend);
    expect(backend.allocated.size).toBe(1 + 2 * 9 + 1 + 1);
    expect(weights.head).toBe(weights.embed);
    const stored = readSafetensors(tiny.weights, "m").tensors.get("model.layers.1.mlp.down_proj.weight")!;
    expect(backend.allocated.get("model.layers.1.mlp.down_proj.weight")!.data).toEqual(toFloat32(stored, "m"));
    expect(spec.maxPositions).toBe(64);
  });

  test("maxContext shortens the rope table and never lengthens it", async () => {
    for (const [maxContext, rows] of [
      [16, 16],
      [999, 64],
    ] as const) {
      const backend = recording();
      await loadModel(tiny, backend, { maxContext });
      expect(backend.allocated.get("rope")!.tensor.shape).toEqual([rows, 8]);
    }
  });

  test("rope's table holds cos and sin of position · theta^(−2i/C)", () => {
    const table = ropeTable(4, 4, 10000);
    // position 3: angles 3·1 and 3·0.01
    expect([...table.subarray(12)]).toEqual([Math.cos(3), Math.cos(0.03), Math.sin(3), Math.sin(0.03)].map(Math.fround));
    expect([...table.subarray(0, 4)]).toEqual([1, 1, 0, 0]);
  });

  test("a missing tensor, an unknown one and a wrong shape are named", async () => {
    await expect(load(rewrite((all) => all.filter(({ name }) => name !== "model.norm.weight")))).rejects.toThrow(
      "none named model.norm.weight",
    );
    const extra = { name: "model.layers.0.self_attn.q_proj.bias", shape: [1], data: new Float32Array(1) };
    await expect(load(rewrite((all) => [...all, extra]))).rejects.toThrow("got model.layers.0.self_attn.q_proj.bias");
    const transposed = rewrite((all) =>
      all.map((t) => (t.name.endsWith("0.mlp.up_proj.weight") ? { ...t, shape: [...t.shape].reverse() } : t)),
    );
    await expect(load(transposed)).rejects.toThrow("model.layers.0.mlp.up_proj.weight is [64,32] by config.json, got [32,64]");
  });

  test("inv_freq and a tied lm_head are skipped", async () => {
    const extras = ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"].map((name) => ({
      name,
      shape: [1],
      data: new Float32Array(1),
    }));
    await load(rewrite((all) => [...all, ...extras]));
  });

  test("an untied head is wanted", async () => {
    const untied = tinyLlama({ tie_word_embeddings: false });
    const { weights } = await loadModel(untied, recording());
    expect(weights.head).not.toBe(weights.embed);
    await expect(loadModel({ config: untied.config, weights: tiny.weights }, recording())).rejects.toThrow("none named lm_head.weight");
  });

  test("a NaN in a weight is refused", async () => {
    const damaged = rewrite((all) => all.map((t) => (t.name === "model.norm.weight" ? { ...t, data: t.data.with(3, Number.NaN) } : t)));
    await expect(load(damaged)).rejects.toThrow('values of "model.norm.weight" are finite, got NaN at element 3');
  });

  test("a config that is no JSON is refused", async () => {
    await expect(loadModel({ config: new TextEncoder().encode("<html>"), weights: tiny.weights }, recording())).rejects.toMatchObject({
      code: "bad-file",
    });
    await expect(loadModel({ config: encode({ model_type: "bert" }), weights: tiny.weights }, recording())).rejects.toMatchObject({
      code: "unsupported",
    });
  });
});

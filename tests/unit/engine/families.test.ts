import { describe, expect, test } from "vitest";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { parseConfig } from "../../../packages/engine/src/model/families.ts";
import { inverseFrequencies, ropeTable } from "../../../packages/engine/src/model/rope.ts";
import { linearShape, type ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import type { Backend, TensorData } from "../../../packages/engine/src/plan/backend.ts";
import { sizeOf, type Tensor } from "../../../packages/engine/src/plan/step.ts";
import { hashWeights } from "../../../packages/engine/src/weights/checkpoint.ts";
import { loadModel } from "../../../packages/engine/src/weights/load.ts";
import { readSafetensors, type TensorToWrite, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { sha256 } from "../../../packages/engine/src/weights/sha256.ts";
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
const recording = (): Backend & { readonly allocated: Map<string, { tensor: Tensor; data: TensorData }> } => {
  const allocated = new Map<string, { tensor: Tensor; data: TensorData }>();
  const never = (): never => {
    throw new Error("not part of loading");
  };
  return {
    allocated,
    device: { kind: "reference", description: "recording" },
    allocate: async (tensor, data) => {
      if (allocated.has(tensor.name)) throw new Error(`${tensor.name} twice`);
      allocated.set(tensor.name, { tensor, data: data ?? new Float32Array(sizeOf(tensor)) });
    },
    fill: async (tensor, words, offset = 0) => {
      const { data } = allocated.get(tensor.name)!;
      new Uint32Array(data.buffer).set(words, offset);
    },
    compile: never,
    write: never,
    read: never,
    byteLength: 0,
    dispose: async () => {},
  };
};

/** What Llama has and no switch turns on. */
const PLAIN = {
  gainOffset: 0,
  qkNorm: false,
  postNorms: false,
  biases: [],
  activation: "silu",
  embedScale: 1,
  layerKinds: [{ rope: 0 }],
} as const;

const SMOLLM2_135M = {
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0,
  bos_token_id: 1,
  eos_token_id: 2,
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
};

const LLAMA_3_2_1B = {
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  eos_token_id: [128001, 128008, 128009],
  head_dim: 64,
  hidden_act: "silu",
  hidden_size: 2048,
  intermediate_size: 8192,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: "llama",
  num_attention_heads: 32,
  num_hidden_layers: 16,
  num_key_value_heads: 8,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: { factor: 32, high_freq_factor: 4, low_freq_factor: 1, original_max_position_embeddings: 8192, rope_type: "llama3" },
  rope_theta: 500000,
  tie_word_embeddings: true,
  vocab_size: 128256,
};

const MISTRAL_7B = {
  architectures: ["MistralForCausalLM"],
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: "silu",
  hidden_size: 4096,
  intermediate_size: 14336,
  max_position_embeddings: 32768,
  model_type: "mistral",
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  sliding_window: 4096,
  tie_word_embeddings: false,
  vocab_size: 32000,
};

const QWEN2_5_0_5B = {
  architectures: ["Qwen2ForCausalLM"],
  attention_dropout: 0,
  hidden_act: "silu",
  hidden_size: 896,
  intermediate_size: 4864,
  max_position_embeddings: 32768,
  max_window_layers: 21,
  model_type: "qwen2",
  num_attention_heads: 14,
  num_hidden_layers: 24,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000,
  sliding_window: 32768,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 151936,
};

const QWEN3_0_6B = {
  architectures: ["Qwen3ForCausalLM"],
  attention_bias: false,
  head_dim: 128,
  hidden_act: "silu",
  hidden_size: 1024,
  intermediate_size: 3072,
  max_position_embeddings: 40960,
  max_window_layers: 28,
  model_type: "qwen3",
  num_attention_heads: 16,
  num_hidden_layers: 28,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 151936,
};

const isGlobal = (i: number): boolean => (i + 1) % 6 === 0;
const GEMMA_3_270M = {
  _sliding_window_pattern: 6,
  architectures: ["Gemma3ForCausalLM"],
  attention_bias: false,
  attn_logit_softcapping: null,
  final_logit_softcapping: null,
  head_dim: 256,
  hidden_activation: "gelu_pytorch_tanh",
  hidden_size: 640,
  intermediate_size: 2048,
  layer_types: Array.from({ length: 18 }, (_, i) => (isGlobal(i) ? "full_attention" : "sliding_attention")),
  max_position_embeddings: 32768,
  model_type: "gemma3_text",
  num_attention_heads: 4,
  num_hidden_layers: 18,
  num_key_value_heads: 1,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_local_base_freq: 10000,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: 512,
  use_bidirectional_attention: false,
  vocab_size: 262144,
};

/** The hub's config of a vision checkpoint: most of the text tower is left to the class's defaults. */
const GEMMA_3_4B = {
  architectures: ["Gemma3ForConditionalGeneration"],
  boi_token_index: 255999,
  mm_tokens_per_image: 256,
  model_type: "gemma3",
  text_config: {
    hidden_size: 2560,
    intermediate_size: 10240,
    model_type: "gemma3_text",
    num_hidden_layers: 34,
    rope_scaling: { factor: 8, rope_type: "linear" },
    sliding_window: 1024,
  },
  vision_config: { hidden_size: 1152, model_type: "siglip_vision_model" },
};

describe("config.json of the five families", () => {
  test("SmolLM2-135M", () => {
    expect(parseConfig(SMOLLM2_135M, "config.json")).toEqual({
      ...PLAIN,
      family: "llama",
      width: 576,
      layers: 30,
      heads: 9,
      kvHeads: 3,
      headWidth: 64,
      feedForward: 1536,
      vocab: 49152,
      maxPositions: 8192,
      normEps: 1e-5,
      attentionScale: 1 / 8,
      ropes: [{ theta: 100000 }],
      tiedHead: true,
    });
  });

  test("Llama-3.2-1B has llama3's frequencies", () => {
    expect(parseConfig(LLAMA_3_2_1B, "config.json")).toEqual({
      ...PLAIN,
      family: "llama",
      width: 2048,
      layers: 16,
      heads: 32,
      kvHeads: 8,
      headWidth: 64,
      feedForward: 8192,
      vocab: 128256,
      maxPositions: 131072,
      normEps: 1e-5,
      attentionScale: 1 / 8,
      ropes: [
        {
          theta: 500000,
          scaling: { kind: "llama3", factor: 32, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalPositions: 8192 },
        },
      ],
      tiedHead: true,
    });
  });

  test("Mistral-7B has a window on every layer, its later versions none", () => {
    expect(parseConfig(MISTRAL_7B, "config.json")).toEqual({
      ...PLAIN,
      family: "mistral",
      width: 4096,
      layers: 32,
      heads: 32,
      kvHeads: 8,
      headWidth: 128,
      feedForward: 14336,
      vocab: 32000,
      maxPositions: 32768,
      normEps: 1e-5,
      attentionScale: 128 ** -0.5,
      ropes: [{ theta: 10000 }],
      layerKinds: [{ window: 4096, rope: 0 }],
      tiedHead: false,
    });
    expect(parseConfig({ ...MISTRAL_7B, sliding_window: null }, "c").layerKinds).toEqual([{ rope: 0 }]);
    const { sliding_window, ...silent } = MISTRAL_7B;
    expect(parseConfig(silent, "c").layerKinds).toEqual([{ window: 4096, rope: 0 }]);
  });

  test("Qwen2.5-0.5B has q, k and v biases that no key names, and its window is off", () => {
    expect(parseConfig(QWEN2_5_0_5B, "config.json")).toEqual({
      ...PLAIN,
      family: "qwen2",
      width: 896,
      layers: 24,
      heads: 14,
      kvHeads: 2,
      headWidth: 64,
      feedForward: 4864,
      vocab: 151936,
      maxPositions: 32768,
      normEps: 1e-6,
      biases: ["q_proj", "k_proj", "v_proj"],
      attentionScale: 1 / 8,
      ropes: [{ theta: 1000000 }],
      tiedHead: true,
    });
  });

  test("Qwen2 and Qwen3 with use_sliding_window have it from max_window_layers on", () => {
    for (const base of [QWEN2_5_0_5B, QWEN3_0_6B]) {
      const layers = base.num_hidden_layers;
      const { layerKinds } = parseConfig({ ...base, use_sliding_window: true, sliding_window: 64, max_window_layers: 20 }, "c");
      expect(layerKinds).toEqual(Array.from({ length: layers }, (_, i) => (i < 20 ? { rope: 0 } : { window: 64, rope: 0 })));
    }
  });

  test("Qwen3-0.6B norms queries and keys, and its heads are wider than the model", () => {
    const spec = parseConfig(QWEN3_0_6B, "config.json");
    expect(spec).toEqual({
      ...PLAIN,
      family: "qwen3",
      width: 1024,
      layers: 28,
      heads: 16,
      kvHeads: 8,
      headWidth: 128,
      feedForward: 3072,
      vocab: 151936,
      maxPositions: 40960,
      normEps: 1e-6,
      qkNorm: true,
      attentionScale: 128 ** -0.5,
      ropes: [{ theta: 1000000 }],
      tiedHead: true,
    });
    expect(linearShape(spec, "q_proj")).toEqual([2048, 1024]);
    expect(linearShape(spec, "o_proj")).toEqual([1024, 2048]);
  });

  test("Gemma-3-270M: every switch", () => {
    expect(parseConfig(GEMMA_3_270M, "config.json")).toEqual({
      family: "gemma3_text",
      width: 640,
      layers: 18,
      heads: 4,
      kvHeads: 1,
      headWidth: 256,
      feedForward: 2048,
      vocab: 262144,
      maxPositions: 32768,
      normEps: 1e-6,
      gainOffset: 1,
      qkNorm: true,
      postNorms: true,
      biases: [],
      activation: "tanhGelu",
      embedScale: Math.sqrt(640),
      attentionScale: 1 / 16,
      ropes: [{ theta: 1000000 }, { theta: 10000 }],
      layerKinds: Array.from({ length: 18 }, (_, i) => (isGlobal(i) ? { rope: 0 } : { window: 512, rope: 1 })),
      tiedHead: true,
    });
  });

  test("Gemma 3 without layer_types has one global layer in sliding_window_pattern", () => {
    const { layer_types, ...rest } = GEMMA_3_270M;
    expect(parseConfig(rest, "c").layerKinds).toEqual(parseConfig(GEMMA_3_270M, "c").layerKinds);
    const { layerKinds } = parseConfig({ ...rest, sliding_window_pattern: 3 }, "c");
    expect(layerKinds.map(({ window }) => window ?? 0).slice(0, 6)).toEqual([512, 512, 0, 512, 512, 0]);
  });

  test("Gemma 3's ropes in version 5's spelling, nested by layer kind", () => {
    const { rope_theta, rope_local_base_freq, rope_scaling, ...rest } = GEMMA_3_270M;
    const rope_parameters = {
      full_attention: { rope_type: "linear", factor: 8, rope_theta: 2e6 },
      sliding_attention: { rope_type: "default", rope_theta: 5e3 },
    };
    expect(parseConfig({ ...rest, rope_parameters }, "c").ropes).toEqual([
      { theta: 2e6, scaling: { kind: "linear", factor: 8 } },
      { theta: 5e3 },
    ]);
    // A null base is an absent one: the keys of version 4, then the class's defaults.
    const silent = { full_attention: { rope_theta: null }, sliding_attention: { rope_theta: null } };
    expect(parseConfig({ ...rest, rope_parameters: silent, rope_theta: 3e6, rope_local_base_freq: 7 }, "c").ropes).toEqual([
      { theta: 3e6 },
      { theta: 7 },
    ]);
    expect(parseConfig({ ...rest, rope_parameters: silent }, "c").ropes).toEqual([{ theta: 1e6 }, { theta: 1e4 }]);
    expect(failure(() => parseConfig({ ...rest, rope_parameters: { rope_theta: 1e6 } }, "c")).message).toContain("full_attention");
  });

  test("the text_config of a vision checkpoint is read, and scales only the global layers", () => {
    expect(parseConfig(GEMMA_3_4B, "config.json")).toMatchObject({
      family: "gemma3_text",
      width: 2560,
      layers: 34,
      heads: 8,
      kvHeads: 4,
      headWidth: 256,
      vocab: 262208,
      maxPositions: 131072,
      attentionScale: 1 / 16,
      ropes: [{ theta: 1e6, scaling: { kind: "linear", factor: 8 } }, { theta: 1e4 }],
      tiedHead: true,
    });
    const quantised = { ...GEMMA_3_4B, quantization_config: { bits: 4 } };
    expect(failure(() => parseConfig(quantised, "c")).message).toContain("quantization_config is absent");
  });

  test("absent keys take the defaults of each family's class", () => {
    const shape = (spec: ModelSpec) => [spec.width, spec.layers, spec.heads, spec.kvHeads, spec.headWidth, spec.feedForward];
    const read = (model_type: string): ModelSpec => parseConfig({ model_type, rope_theta: 10000 }, "c");
    expect(shape(read("llama"))).toEqual([4096, 32, 32, 32, 128, 11008]);
    expect(shape(read("mistral"))).toEqual([4096, 32, 32, 8, 128, 14336]);
    expect(shape(read("qwen2"))).toEqual([4096, 32, 32, 32, 128, 22016]);
    expect(shape(read("qwen3"))).toEqual([4096, 32, 32, 32, 128, 22016]);
    expect(shape(read("gemma3_text"))).toEqual([2304, 26, 8, 4, 256, 9216]);
    expect(read("llama")).toMatchObject({ vocab: 32000, normEps: 1e-6, tiedHead: false, maxPositions: 2048 });
    expect(read("gemma3_text")).toMatchObject({ vocab: 262208, tiedHead: true, maxPositions: 131072 });
  });

  test("rope's base is read in the spellings of transformers 4 and 5, and never assumed", () => {
    const { rope_theta, ...rest } = TINY_CONFIG;
    expect(parseConfig({ ...rest, rope_theta: 5 }, "c").ropes).toEqual([{ theta: 5 }]);
    expect(parseConfig({ ...rest, rope_parameters: { rope_type: "default", rope_theta: 7 } }, "c").ropes).toEqual([{ theta: 7 }]);
    for (const model_type of ["llama", "mistral", "qwen2", "qwen3"])
      expect(failure(() => parseConfig({ ...rest, model_type }, "c")).message).toContain("rope_theta");
    expect(failure(() => parseConfig({ ...rest, rope_parameters: { rope_theta: null } }, "c")).code).toBe("bad-file");
  });

  test("llama3's numbers are read in both spellings, and none of them is assumed", () => {
    const { rope_theta, rope_scaling, ...rest } = LLAMA_3_2_1B;
    const { ropes } = parseConfig({ ...rest, rope_parameters: { ...rope_scaling, rope_theta } }, "c");
    expect(ropes).toEqual(parseConfig(LLAMA_3_2_1B, "c").ropes);
    for (const key of ["factor", "low_freq_factor", "high_freq_factor"]) {
      const error = failure(() => parseConfig({ ...LLAMA_3_2_1B, rope_scaling: { ...rope_scaling, [key]: undefined } }, "c"));
      expect(error.message).toContain(`${key} of the rope parameters is a positive number, got nothing`);
    }
  });

  test("attention_bias and mlp_bias are biases of the linears that the class gives them", () => {
    const biases = (model_type: string) => parseConfig({ ...TINY_CONFIG, model_type, attention_bias: true, mlp_bias: true }, "c").biases;
    expect(biases("llama")).toEqual(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    expect(biases("qwen3")).toEqual(["q_proj", "k_proj", "v_proj", "o_proj"]);
    expect(biases("mistral")).toEqual([]);
  });

  test("head_dim wins over hidden_size / heads", () => {
    expect(parseConfig({ ...TINY_CONFIG, head_dim: 16 }, "c").headWidth).toBe(16);
  });

  const foreign: [string, object, string][] = [
    ["another family", { model_type: "phi3" }, 'got "phi3"; known: llama, mistral, qwen2, qwen3, gemma3_text'],
    ["no family", { model_type: undefined }, "known: llama"],
    ["a vision tower without a text config", { vision_config: {} }, "vision_config stands beside a text_config"],
    ["yarn's rope scaling under its old key", { rope_scaling: { type: "yarn", factor: 4 } }, 'got "yarn"'],
    ["a dynamic rope", { rope_parameters: { rope_type: "dynamic", rope_theta: 1e4 } }, 'got "dynamic"'],
    ["longrope", { rope_scaling: { rope_type: "longrope" } }, 'got "longrope"'],
    ["rope over a part of the head", { partial_rotary_factor: 0.5 }, "partial_rotary_factor is absent or 1 or null, got 0.5"],
    ["a quantised checkpoint", { quantization_config: { bits: 4 } }, 'quantization_config is absent or null, got {"bits":4}'],
    ["experts", { num_local_experts: 8 }, "num_local_experts"],
    ["softcapping", { model_type: "gemma3_text", final_logit_softcapping: 30 }, "final_logit_softcapping is absent or null, got 30"],
    ["bidirectional attention", { model_type: "gemma3_text", use_bidirectional_attention: true }, "use_bidirectional_attention"],
    ["a window in Llama", { sliding_window: 64 }, "sliding_window is absent or null, got 64"],
    ["another activation", { hidden_act: "gelu" }, 'hidden_act is one of silu, swish, gelu_pytorch_tanh, got "gelu"'],
    ["chunked attention", { model_type: "qwen3", layer_types: ["full_attention", "chunked_attention"] }, 'got "chunked_attention"'],
    [
      "mixed layers under Mistral's name",
      { model_type: "mistral", sliding_window: 8, layer_types: ["full_attention", "sliding_attention"] },
      "layer_types agrees with sliding_window (8) in mistral",
    ],
    ["widths that the kernels cannot take", { hidden_size: 36, head_dim: 16 }, "hidden_size is a multiple of 32, got 36"],
    ["an odd head width", { head_dim: 9 }, "head_dim is even"],
  ];
  test.each(foreign)("%s is refused with key and value", (_, overrides, message) => {
    const error = failure(() => parseConfig({ ...TINY_CONFIG, ...overrides }, "config.json"));
    expect(error).toBeInstanceOf(EngineError);
    expect(error.message).toContain(message);
    expect(error.code).toBe("unsupported");
  });

  const broken: [string, unknown, string][] = [
    ["a list", [], "config.json is an object"],
    ["a width that is text", { ...TINY_CONFIG, hidden_size: "32" }, 'hidden_size: is of type number, got "32"'],
    ["no layers", { ...TINY_CONFIG, num_hidden_layers: 0 }, "num_hidden_layers"],
    ["KV heads that do not divide the heads", { ...TINY_CONFIG, num_key_value_heads: 3 }, "divides num_attention_heads (4), got 3"],
    ["heads that do not divide the width", { ...TINY_CONFIG, num_attention_heads: 5, num_key_value_heads: 5 }, "add head_dim"],
    [
      "layer_types of another length",
      { ...GEMMA_3_270M, layer_types: ["full_attention"] },
      "layer_types has num_hidden_layers (18) entries, got 1",
    ],
    ["windowed layers without a window", { ...GEMMA_3_270M, sliding_window: null }, "sliding_window is a number where layers are windowed"],
    [
      "windowed layers whose window is switched off",
      { ...QWEN3_0_6B, num_hidden_layers: 1, layer_types: ["sliding_attention"], sliding_window: 8 },
      "sliding_window is a number where layers are windowed",
    ],
  ];
  test.each(broken)("%s is a bad file", (_, json, message) => {
    const error = failure(() => parseConfig(json, "config.json"));
    expect(error.message).toContain(message);
    expect(error.code).toBe("bad-file");
  });
});

describe("rotary frequencies", () => {
  test("linear scaling divides every one", () => {
    expect([...inverseFrequencies(4, { theta: 100, scaling: { kind: "linear", factor: 8 } })]).toEqual([1 / 8, 0.1 / 8]);
  });

  test("llama3 keeps short wavelengths, divides long ones and mixes between", () => {
    const scaling = { kind: "llama3", factor: 32, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalPositions: 8192 } as const;
    const [plain, scaled] = [{ theta: 500000 }, { theta: 500000, scaling }].map((rope) => inverseFrequencies(64, rope));
    const ratio = Array.from(scaled!, (frequency, i) => frequency / plain![i]!);
    expect(ratio.slice(0, 15).every((value) => value === 1)).toBe(true);
    expect(ratio.slice(18).every((value) => Math.abs(value - 1 / 32) < 1e-15)).toBe(true);
    // Pair 16: 8192·500000^−½/2π = 1.8439 turns, between 1 and 4: (1 − t)/32 + t with t = 0.8439/3.
    expect(ratio[16]).toBeCloseTo(0.30375, 4);
    expect(ratio[15]! > ratio[16]! && ratio[16]! > ratio[17]!).toBe(true);
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
      expect(backend.allocated.get("rope.0")!.tensor.shape).toEqual([rows, 8]);
    }
  });

  test("rope's table holds cos and sin of position · theta^(−2i/C)", () => {
    const table = ropeTable(4, 4, { theta: 10000 });
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

  /** Two shards and their index. */
  const sharded = (change: (map: Record<string, string>) => void = () => {}): Record<string, Uint8Array> => {
    const names = [...readSafetensors(tiny.weights, "m").tensors.keys()];
    const shards = [0, 1].map((half) => `model-0000${half + 1}-of-00002.safetensors`);
    const half = (place: number): number => (place < names.length / 2 ? 0 : 1);
    const weight_map = Object.fromEntries(names.map((name, place) => [name, shards[half(place)]!]));
    change(weight_map);
    return {
      ...Object.fromEntries(shards.map((file, i) => [file, rewrite((all) => all.filter((_, place) => half(place) === i))])),
      "model.safetensors.index.json": encode({ metadata: { total_size: 1 }, weight_map }),
    };
  };

  test("shards load like one file, and other files beside them are not looked at", async () => {
    const [whole, parts, alone] = [recording(), recording(), recording()];
    await loadModel(tiny, whole);
    await loadModel({ config: tiny.config, weights: { ...sharded(), "consolidated.safetensors": new Uint8Array(3) } }, parts);
    await loadModel({ config: tiny.config, weights: { "model.safetensors": tiny.weights } }, alone);
    expect(parts.allocated).toEqual(whole.allocated);
    expect(alone.allocated).toEqual(whole.allocated);
  });

  test("the hash of a file does not depend on how it was passed; that of shards counts every shard and nothing else", async () => {
    expect(await hashWeights({ "model.safetensors": tiny.weights })).toBe(await hashWeights(tiny.weights));
    const hash = await hashWeights(sharded());
    expect(await hashWeights({ ...sharded(), "consolidated.safetensors": new Uint8Array(3) })).toBe(hash);
    const [first, second] = Object.keys(sharded()) as [string, string];
    const lines = await Promise.all([first, second].map(async (file) => `${await sha256(sharded()[file]!)}  ${file}\n`));
    expect(hash).toBe(await sha256(new TextEncoder().encode(lines.join(""))));
  });

  test("index and shards that disagree are refused", async () => {
    const { config } = tiny;
    const loadShards = (weights: Record<string, Uint8Array>): Promise<unknown> => loadModel({ config, weights }, recording());
    const [first, second] = Object.keys(sharded()) as [string, string];
    const { [second]: dropped, ...incomplete } = sharded();
    await expect(loadShards(incomplete)).rejects.toThrow(`every file of weight_map is there, got no ${second}`);
    const { "model.safetensors.index.json": index, ...bare } = sharded();
    await expect(loadShards(bare)).rejects.toThrow("model.safetensors.index.json: it stands beside the shards");
    const moved = sharded((map) => {
      map["model.embed_tokens.weight"] = map["model.embed_tokens.weight"] === first ? second : first;
    });
    await expect(loadShards(moved)).rejects.toThrow(/model\.embed_tokens\.weight lies in model-0000[12]-of-00002\.safetensors, got model-/);
    const unlisted = sharded((map) => {
      delete map["model.norm.weight"];
    });
    await expect(loadShards(unlisted)).rejects.toThrow("weight_map names every tensor of the shards, got none of model.norm.weight");
    const twice = { ...sharded(), [second]: tiny.weights };
    await expect(loadShards(twice)).rejects.toThrow("each tensor lies in one shard");
  });

  test.each([
    ["language_model.model.", "language_model.lm_head.weight", "vision_tower.a"],
    ["model.language_model.", "lm_head.weight", "model.vision_tower.a"],
  ])("the text tower of a vision checkpoint under %s loads, the rest is skipped", async (prefix, head, vision) => {
    const untied = tinyLlama({ tie_word_embeddings: false });
    const [plain, inTower] = [recording(), recording()];
    await loadModel(untied, plain);
    const stored = [...readSafetensors(untied.weights, "m").tensors.values()];
    const renamed = writeSafetensors([
      ...stored.map((tensor) => ({
        name: tensor.name === "lm_head.weight" ? head : tensor.name.replace(/^model\./, prefix),
        shape: tensor.shape,
        data: toFloat32(tensor, "m"),
      })),
      { name: vision, shape: [2], data: new Float32Array(2) },
    ]);
    await loadModel({ config: untied.config, weights: renamed }, inTower);
    expect(inTower.allocated).toEqual(plain.allocated);
    // In a plain text checkpoint the same tensor is unknown.
    await expect(load(rewrite((all) => [...all, { name: vision, shape: [2], data: new Float32Array(2) }]))).rejects.toThrow(vision);
  });

  test("Gemma 3's gains are stored as differences from 1, its other tensors are not", async () => {
    const gemma = tinyLlama({ model_type: "gemma3_text", head_dim: 8, query_pre_attn_scalar: 8 });
    const backend = recording();
    await loadModel(gemma, backend);
    const stored = readSafetensors(gemma.weights, "m").tensors;
    const norms = [...stored.keys()].filter((name) => name.endsWith("norm.weight"));
    expect(norms).toHaveLength(2 * 6 + 1);
    for (const [name, tensor] of stored) {
      const [values, offset] = [toFloat32(tensor, "m"), norms.includes(name) ? 1 : 0];
      expect(backend.allocated.get(name)!.data, name).toEqual(values.map((value) => value + offset));
    }
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

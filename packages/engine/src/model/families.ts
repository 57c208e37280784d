// config.json → ModelSpec. It reads what the reference class of transformers reads, with that class's defaults, in the spellings
// of transformers 4 and 5, and refuses by key and value whatever this engine does not have. Weights are not its business:
// weights/load.ts.

import * as z from "zod/mini";
import { EngineError } from "../errors.ts";
import type { Activation } from "../plan/step.ts";
import { amount, checkShape, count, positive } from "../schema.ts";
import { DEFAULTS, GEMMA_THETA } from "./configDefaults.ts";
import { FAMILIES, type Family, type LayerKind, type LinearName, type ModelSpec, type RopeSpec } from "./spec.ts";

const record = z.nullish(z.record(z.string(), z.unknown()));

/** Every key that some family reads. An absent one was filled from DEFAULTS before. */
const schema = z.object({
  hidden_size: positive,
  num_hidden_layers: positive,
  num_attention_heads: positive,
  num_key_value_heads: z.nullish(positive),
  head_dim: z.nullish(positive),
  intermediate_size: positive,
  vocab_size: positive,
  max_position_embeddings: positive,
  rms_norm_eps: amount,
  tie_word_embeddings: z.boolean(),
  hidden_act: z._default(z.string(), "silu"),
  hidden_activation: z._default(z.string(), "gelu_pytorch_tanh"),
  attention_bias: z.nullish(z.boolean()),
  mlp_bias: z.nullish(z.boolean()),
  query_pre_attn_scalar: z.nullish(amount),
  sliding_window: z.nullish(positive),
  use_sliding_window: z.nullish(z.boolean()),
  max_window_layers: z._default(count, 28),
  sliding_window_pattern: z._default(positive, 6),
  layer_types: z.nullish(z.array(z.string())),
  rope_theta: z.nullish(amount),
  rope_local_base_freq: z.nullish(amount),
  rope_scaling: record,
  rope_parameters: record,
});
type Config = z.infer<typeof schema>;

const QKV: readonly LinearName[] = ["q_proj", "k_proj", "v_proj"];
/** Which linears have a bias. Qwen2 has no key for it; Mistral has none. */
const biasesOf = (family: Family, config: Config): readonly LinearName[] => {
  if (family === "qwen2") return QKV;
  if (family === "mistral") return [];
  const attention: readonly LinearName[] = config.attention_bias ? [...QKV, "o_proj"] : [];
  const hasMlpBias = family === "llama" && config.mlp_bias;
  return hasMlpBias ? [...attention, "gate_proj", "up_proj", "down_proj"] : attention;
};

const ACTIVATIONS: Readonly<Record<string, Activation>> = { silu: "silu", swish: "silu", gelu_pytorch_tanh: "tanhGelu" };

/** Keys that change the network, with the only values under which it is still one of ours. Absent always passes. */
const REQUIRED: readonly { readonly key: string; readonly passes: readonly unknown[]; readonly feature: string }[] = [
  { key: "quantization_config", passes: [null], feature: "no quantised checkpoint; take the unquantised one" },
  { key: "num_experts", passes: [null, 0, 1], feature: "no mixture of experts" },
  { key: "num_local_experts", passes: [null, 0, 1], feature: "no mixture of experts" },
  { key: "final_logit_softcapping", passes: [null], feature: "no softcapping" },
  { key: "attn_logit_softcapping", passes: [null], feature: "no softcapping" },
  { key: "use_bidirectional_attention", passes: [false, null], feature: "only causal attention" },
  { key: "partial_rotary_factor", passes: [1, null], feature: "only rope over the whole head" },
];
/** The reference class of these families does not read the key, but a checkpoint that sets it means something by it. */
const REQUIRED_OF: { readonly [F in Family]?: typeof REQUIRED } = {
  llama: [{ key: "sliding_window", passes: [null], feature: "no attention window in this family" }],
};

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

type Fail = (rule: string, got: unknown, advice: string) => EngineError;
interface Failures {
  /** The config contradicts itself. */
  readonly bad: Fail;
  /** It describes another network. */
  readonly unsupported: Fail;
}

/** One set of rope parameters; `theta` where they hold none. The type's old key is `type`. */
const ropeOf = (
  parameters: Record<string, unknown>,
  theta: number | undefined,
  config: Config,
  { bad, unsupported }: Failures,
): RopeSpec => {
  const type = parameters.rope_type ?? parameters.type ?? "default";
  const number = (key: string, absent?: number | undefined): number => {
    const value = parameters[key] ?? absent;
    if (typeof value !== "number" || !(value > 0))
      throw bad(`${key} of the rope parameters is a positive number`, value, "add it to config.json");
    return value;
  };
  const factor = parameters.partial_rotary_factor ?? 1;
  if (factor !== 1) throw unsupported("partial_rotary_factor is absent or 1", factor, "this engine has only rope over the whole head");
  if (type !== "default" && type !== "linear" && type !== "llama3")
    throw unsupported('the rope type is "default", "linear" or "llama3"', type, "this engine has no other rope scaling");
  const base = number("rope_theta", theta);
  if (type === "default") return { theta: base };
  if (type === "linear") return { theta: base, scaling: { kind: "linear", factor: number("factor") } };
  const [low, high] = [number("low_freq_factor"), number("high_freq_factor")];
  if (!(low < high)) throw bad("low_freq_factor < high_freq_factor", [low, high], "the config is damaged; download it again");
  return {
    theta: base,
    scaling: {
      kind: "llama3",
      factor: number("factor"),
      lowFrequencyFactor: low,
      highFrequencyFactor: high,
      originalPositions: number("original_max_position_embeddings", config.max_position_embeddings),
    },
  };
};

/**
 * transformers 4: rope_theta, rope_scaling. Version 5: rope_parameters, which Gemma 3 nests by layer kind.
 * Gemma 3 has two (all layers, then the windowed ones) and scales only the first; the others have one.
 */
const ropesOf = (family: Family, config: Config, failures: Failures): readonly RopeSpec[] => {
  const { rope_theta: theta, rope_scaling: scaling, rope_parameters: parameters } = config;
  if (family !== "gemma3_text") {
    const ofParameters = typeof parameters?.rope_theta === "number" ? parameters.rope_theta : undefined;
    return [ropeOf(scaling ?? parameters ?? {}, theta ?? ofParameters, config, failures)];
  }
  const nested = parameters ?? {};
  if (parameters && Object.keys(nested).length > 0 && !("full_attention" in nested || "sliding_attention" in nested))
    throw failures.bad("rope_parameters holds full_attention and sliding_attention", parameters, "nest it as Gemma3TextConfig does");
  const [full, sliding] = [nested.full_attention ?? {}, nested.sliding_attention ?? {}];
  if (!isRecord(full) || !isRecord(sliding))
    throw failures.bad("full_attention and sliding_attention of rope_parameters are objects", parameters, "download the config again");
  return [
    ropeOf({ ...full, ...scaling }, theta ?? GEMMA_THETA.global, config, failures),
    ropeOf(sliding, config.rope_local_base_freq ?? GEMMA_THETA.local, config, failures),
  ];
};

/** Whether layer i is windowed when layer_types is absent. */
const isWindowed = (family: Family, config: Config, i: number): boolean => {
  if (family === "llama") return false;
  if (family === "mistral") return config.sliding_window != null;
  if (family === "gemma3_text") return (i + 1) % config.sliding_window_pattern !== 0;
  return config.use_sliding_window === true && config.sliding_window != null && i >= config.max_window_layers;
};

const layerKindsOf = (family: Family, config: Config, { bad, unsupported }: Failures): readonly LayerKind[] => {
  const { layer_types: types, num_hidden_layers: layers } = config;
  // A window that is switched off does not exist, whatever its number.
  const isOff = (family === "qwen2" || family === "qwen3") && config.use_sliding_window !== true;
  const window = isOff ? undefined : (config.sliding_window ?? undefined);
  if (types && types.length !== layers)
    throw bad(`layer_types has num_hidden_layers (${layers}) entries`, types.length, "the config is damaged; download it again");
  const kinds = Array.from({ length: layers }, (_, i): LayerKind => {
    const type = types?.[i] ?? (isWindowed(family, config, i) ? "sliding_attention" : "full_attention");
    if (type !== "sliding_attention" && type !== "full_attention")
      throw unsupported("layer_types holds full_attention and sliding_attention", type, "this engine has no other attention");
    const isSliding = type === "sliding_attention";
    // Llama's and Mistral's classes ignore layer_types; a checkpoint that mixes kinds under their name is another network.
    if ((family === "llama" || family === "mistral") && isSliding !== isWindowed(family, config, i))
      throw unsupported(
        `layer_types agrees with sliding_window (${config.sliding_window ?? null}) in ${family}`,
        type,
        "it is another family",
      );
    if (isSliding && window === undefined)
      throw bad("sliding_window is a number where layers are windowed", config.sliding_window ?? null, "add it, or use_sliding_window");
    return { ...(isSliding && window !== undefined && { window }), rope: isSliding && family === "gemma3_text" ? 1 : 0 };
  });
  const first = kinds[0]!;
  return kinds.every(({ window: w, rope }) => w === first.window && rope === first.rope) ? [first] : kinds;
};

/** Checkpoints of vision models keep the language model's config under text_config. */
const textConfigOf = (json: Record<string, unknown>): Record<string, unknown> => {
  if (!isRecord(json.text_config)) return json;
  const { tie_word_embeddings, quantization_config } = json;
  return {
    ...(tie_word_embeddings !== undefined && { tie_word_embeddings }),
    ...(quantization_config !== undefined && { quantization_config }),
    ...json.text_config,
  };
};

/**
 * `json` is the parsed config.json, `file` its name for messages.
 * Throws EngineError("bad-file") for a config that contradicts itself, EngineError("unsupported") for one of another network.
 */
export const parseConfig = (json: unknown, file: string): ModelSpec => {
  const fail =
    (code: "bad-file" | "unsupported"): Fail =>
    (rule, got, advice) =>
      new EngineError(code, `${file}: ${rule}, got ${JSON.stringify(got) ?? "nothing"}; ${advice}`);
  const failures: Failures = { bad: fail("bad-file"), unsupported: fail("unsupported") };
  const { bad, unsupported } = failures;

  if (!isRecord(json)) throw bad("config.json is an object", json, "pass the config.json of a Hugging Face model folder");
  const text = textConfigOf(json);
  const family = FAMILIES.find((known) => known === text.model_type);
  if (!family) throw unsupported("model_type is a family that this engine has", text.model_type, `known: ${FAMILIES.join(", ")}`);
  if (text === json && isRecord(json.vision_config))
    throw unsupported("vision_config stands beside a text_config", Object.keys(json.vision_config), "this engine has no vision tower");
  for (const { key, passes, feature } of [...REQUIRED, ...(REQUIRED_OF[family] ?? [])]) {
    if (text[key] !== undefined && !passes.includes(text[key]))
      throw unsupported(
        `${key} is absent or ${passes.map((value) => JSON.stringify(value)).join(" or ")}`,
        text[key],
        `this engine has ${feature}`,
      );
  }

  const { data: config, issue } = checkShape(schema, { ...DEFAULTS[family], ...text });
  if (issue) {
    const got = issue.path.reduce<unknown>((value, key) => (isRecord(value) ? value[String(key)] : undefined), text);
    throw bad(`${issue.path.join(".")}: ${issue.message}`, got, "the config is damaged; download it again");
  }
  const width = config.hidden_size;
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  const headWidth = config.head_dim ?? width / heads;
  const isGemma = family === "gemma3_text";
  const activationKey = isGemma ? "hidden_activation" : "hidden_act";
  const activation = ACTIVATIONS[config[activationKey]];
  if (!activation)
    throw unsupported(
      `${activationKey} is one of ${Object.keys(ACTIVATIONS).join(", ")}`,
      config[activationKey],
      "this engine has no other",
    );
  if (heads % kvHeads !== 0)
    throw bad(`num_key_value_heads divides num_attention_heads (${heads})`, kvHeads, "the config is damaged; download it again");
  if (!Number.isInteger(headWidth))
    throw bad(`hidden_size (${width}) is a multiple of num_attention_heads where head_dim is absent`, heads, "add head_dim to config.json");
  if (headWidth % 2 !== 0) throw unsupported("head_dim is even (rope turns pairs)", headWidth, "this engine has no odd head width");

  const widths = {
    hidden_size: width,
    intermediate_size: config.intermediate_size,
    "query width (heads × head_dim)": heads * headWidth,
    "key width (KV heads × head_dim)": kvHeads * headWidth,
  };
  for (const [key, value] of Object.entries(widths)) {
    if (value % 32 !== 0)
      throw unsupported(`${key} is a multiple of 32`, value, "the kernels of this engine need it; take a model whose widths are");
  }
  return {
    family,
    width,
    layers: config.num_hidden_layers,
    heads,
    kvHeads,
    headWidth,
    feedForward: config.intermediate_size,
    vocab: config.vocab_size,
    maxPositions: config.max_position_embeddings,
    normEps: config.rms_norm_eps,
    gainOffset: isGemma ? 1 : 0,
    qkNorm: isGemma || family === "qwen3",
    postNorms: isGemma,
    biases: biasesOf(family, config),
    activation,
    // transformers rounds √D to the weights' dtype (25.25 for 25.298 in bfloat16, D = 640); this engine computes in f32.
    embedScale: isGemma ? Math.sqrt(width) : 1,
    attentionScale: (isGemma ? (config.query_pre_attn_scalar ?? headWidth) : headWidth) ** -0.5,
    ropes: ropesOf(family, config, failures),
    layerKinds: layerKindsOf(family, config, failures),
    tiedHead: config.tie_word_embeddings,
  };
};

// config.json → ModelSpec. It reads what the reference class of transformers reads, with that class's defaults, and
// refuses by key and value whatever this engine does not have. Weights are not its business: weights/load.ts.

import * as z from "zod";
import { EngineError } from "../errors.ts";
import type { ModelSpec } from "./spec.ts";

const FAMILIES: readonly ModelSpec["family"][] = ["llama"];

const positive = z.int().positive();
const nullable = <T extends z.ZodType>(schema: T): z.ZodOptional<z.ZodNullable<T>> => schema.nullable().optional();

/** LlamaConfig of transformers 4 and 5. rope_theta has no default here: 10 000 by silence has ruined many a port. */
const llamaSchema = z.object({
  hidden_size: positive.default(4096),
  num_hidden_layers: positive.default(32),
  num_attention_heads: positive.default(32),
  num_key_value_heads: nullable(positive),
  head_dim: nullable(positive),
  intermediate_size: positive.default(11008),
  vocab_size: positive.default(32000),
  max_position_embeddings: positive.default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(false),
  rope_theta: nullable(z.number().positive()),
  rope_parameters: nullable(z.object({ rope_theta: nullable(z.number().positive()) })),
});

/** Keys that change the network, with the only values under which it is still this one. Absent always passes. */
const REQUIRED: readonly { readonly key: string; readonly passes: readonly unknown[]; readonly feature: string }[] = [
  { key: "quantization_config", passes: [null], feature: "no quantised checkpoint; take the unquantised one" },
  { key: "num_experts", passes: [null, 0, 1], feature: "no mixture of experts" },
  { key: "num_local_experts", passes: [null, 0, 1], feature: "no mixture of experts" },
  { key: "attention_bias", passes: [false, null], feature: "no bias in attention" },
  { key: "mlp_bias", passes: [false, null], feature: "no bias in the MLP" },
  { key: "hidden_act", passes: ["silu", "swish"], feature: "only the silu activation" },
  { key: "sliding_window", passes: [null], feature: "no attention window" },
  { key: "final_logit_softcapping", passes: [null], feature: "no softcapping" },
  { key: "attn_logit_softcapping", passes: [null], feature: "no softcapping" },
  { key: "use_bidirectional_attention", passes: [false, null], feature: "only causal attention" },
];

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

/** rope_type, under its old name too: `type`. */
const ropeTypeOf = (scaling: unknown): unknown => (isRecord(scaling) ? (scaling.rope_type ?? scaling.type ?? "default") : "default");

/**
 * `json` is the parsed config.json, `file` its name for messages.
 * Throws EngineError("bad-file") for a config that contradicts itself, EngineError("unsupported") for one of another network.
 */
export const parseConfig = (json: unknown, file: string): ModelSpec => {
  const bad = (rule: string, got: unknown, advice: string): EngineError =>
    new EngineError("bad-file", `${file}: ${rule}, got ${JSON.stringify(got) ?? "nothing"}; ${advice}`);
  const unsupported = (rule: string, got: unknown, advice: string): EngineError =>
    new EngineError("unsupported", `${file}: ${rule}, got ${JSON.stringify(got) ?? "nothing"}; ${advice}`);

  if (!isRecord(json)) throw bad("config.json is an object", json, "pass the config.json of a Hugging Face model folder");
  if (!FAMILIES.some((family) => family === json.model_type))
    throw unsupported("model_type is a family that this engine has", json.model_type, `known: ${FAMILIES.join(", ")}`);
  for (const { key, passes, feature } of REQUIRED) {
    if (json[key] !== undefined && !passes.includes(json[key]))
      throw unsupported(
        `${key} is absent or ${passes.map((value) => JSON.stringify(value)).join(" or ")}`,
        json[key],
        `this engine has ${feature}`,
      );
  }
  for (const key of ["rope_scaling", "rope_parameters"]) {
    if (ropeTypeOf(json[key]) !== "default")
      throw unsupported(
        `the rope type of ${key} is "default"`,
        ropeTypeOf(json[key]),
        "this engine has no rope scaling; take a model without it",
      );
  }

  const parsed = llamaSchema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const got = issue.path.reduce<unknown>((value, key) => (isRecord(value) ? value[String(key)] : undefined), json);
    throw bad(`${issue.path.join(".")}: ${issue.message}`, got, "the config is damaged; download it again");
  }
  const config = parsed.data;
  const width = config.hidden_size;
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  const headWidth = config.head_dim ?? width / heads;
  const ropeTheta = config.rope_parameters?.rope_theta ?? config.rope_theta ?? undefined;
  if (ropeTheta === undefined) throw bad("rope_theta or rope_parameters.rope_theta is a number", undefined, "add it to config.json");
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
    family: "llama",
    width,
    layers: config.num_hidden_layers,
    heads,
    kvHeads,
    headWidth,
    feedForward: config.intermediate_size,
    vocab: config.vocab_size,
    normEps: config.rms_norm_eps,
    ropeTheta,
    tiedHead: config.tie_word_embeddings,
    maxPositions: config.max_position_embeddings,
  };
};

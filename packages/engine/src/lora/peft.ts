// The adapter as a PEFT directory (huggingface/peft, checkpoint format): plain LoRA of one rank on the linear layers of
// the blocks, plus a sidecar that says which base it belongs to. PEFT → here → PEFT gives the same bytes of weights.
//
//   adapter_model.safetensors   base_model.model.model.layers.{i}.{block}.{linear}.lora_A.weight [R, I], …lora_B.weight [O, R]
//   adapter_config.json         what PEFT's LoraConfig writes
//   fulgurite.json              sidecarSchema below, formatVersion 1
//
// Left out: DoRA, modules_to_save, bias, embeddings and head. No loader takes all of them, and the engine trains none.

import * as z from "zod/mini";
import type { PeftFiles } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { LINEARS, type LinearName, type LoraSpec, moduleOf } from "../model/spec.ts";
import type { LoraTensors } from "../model/tensors.ts";
import { amount, checkShape, count, positive } from "../schema.ts";
import { parseJson } from "../weights/json.ts";
import { readSafetensors, type Safetensors, type TensorToWrite, toFloat32, writeSafetensors } from "../weights/safetensors.ts";
import { sha256 } from "../weights/sha256.ts";
import type { AdapterBase } from "./base.ts";
import { partOf } from "./init.ts";

const WEIGHTS = "adapter_model.safetensors";
const CONFIG = "adapter_config.json";
const SIDECAR = "fulgurite.json";
const FORMAT_VERSION = 1;

/** An adapter's numbers with what is needed to read them. `values` is the flat buffer that `layout` describes. */
export interface Adapter {
  readonly values: Float32Array;
  readonly layout: LoraTensors;
  readonly lora: LoraSpec;
  readonly base: AdapterBase;
}

export interface ExportOptions {
  readonly adapterVersion: number;
  /** Optimiser steps taken. */
  readonly step: number;
  readonly dtype?: "F32" | "F16";
}

const sidecarSchema = z.object({
  formatVersion: z.literal(FORMAT_VERSION),
  base: z.object({
    name: z.nullable(z.string()),
    configSha256: z.string(),
    weightsSha256: z.string(),
    tokenizerSha256: z.optional(z.string()),
  }),
  adapterVersion: count,
  step: count,
  dtype: z.enum(["F32", "F16", "BF16"]),
  /** Of adapter_model.safetensors. */
  sha256: z.string(),
});

const scales = z.record(z.string(), amount);
const configSchema = z.object({
  peft_type: z.literal("LORA"),
  r: positive,
  lora_alpha: amount,
  // PEFT's own default is q and v only, so an absent list is not guessed.
  target_modules: z.array(z.string()),
  rank_pattern: z.nullish(scales),
  alpha_pattern: z.nullish(scales),
  use_rslora: z.nullish(z.boolean()),
});

/** Keys that change what the adapter computes, with the values under which it is plain LoRA. Absent and null always pass. */
const PLAIN: readonly { readonly key: string; readonly passes: readonly unknown[]; readonly feature: string }[] = [
  { key: "use_dora", passes: [false], feature: "DoRA" },
  { key: "use_qalora", passes: [false], feature: "QALoRA" },
  { key: "modules_to_save", passes: [], feature: "fully trained modules" },
  { key: "bias", passes: ["none"], feature: "trained biases" },
  { key: "lora_bias", passes: [false], feature: "trained biases" },
  { key: "fan_in_fan_out", passes: [false], feature: "transposed weights" },
  { key: "layers_to_transform", passes: [], feature: "adapters on some layers only" },
  { key: "layer_replication", passes: [], feature: "replicated layers" },
  { key: "trainable_token_indices", passes: [], feature: "trained embeddings" },
  { key: "target_parameters", passes: [], feature: "adapters on bare parameters" },
  { key: "alora_invocation_tokens", passes: [], feature: "activated LoRA" },
];

const isEmpty = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  (Array.isArray(value) && value.length === 0) ||
  (typeof value === "object" && Object.keys(value).length === 0);

const moduleName = (layer: number, linear: LinearName): string => `model.layers.${layer}.${moduleOf(linear)}.${linear}`;

/** Name of A or B of one linear layer in adapter_model.safetensors. */
export const peftName = (layer: number, linear: LinearName, half: "A" | "B"): string =>
  `base_model.model.${moduleName(layer, linear)}.lora_${half}.weight`;

const toJson = (value: object): Uint8Array => new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);

/** Writes the three files. F32 unless asked otherwise: training continues from exactly these numbers. */
export const toPeft = async ({ values, layout, lora, base }: Adapter, options: ExportOptions): Promise<PeftFiles> => {
  const { adapterVersion, step, dtype = "F32" } = options;
  const tensors: TensorToWrite[] = layout.layers.flatMap((layer, i) =>
    LINEARS.flatMap((linear) => [
      { name: peftName(i, linear, "A"), shape: layer[linear].a.shape, data: partOf(values, layer[linear].a) },
      { name: peftName(i, linear, "B"), shape: layer[linear].b.shape, data: partOf(values, layer[linear].b) },
    ]),
  );
  const weights = writeSafetensors(tensors, { format: "pt" }, dtype);
  const sidecar: z.infer<typeof sidecarSchema> = {
    formatVersion: FORMAT_VERSION,
    base,
    adapterVersion,
    step,
    dtype,
    sha256: await sha256(weights),
  };
  // PEFT writes its keys sorted.
  const config = {
    alpha_pattern: {},
    auto_mapping: null,
    base_model_name_or_path: base.name,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    lora_alpha: lora.alpha,
    lora_dropout: 0,
    modules_to_save: null,
    peft_type: "LORA",
    r: lora.rank,
    rank_pattern: {},
    revision: null,
    target_modules: LINEARS,
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: false,
  };
  return { [WEIGHTS]: weights, [CONFIG]: toJson(config), [SIDECAR]: toJson(sidecar) };
};

const check = <T extends z.ZodMiniType>(schema: T, value: unknown, file: string): z.output<T> => {
  const { data, issue } = checkShape(schema, value);
  if (!issue) return data;
  throw new EngineError("bad-file", `${file}: ${issue.path.join(".") || "it"}: ${issue.message}; export the adapter again`);
};

/**
 * The same adapter with its weights stored as F32 or F16 (rounded). The sidecar, where there is one, follows.
 * Throws EngineError: bad-file, bad-request (a value beyond F16).
 */
export const castPeft = async (files: PeftFiles, dtype: "F32" | "F16"): Promise<PeftFiles> => {
  if (!files[WEIGHTS])
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: a PEFT directory has it, got ${Object.keys(files).join(", ")}; pass every file of the directory`,
    );
  const { tensors, metadata } = readSafetensors(files[WEIGHTS], WEIGHTS);
  const weights = writeSafetensors(
    [...tensors.values()].map((tensor) => ({ name: tensor.name, shape: tensor.shape, data: toFloat32(tensor, WEIGHTS) })),
    metadata,
    dtype,
  );
  const cast = { ...files, [WEIGHTS]: weights };
  const sidecar = files[SIDECAR];
  if (!sidecar) return cast;
  const told = check(sidecarSchema, parseJson(sidecar, SIDECAR), SIDECAR);
  return { ...cast, [SIDECAR]: toJson({ ...told, dtype, sha256: await sha256(weights) }) };
};

/** PEFT's patterns are regular expressions over the module's name; the plain suffixes that everybody writes are read, others refused. */
const lookUp = (pattern: Readonly<Record<string, number>>, module: string): number | undefined => {
  for (const [key, value] of Object.entries(pattern)) {
    if (!/^[\w.]+$/.test(key))
      throw new EngineError(
        "unsupported",
        `${CONFIG}: keys of rank_pattern and alpha_pattern are module names, got the expression ${key}; write the names out`,
      );
    if (module === key || module.endsWith(`.${key}`)) return value;
  }
  return undefined;
};

/** Its adapterVersion. */
const checkSidecar = async (files: PeftFiles, base: AdapterBase): Promise<number | undefined> => {
  const bytes = files[SIDECAR];
  if (!bytes) return undefined; // an adapter that PEFT made: nothing says which base it is for
  const sidecar = check(sidecarSchema, parseJson(bytes, SIDECAR), SIDECAR);
  for (const key of ["weightsSha256", "configSha256", "tokenizerSha256"] as const) {
    const [wanted, got] = [sidecar.base[key], base[key]];
    if (wanted !== undefined && got !== undefined && wanted !== got)
      throw new EngineError(
        "bad-file",
        `${SIDECAR}: the adapter's base is the loaded one (${base.name ?? "unnamed"}, ${key} ${got.slice(0, 12)}…), got ${sidecar.base.name ?? "unnamed"}, ${wanted.slice(0, 12)}…; load the policy with that base, or leave ${SIDECAR} out to import it all the same`,
      );
  }
  const actual = await sha256(files[WEIGHTS]!);
  if (actual !== sidecar.sha256)
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: its sha256 is the one in ${SIDECAR}, ${sidecar.sha256.slice(0, 12)}…, got ${actual.slice(0, 12)}…; the file is damaged or was replaced, export it again`,
    );
  return sidecar.adapterVersion;
};

const refuseForeign = (config: Record<string, unknown>): void => {
  for (const { key, passes, feature } of PLAIN) {
    if (!isEmpty(config[key]) && !passes.includes(config[key]))
      throw new EngineError(
        "unsupported",
        `${CONFIG}: ${key} is absent${passes.map((value) => ` or ${JSON.stringify(value)}`).join("")}, got ${JSON.stringify(config[key])}; this engine has no ${feature}: train plain LoRA`,
      );
  }
};

/** Checks the names: everything in the file belongs to a target, everything that a target needs is there. */
const checkNames = (stored: Safetensors, targets: readonly LinearName[], layers: number): void => {
  const wanted = new Set(
    Array.from({ length: layers }, (_, i) => targets.flatMap((linear) => [peftName(i, linear, "A"), peftName(i, linear, "B")])).flat(),
  );
  const unknown = [...stored.tensors.keys()].filter((name) => !wanted.has(name));
  if (unknown.length > 0)
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: it has only lora_A and lora_B of target_modules in ${layers} layers, got ${unknown.length} others such as ${unknown[0]}; take the adapter of this base model`,
    );
  const missing = [...wanted].filter((name) => !stored.tensors.has(name));
  if (missing.length > 0)
    throw new EngineError(
      "bad-file",
      `${WEIGHTS}: it has lora_A and lora_B of every target in ${layers} layers, got no ${missing[0]} (${missing.length} missing); take the adapter of this base model`,
    );
};

/** One adapted linear as its file holds it: ΔW = scale·B·A. */
export interface PeftModule {
  readonly layer: number;
  readonly linear: LinearName;
  readonly rank: number;
  /** alpha / rank, or alpha / √rank with rsLoRA. */
  readonly scale: number;
  /** [rank, I] and [O, rank]. */
  readonly a: Float32Array;
  readonly b: Float32Array;
}

export interface PeftAdapter {
  /** The largest rank of its modules, 0 if it has none. */
  readonly rank: number;
  readonly targets: readonly LinearName[];
  /** Of the sidecar; undefined for an adapter that PEFT made. */
  readonly version: number | undefined;
  /** One at a time: only the one asked for is in f32. */
  readonly module: (layer: number, linear: LinearName) => PeftModule | undefined;
}

/** The linears that an adapter may adapt: the same [O, I] in every block. */
export interface AdaptedModel {
  readonly layers: number;
  readonly shapeOf: (linear: LinearName) => readonly [number, number];
}

/**
 * Reads and checks an adapter for a model of these shapes. Throws EngineError("bad-file" | "unsupported"): another base by the
 * sidecar's hashes, names or shapes of another model, anything that is not plain LoRA.
 */
export const readPeft = async (files: PeftFiles, { layers, shapeOf }: AdaptedModel, base: AdapterBase): Promise<PeftAdapter> => {
  for (const file of [WEIGHTS, CONFIG]) {
    if (!files[file])
      throw new EngineError(
        "bad-file",
        `${file}: a PEFT directory has it, got ${Object.keys(files).join(", ") || "no files"}; pass every file of the directory`,
      );
  }
  const json = parseJson(files[CONFIG]!, CONFIG);
  const config = check(configSchema, json, CONFIG);
  refuseForeign(json as Record<string, unknown>);
  const foreign = config.target_modules.filter((name) => !LINEARS.some((linear) => linear === name));
  if (foreign.length > 0)
    throw new EngineError(
      "unsupported",
      `${CONFIG}: target_modules are among ${LINEARS.join(", ")}, got ${foreign.join(", ")}; train the adapter on those`,
    );
  const version = await checkSidecar(files, base);

  const targets = LINEARS.filter((linear) => config.target_modules.includes(linear));
  const stored = readSafetensors(files[WEIGHTS]!, WEIGHTS);
  checkNames(stored, targets, layers);

  const rankOf = (module: string): number => lookUp(config.rank_pattern ?? {}, module) ?? config.r;
  const ranks = Array.from({ length: layers }, (_, layer) =>
    targets.map((linear) => {
      const rank = rankOf(moduleName(layer, linear));
      const [outer, inner] = shapeOf(linear);
      for (const [half, shape] of [
        ["A", [rank, inner]],
        ["B", [outer, rank]],
      ] as const) {
        const tensor = stored.tensors.get(peftName(layer, linear, half))!;
        if (tensor.shape.length !== 2 || tensor.shape.some((size, axis) => size !== shape[axis]))
          throw new EngineError(
            "bad-file",
            `${WEIGHTS}: ${tensor.name} is [${shape}], got [${tensor.shape}]; take the adapter of this base model`,
          );
      }
      return rank;
    }),
  ).flat();
  const valuesOf = (layer: number, linear: LinearName, half: "A" | "B"): Float32Array =>
    toFloat32(stored.tensors.get(peftName(layer, linear, half))!, WEIGHTS);
  return {
    rank: Math.max(0, ...ranks),
    targets,
    version,
    module: (layer, linear) => {
      if (!targets.includes(linear)) return undefined;
      const name = moduleName(layer, linear);
      const rank = rankOf(name);
      const alpha = lookUp(config.alpha_pattern ?? {}, name) ?? config.lora_alpha;
      const scale = alpha / (config.use_rslora ? Math.sqrt(rank) : rank);
      return { layer, linear, rank, scale, a: valuesOf(layer, linear, "A"), b: valuesOf(layer, linear, "B") };
    },
  };
};

/** The linears of a model as an adapter's layout has them. */
export const adaptedModel = ({ layers }: LoraTensors): AdaptedModel => ({
  layers: layers.length,
  shapeOf: (linear) => [layers[0]![linear].b.shape[0]!, layers[0]![linear].a.shape[1]!],
});

/**
 * An adapter as values of `layout`: what its file does not adapt stays as in `initial`, differences of scale are folded into B,
 * smaller ranks are padded with zeros, which computes the same. Its rank is at most the layout's. `initial` is never written.
 */
export const toValues = (
  adapter: PeftAdapter,
  { layout, lora, initial }: { readonly layout: LoraTensors; readonly lora: LoraSpec; readonly initial: Float32Array },
): Float32Array<ArrayBuffer> => {
  const values = Float32Array.from(initial);
  for (const [layer, pairs] of layout.layers.entries()) {
    for (const linear of adapter.targets) {
      const { rank, scale, a, b } = adapter.module(layer, linear)!;
      const factor = scale / (lora.alpha / lora.rank);
      const target = partOf(values, pairs[linear].b).fill(0);
      for (let o = 0; o < b.length / rank; o++) for (let r = 0; r < rank; r++) target[o * lora.rank + r] = b[o * rank + r]! * factor;
      partOf(values, pairs[linear].a).fill(0).set(a);
    }
  }
  return values;
};

/**
 * Reads an adapter into values of `adapter.layout`, whose rank it must have: training goes on from it. Modules that the file
 * does not adapt keep `adapter.values` (a fresh initialisation). Throws EngineError("bad-file" | "unsupported").
 */
export const fromPeft = async (files: PeftFiles, adapter: Adapter): Promise<Float32Array<ArrayBuffer>> => {
  const { layout, lora, base, values } = adapter;
  const read = await readPeft(files, adaptedModel(layout), base);
  if (read.rank !== 0 && read.rank !== lora.rank)
    throw new EngineError(
      "unsupported",
      `${CONFIG}: the adapter's rank is the policy's, ${lora.rank}, got ${read.rank}; create the policy with lora.rank ${read.rank}`,
    );
  return toValues(read, { layout, lora, initial: values });
};

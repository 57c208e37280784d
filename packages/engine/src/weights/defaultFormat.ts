// In which format a model is kept when nobody says. Both of its answers keep the checkpoint's values to the bit; quantising is a choice
// that somebody makes.

import type { ModelSpec } from "../model/spec.ts";
import { modelTensors, storedTensors } from "../model/tensors.ts";
import { byteLengthOf, type WeightFormat } from "./formats.ts";

/** Up to here f32 costs nothing that anybody notices, and no kernel has to decode. */
const SMALL_BYTES = 64 * 2 ** 20;

const SHORT: Readonly<Record<string, WeightFormat>> = { float16: "f16", bfloat16: "bf16" };

/**
 * f32 for models of at most 64 MiB in it; beyond, the 16-bit dtype that config.json names (`dtype`, before transformers 5
 * `torch_dtype`), as transformers' own dtype="auto" reads a checkpoint; f32 where it names none of them.
 */
export const defaultWeightFormat = (config: unknown, spec: ModelSpec): WeightFormat => {
  const bytes = storedTensors(modelTensors(spec)).reduce((sum, tensor) => sum + byteLengthOf(tensor), 0);
  if (bytes <= SMALL_BYTES) return "f32";
  const { dtype, torch_dtype, text_config } = config as Record<"dtype" | "torch_dtype" | "text_config", unknown>;
  const inner = (text_config ?? {}) as Record<"dtype" | "torch_dtype", unknown>;
  const named = [dtype, torch_dtype, inner.dtype, inner.torch_dtype].find((value) => typeof value === "string");
  return (Object.hasOwn(SHORT, named ?? "") && SHORT[named as string]) || "f32";
};

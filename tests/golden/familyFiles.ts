// The files of tests/golden/families, for the tests that start from them.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { PeftFiles } from "../../packages/engine/src/contract.ts";
import type { Family } from "../../packages/engine/src/model/spec.ts";

export interface Expected {
  readonly lora: { readonly rank: number; readonly alpha: number };
  readonly adam: {
    readonly learningRate: number;
    readonly beta1: number;
    readonly beta2: number;
    readonly eps: number;
    readonly weightDecay: number;
    readonly gradClipNorm: number;
  };
  readonly data: readonly {
    readonly tokens: readonly number[];
    readonly weights: readonly number[];
    readonly logprobs: readonly number[];
    readonly entropies: readonly number[];
  }[];
  readonly greedy: readonly {
    readonly prompt: readonly number[];
    readonly tokens: readonly number[];
    readonly logprobs: readonly number[];
  }[];
  readonly steps: readonly { readonly loss: number; readonly gradNorm: number }[];
}

export const readFamily = (family: Family, file: string): Uint8Array<ArrayBuffer> =>
  Uint8Array.from(readFileSync(join(fileURLToPath(new URL("./families", import.meta.url)), family, file)));

export const readExpected = (family: Family): Expected => JSON.parse(new TextDecoder().decode(readFamily(family, "expected.json")));

/** The base model. */
export const familyModel = (family: Family): { config: Uint8Array; weights: Uint8Array } => ({
  config: readFamily(family, "config.json"),
  weights: readFamily(family, "model.safetensors"),
});

/** The adapter as peft wrote it. */
export const peftFiles = (family: Family): PeftFiles =>
  Object.fromEntries(["adapter_config.json", "adapter_model.safetensors"].map((file) => [file, readFamily(family, file)]));

/** Largest |got − want| relative to the largest |want|. */
export const worst = (got: ArrayLike<number>, want: ArrayLike<number>): number => {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  const scale = Math.max(...Array.from(want, Math.abs));
  return Math.max(...Array.from(got, (value, i) => Math.abs(value - want[i]!))) / scale;
};

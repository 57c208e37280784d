// A random two-layer model with an adapter whose B is not zero, allocated on any backend. No file is read or parsed:
// for a checkpoint on disk see tinyLlama.ts.

import type { LoraSpec, ModelSpec } from "../../../packages/engine/src/model/spec.ts";
import { type LoraTensors, loraTensors, type ModelTensors, modelTensors } from "../../../packages/engine/src/model/tensors.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { sizeOf, type Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createNormal, createRandom, ropeTable } from "./opCases.ts";

export const TINY: ModelSpec = {
  family: "llama",
  width: 32,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headWidth: 16,
  feedForward: 48,
  vocab: 50,
  normEps: 1e-5,
  ropeTheta: 10_000,
  tiedHead: true,
  maxPositions: 128,
};

export const TINY_LORA: LoraSpec = { rank: 4, alpha: 8 };

export interface TinyModel {
  readonly spec: ModelSpec;
  readonly weights: ModelTensors;
  readonly lora: { readonly spec: LoraSpec; readonly parameters: LoraTensors; readonly tensors: LoraTensors };
}

/** The same numbers on every backend. */
export const createTinyModel = async (backend: Backend, spec: ModelSpec = TINY): Promise<TinyModel> => {
  const normal = createNormal(createRandom(11));
  const random = (tensor: Tensor, spread: number, center = 0): Float32Array =>
    Float32Array.from({ length: sizeOf(tensor) }, () => center + spread * normal());
  const weights = modelTensors(spec);
  await backend.allocate(weights.embed, random(weights.embed, 1));
  if (weights.head !== weights.embed) await backend.allocate(weights.head, random(weights.head, 0.5));
  await backend.allocate(weights.norm, random(weights.norm, 0.1, 0.4));
  await backend.allocate(
    weights.rope,
    Float32Array.from({ length: sizeOf(weights.rope) }, (_, i) => ropeTable(spec.headWidth)(i)),
  );
  for (const layer of weights.layers) {
    await backend.allocate(layer.inputNorm, random(layer.inputNorm, 0.1, 1));
    await backend.allocate(layer.postAttentionNorm, random(layer.postAttentionNorm, 0.1, 1));
    for (const tensor of Object.values(layer.linear)) await backend.allocate(tensor, random(tensor, tensor.shape[1]! ** -0.5));
  }
  const parameters = loraTensors(spec, TINY_LORA, "lora.p");
  const flat = new Float32Array(sizeOf(parameters.flat));
  for (const layer of parameters.layers) {
    for (const { a, b } of Object.values(layer)) {
      flat.set(random(a, a.shape[1]! ** -0.5), a.view!.offset);
      flat.set(random(b, 0.2), b.view!.offset);
    }
  }
  await backend.allocate(parameters.flat, flat);
  return { spec, weights, lora: { spec: TINY_LORA, parameters, tensors: parameters } };
};

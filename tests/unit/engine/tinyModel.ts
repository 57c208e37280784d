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
  maxPositions: 128,
  normEps: 1e-5,
  gainOffset: 0,
  qkNorm: false,
  postNorms: false,
  biases: [],
  activation: "silu",
  embedScale: 1,
  attentionScale: 0.25,
  ropes: [{ theta: 10_000 }],
  layerKinds: [{ rope: 0 }],
  tiedHead: true,
};

/** Every switch away from TINY's: two rope bases, a window in all layers but the last, norms everywhere, H·C ≠ D. */
export const TINY_SWITCHED: ModelSpec = {
  ...TINY,
  layers: 3,
  heads: 4,
  kvHeads: 2,
  headWidth: 16,
  qkNorm: true,
  postNorms: true,
  biases: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
  activation: "tanhGelu",
  embedScale: Math.sqrt(32),
  attentionScale: 0.4,
  ropes: [{ theta: 10_000 }, { theta: 100 }],
  layerKinds: [{ window: 3, rope: 1 }, { window: 4, rope: 1 }, { rope: 0 }],
  tiedHead: false,
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
  for (const [i, table] of weights.ropes.entries())
    await backend.allocate(
      table,
      Float32Array.from({ length: sizeOf(table) }, (_, at) => ropeTable(spec.headWidth, spec.ropes[i]!.theta)(at)),
    );
  for (const layer of weights.layers) {
    await backend.allocate(layer.inputNorm, random(layer.inputNorm, 0.1, 1));
    await backend.allocate(layer.feedForwardNorm, random(layer.feedForwardNorm, 0.1, 1));
    for (const tensor of Object.values(layer.linear)) await backend.allocate(tensor, random(tensor, tensor.shape[1]! ** -0.5));
    for (const gain of [layer.attentionOutNorm, layer.feedForwardOutNorm, layer.qNorm, layer.kNorm])
      if (gain) await backend.allocate(gain, random(gain, 0.2, 0.8));
    for (const bias of Object.values(layer.bias)) await backend.allocate(bias, random(bias, 0.3));
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

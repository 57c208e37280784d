// What a policy puts on a backend beside its weights: two adapters, a trainer, a cache with its sampler. policy.ts serves with them;
// memory.ts builds them on a backend that only counts, so that a budget cannot differ from what is allocated.

import type { InferPlan } from "./model/plans.ts";
import { inferPlan, kvCache } from "./model/plans.ts";
import type { LoraSpec, ModelSpec } from "./model/spec.ts";
import { type LoraTensors, loraTensors, type ModelTensors } from "./model/tensors.ts";
import { createTrainer, type TrainerCore } from "./optimizer/trainer.ts";
import type { Backend, Executable } from "./plan/backend.ts";
import type { Lock } from "./plan/lock.ts";
import { createSampler, type LocalSampler } from "./sampler/sampler.ts";

/** The sizes of a policy that are free to choose; none of them changes a number that it computes. */
export interface MemorySettings {
  /** Completions sampled at once. */
  readonly slots: number;
  /** Token rows of a training run. */
  readonly microBatchTokens: number;
  /** Gradient checkpointing: the forward is run twice instead of kept. */
  readonly checkpoint: boolean;
}

export interface PolicyPartsOptions extends MemorySettings {
  readonly backend: Backend;
  /** maxPositions: the longest prompt + completion. */
  readonly spec: ModelSpec;
  /** Allocated. */
  readonly weights: ModelTensors;
  readonly lora: LoraSpec;
  /** First values of both adapters; absent: zero. */
  readonly initial?: Float32Array;
  readonly lock: Lock;
}

export interface PolicyParts {
  /** The adapter in training. */
  readonly parameters: LoraTensors;
  readonly trainer: TrainerCore;
  readonly sampler: LocalSampler;
  /** Copies the trained adapter into the served one. */
  readonly publish: Executable;
  /** An adapter to serve beside the published one: its tensors, and a plan that shares all else. */
  another(name: string): { readonly tensors: LoraTensors; readonly plan: InferPlan };
}

/** Rows of one sampler tick: enough that feeding a prompt fills the device, few enough that running completions do not stall. */
const TICK_ROWS = 256;

/** Throws EngineError("device") when memory is short; the caller disposes the backend. */
export const createPolicyParts = async (options: PolicyPartsOptions): Promise<PolicyParts> => {
  const { backend, spec, weights, lora, initial, slots, microBatchTokens, checkpoint, lock } = options;
  const parameters = loraTensors(spec, lora, "lora.p");
  const served = loraTensors(spec, lora, "lora.served");
  await backend.allocate(parameters.flat, initial);
  await backend.allocate(served.flat, initial);

  const cache = kvCache(spec, { slots, positions: spec.maxPositions });
  const capacity = { rows: Math.max(TICK_ROWS, slots), outRows: slots };
  const plan = inferPlan(spec, weights, { tensors: served, spec: lora }, cache, capacity);
  const trainer = await createTrainer({ backend, spec, weights, lora: { spec: lora, parameters }, microBatchTokens, checkpoint, lock });
  const sampler = await createSampler({ backend, spec, plan, cache, lock });
  const publish = await backend.compile({ name: "publish", steps: [{ op: "copy", x: parameters.flat, y: served.flat }] });
  const another = (name: string): { tensors: LoraTensors; plan: InferPlan } => {
    const tensors = loraTensors(spec, lora, `lora.${name}`, "io");
    return { tensors, plan: inferPlan(spec, weights, { tensors, spec: lora }, cache, capacity, plan) };
  };
  return { parameters, trainer, sampler, publish, another };
};

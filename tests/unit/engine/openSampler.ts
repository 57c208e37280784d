// A sampler over the tiny Llama on any backend, and what it asked of that backend.

import type { Completion, GenerateRequest } from "../../../packages/engine/src/contract.ts";
import { initLora } from "../../../packages/engine/src/lora/init.ts";
import { type InferPlan, inferPlan, kvCache } from "../../../packages/engine/src/model/plans.ts";
import { loraTensors } from "../../../packages/engine/src/model/tensors.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createLock } from "../../../packages/engine/src/plan/lock.ts";
import { pcg, uniform } from "../../../packages/engine/src/random.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { createSampler, type LocalSampler, type SamplerParts } from "../../../packages/engine/src/sampler/sampler.ts";
import { loadModel } from "../../../packages/engine/src/weights/load.ts";
import { tinyLlama } from "./tinyLlama.ts";

export interface OpenedSampler {
  readonly sampler: LocalSampler;
  readonly backend: Backend;
  readonly plan: InferPlan;
  /** Rows of every run of the model so far. */
  readonly runs: { rows: number; outRows: number }[];
  /** Of what else the backend did: beginnings copied between rows of the cache, and reads. */
  readonly counts: { copies: number; reads: number };
}

export interface OpenOptions extends Pick<SamplerParts, "burst" | "sharesPrefixes"> {
  readonly slots?: number;
  readonly rows?: number;
  readonly positions?: number;
  readonly create?: () => Promise<Backend>;
  /** Between the sampler and the counted backend. */
  readonly wrap?: (backend: Backend) => Backend;
}

export const openSampler = async (options: OpenOptions = {}): Promise<OpenedSampler> => {
  const { slots = 4, rows = 16, positions = 48, create = async () => createReferenceBackend(), wrap = (same) => same } = options;
  const runs: OpenedSampler["runs"] = [];
  const counts: OpenedSampler["counts"] = { copies: 0, reads: 0 };
  const base = await create();
  const backend = wrap({
    ...base,
    compile: async (plan) => {
      const executable = await base.compile(plan);
      return {
        ...executable,
        run: (vars) => {
          if (plan.name.startsWith("infer")) runs.push({ rows: vars.rows!, outRows: vars.outRows! });
          if (plan.name.startsWith("prefix")) counts.copies += vars.rows!;
          return executable.run(vars);
        },
      };
    },
    read: (tensor, length) => {
      counts.reads++;
      return base.read(tensor, length);
    },
  });
  const { spec, weights } = await loadModel(tinyLlama(), backend);
  const lora = { rank: 4, alpha: 8 };
  const tensors = loraTensors(spec, lora, "served");
  await backend.allocate(
    tensors.flat,
    initLora(tensors, 1).map((x, i) => x + (uniform(3, i) - 0.5) * 0.2),
  );
  const cache = kvCache(spec, { slots, positions });
  const plan = inferPlan(spec, weights, { tensors, spec: lora }, cache, { rows, outRows: slots });
  const { burst, sharesPrefixes = true } = options;
  const parts: SamplerParts = { backend, spec, plan, cache, lock: createLock(), sharesPrefixes, ...(burst !== undefined && { burst }) };
  return { backend, runs, counts, plan, sampler: await createSampler(parts) };
};

export const request = (overrides: Partial<GenerateRequest> = {}): GenerateRequest => ({
  prompt: Int32Array.of(5, 9, 2, 30),
  maxTokens: 8,
  temperature: 1,
  stopTokens: [],
  seed: 7,
  ...overrides,
});

/** Different lengths, prompts, temperatures and seeds; some stop early. */
export const neighbours = (count: number): GenerateRequest[] =>
  Array.from({ length: count }, (_, i) =>
    request({
      prompt: Int32Array.from({ length: 1 + ((i * 7) % 23) }, (_, j) => pcg(i * 100 + j) % 48),
      maxTokens: 1 + ((i * 5) % 13),
      temperature: [0, 0.5, 1, 2][i % 4]!,
      stopTokens: i % 3 === 0 ? [1, 2, 3, 4, 5] : [],
      seed: i * 1000,
    }),
  );

export const plain = ({ tokens, logprobs, finishReason }: Completion): unknown => ({
  tokens: [...tokens],
  logprobs: [...logprobs],
  finishReason,
});

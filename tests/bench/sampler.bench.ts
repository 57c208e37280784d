// The sampler on the built-in policy, beside itself without what it does to save work: bursts against a look after every token,
// one prompt for a group against a prompt for each. Both give the same tokens, which is checked first.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { GenerateRequest } from "@fulgurite/engine";
import { createBackend } from "@fulgurite/engine/node";
import { inferPlan, kvCache } from "../../packages/engine/src/model/plans.ts";
import { loraTensors } from "../../packages/engine/src/model/tensors.ts";
import type { Backend } from "../../packages/engine/src/plan/backend.ts";
import { createLock } from "../../packages/engine/src/plan/lock.ts";
import { pcg } from "../../packages/engine/src/random.ts";
import { createSampler, type LocalSampler, type SamplerParts } from "../../packages/engine/src/sampler/sampler.ts";
import { loadModel } from "../../packages/engine/src/weights/load.ts";
import { SPARK } from "./engineWorkload.ts";
import { type Bench, inRounds, seconds } from "./figures.ts";

const ROWS = 32;

interface Opened {
  readonly backend: Backend;
  readonly sampler: LocalSampler;
}

const open = async (backend: Backend, options: Pick<SamplerParts, "burst" | "sharesPrefixes">): Promise<Opened> => {
  const model = { config: await readFile(join(SPARK, "config.json")), weights: await readFile(join(SPARK, "model.safetensors")) };
  const { spec, weights } = await loadModel(model, backend, { maxContext: 512 });
  const lora = { rank: 8, alpha: 16 };
  const tensors = loraTensors(spec, lora, "served");
  await backend.allocate(tensors.flat);
  const cache = kvCache(spec, { slots: ROWS, positions: 512 });
  const plan = inferPlan(spec, weights, { tensors, spec: lora }, cache, { rows: 256, outRows: ROWS });
  return { backend, sampler: await createSampler({ backend, spec, plan, cache, lock: createLock(), ...options }) };
};

/** `salt` makes prompts that no row of the cache holds yet. */
type Load = (salt: number) => Omit<GenerateRequest, "temperature" | "stopTokens" | "seed">[];

const promptOf = (seed: number, length: number): Int32Array => Int32Array.from({ length }, (_, i) => 10 + (pcg(1000 * seed + i) % 1000));

const LOADS: Readonly<Record<string, { load: Load; peer: "looks" | "whole" }>> = {
  "decode, 32 rows of 96": {
    peer: "looks",
    load: (salt) => Array.from({ length: ROWS }, (_, i) => ({ prompt: promptOf(100 * salt + i, 4), maxTokens: 96 })),
  },
  "96 requests of 1 to 48 through 32 rows": {
    peer: "looks",
    load: (salt) => Array.from({ length: 96 }, (_, i) => ({ prompt: promptOf(100 * salt + i, 24), maxTokens: 1 + (pcg(i) % 48) })),
  },
  "groups of 8 from prompts of 128, 32 tokens": {
    peer: "whole",
    load: (salt) => Array.from({ length: ROWS }, (_, i) => ({ prompt: promptOf(100 * salt + (i >> 3), 128), maxTokens: 32 })),
  },
};

const generate = async ({ sampler }: Opened, load: ReturnType<Load>): Promise<string> => {
  const all = load.map((one, seed) => sampler.generate({ ...one, seed, temperature: 1, stopTokens: [] }));
  return (await Promise.all(all)).map(({ tokens }) => [...tokens].join()).join(";");
};

export const run = async (bench: Bench): Promise<void> => {
  for (const kind of ["wasm", "auto"] as const) {
    const first = await createBackend(kind);
    const isNew = kind === "wasm" || first.device.kind === "webgpu";
    if (!isNew) await first.dispose();
    if (!isNew) continue;
    const ours = await open(first, {});
    const peers = {
      looks: await open(await createBackend(first.device.kind), { burst: 1 }),
      whole: await open(await createBackend(first.device.kind), { sharesPrefixes: false }),
    };
    for (const [title, { load, peer }] of Object.entries(LOADS)) {
      const name = `${title}, ${first.device.kind}`;
      if (!bench.wants(name)) continue;
      bench.progress(name);
      if ((await generate(ours, load(0))) !== (await generate(peers[peer], load(0))))
        throw new Error(`bench: ${name}: both give the same tokens, got different ones`);
      const tokens = load(0).reduce((sum, { maxTokens }) => sum + maxTokens, 0);
      let salt = 1;
      const rate = (one: Opened) => async () => tokens / (await seconds(() => generate(one, load(salt++))));
      const found = await inRounds(bench.isQuick ? 2 : 9, { ours: rate(ours), peer: rate(peers[peer]) });
      const peerName = peer === "looks" ? "itself, a look after every token" : "itself, every prompt fed whole";
      bench.print({ name, ours: found.ours, peer: found.peer, peerName, unit: "tokens/s" });
    }
    for (const { sampler, backend } of [ours, ...Object.values(peers)]) {
      await sampler.dispose();
      await backend.dispose();
    }
  }
};

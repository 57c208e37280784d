// What a policy is said to take against what it takes: budgets of real models' shapes beside the backend's own count, the WASM memory and the
// growth of a process that loads, samples, trains and steps. Of the growth, what a model of three such layers costs beyond its budget is taken off
// and shown: runtime, driver and shader compiler take it whatever the model. A figure that is off by more than 15 % makes the run fail.
import { spawn } from "node:child_process";
import { join } from "node:path";
import { build } from "vite";
import type { Bench } from "./figures.ts";

export interface MemoryCase {
  readonly config: Readonly<Record<string, unknown>>;
  readonly device: "wasm" | "webgpu";
  readonly weightFormat: "f32" | "f16" | "bf16" | "q8" | "q4";
  readonly settings: {
    readonly lora: { readonly rank: number; readonly alpha: number };
    readonly slots: number;
    readonly maxContext: number;
    readonly microBatchTokens: number;
    readonly checkpoint?: boolean;
  };
}

interface Measured {
  readonly computed: number;
  readonly held: number;
  readonly memory?: number;
  readonly resident: number;
}

const TOLERANCE = 0.15;

/** config.json of HuggingFaceTB/SmolLM2-135M and Qwen/Qwen2.5-0.5B, what the engine reads of them. */
const SMOL = {
  ...{ model_type: "llama", hidden_size: 576, num_hidden_layers: 30, num_attention_heads: 9, num_key_value_heads: 3 },
  ...{ intermediate_size: 1536, vocab_size: 49_152, max_position_embeddings: 8192, rms_norm_eps: 1e-5, rope_theta: 100_000 },
  tie_word_embeddings: true,
};
const QWEN = {
  ...{ model_type: "qwen2", hidden_size: 896, num_hidden_layers: 24, num_attention_heads: 14, num_key_value_heads: 2 },
  ...{ intermediate_size: 4864, vocab_size: 151_936, max_position_embeddings: 32_768, rms_norm_eps: 1e-6, rope_theta: 1_000_000 },
  ...{ tie_word_embeddings: true, hidden_act: "silu", use_sliding_window: false },
};

/** Few tokens, so that a processor gets through, and all of them used: a page that nobody touched takes no memory. */
const settings = { lora: { rank: 16, alpha: 32 }, slots: 2, maxContext: 64, microBatchTokens: 64 };
/** Fewer still where a processor may have to play the GPU. */
const fewer = { ...settings, maxContext: 32, microBatchTokens: 32 };

const CASES: Readonly<Record<string, MemoryCase>> = {
  "135M, f32, WASM": { config: SMOL, device: "wasm", weightFormat: "f32", settings },
  "135M, f32, WebGPU": { config: SMOL, device: "webgpu", weightFormat: "f32", settings: fewer },
  "0.5B, q8, WASM": { config: QWEN, device: "wasm", weightFormat: "q8", settings },
  "0.5B, q8, WebGPU": { config: QWEN, device: "webgpu", weightFormat: "q8", settings: fewer },
};

/** memoryChild.ts as one text: Node 20 runs no TypeScript. The package webgpu finds its binary beside itself, so it stays outside. */
const bundle = async (): Promise<string> => {
  const { output } = (await build({
    configFile: false,
    logLevel: "silent",
    ssr: { noExternal: true, resolve: { conditions: ["@fulgurite/source", "node", "import", "default"] } },
    build: {
      ...{ write: false, ssr: true, target: "node20" },
      rolldownOptions: { input: join(import.meta.dirname, "memoryChild.ts"), external: ["webgpu"], output: { codeSplitting: false } },
    },
  })) as { output: { code: string }[] };
  return output[0]!.code;
};

/** In a process of its own: what another case has left behind would not show. */
const measure = (program: string, of: MemoryCase, progress: (line: string) => void): Promise<Measured> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--input-type=module"], {
      cwd: join(import.meta.dirname, "../.."),
      env: { ...process.env, FULGURITE_MEMORY_CASE: JSON.stringify(of) },
    });
    child.stdin.end(program);
    let [out, err] = ["", ""];
    child.stdout.on("data", (data) => {
      out += data;
    });
    child.stderr.on("data", (data) => {
      err += data;
      const line = String(data).trim();
      if (/MiB$/.test(line)) progress(`  ${line}`);
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      if (code === 0) resolve(JSON.parse(out) as Measured);
      else reject(new Error(`memoryChild: it ends with 0, got ${code ?? signal}: ${err.slice(-2000)}`));
    });
  });

export const run = async (bench: Bench): Promise<void> => {
  const program = await bundle();
  for (const [name, of] of Object.entries(CASES)) {
    if (!bench.wants(name)) continue;
    bench.progress(name);
    const small = await measure(program, { ...of, config: { ...of.config, num_hidden_layers: 3 } }, bench.progress);
    const found = bench.isQuick ? small : await measure(program, of, bench.progress);
    const beside = small.resident - small.computed;
    const print = (peerName: string, bytes: number): void => {
      bench.print({ name: `budget, ${name}`, ours: found.computed / 2 ** 20, peer: bytes / 2 ** 20, peerName, unit: "MiB" });
      if (Math.abs(bytes / found.computed - 1) <= TOLERANCE) return;
      bench.progress(
        `${name}: ${peerName} is within ${100 * TOLERANCE} % of the budget, got ${((100 * bytes) / found.computed).toFixed(1)} % of it`,
      );
      process.exitCode = 1;
    };
    print("held by the backend", found.held);
    if (found.memory !== undefined) print("the WASM memory", found.memory);
    if (!bench.isQuick) print("growth of the process, driver aside", found.resident - beside);
    bench.print({ name: `runtime and driver, ${name}`, ours: beside / 2 ** 20, peer: null, peerName: null, unit: "MiB" });
  }
};

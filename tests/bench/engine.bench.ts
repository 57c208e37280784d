// The engine: a product of two matrices, a whole train step of the built-in policy's adapter, and batched decoding, beside what browsers have.
// Who takes part first computes the same loss or the same tokens; then rounds are timed in turn.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { DeviceKind } from "@fulgurite/engine";
import { randoms } from "../randoms.ts";
import { createJaxGemm, createJaxStep, type Jax } from "./engineJax.ts";
import { createOrtDecoder, createOrtGemm, type Ort } from "./engineOrt.ts";
import { decode, openGemm, openOurs, trainStep } from "./engineOurs.ts";
import { createTfGemm, createTfStep, type Tf } from "./engineTf.ts";
import { ADAM, loadWorkload, SPARK, type TrainBatch, trainBatch, type Workload } from "./engineWorkload.ts";
import { type Bench, type Figure, inRounds, seconds } from "./figures.ts";
import { WebWorker } from "./webWorker.ts";

const JAX = "jax-js 0.1.25";
const TF = "TensorFlow.js 4.22";
const ORT = "onnxruntime-web 1.30";

interface Torch {
  readonly name: string;
  ask<T>(question: Readonly<Record<string, unknown>>): Promise<T>;
  close(): void;
}

/** PyTorch in a process of its own, or undefined where Python has none. */
const openTorch = async (workload: Workload, folder: string, { progress }: Bench): Promise<Torch | undefined> => {
  const child: ChildProcess = spawn("python3", [join(import.meta.dirname, "engineTorch.py")], { stdio: ["pipe", "pipe", "ignore"] });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const ended = new Promise<never>((_, reject) => {
    child.on("error", reject);
    child.on("exit", () => reject(new Error("python3 ended")));
  });
  ended.catch(() => {});
  const ask = async <T>(question: Readonly<Record<string, unknown>>): Promise<T> => {
    child.stdin!.write(`${JSON.stringify(question)}\n`);
    const { value } = await Promise.race([lines.next(), ended]);
    if (value === undefined) throw new Error("python3 ended");
    return JSON.parse(value);
  };
  try {
    for (const [name, bytes] of Object.entries(workload.adapter)) await writeFile(join(folder, name), bytes);
    const { name } = await ask<{ name: string }>({ open: { model: SPARK, adapter: folder, adam: ADAM } });
    return { name, ask, close: () => child.kill() };
  } catch {
    progress("no PyTorch: python3 needs torch, transformers and peft (pip install torch transformers peft)");
    child.kill();
    return undefined;
  }
};

/** jax-js 0.1 is written for browsers: it calls iterator helpers that Node has from 22 on, and asks navigator for the browser's name. */
const openJax = async ({ loadPeer }: Bench, gpu: GPU | undefined): Promise<Jax> => {
  const iterators = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));
  iterators.map ??= function* (this: Iterable<unknown>, act: (value: unknown, index: number) => unknown) {
    let index = 0;
    for (const value of this) yield act(value, index++);
  };
  iterators.filter ??= function* (this: Iterable<unknown>, act: (value: unknown, index: number) => boolean) {
    let index = 0;
    for (const value of this) if (act(value, index++)) yield value;
  };
  const navigator = { ...(gpu && { gpu }), userAgent: "Node.js", hardwareConcurrency: cpus().length };
  Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
  Object.defineProperty(globalThis, "Worker", { value: WebWorker, configurable: true, writable: true });
  const jax = await loadPeer<Jax>("@jax-js/jax");
  await jax.init("wasm");
  if (gpu) await jax.init("webgpu");
  return jax;
};

const openTf = async ({ loadPeer }: Bench): Promise<Tf> => {
  const tf = await loadPeer<Tf>("@tensorflow/tfjs");
  const { setWasmPaths, folder } = await loadPeer<{ setWasmPaths(path: string): void; folder?: string }>("@tensorflow/tfjs-backend-wasm");
  setWasmPaths(folder ?? join(import.meta.dirname, "../peers/node_modules/@tensorflow/tfjs-backend-wasm/dist/"));
  await tf.setBackend("wasm");
  await tf.ready();
  return tf;
};

type Contestants = Record<string, () => Promise<number>>;

const SETTLE_MS = 250;

/** Times all of them in rounds and prints ours against each. */
const compare = async (bench: Bench, name: string, unit: string, rounds: number, contestants: Contestants): Promise<void> => {
  bench.progress(`${name}: ${Object.keys(contestants).join(", ")}`);
  const { ours, ...peers } = await inRounds(rounds, contestants, SETTLE_MS);
  const figure = (peer: number | null, peerName: string | null): Figure => ({ name, ours: ours!, peer, peerName, unit });
  const entries = Object.entries(peers);
  if (entries.length === 0) bench.print(figure(null, null));
  for (const [peerName, peer] of entries) bench.print(figure(peer, peerName));
};

const REPEATS = 12;

const benchGemm = async (bench: Bench, devices: Devices, torch: Torch | undefined): Promise<void> => {
  for (const device of devices.kinds) {
    const n = bench.isQuick ? 256 : 512;
    const name = `gemm ${n}, ${devices.label(device)}`;
    if (!bench.wants(name)) continue;
    const random = randoms(2);
    const values = Float32Array.from({ length: n * n }, () => random() - 0.5);
    const ours = await openGemm(device, n, values, 1);
    const jax = createJaxGemm(devices.jax, device, n, values);
    const rate = (run: () => Promise<unknown>) => async (): Promise<number> => {
      const times = [];
      for (let i = 0; i < REPEATS; i++) times.push(await seconds(run));
      return (2 * n ** 3) / Math.min(...times) / 1e9;
    };
    const contestants: Contestants = { ours: rate(ours.run), [JAX]: rate(jax.run) };
    if (device === "wasm") {
      contestants[ORT] = rate((await createOrtGemm(devices.ort, n, values)).run);
      contestants[TF] = rate(createTfGemm(devices.tf, n, values).run);
    }
    if (torch && (device === "wasm" || torch.name.includes("cuda")))
      contestants[torch.name] = async () => {
        const answers = [];
        for (let i = 0; i < REPEATS; i++) answers.push((await torch.ask<{ seconds: number }>({ gemm: n })).seconds);
        return (2 * n ** 3) / Math.min(...answers) / 1e9;
      };
    for (const warmUp of Object.values(contestants)) await warmUp();
    await compare(bench, name, "GFLOP/s", bench.isQuick ? 3 : 15, contestants);
    await ours.dispose();
  }
};

/** The same weights, adapter and tokens give the same loss, or somebody computes something else. */
const agree = (name: string, loss: number, expected: number): void => {
  if (!(Math.abs(loss - expected) <= 1e-4 * Math.abs(expected)))
    throw new Error(`bench: the first loss of ${name} is ours, ${expected}, got ${loss}`);
};

const sameTokens = (name: string, tokens: Int32Array, expected: Int32Array): void => {
  if (String(tokens) !== String(expected)) throw new Error(`bench: the greedy tokens of ${name} are ours, ${expected}, got ${tokens}`);
};

const benchStep = async (bench: Bench, workload: Workload, devices: Devices, torch: Torch | undefined): Promise<void> => {
  for (const device of devices.kinds) {
    const name = `train step, ${devices.label(device)}`;
    if (!bench.wants(name)) continue;
    const isSmall = bench.isQuick || devices.isSoftware(device);
    const batch: TrainBatch = trainBatch(workload, isSmall ? 4 : 8, isSmall ? 64 : 128);
    const tokens = batch.rows * batch.length;
    const policy = await openOurs(workload, device, batch.length);
    const jax = await createJaxStep(devices.jax, device, workload, batch);
    const steps: Record<string, () => Promise<number>> = { ours: () => trainStep(policy, batch), [JAX]: () => jax.step() };
    if (device === "wasm") steps[TF] = createTfStep(devices.tf, workload, batch).step;
    bench.progress(`${name}: first losses (jax-js compiles for up to a minute)`);
    const first = await steps.ours!();
    for (const [peer, step] of Object.entries(steps)) if (peer !== "ours") agree(peer, await step(), first);
    const contestants: Contestants = Object.fromEntries(
      Object.entries(steps).map(([peer, step]) => [peer, async () => tokens / (await seconds(step))]),
    );
    if (torch && (device === "wasm" || torch.name.includes("cuda"))) {
      const question = { step: { ...batch, tokens: [...batch.tokens] } };
      agree(torch.name, (await torch.ask<{ loss: number }>(question)).loss, first);
      contestants[torch.name] = async () => tokens / (await torch.ask<{ seconds: number }>(question)).seconds;
    }
    await compare(bench, name, "tokens/s", bench.isQuick ? 2 : 7, contestants);
    await policy.dispose();
    jax.dispose();
  }
};

const ROWS = 32;
const PROMPT = 32;

const benchDecode = async (bench: Bench, workload: Workload, devices: Devices, torch: Torch | undefined): Promise<void> => {
  for (const device of devices.kinds) {
    const name = `decode ${ROWS} rows, ${devices.label(device)}`;
    if (!bench.wants(name)) continue;
    const count = bench.isQuick || devices.isSoftware(device) ? 16 : 64;
    const random = randoms(3);
    const prompts = Array.from({ length: ROWS }, () =>
      Int32Array.from({ length: PROMPT }, () => Math.floor(random() * workload.spec.vocab)),
    );
    const policy = await openOurs(workload, device, PROMPT + count);
    const rate = (tokens: number, run: () => Promise<unknown>) => async (): Promise<number> => tokens / (await seconds(run));
    const expected = await decode(policy, prompts, count);
    const contestants: Contestants = { ours: rate(ROWS * count, () => decode(policy, prompts, count)) };
    if (device === "wasm") {
      const decoder = await createOrtDecoder(devices.ort, workload);
      const [first] = prompts;
      sameTokens(ORT, await decoder.complete(first!, count), expected[0]!);
      // one sequence at a time is all that its loop does: one prompt says how fast
      contestants[`${ORT}, one by one`] = rate(count, () => decoder.complete(first!, count));
    }
    if (torch && (device === "wasm" || torch.name.includes("cuda"))) {
      const question = { decode: { prompts: prompts.map((prompt) => [...prompt]), count } };
      contestants[torch.name] = async () => (ROWS * count) / (await torch.ask<{ seconds: number }>(question)).seconds;
    }
    await compare(bench, name, "tokens/s", bench.isQuick ? 2 : 7, contestants);
    await policy.dispose();
  }
};

interface Devices {
  readonly kinds: readonly ("wasm" | "webgpu")[];
  readonly jax: Jax;
  readonly tf: Tf;
  readonly ort: Ort;
  label(device: DeviceKind): string;
  isSoftware(device: DeviceKind): boolean;
}

const openDevices = async (bench: Bench): Promise<Devices> => {
  let gpu: GPU | undefined;
  let description = "";
  try {
    const { create, globals } = await import("webgpu");
    // what a page has by itself, and the peers read
    Object.assign(globalThis, globals);
    const found = create([]);
    const gpuAdapter = await found.requestAdapter();
    if (gpuAdapter) {
      gpu = found;
      description = gpuAdapter.info.device || gpuAdapter.info.description || gpuAdapter.info.vendor;
    }
  } catch {
    // said below
  }
  bench.progress(gpu ? `WebGPU: ${description}` : "no WebGPU here: its figures are left out");
  const isSoftware = /llvmpipe|swiftshader|lavapipe/i.test(description);
  // these two start workers as Node has them: before jax-js is given a page's
  const ort = await bench.loadPeer<Ort>("onnxruntime-web");
  ort.env.wasm.numThreads = cpus().length;
  await (await createOrtGemm(ort, 32, new Float32Array(32 * 32))).run();
  const tf = await openTf(bench);
  return {
    kinds: gpu ? ["wasm", "webgpu"] : ["wasm"],
    jax: await openJax(bench, gpu),
    tf,
    ort,
    label: (device) => (device === "webgpu" ? (isSoftware ? "webgpu in software" : "webgpu") : device),
    isSoftware: (device) => device === "webgpu" && isSoftware,
  };
};

export const run = async (bench: Bench): Promise<void> => {
  const workload = await loadWorkload();
  const folder = await mkdtemp(join(tmpdir(), "fulgurite-bench-"));
  const devices = await openDevices(bench);
  const torch = await openTorch(workload, folder, bench);
  try {
    await benchGemm(bench, devices, torch);
    await benchStep(bench, workload, devices, torch);
    await benchDecode(bench, workload, devices, torch);
  } finally {
    torch?.close();
    await rm(folder, { recursive: true, force: true });
  }
};

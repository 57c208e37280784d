// Packed weights in the WASM executor: GFLOP/s of forward and backward with weights of every format, and its ratio to f32.
// node tests/bench/wasmFormats.mjs: one thread; the formats take turns within each pass; the best of several passes.

import { cpus } from "node:os";
import { openSources } from "./sources.mjs";

const PASSES = 7;
/** Operations of one timed run. */
const RUN_FLOP = 2e8;
/** Distinct weights of one run, so that decoding reads memory and not the cache, as a model's layers do. */
const COPIES_BYTES = 64 << 20;
const FORMATS = ["f32", "f16", "bf16", "q8", "q4"];
/** Rows, O, I: training and prefill, a batch of completions, one completion. */
const SHAPES = [
  [512, 384, 128],
  [256, 896, 896],
  [256, 4864, 896],
  [8, 4864, 896],
  [2, 4864, 896],
  [1, 4864, 896],
  [1, 896, 4864],
  [1, 384, 128],
];

const vite = await openSources();
const { createWasmBackend } = await vite.ssrLoadModule("/packages/engine/src/wasm/backend.ts");
const { byteLengthOf, packInto } = await vite.ssrLoadModule("/packages/engine/src/weights/formats.ts");

const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);

const prepare = async (dtype, op, [M, O, I]) => {
  const backend = await createWasmBackend({ threads: 1 });
  const rows = { count: "rows", base: 0, capacity: M };
  const io = (name, width) => ({ name, shape: [M, width], dtype: "f32", home: "io" });
  const [x, y] = [io("x", I), io("y", O)];
  const repeats = Math.max(1, Math.round(RUN_FLOP / (2 * M * O * I)));
  const copies = Math.min(repeats, Math.max(1, Math.ceil(COPIES_BYTES / (O * I * 4))));
  const values = random(O * I);
  const weights = [];
  for (let i = 0; i < copies; i++) {
    const w = { name: `w${i}`, shape: [O, I], dtype, home: "weights" };
    const words = new Uint32Array(byteLengthOf(w) / 4);
    if (dtype === "f32") words.set(new Uint32Array(values.buffer));
    else packInto(w, words, values);
    await backend.allocate(w);
    await backend.fill(w, words);
    weights.push(w);
  }
  const step = (w) => (op === "linear" ? { op, rows, x, w, y, scale: 1 } : { op, rows, dy: y, w, dx: x, scale: 1, accumulate: false });
  const executable = await backend.compile({ name: op, steps: Array.from({ length: repeats }, (_, i) => step(weights[i % copies])) });
  const [from, width] = op === "linear" ? [x, I] : [y, O];
  backend.write(from, random(M * width));
  await executable.run({ rows: M });
  return { flop: 2 * M * O * I * repeats, run: () => executable.run({ rows: M }), bestMs: Number.POSITIVE_INFINITY, backend };
};

console.log(`${cpus().length} × ${cpus()[0]?.model}, Node ${process.version}, one thread, GFLOP/s (ratio to f32), best of ${PASSES}`);
for (const op of ["linear", "linearBackward"]) {
  console.log([op.padEnd(20), ...FORMATS.map((format) => format.padStart(14))].join(""));
  for (const shape of SHAPES) {
    const peers = [];
    for (const dtype of FORMATS) peers.push(await prepare(dtype, op, shape));
    for (let pass = 0; pass < PASSES; pass++) {
      for (const peer of peers) {
        // processor time: the machine may be shared, and one thread is all there is
        const began = process.cpuUsage();
        await peer.run();
        peer.bestMs = Math.min(peer.bestMs, process.cpuUsage(began).user / 1000);
      }
    }
    const speeds = peers.map(({ flop, bestMs }) => flop / bestMs / 1e6);
    const cells = speeds.map((speed) => `${speed.toFixed(1)} (${(speed / speeds[0]).toFixed(2)}×)`.padStart(14));
    console.log([shape.join(" × ").padEnd(20), ...cells].join(""));
    for (const { backend } of peers) await backend.dispose();
  }
}
await vite.close();

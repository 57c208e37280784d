// GFLOP/s of the three GEMMs of the WASM executor, on one thread and on two, through the public backend.
// node tests/bench/wasmGemm.mjs: prints the machine, then for each shape the best of several interleaved passes.

import { cpus } from "node:os";
import { openSources } from "./sources.mjs";

const PASSES = 12;
/** Operations of one timed run; small shapes are repeated inside one plan, as a model's plan repeats them. */
const RUN_FLOP = 2e8;

const vite = await openSources();
const { createWasmBackend } = await vite.ssrLoadModule("/packages/engine/src/wasm/backend.ts");
const { nodeThreads } = await vite.ssrLoadModule("/packages/engine/src/node/wasmThreads.ts");

const tensor = (name, home, ...shape) => ({ name, shape, dtype: "f32", home });

const SHAPES = [
  [512, 384, 128],
  [512, 128, 384],
  [512, 1000, 128],
  [64, 384, 128],
  [8, 384, 128],
  [1, 384, 128],
  [8, 1000, 128],
  [512, 8, 128],
  [512, 128, 8],
];
const OPS = {
  linear: ({ rows, x, w, y }) => ({ op: "linear", rows, x, w, y, scale: 1 }),
  linearBackward: ({ rows, x, w, y }) => ({ op: "linearBackward", rows, dy: y, w, dx: x, scale: 1, accumulate: false }),
  weightGrad: ({ rows, x, dw, y }) => ({ op: "weightGrad", rows, dy: y, x, dw, scale: 1 }),
};

const prepare = async (backend, op, [M, O, I]) => {
  const rows = { count: "rows", base: 0, capacity: M };
  const [x, y] = [tensor("x", "io", M, I), tensor("y", "io", M, O)];
  const [w, dw] = [tensor("w", "weights", O, I), tensor("dw", "state", O, I)];
  const fill = (t) => Float32Array.from({ length: t.shape[0] * t.shape[1] }, () => Math.random() - 0.5);
  await backend.allocate(w, fill(w));
  await backend.allocate(dw);
  const repeats = Math.max(1, Math.round(RUN_FLOP / (2 * M * O * I)));
  const executable = await backend.compile({ name: op, steps: Array(repeats).fill(OPS[op]({ rows, x, w, dw, y })) });
  backend.write(op === "linearBackward" ? y : x, fill(op === "linearBackward" ? y : x));
  if (op === "weightGrad") backend.write(y, fill(y));
  await executable.run({ rows: M });
  return { flop: 2 * M * O * I * repeats, run: () => executable.run({ rows: M }), bestMs: Number.POSITIVE_INFINITY };
};

const backends = [await createWasmBackend({ threads: 1 }), await createWasmBackend({ threads: 2, spawn: nodeThreads, minThreadedFlop: 0 })];
console.log(`${cpus().length} × ${cpus()[0]?.model}, Node ${process.version}, GFLOP/s, best of ${PASSES}`);
console.log(
  ["rows".padStart(5), "O".padStart(5), "I".padStart(5), ...Object.keys(OPS).map((op) => `${op} 1 / 2 threads`.padStart(28))].join(" "),
);
for (const shape of SHAPES) {
  const cells = [];
  for (const op of Object.keys(OPS)) {
    const peers = [];
    for (const backend of backends) peers.push(await prepare(backend, op, shape));
    for (let pass = 0; pass < PASSES; pass++) {
      for (const peer of peers) {
        const began = performance.now();
        await peer.run();
        peer.bestMs = Math.min(peer.bestMs, performance.now() - began);
      }
    }
    const [one, two] = peers.map(({ flop, bestMs }) => flop / bestMs / 1e6);
    cells.push(`${one.toFixed(1)} / ${two.toFixed(1)} (${(two / one).toFixed(2)}×)`.padStart(28));
  }
  console.log([...shape.map((size) => String(size).padStart(5)), ...cells].join(" "));
}
await Promise.all(backends.map((backend) => backend.dispose()));
await vite.close();

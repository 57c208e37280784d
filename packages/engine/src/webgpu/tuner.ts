// Times the kernel variants that a policy would use most, on this device, once: products of a layer in each weight format, and
// attention with its gradient. What is fastest is picked for its class of problems (decisions.ts); the order of the list below is
// the order of importance, and what the budget leaves out keeps its default. Never on a software device: a processor that plays
// a GPU does not even rank kernels.

import type { Backend } from "../plan/backend.ts";
import type { Plan, Rows, Step, Tensor } from "../plan/step.ts";
import { isPacked, packedLayout } from "../weights/formats.ts";
import { classOf, type Decisions, familyOf, type Seen, shortlist } from "./decisions.ts";

/** Milliseconds that one variant takes; `label` says which it is. */
export type Measure = (label: string, run: () => Promise<void>) => Promise<number>;

export interface TuneOptions {
  /** Default: the shortest of three runs by the platform's clock, after one that is not counted. Tests pass fixed numbers. */
  readonly measure?: Measure;
  /** No variant is begun after this many milliseconds of `now`. Default 1500. */
  readonly budgetMs?: number;
  readonly now?: () => number;
}

/** A pick must win by this factor: timings have noise, and a default is the safer choice. */
const MARGIN = 0.95;
const RUNS = 3;
const DEFAULT_BUDGET_MS = 1500;

const byClock =
  (now: () => number): Measure =>
  async (_, run) => {
    await run();
    let shortest = Number.POSITIVE_INFINITY;
    for (let i = 0; i < RUNS; i++) {
      const before = now();
      await run();
      shortest = Math.min(shortest, now() - before);
    }
    return shortest;
  };

const tensor = (name: string, shape: readonly number[], home: Tensor["home"] = "io", dtype: Tensor["dtype"] = "f32"): Tensor => ({
  name,
  shape,
  dtype,
  home,
});

interface Work {
  readonly name: string;
  readonly rows: number;
  readonly steps: readonly Step[];
  readonly weights: readonly Tensor[];
  readonly ints: ReadonlyMap<Tensor, Int32Array>;
  /** Steps of one run, so that reading the end of it costs little beside the work. */
  readonly repeats: number;
}

const WIDTH = 1024;

const product = (op: "linear" | "linearBackward", dtype: Tensor["dtype"], n: number): Work => {
  const rows: Rows = { count: "rows", base: 0, capacity: n };
  const w = tensor("w", [WIDTH, WIDTH], "weights", dtype);
  const [x, y] = [tensor("x", [n, WIDTH]), tensor("y", [n, WIDTH])];
  const step: Step = op === "linear" ? { op, rows, x, w, y, scale: 1 } : { op, rows, dy: y, w, dx: x, scale: 1, accumulate: false };
  return { name: `${op} ${dtype}, ${n} rows`, rows: n, steps: [step], weights: [w], ints: new Map(), repeats: n < 64 ? 32 : 8 };
};

/** Forward and gradient of eight sequences of 64 rows. */
const attention = (C: number): Work => {
  const [n, H, K, length] = [512, 8, 2, 64];
  const rows: Rows = { count: "rows", base: 0, capacity: n };
  const [q, k, v] = [tensor("q", [n, H * C]), tensor("k", [n, K * C]), tensor("v", [n, K * C])];
  const [o, dO, lse, delta] = [tensor("o", [n, H * C]), tensor("dO", [n, H * C]), tensor("lse", [n, H]), tensor("delta", [n, H])];
  const [dq, dk, dv] = [tensor("dq", [n, H * C]), tensor("dk", [n, K * C]), tensor("dv", [n, K * C])];
  const [start, end] = [tensor("start", [n], "io", "i32"), tensor("end", [n], "io", "i32")];
  const shared = { rows, heads: H, kvHeads: K, scale: 1 / Math.sqrt(C) };
  const first = (row: number): number => row - (row % length);
  return {
    name: `attention, heads of ${C}`,
    rows: n,
    steps: [
      { op: "attention", ...shared, q, k, v, start, o, lse },
      { op: "attentionBackwardQ", ...shared, q, k, v, dO, lse, delta, start, dq },
      { op: "attentionBackwardKv", ...shared, q, k, v, dO, lse, delta, end, dk, dv },
    ],
    weights: [],
    ints: new Map([
      [start, Int32Array.from({ length: n }, (_, row) => first(row))],
      [end, Int32Array.from({ length: n }, (_, row) => first(row) + length)],
    ]),
    repeats: 4,
  };
};

const works = (): Work[] => [
  product("linear", "f32", 512),
  product("linearBackward", "f32", 512),
  attention(64),
  product("linear", "f32", 8),
  ...(["q8", "q4", "f16", "bf16"] as const).flatMap((dtype) => [
    product("linear", dtype, 512),
    product("linearBackward", dtype, 512),
    product("linear", dtype, 8),
  ]),
  attention(128),
  product("linear", "f32", 128),
  product("linearBackward", "f32", 128),
];

/** The problem of this work: of classes that differ in rows, the one that its rows fall into. */
const problemOf = (seen: readonly Seen[], rows: number): Seen | undefined =>
  [...seen]
    .filter(({ problem }) => classOf(problem) !== undefined && (problem.rows === 0 || problem.rows >= rows))
    .sort((a, b) => a.problem.rows - b.problem.rows)[0];

/** Fills decisions.picks. The backend was opened with `decisions.choose`; what the works allocate stays on it until it is disposed. */
export const tune = async (
  backend: Backend,
  decisions: Decisions,
  { now = () => performance.now(), measure = byClock(now), budgetMs = DEFAULT_BUDGET_MS }: TuneOptions = {},
): Promise<void> => {
  const until = now() + budgetMs;
  for (const { name, rows, steps, weights, ints, repeats } of works()) {
    if (now() >= until) return;
    for (const weight of weights) {
      const { dtype } = weight;
      const words = isPacked(dtype) ? new Uint32Array(packedLayout(dtype, WIDTH * WIDTH).words) : undefined;
      await backend.allocate(weight, words);
    }
    const plan: Plan = { name, steps: Array.from({ length: repeats }, () => steps).flat() };
    const seen = decisions.watch();
    (await backend.compile(plan)).dispose();
    const found = problemOf([...seen], rows);
    if (!found) continue;
    const family = familyOf(found.problem);
    let fastest = { variant: "", ms: Number.POSITIVE_INFINITY };
    for (const variant of shortlist(found.problem, found.candidates)) {
      if (decisions.failed.has(`${family} ${variant.name}`)) continue;
      if (now() >= until) return;
      const executable = await decisions.force(new Map([[family, variant.name]]), () => backend.compile(plan));
      for (const [target, values] of ints) backend.write(target, values);
      const end = steps.at(-1)!;
      const out = "y" in end ? end.y : "dx" in end ? end.dx : (end as { dv: Tensor }).dv;
      const ms = await measure(`${name}: ${variant.name}`, async () => {
        await executable.run({ rows });
        // A read ends when everything before it has.
        await backend.read(out, 1);
      });
      executable.dispose();
      if (ms < fastest.ms * (fastest.variant ? MARGIN : 1)) fastest = { variant: variant.name, ms };
    }
    if (fastest.variant) decisions.picks.set(classOf(found.problem)!, fastest.variant);
  }
};

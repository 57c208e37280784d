// sample: inverse CDF over the sums of the head's tiles (head.ts), in token order: runs of tiles by their masses, then the run's logits again,
// one workgroup a row, tile by tile. A run may lie in two shards of the weight; how far the walk came waits in `parts`, whose sums nobody
// needs any more. Rounding at the end of a walk takes the last one with mass.

import type { Step } from "../../plan/step.ts";
import { elementOf, type Matrix, reader } from "../../wgsl/matrix.ts";
import { reductions, reductionsFor } from "../../wgsl/reduce.ts";
import { FOLD, LOWEST, PARTS, TILE } from "../../wgsl/tileSums.ts";
import { shardsOf } from "../shards.ts";
import { LANE_RUNS, ROW_SUMS, runsOf, SUM_THREADS, sumLogits } from "./head.ts";
import { byRow, columnsOf, type Dispatch, foldedGroups, kernel } from "./kernel.ts";
import { formatOf, isFour, scaleWordOf } from "./linear.ts";
import type { Target } from "./target.ts";

/** A multiple of TILE. */
const WALK_THREADS = 256;

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Leaves in the row's first two parts: run (greedy: the first with the largest logit), goal, largest, log Σ · mass before the run, 0, lowest, 0. */
const pickRun = (step: Of<"sample">, target: Target): Dispatch => {
  const { rows, parts, inverseTemperature, uniform } = step;
  const { how, prelude, suffix } = reductionsFor("sample", target);
  return kernel({
    label: `sample run${suffix}`,
    prelude,
    bindings: { parts: { tensor: parts, as: PARTS }, inverseTemperature, uniform_: uniform },
    body: `${FOLD}var<workgroup> masses: array<f32, ${SUM_THREADS}>;
${reductions(SUM_THREADS, how)}${byRow(
  SUM_THREADS,
  `${ROW_SUMS}
  let at = row * params.runPitch;
  var first = ${LANE_RUNS}u * lane;
  while (sum.x == largest && parts[at + first].x != largest) { first++; }
  let greedy = u32(-maxOf(select(${LOWEST}, -f32(first), sum.x == largest), lane));
  masses[lane] = sum.y * exp(down);
  workgroupBarrier();
  if (lane > 0u) { return; }
  let goal = uniform_[row] * total;
  var mass = 0.0;
  var below = 0.0;
  var picked = 0u;
  for (var i = 0u; i < ${SUM_THREADS}u; i++) {
    if (masses[i] > 0.0) {
      picked = i;
      below = mass;
    }
    mass += masses[i];
    if (mass > goal) { break; }
  }
  mass = below;
  var run = ${LANE_RUNS}u * picked;
  for (var i = run; i < min(${LANE_RUNS}u * (picked + 1u), params.runs); i++) {
    let own = parts[at + i].y * exp(parts[at + i].x - largest);
    if (own > 0.0) {
      run = i;
      below = mass;
    }
    mass += own;
    if (mass > goal) { break; }
  }
  parts[at] = vec4f(f32(select(run, greedy, inverseTemperature[row] == 0.0)), goal, largest, logTotal);
  parts[at + 1u] = vec4f(below, 0.0, ${LOWEST}, 0.0);`,
  how,
)}`,
    rows,
    groups: (n) => foldedGroups(n),
    sizes: runsOf(step),
    work: 10 * columnsOf(parts),
  });
};

/**
 * `walk`: mass so far, whether it has passed the goal, the x that was picked. A tile's logits: sixteen blocks of the depth at a time, four
 * lanes a column, added in the order of wgsl/gemm.ts.
 */
export const sample = (step: Of<"sample">, target: Target): Dispatch[] => {
  const { rows, x, w, parts, inverseTemperature, token, logprob } = step;
  const [format, D] = [formatOf(w), w.shape[1]!];
  const isWide = !target.isSoftware && isFour(D);
  const matrix = (name: string, matrixRows: string, format: Matrix["format"]): Matrix => ({
    ...{ name, rows: matrixRows, columns: "params.K", depth: "columns", format, scaleWord: "params.scaleWord" },
    isWide: isWide && format === "f32",
  });
  const walks = shardsOf(w, target.bindingBytes).map(({ tensor: shard, first }) => {
    const N = shard.shape[0]!;
    return kernel({
      label: `sample token ${format}${isWide ? "" : " narrow"}`,
      bindings: {
        a: { tensor: x, as: elementOf("f32", isWide) },
        w: { tensor: shard, as: elementOf(format, isWide) },
        parts: { tensor: parts, as: PARTS },
        inverseTemperature,
        token,
        logprob,
      },
      body: `${reader(matrix("a", "params.rows", "f32"))}${reader(matrix("w", "params.N", format))}
var<workgroup> blocks: array<f32, 1024>;
var<workgroup> xs: array<f32, ${TILE}>;
var<workgroup> pick: vec4f;
${byRow(
  WALK_THREADS,
  `let at = row * params.runPitch;
  if (lane == 0u) { pick = parts[at]; }
  let picked = workgroupUniformLoad(&pick);
  let run = u32(picked.x);
  let isGreedy = inverseTemperature[row] == 0.0;
  let inverse = select(inverseTemperature[row], 1.0, isGreedy);
  let end = min((run + 1u) * params.runTiles, params.tileEnd);
  var walk = parts[at + 1u];
  var chosen = -1;
  for (var tile = max(run * params.runTiles, params.tileFirst); tile < end; tile++) {
    let n0 = (tile - params.tileFirst) * ${TILE}u;
    let n = lane % ${TILE}u;
    var z = 0.0;
    for (var chunk = 0u; chunk < params.K; chunk += 256u) {
      for (var i = lane / ${TILE}u; i < params.block; i += ${WALK_THREADS / TILE}u) {
        var block = 0.0;
        for (var r = chunk + i * 16u; r < chunk + (i + 1u) * params.block; r += 4u) {
          let v = quad_a(row, r);
          let u = quad_w(n0 + n, r);
          block = fma(v.w, u.w, fma(v.z, u.z, fma(v.y, u.y, fma(v.x, u.x, block))));
        }
        blocks[i * ${TILE}u + n] = block;
      }
      workgroupBarrier();
      if (lane < ${TILE}u) {
        for (var i = 0u; i < params.block; i++) { z += blocks[i * ${TILE}u + n]; }
      }
      workgroupBarrier();
    }
    if (lane < ${TILE}u) { xs[n] = inverse * z; }
    workgroupBarrier();
    if (lane == 0u) {
      for (var j = 0u; j < min(${TILE}u, params.N - n0); j++) {
        var isPicked = xs[j] > walk.z;
        if (!isGreedy) {
          let e = exp(xs[j] - picked.z);
          isPicked = e > 0.0 && walk.y == 0.0;
          walk.x += e;
        }
        if (isPicked) {
          walk.z = xs[j];
          chosen = i32(params.column + n0 + j);
        }
        if (walk.x > picked.y) { walk.y = 1.0; }
      }
    }
  }
  if (lane == 0u && chosen >= 0) {
    parts[at + 1u] = walk;
    token[row] = chosen;
    logprob[row] = walk.z - picked.z - picked.w;
  }`,
)}`,
      rows,
      groups: (n) => foldedGroups(n),
      sizes: {
        ...{ N, K: D, column: first, ...runsOf(step), tileFirst: first / TILE, tileEnd: Math.ceil((first + N) / TILE) },
        scaleWord: scaleWordOf(shard),
      },
      work: TILE * D,
    });
  });
  return [...sumLogits(step, target), pickRun(step, target), ...walks];
};

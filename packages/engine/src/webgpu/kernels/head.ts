// The head without logits: logprob, tokenLoss, logprobBackward. Formulas stand at the ops (plan/step.ts).
//   forward:  product whose tiles of 64 columns end as sums (wgsl/tileSums.ts), at most 512 runs of tiles a row → one reduction a row
//   backward: product whose results end as dz, a slice of the vocabulary at a time → dx += dz·w
// A product sums its depth in one piece here, so that logits made again are those of the forward, bit for bit.

import { HEAD_SLICE, type Step, type Tensor } from "../../plan/step.ts";
import { reductions, reductionsFor } from "../../wgsl/reduce.ts";
import { FOLD, KEEP, PARTS, TILE, tileSums } from "../../wgsl/tileSums.ts";
import { shardsOf } from "../shards.ts";
import { byRow, columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel } from "./kernel.ts";
import { type Ending, multiply, type Product, STORE_PLACE } from "./linear.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Tiles of a run, runs, and columns of `parts` in vec4. */
export const runsOf = ({ w, parts }: Of<"logprob"> | Of<"sample">): { runTiles: number; runs: number; runPitch: number } => {
  const [tiles, runPitch] = [Math.ceil(w.shape[0]! / TILE), columnsOf(parts) / 4];
  const runTiles = Math.ceil(tiles / runPitch);
  return { runTiles, runs: Math.ceil(tiles / runTiles), runPitch };
};

/** Rows firstRow … firstRow + count − 1 of a weight, of which the first is row wFirst of `shard`. */
interface Part {
  readonly shard: Tensor;
  readonly wFirst: number;
  readonly firstRow: number;
  readonly count: number;
}

/** Rows from … to − 1 of a weight, shard by shard. */
const partsOf = (w: Tensor, from: number, to: number, target: Target): Part[] =>
  shardsOf(w, target.bindingBytes).flatMap(({ tensor, first }) => {
    const firstRow = Math.max(from, first);
    const count = Math.min(to, first + tensor.shape[0]!) - firstRow;
    return count > 0 ? [{ shard: tensor, wFirst: firstRow - first, firstRow, count }] : [];
  });

/** x·wᵀ over such rows, ending in something else than y. */
const logits = (
  { rows, x, w }: Of<"logprob"> | Of<"sample"> | Of<"logprobBackward">,
  { shard, wFirst, count }: Part,
  y: Pick<Product, "y" | "yWidth" | "yFirst">,
  ending: Ending,
  target: Target,
): Dispatch[] => {
  const K = w.shape[1]!;
  const product = { rows, a: x, w: shard, wFirst, accumulate: false, scale: 1, aWidth: K, aFirst: 0, N: count, K, slice: K };
  return multiply({ op: "linear", ...product, ...y, ending }, target);
};

/** Sums of all tiles of all rows into step.parts. */
export const sumLogits = (step: Of<"logprob"> | Of<"sample">, target: Target): Dispatch[] => {
  const { op, w, z, parts, inverseTemperature } = step;
  const { runTiles, runPitch } = runsOf(step);
  return partsOf(w, 0, w.shape[0]!, target).flatMap((part) => {
    const { firstRow: column, count } = part;
    const [tileFirst, tileEnd] = [column / TILE, Math.ceil((column + count) / TILE)];
    const runFirst = Math.floor(tileFirst / runTiles);
    const run = "(params.runFirst + group.x)";
    const inside = (tile: string): string =>
      `(clamp(${tile} * params.runTiles, params.tileFirst, params.tileEnd) - params.tileFirst) * ${TILE}u`;
    const ending: Ending = {
      label: ` ${op}${z ? " kept" : ""}`,
      bindings: {
        inverseTemperature,
        ...(op === "logprob" && { chosen: step.target }),
        ...(z && { logits: z }),
        parts: { tensor: parts, as: PARTS },
      },
      sizes: { column, runTiles, runPitch, runFirst, tileFirst, tileEnd },
      store: `${KEEP}${z ? `\n${STORE_PLACE}\n  logits[e] = v;` : ""}`,
      tiles: {
        text: (threads, rows) =>
          tileSums(
            threads,
            rows,
            op === "logprob"
              ? { inverse: "inverseTemperature[row]", wanted: "u32(chosen[row])" }
              : { inverse: "select(inverseTemperature[row], 1.0, inverseTemperature[row] == 0.0)", wanted: "0xffffffffu" },
          ),
        groups: Math.ceil(tileEnd / runTiles) - runFirst,
        columns: { from: inside(run), to: inside(`(${run} + 1u)`) },
        after: `sumTile(m16, n0 / ${TILE}u * ${TILE}u, ${run}, lane);`,
      },
    };
    return logits(step, part, { y: z ?? parts, yWidth: w.shape[0]!, yFirst: column }, ending, target);
  });
};

export const SUM_THREADS = 64;
/** Runs that a lane folds: all lanes together the most that there are. */
export const LANE_RUNS = 8;

/** Sets `sum`, of this lane's runs, and of the row: largest, down (sum.x − largest), total and logTotal. */
export const ROW_SUMS: string = `var sum = NOTHING;
  for (var run = ${LANE_RUNS}u * lane; run < min(${LANE_RUNS}u * (lane + 1u), params.runs); run++) { sum = fold(sum, parts[row * params.runPitch + run]); }
  let largest = maxOf(sum.x, lane);
  let down = sum.x - largest;
  let total = sumOf(sum.y * exp(down), lane);
  let logTotal = log(total);`;

export const logprob = (step: Of<"logprob">, target: Target): Dispatch[] => {
  const { rows, parts, target: chosen, logprob, entropy, lse } = step;
  const { how, prelude, suffix } = reductionsFor("logprob", target);
  return [
    ...sumLogits(step, target),
    kernel({
      label: `logprob${suffix}`,
      prelude,
      bindings: { parts: { tensor: parts, as: PARTS }, chosen, logprob, entropy, lse },
      body:
        FOLD +
        reductions(SUM_THREADS, how) +
        byRow(
          SUM_THREADS,
          `${ROW_SUMS}
  let moment = sumOf(fma(down, sum.y, sum.z) * exp(down), lane);
  if (lane == 0u) {
    lse[row] = largest + logTotal;
    entropy[row] = logTotal - moment / total;
    logprob[row] = parts[row * params.runPitch + u32(chosen[row]) / ${TILE}u / params.runTiles].w - largest - logTotal;
  }`,
          how,
        ),
      rows,
      groups: (n) => foldedGroups(n),
      sizes: runsOf(step),
      work: 10 * columnsOf(parts),
    }),
  ];
};

const LOSSES: Record<Of<"tokenLoss">["loss"], string> = {
  crossEntropy: "tokenLoss[i] = -A * logprob[i]; dLogprob[i] = -A;",
  importanceSampling: "tokenLoss[i] = -A * r; dLogprob[i] = select(-A * r, 0.0, isClamped);",
  ppoClip: `let low = 1.0 - lossParams[0];
  let high = 1.0 + lossParams[1];
  let dual = lossParams[2];
  if (A >= 0.0) {
    tokenLoss[i] = -A * min(r, high);
    dLogprob[i] = select(-A * r, 0.0, isClamped || r > high);
  } else {
    tokenLoss[i] = min(-A * max(r, low), -A * dual);
    dLogprob[i] = select(-A * r, 0.0, isClamped || r < low || r > dual);
  }`,
};

export const tokenLoss = (step: Of<"tokenLoss">): Dispatch[] => {
  const { rows, loss, logprob, old, advantage, lossParams, tokenLoss, dLogprob } = step;
  const hasRatio = loss !== "crossEntropy";
  return [
    kernel({
      label: `tokenLoss ${loss}`,
      bindings: {
        logprob,
        ...(hasRatio && { old }),
        advantage,
        ...(loss === "ppoClip" && { lossParams }),
        tokenLoss,
        dLogprob,
      },
      body: flat(
        "params.rows",
        `let A = advantage[i];
  ${
    hasRatio
      ? `let difference = logprob[i] - old[i];
  let isClamped = abs(difference) > 20.0;
  let r = exp(clamp(difference, -20.0, 20.0));`
      : ""
  }
  ${LOSSES[loss]}`,
      ),
      rows,
      groups: (n) => flatGroups(n),
      work: 10,
    }),
  ];
};

/** logits[e] = dz of logit v, row m, column params.column + n. */
const GRADIENT = `let inverse = inverseTemperature[m];
  let isTarget = select(0.0, 1.0, params.column + n == u32(chosen[m]));
  logits[e] = dLogprob[m] * inverse * (isTarget - exp(inverse * v - lse[m]));`;

export const logprobBackward = (step: Of<"logprobBackward">, target: Target): Dispatch[] => {
  const { rows, w, z, target: chosen, inverseTemperature, lse, dLogprob, dx } = step;
  const [V, D] = w.shape as [number, number];
  const S = columnsOf(z);
  const bindings = {
    chosen,
    inverseTemperature,
    lse,
    dLogprob,
    logits: z,
  } as const;
  /** The logits of the forward become their gradient in place. */
  const kept = kernel({
    label: "logit gradient",
    bindings,
    body: flat(
      "params.rows * params.V",
      `let e = i;
  let m = i / params.V;
  let n = i % params.V;
  let v = logits[e];
  ${GRADIENT}`,
    ),
    rows,
    groups: (n) => flatGroups(n * V),
    sizes: { V, column: 0 },
    work: 5 * V,
  });
  const slices = Array.from({ length: Math.ceil(V / S) }, (_, i) => partsOf(w, i * S, Math.min((i + 1) * S, V), target));
  return [
    ...(S === V ? [kept] : []),
    ...slices.flatMap((parts, i) => [
      ...parts.flatMap((part) => {
        const ending: Ending = {
          label: " gradient",
          bindings,
          sizes: { column: part.firstRow },
          store: `${STORE_PLACE}\n  ${GRADIENT}`,
        };
        return S === V ? [] : logits(step, part, { y: z, yWidth: S, yFirst: part.firstRow - i * S }, ending, target);
      }),
      ...parts.flatMap(({ shard, wFirst, firstRow, count }) =>
        multiply(
          {
            op: "linearBackward",
            ...{ rows, a: z, aWidth: S, aFirst: firstRow - i * S, w: shard, wFirst, y: dx, yWidth: D, yFirst: 0 },
            ...{ N: D, K: count, slice: HEAD_SLICE, scale: 1, accumulate: firstRow > 0 },
          },
          target,
        ),
      ),
    ]),
  ];
};

// From logits to numbers that learn: logprob, tokenLoss, logprobBackward, sample. Formulas stand at the ops (plan/step.ts).
// The logits are scaled and shifted once, x_j = i·z_j − max, so that lse = max + log Σ eˣ and entropy = log Σ eˣ − Σ x·eˣ / Σ eˣ,
// which loses nothing when the logits are large.

import type { Step } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { byRow, columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const THREADS = 256;

/** Sets `largest` = max_j i·z_j of the row; `inverse` is i. */
const LARGEST = `var top = -3.0e38;
  for (var j = lane; j < params.V; j += ${THREADS}u) { top = max(top, inverse * z[row * params.V + j]); }
  let largest = maxOf(top, lane);`;

export const logprob = (step: Of<"logprob">): Dispatch[] => {
  const { rows, z, target, inverseTemperature, logprob, entropy, lse } = step;
  const V = columnsOf(z);
  return [
    kernel({
      label: "logprob",
      bindings: {
        z: { tensor: z, as: "f32" },
        chosen: { tensor: target, as: "i32" },
        inverseTemperature: { tensor: inverseTemperature, as: "f32" },
        logprob: { tensor: logprob, as: "f32" },
        entropy: { tensor: entropy, as: "f32" },
        lse: { tensor: lse, as: "f32" },
      },
      body:
        reductions(THREADS) +
        byRow(
          THREADS,
          `let inverse = inverseTemperature[row];
  ${LARGEST}
  var mass = 0.0;
  var moment = 0.0;
  for (var j = lane; j < params.V; j += ${THREADS}u) {
    let x = inverse * z[row * params.V + j] - largest;
    let e = exp(x);
    mass += e;
    moment += x * e;
  }
  let total = sumOf(mass, lane);
  let totalMoment = sumOf(moment, lane);
  if (lane == 0u) {
    let logTotal = log(total);
    lse[row] = largest + logTotal;
    entropy[row] = logTotal - totalMoment / total;
    logprob[row] = inverse * z[row * params.V + u32(chosen[row])] - largest - logTotal;
  }`,
        ),
      rows,
      groups: (n) => foldedGroups(n),
      sizes: { V },
      work: 10 * V,
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
        logprob: { tensor: logprob, as: "f32" },
        ...(hasRatio && { old: { tensor: old, as: "f32" } }),
        advantage: { tensor: advantage, as: "f32" },
        ...(loss === "ppoClip" && { lossParams: { tensor: lossParams, as: "f32" } }),
        tokenLoss: { tensor: tokenLoss, as: "f32" },
        dLogprob: { tensor: dLogprob, as: "f32" },
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

export const logprobBackward = (step: Of<"logprobBackward">): Dispatch[] => {
  const { rows, z, target, inverseTemperature, lse, dLogprob } = step;
  const V = columnsOf(z);
  return [
    kernel({
      label: "logprobBackward",
      bindings: {
        z: { tensor: z, as: "f32" },
        chosen: { tensor: target, as: "i32" },
        inverseTemperature: { tensor: inverseTemperature, as: "f32" },
        lse: { tensor: lse, as: "f32" },
        dLogprob: { tensor: dLogprob, as: "f32" },
      },
      body: flat(
        "params.rows * params.V",
        `let row = i / params.V;
  let inverse = inverseTemperature[row];
  let isTarget = select(0.0, 1.0, i % params.V == u32(chosen[row]));
  z[i] = dLogprob[row] * inverse * (isTarget - exp(inverse * z[i] - lse[row]));`,
      ),
      rows,
      groups: (n) => flatGroups(n * V),
      sizes: { V },
      work: 5 * V,
    }),
  ];
};

/**
 * Inverse CDF in two levels: each lane sums the mass of one range of tokens, lane 0 walks the ranges and then the tokens of one range.
 * Ranges are in token order, so the walk is the CDF's.
 */
export const sample = ({ rows, z, inverseTemperature, uniform, token, logprob }: Of<"sample">): Dispatch[] => {
  const V = columnsOf(z);
  const range = Math.ceil(V / THREADS);
  const ranges = Math.ceil(V / range);
  return [
    kernel({
      label: "sample",
      bindings: {
        z: { tensor: z, as: "f32" },
        inverseTemperature: { tensor: inverseTemperature, as: "f32" },
        uniform_: { tensor: uniform, as: "f32" },
        token: { tensor: token, as: "i32" },
        logprob: { tensor: logprob, as: "f32" },
      },
      body: `var<workgroup> masses: array<f32, ${THREADS}>;
var<workgroup> tops: array<f32, ${THREADS}>;
var<workgroup> topAt: array<u32, ${THREADS}>;
${reductions(THREADS)}${byRow(
  THREADS,
  `let asked = inverseTemperature[row];
  let isGreedy = asked == 0.0;
  let inverse = select(asked, 1.0, isGreedy);
  let first = row * params.V;
  let begin = min(lane * params.range, params.V);
  let end = min(begin + params.range, params.V);
  var top = -3.4e38;
  var at = begin;
  for (var j = begin; j < end; j++) {
    let x = inverse * z[first + j];
    if (x > top) { top = x; at = j; }
  }
  tops[lane] = top;
  topAt[lane] = at;
  let largest = maxOf(top, lane);
  var mass = 0.0;
  for (var j = begin; j < end; j++) { mass += exp(inverse * z[first + j] - largest); }
  masses[lane] = mass;
  workgroupBarrier();
  if (lane > 0u) { return; }
  var total = 0.0;
  for (var r = 0u; r < params.ranges; r++) { total += masses[r]; }
  var chosen = 0u;
  if (isGreedy) {
    for (var r = 0u; r < params.ranges; r++) {
      if (tops[r] == largest) { chosen = topAt[r]; break; }
    }
  } else {
    let goal = uniform_[row] * total;
    var below = 0.0;
    var picked = 0u;
    var pickedBelow = 0.0;
    for (var r = 0u; r < params.ranges; r++) {
      if (masses[r] > 0.0) { picked = r; pickedBelow = below; }
      below += masses[r];
      if (below > goal) { break; }
    }
    let last = min((picked + 1u) * params.range, params.V);
    below = pickedBelow;
    for (var j = picked * params.range; j < last; j++) {
      let e = exp(inverse * z[first + j] - largest);
      if (e > 0.0) { chosen = j; }
      below += e;
      if (below > goal) { break; }
    }
  }
  token[row] = i32(chosen);
  logprob[row] = inverse * z[first + chosen] - largest - log(total);`,
)}`,
      rows,
      groups: (n) => foldedGroups(n),
      sizes: { V, range, ranges },
      work: 10 * V,
    }),
  ];
};

// From logits to numbers that learn: logprob, tokenLoss, logprobBackward, sample. Formulas stand at the ops (plan/step.ts).
// Logits are most of what a head moves beside its weight, so they are read once, neighbours by neighbours: each lane keeps the largest
// scaled logit x = i·z that it has seen, and sums relative to it. In the end all are shifted to the row's maximum, so that
// lse = max + log Σ eˣ and entropy = log Σ eˣ − Σ x·eˣ / Σ eˣ lose nothing when the logits are large.

import type { Step } from "../../plan/step.ts";
import { reductions, reductionsFor } from "../../wgsl/reduce.ts";
import { byRow, columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const THREADS = 256;

/** Below every logit, and its difference to any of them is finite. */
const LOWEST = "-1.0e38";

export const logprob = (step: Of<"logprob">, target: Target): Dispatch[] => {
  const { rows, z, target: chosen, inverseTemperature, logprob, entropy, lse } = step;
  const { how, prelude, suffix } = reductionsFor("logprob", target);
  const V = columnsOf(z);
  return [
    kernel({
      label: `logprob${suffix}`,
      prelude,
      bindings: {
        z: { tensor: z, as: "f32" },
        chosen: { tensor: chosen, as: "i32" },
        inverseTemperature: { tensor: inverseTemperature, as: "f32" },
        logprob: { tensor: logprob, as: "f32" },
        entropy: { tensor: entropy, as: "f32" },
        lse: { tensor: lse, as: "f32" },
      },
      body:
        reductions(THREADS, how) +
        byRow(
          THREADS,
          `let inverse = inverseTemperature[row];
  // mass = Σ e^d and moment = Σ d·e^d of this lane's logits, d = x − top.
  var top = ${LOWEST};
  var mass = 0.0;
  var moment = 0.0;
  for (var j = lane; j < params.V; j += ${THREADS}u) {
    let x = inverse * z[row * params.V + j];
    let d = x - top;
    let e = exp(-abs(d));
    if (d > 0.0) {
      moment = (moment - d * mass) * e;
      mass = mass * e + 1.0;
      top = x;
    } else {
      mass += e;
      moment += d * e;
    }
  }
  let largest = maxOf(top, lane);
  let down = top - largest;
  let total = sumOf(mass * exp(down), lane);
  let totalMoment = sumOf((moment + down * mass) * exp(down), lane);
  if (lane == 0u) {
    let logTotal = log(total);
    lse[row] = largest + logTotal;
    entropy[row] = logTotal - totalMoment / total;
    logprob[row] = inverse * z[row * params.V + u32(chosen[row])] - largest - logTotal;
  }`,
          how,
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

/** Ranges of tokens whose mass is summed while all logits are read, by as many lanes each. */
const RANGES = 16;

/**
 * Inverse CDF in three levels: the masses of 16 ranges of tokens come from the one reading of all logits; the range in which the sum passes
 * u·total is read again, one part a lane; lane 0 walks the ranges, then its parts, then the tokens of one part. All are in token order, so
 * the walk is the CDF's. Rounding at the end of a walk takes the last one with mass.
 */
export const sample = ({ rows, z, inverseTemperature, uniform, token, logprob }: Of<"sample">, target: Target): Dispatch[] => {
  const { how, prelude, suffix } = reductionsFor("sample", target);
  const V = columnsOf(z);
  const range = Math.ceil(V / RANGES);
  const part = Math.ceil(range / THREADS);
  return [
    kernel({
      label: `sample${suffix}`,
      prelude,
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
var<workgroup> pickedRange: u32;
${reductions(THREADS, how)}${byRow(
  THREADS,
  `let asked = inverseTemperature[row];
  let isGreedy = asked == 0.0;
  let inverse = select(asked, 1.0, isGreedy);
  let first = row * params.V;
  let perRange = ${THREADS / RANGES}u;
  let begin = lane / perRange * params.range;
  let end = min(begin + params.range, params.V);
  // This lane's part of its range: the largest x, where it was first, and Σ e^(x − top).
  var top = ${LOWEST};
  var at = params.V;
  var mass = 0.0;
  for (var j = begin + lane % perRange; j < end; j += perRange) {
    let x = inverse * z[first + j];
    let e = exp(-abs(x - top));
    if (x > top) {
      mass = mass * e + 1.0;
      top = x;
      at = j;
    } else { mass += e; }
  }
  tops[lane] = top;
  topAt[lane] = at;
  let largest = maxOf(top, lane);
  masses[lane] = mass * exp(top - largest);
  workgroupBarrier();
  var total = 0.0;
  var below = 0.0;
  var goal = 0.0;
  if (lane == 0u) {
    for (var i = 0u; i < ${THREADS}u; i++) { total += masses[i]; }
    goal = uniform_[row] * total;
    var sum = 0.0;
    var picked = 0u;
    for (var r = 0u; r < ${RANGES}u; r++) {
      var own = 0.0;
      for (var i = 0u; i < perRange; i++) { own += masses[r * perRange + i]; }
      if (own > 0.0) { picked = r; below = sum; }
      sum += own;
      if (sum > goal) { break; }
    }
    pickedRange = picked;
  }
  let rangeBegin = workgroupUniformLoad(&pickedRange) * params.range;
  let rangeEnd = min(rangeBegin + params.range, params.V);
  let partBegin = rangeBegin + lane * params.part;
  var own = 0.0;
  for (var j = partBegin; j < min(partBegin + params.part, rangeEnd); j++) { own += exp(inverse * z[first + j] - largest); }
  masses[lane] = own;
  workgroupBarrier();
  if (lane > 0u) { return; }
  var chosen = params.V;
  if (isGreedy) {
    for (var i = 0u; i < ${THREADS}u; i++) {
      if (tops[i] == largest) { chosen = min(chosen, topAt[i]); }
    }
  } else {
    var sum = below;
    var picked = 0u;
    for (var i = 0u; i < ${THREADS}u; i++) {
      if (masses[i] > 0.0) { picked = i; below = sum; }
      sum += masses[i];
      if (sum > goal) { break; }
    }
    chosen = rangeBegin + picked * params.part;
    sum = below;
    for (var j = chosen; j < min(rangeBegin + (picked + 1u) * params.part, rangeEnd); j++) {
      let e = exp(inverse * z[first + j] - largest);
      if (e > 0.0) { chosen = j; }
      sum += e;
      if (sum > goal) { break; }
    }
  }
  chosen = min(chosen, params.V - 1u);
  token[row] = i32(chosen);
  logprob[row] = inverse * z[first + chosen] - largest - log(total);`,
  how,
)}`,
      rows,
      groups: (n) => foldedGroups(n),
      sizes: { V, range, part },
      work: 10 * V,
    }),
  ];
};

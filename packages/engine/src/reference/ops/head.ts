// The head: log-prob and entropy of a target, the token losses, the way back to what the head was given, and sampling.
// Formulas and sources of the losses: docs/architecture.md, "Losses".

import { rowCount } from "../../plan/rowCount.ts";
import { LANE, LANE_WIDTH, type LossName } from "../../plan/step.ts";
import { uniform } from "../../random.ts";
import type { Operations, Values } from "../operation.ts";

/** z = x·wᵀ of one row of x. */
const logitsOf = (x: Values, w: Values, row: number, width: number): Float64Array => {
  const z = new Float64Array(w.length / width);
  for (let j = 0; j < z.length; j++) {
    let sum = 0;
    for (let d = 0; d < width; d++) sum += x[row * width + d]! * w[j * width + d]!;
    z[j] = sum;
  }
  return z;
};

/** log Σ_j exp(inverse·z_j). */
const logSumExp = (z: Values, inverse: number): number => {
  let max = Number.NEGATIVE_INFINITY;
  for (const logit of z) max = Math.max(max, inverse * logit);
  let sum = 0;
  for (const logit of z) sum += Math.exp(inverse * logit - max);
  return max + Math.log(sum);
};

/** The log-ratio is clamped to ±20 before exp: beyond it the loss is constant and its gradient 0. */
const LOG_RATIO_LIMIT = 20;

interface ClipRange {
  readonly clipLow: number;
  readonly clipHigh: number;
  readonly dualClip: number;
}

/** Value and derivative with respect to logprob of one token's loss. */
const tokenLossOf = (
  name: LossName,
  logprob: number,
  old: number,
  advantage: number,
  clip: ClipRange,
): { loss: number; gradient: number } => {
  if (name === "crossEntropy") return { loss: -advantage * logprob, gradient: -advantage };
  const k = Math.min(Math.max(logprob - old, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT);
  const ratio = Math.exp(k);
  const slope = Math.abs(logprob - old) > LOG_RATIO_LIMIT ? 0 : -advantage * ratio;
  if (name === "importanceSampling") return { loss: -advantage * ratio, gradient: slope };
  if (advantage >= 0) {
    const high = 1 + clip.clipHigh;
    return { loss: -advantage * Math.min(ratio, high), gradient: ratio <= high ? slope : 0 };
  }
  const low = 1 - clip.clipLow;
  return {
    loss: Math.min(-advantage * Math.max(ratio, low), -advantage * clip.dualClip),
    gradient: ratio < low || ratio > clip.dualClip ? 0 : slope,
  };
};

export const headOperations: Operations<"logprob" | "tokenLoss" | "logprobBackward" | "sample" | "advance"> = {
  logprob: (step, valuesOf, vars) => {
    const [vocab, width] = step.w.shape as [number, number];
    const [x, w, kept] = [valuesOf(step.x), valuesOf(step.w), step.z && valuesOf(step.z)];
    const [target, inverses] = [valuesOf(step.target), valuesOf(step.inverseTemperature)];
    const [logprob, entropy, lse] = [valuesOf(step.logprob), valuesOf(step.entropy), valuesOf(step.lse)];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const [z, inverse] = [logitsOf(x, w, r, width), inverses[r]!];
      kept?.set(z, r * vocab);
      const total = logSumExp(z, inverse);
      let mean = 0;
      for (const logit of z) {
        const p = Math.exp(inverse * logit - total);
        // A logit of −∞ has no mass; 0·∞ would make NaN of it.
        if (p > 0) mean += p * inverse * logit;
      }
      lse[r] = total;
      entropy[r] = total - mean;
      logprob[r] = inverse * z[target[r]!]! - total;
    }
  },

  tokenLoss: (step, valuesOf, vars) => {
    const [logprob, old, advantage] = [valuesOf(step.logprob), valuesOf(step.old), valuesOf(step.advantage)];
    const [tokenLoss, dLogprob] = [valuesOf(step.tokenLoss), valuesOf(step.dLogprob)];
    const [clipLow, clipHigh, dualClip] = valuesOf(step.lossParams) as unknown as [number, number, number];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const { loss, gradient } = tokenLossOf(step.loss, logprob[r]!, old[r]!, advantage[r]!, { clipLow, clipHigh, dualClip });
      tokenLoss[r] = loss;
      dLogprob[r] = gradient;
    }
  },

  logprobBackward: (step, valuesOf, vars) => {
    const [vocab, width] = step.w.shape as [number, number];
    const [x, w, dx, kept] = [valuesOf(step.x), valuesOf(step.w), valuesOf(step.dx), valuesOf(step.z)];
    const [target, inverses] = [valuesOf(step.target), valuesOf(step.inverseTemperature)];
    const [lse, dLogprob] = [valuesOf(step.lse), valuesOf(step.dLogprob)];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const isKept = step.z.shape[1] === vocab;
      const z = isKept ? kept.subarray(r * vocab, (r + 1) * vocab) : logitsOf(x, w, r, width);
      const inverse = inverses[r]!;
      const sums = new Float64Array(width);
      for (let j = 0; j < vocab; j++) {
        const p = Math.exp(inverse * z[j]! - lse[r]!);
        const dz = dLogprob[r]! * inverse * ((j === target[r] ? 1 : 0) - p);
        for (let d = 0; d < width; d++) sums[d]! += dz * w[j * width + d]!;
      }
      dx.set(sums, r * width);
    }
  },

  sample: (step, valuesOf, vars) => {
    const [vocab, width] = step.w.shape as [number, number];
    const [x, w, kept] = [valuesOf(step.x), valuesOf(step.w), step.z && valuesOf(step.z)];
    const [inverses, uniform] = [valuesOf(step.inverseTemperature), valuesOf(step.uniform)];
    const [token, logprob] = [valuesOf(step.token), valuesOf(step.logprob)];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const z = logitsOf(x, w, r, width);
      kept?.set(z, r * vocab);
      const isGreedy = inverses[r] === 0;
      const inverse = isGreedy ? 1 : inverses[r]!;
      const total = logSumExp(z, inverse);
      let picked = 0;
      if (isGreedy) {
        for (let j = 1; j < vocab; j++) if (z[j]! > z[picked]!) picked = j;
      } else {
        let sum = 0;
        for (let j = 0; j < vocab && !(sum > uniform[r]!); j++) {
          const p = Math.exp(inverse * z[j]! - total);
          sum += p;
          if (p > 0) picked = j;
        }
      }
      token[r] = picked;
      logprob[r] = inverse * z[picked]! - total;
    }
  },

  advance: (step, valuesOf, vars) => {
    const [lanes, history] = [valuesOf(step.lanes), valuesOf(step.history)];
    const [token, logprob, uniforms] = [valuesOf(step.token), valuesOf(step.logprob), valuesOf(step.uniform)];
    const [tokens, positions, slots] = [valuesOf(step.tokens), valuesOf(step.positions), valuesOf(step.slots)];
    const [width, most] = [step.lanes.shape[1]!, step.history.shape[1]!];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const lane = lanes.subarray(r * width, (r + 1) * width);
      if (lane[LANE.left] === 0) continue;
      history.set([token[r]!, logprob[r]!], 2 * (r * most + lane[LANE.count]!));
      tokens[r] = token[r]!;
      positions[r] = lane[LANE.position]!;
      slots[r] = lane[LANE.slot]!;
      lane[LANE.position]!++;
      lane[LANE.count]!++;
      lane[LANE.drawn]!++;
      uniforms[r] = uniform(lane[LANE.seed]! >>> 0, lane[LANE.drawn]!);
      lane[LANE.left] = lane.subarray(LANE_WIDTH).includes(token[r]!) ? 0 : lane[LANE.left]! - 1;
    }
  },
};

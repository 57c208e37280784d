// Whole-tensor operations of the optimiser: gradient norm, AdamW, zero, copy.

import { EngineError } from "../../errors.ts";
import type { Vars } from "../../plan/step.ts";
import type { Operations } from "../operation.ts";

const scalar = (vars: Vars, name: keyof Vars): number => {
  const value = vars[name];
  if (value === undefined) throw new EngineError("bad-request", `adamW: vars.${name} is needed, got none; pass it to run`);
  return value;
};

export const optimizerOperations: Operations<"sumSquares" | "adamW" | "zero" | "copy"> = {
  sumSquares: (step, valuesOf) => {
    const x = valuesOf(step.x);
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += x[i]! ** 2;
    valuesOf(step.sum)[0] = sum;
  },

  adamW: (step, valuesOf, vars) => {
    const [p, g, m, v] = [valuesOf(step.p), valuesOf(step.g), valuesOf(step.m), valuesOf(step.v)];
    const norm = Math.sqrt(valuesOf(step.sumSquares)[0]!);
    if (!Number.isFinite(norm)) return;
    const [beta1, beta2, t] = [scalar(vars, "beta1"), scalar(vars, "beta2"), scalar(vars, "adamStep")];
    const [learningRate, eps, weightDecay] = [scalar(vars, "learningRate"), scalar(vars, "eps"), scalar(vars, "weightDecay")];
    const limit = scalar(vars, "gradClipNorm");
    const clip = limit > 0 ? Math.min(1, limit / (norm + 1e-6)) : 1;
    for (let i = 0; i < p.length; i++) {
      const gradient = g[i]! * clip;
      // p, m and v are rounded to f32 like everything that is saved: what loadState gives back is what was trained.
      m[i] = Math.fround(beta1 * m[i]! + (1 - beta1) * gradient);
      v[i] = Math.fround(beta2 * v[i]! + (1 - beta2) * gradient ** 2);
      const update = m[i]! / (1 - beta1 ** t) / (Math.sqrt(v[i]! / (1 - beta2 ** t)) + eps);
      p[i] = Math.fround(p[i]! * (1 - learningRate * weightDecay) - learningRate * update);
    }
  },

  zero: (step, valuesOf) => {
    valuesOf(step.x).fill(0);
  },

  copy: (step, valuesOf) => {
    valuesOf(step.y).set(valuesOf(step.x));
  },
};

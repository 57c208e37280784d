// Products with a weight [O, I], row-major: forward, its gradient with respect to the rows, its gradient with respect to the weight.
// One file for the three, so that the shapes can be compared: y = s·x·Wᵀ, dx = s·dy·W, dW = s·dyᵀ·x.

import { rowCount } from "../../plan/rowCount.ts";
import type { Operations } from "../operation.ts";

export const linearOperations: Operations<"linear" | "linearBackward" | "weightGrad"> = {
  linear: (step, valuesOf, vars) => {
    const [outer, inner] = step.w.shape as [number, number];
    const [x, w, y] = [valuesOf(step.x), valuesOf(step.w), valuesOf(step.y)];
    const bias = step.bias && valuesOf(step.bias);
    const residual = step.residual && valuesOf(step.residual);
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      for (let o = 0; o < outer; o++) {
        let sum = 0;
        for (let i = 0; i < inner; i++) sum += x[t * inner + i]! * w[o * inner + i]!;
        y[t * outer + o] = (residual ? residual[t * outer + o]! : 0) + step.scale * sum + (bias ? bias[o]! : 0);
      }
    }
  },

  linearBackward: (step, valuesOf, vars) => {
    const [outer, inner] = step.w.shape as [number, number];
    const [dy, w, dx] = [valuesOf(step.dy), valuesOf(step.w), valuesOf(step.dx)];
    const n = rowCount(step.rows, vars);
    const sums = new Float64Array(inner);
    for (let t = 0; t < n; t++) {
      // The outer loop runs over O, so that W is read in the order in which it lies.
      sums.fill(0);
      for (let o = 0; o < outer; o++) {
        const g = dy[t * outer + o]!;
        for (let i = 0; i < inner; i++) sums[i]! += g * w[o * inner + i]!;
      }
      for (let i = 0; i < inner; i++) dx[t * inner + i] = (step.accumulate ? dx[t * inner + i]! : 0) + step.scale * sums[i]!;
    }
  },

  weightGrad: (step, valuesOf, vars) => {
    const [outer, inner] = step.dw.shape as [number, number];
    const [dy, x, dw] = [valuesOf(step.dy), valuesOf(step.x), valuesOf(step.dw)];
    const n = rowCount(step.rows, vars);
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        for (let t = 0; t < n; t++) sum += dy[t * outer + o]! * x[t * inner + i]!;
        dw[o * inner + i]! += step.scale * sum;
      }
    }
  },
};

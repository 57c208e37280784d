// Operations that treat each row by itself or move whole rows: embedding, RMS norm, the gated unit, gather and scatter.

import { rowCount } from "../../plan/rowCount.ts";
import type { Activation } from "../../plan/step.ts";
import type { Operations } from "../operation.ts";

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

const GELU_CUBIC = 0.044715;
/** act(g) = g·σ(u): u and du/dg of each activation. */
const ARGUMENT: { readonly [A in Activation]: (g: number) => { u: number; slope: number } } = {
  silu: (g) => ({ u: g, slope: 1 }),
  tanhGelu: (g) => ({
    u: Math.sqrt(8 / Math.PI) * (g + GELU_CUBIC * g ** 3),
    slope: Math.sqrt(8 / Math.PI) * (1 + 3 * GELU_CUBIC * g ** 2),
  }),
};

export const rowOperations: Operations<"embed" | "rmsNorm" | "rmsNormBackward" | "glu" | "gluBackward" | "gatherRows" | "scatterRows"> = {
  embed: (step, valuesOf, vars) => {
    const width = step.table.shape[1]!;
    const [table, tokens, y] = [valuesOf(step.table), valuesOf(step.tokens), valuesOf(step.y)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      for (let d = 0; d < width; d++) y[t * width + d] = step.scale * table[tokens[t]! * width + d]!;
    }
  },

  rmsNorm: (step, valuesOf, vars) => {
    const width = step.gain.shape[0]!;
    const groups = step.x.shape[1]! / width;
    const [x, gain, y, rstd] = [valuesOf(step.x), valuesOf(step.gain), valuesOf(step.y), valuesOf(step.rstd)];
    const residual = step.residual && valuesOf(step.residual);
    const n = rowCount(step.rows, vars) * groups;
    for (let t = 0; t < n; t++) {
      let squares = 0;
      for (let d = 0; d < width; d++) squares += x[t * width + d]! ** 2;
      rstd[t] = 1 / Math.sqrt(squares / width + step.eps);
      for (let d = 0; d < width; d++) {
        const normed = x[t * width + d]! * rstd[t]! * gain[d]!;
        y[t * width + d] = residual ? residual[t * width + d]! + normed : normed;
      }
    }
  },

  // y_d = gain_d·x_d·r with r = (mean x² + eps)^−½ and dr/dx_d = −r³·x_d/D, so
  // dx_d = r·(gain_d·dy_d − x̂_d·mean(gain∘dy∘x̂)), x̂ = x·r. eps is inside r: no approximation.
  rmsNormBackward: (step, valuesOf, vars) => {
    const width = step.gain.shape[0]!;
    const groups = step.x.shape[1]! / width;
    const [x, gain, rstd] = [valuesOf(step.x), valuesOf(step.gain), valuesOf(step.rstd)];
    const [dy, dx] = [valuesOf(step.dy), valuesOf(step.dx)];
    const n = rowCount(step.rows, vars) * groups;
    for (let t = 0; t < n; t++) {
      const r = rstd[t]!;
      let dot = 0;
      for (let d = 0; d < width; d++) dot += gain[d]! * dy[t * width + d]! * x[t * width + d]! * r;
      const mean = dot / width;
      for (let d = 0; d < width; d++) {
        const change = r * (gain[d]! * dy[t * width + d]! - x[t * width + d]! * r * mean);
        dx[t * width + d] = step.accumulate ? dx[t * width + d]! + change : change;
      }
    }
  },

  glu: (step, valuesOf, vars) => {
    const width = step.y.shape[1]!;
    const [gate, up, y] = [valuesOf(step.gate), valuesOf(step.up), valuesOf(step.y)];
    const argument = ARGUMENT[step.activation];
    const length = rowCount(step.rows, vars) * width;
    for (let i = 0; i < length; i++) y[i] = gate[i]! * sigmoid(argument(gate[i]!).u) * up[i]!;
  },

  // d(g·σ(u))/dg = σ(u) + g·σ(u)(1 − σ(u))·u'.
  gluBackward: (step, valuesOf, vars) => {
    const width = step.dy.shape[1]!;
    const [gate, up, dy] = [valuesOf(step.gate), valuesOf(step.up), valuesOf(step.dy)];
    const argument = ARGUMENT[step.activation];
    const length = rowCount(step.rows, vars) * width;
    for (let i = 0; i < length; i++) {
      const g = gate[i]!;
      const { u, slope } = argument(g);
      const s = sigmoid(u);
      gate[i] = dy[i]! * up[i]! * s * (1 + g * slope * (1 - s));
      up[i] = dy[i]! * g * s;
    }
  },

  gatherRows: (step, valuesOf, vars) => {
    const width = step.y.shape[1]!;
    const [x, index, y] = [valuesOf(step.x), valuesOf(step.index), valuesOf(step.y)];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      for (let d = 0; d < width; d++) y[r * width + d] = x[index[r]! * width + d]!;
    }
  },

  scatterRows: (step, valuesOf, vars) => {
    const width = step.dx.shape[1]!;
    const [dy, index, dx] = [valuesOf(step.dy), valuesOf(step.index), valuesOf(step.dx)];
    dx.fill(0, 0, rowCount(step.rows, vars) * width);
    const n = rowCount(step.outRows, vars);
    for (let r = 0; r < n; r++) {
      for (let d = 0; d < width; d++) dx[index[r]! * width + d] = dy[r * width + d]!;
    }
  },
};

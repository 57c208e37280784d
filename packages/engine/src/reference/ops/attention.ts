// Rotary positions and causal grouped-query attention: packed rows for training, a cache for sampling.
// The score matrix is never stored: forward keeps lse = log Σ exp(s), and backward makes P = exp(s − lse) again.

import { rowCount } from "../../plan/rowCount.ts";
import type { Operations, Values } from "../operation.ts";

const dot = (a: Values, aStart: number, b: Values, bStart: number, length: number): number => {
  let sum = 0;
  for (let c = 0; c < length; c++) sum += a[aStart + c]! * b[bStart + c]!;
  return sum;
};

/**
 * One query head of one row over keys that lie at `keyAt(s)`, s = 0 … count − 1 (values at the same places).
 * Writes o[oStart … oStart + C − 1] and returns lse.
 */
const attend = (
  { q, k, v, o }: { q: Values; k: Values; v: Values; o: Values },
  queryStart: number,
  keyAt: (s: number) => number,
  count: number,
  headWidth: number,
  scale: number,
): number => {
  const scores = Float64Array.from({ length: count }, (_, s) => scale * dot(q, queryStart, k, keyAt(s), headWidth));
  const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const lse = max + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - max), 0));
  for (let c = 0; c < headWidth; c++) {
    let sum = 0;
    for (let s = 0; s < count; s++) sum += Math.exp(scores[s]! - lse) * v[keyAt(s) + c]!;
    o[queryStart + c] = sum;
  }
  return lse;
};

/** First key that key `last` of a sequence that begins at `first` sees through a window. */
const firstSeen = (first: number, last: number, window = Number.POSITIVE_INFINITY): number => Math.max(first, last - window + 1);

type AttentionOp =
  | "rope"
  | "attention"
  | "attentionDelta"
  | "attentionBackwardQ"
  | "attentionBackwardKv"
  | "kvAppend"
  | "kvCopy"
  | "attentionCached";

export const attentionOperations: Operations<AttentionOp> = {
  rope: (step, valuesOf, vars) => {
    const headWidth = step.table.shape[1]!;
    const half = headWidth / 2;
    const [x, table, positions] = [valuesOf(step.x), valuesOf(step.table), valuesOf(step.positions)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      const angles = positions[t]! * headWidth;
      for (let h = 0; h < step.heads; h++) {
        const head = (t * step.heads + h) * headWidth;
        for (let i = 0; i < half; i++) {
          const cos = table[angles + i]!;
          const sin = step.direction * table[angles + half + i]!;
          const [x0, x1] = [x[head + i]!, x[head + half + i]!];
          x[head + i] = x0 * cos - x1 * sin;
          x[head + half + i] = x1 * cos + x0 * sin;
        }
      }
    }
  },

  attention: (step, valuesOf, vars) => {
    const { heads, kvHeads, scale } = step;
    const headWidth = step.q.shape[1]! / heads;
    const operands = { q: valuesOf(step.q), k: valuesOf(step.k), v: valuesOf(step.v), o: valuesOf(step.o) };
    const [start, lse] = [valuesOf(step.start), valuesOf(step.lse)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor((h * kvHeads) / heads);
        const first = firstSeen(start[t]!, t, step.window);
        const keyAt = (s: number): number => ((first + s) * kvHeads + kvHead) * headWidth;
        lse[t * heads + h] = attend(operands, (t * heads + h) * headWidth, keyAt, t - first + 1, headWidth, scale);
      }
    }
  },

  attentionDelta: (step, valuesOf, vars) => {
    const headWidth = step.o.shape[1]! / step.heads;
    const [o, dO, delta] = [valuesOf(step.o), valuesOf(step.dO), valuesOf(step.delta)];
    const count = rowCount(step.rows, vars) * step.heads;
    for (let i = 0; i < count; i++) delta[i] = dot(dO, i * headWidth, o, i * headWidth, headWidth);
  },

  attentionBackwardQ: (step, valuesOf, vars) => {
    const { heads, kvHeads, scale } = step;
    const headWidth = step.q.shape[1]! / heads;
    const [q, k, v, dO] = [valuesOf(step.q), valuesOf(step.k), valuesOf(step.v), valuesOf(step.dO)];
    const [lse, delta, start, dq] = [valuesOf(step.lse), valuesOf(step.delta), valuesOf(step.start), valuesOf(step.dq)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      for (let h = 0; h < heads; h++) {
        const row = t * heads + h;
        const query = row * headWidth;
        const sums = new Float64Array(headWidth);
        for (let s = firstSeen(start[t]!, t, step.window); s <= t; s++) {
          const key = (s * kvHeads + Math.floor((h * kvHeads) / heads)) * headWidth;
          const p = Math.exp(scale * dot(q, query, k, key, headWidth) - lse[row]!);
          const dS = p * (dot(dO, query, v, key, headWidth) - delta[row]!);
          for (let c = 0; c < headWidth; c++) sums[c]! += dS * k[key + c]!;
        }
        for (let c = 0; c < headWidth; c++) dq[query + c] = scale * sums[c]!;
      }
    }
  },

  attentionBackwardKv: (step, valuesOf, vars) => {
    const { heads, kvHeads, scale } = step;
    const headWidth = step.q.shape[1]! / heads;
    const group = heads / kvHeads;
    const [q, k, v, dO] = [valuesOf(step.q), valuesOf(step.k), valuesOf(step.v), valuesOf(step.dO)];
    const [lse, delta, end] = [valuesOf(step.lse), valuesOf(step.delta), valuesOf(step.end)];
    const [dk, dv] = [valuesOf(step.dk), valuesOf(step.dv)];
    const n = rowCount(step.rows, vars);
    for (let s = 0; s < n; s++) {
      for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
        const key = (s * kvHeads + kvHead) * headWidth;
        const [keySums, valueSums] = [new Float64Array(headWidth), new Float64Array(headWidth)];
        const last = Math.min(end[s]!, s + (step.window ?? Number.POSITIVE_INFINITY));
        for (let t = s; t < last; t++) {
          for (let h = kvHead * group; h < (kvHead + 1) * group; h++) {
            const row = t * heads + h;
            const query = row * headWidth;
            const p = Math.exp(scale * dot(q, query, k, key, headWidth) - lse[row]!);
            const dS = p * (dot(dO, query, v, key, headWidth) - delta[row]!);
            for (let c = 0; c < headWidth; c++) {
              keySums[c]! += dS * q[query + c]!;
              valueSums[c]! += p * dO[query + c]!;
            }
          }
        }
        for (let c = 0; c < headWidth; c++) {
          dk[key + c] = scale * keySums[c]!;
          dv[key + c] = valueSums[c]!;
        }
      }
    }
  },

  kvAppend: (step, valuesOf, vars) => {
    const width = step.k.shape[1]!;
    const capacity = step.kCache.shape[1]!;
    const [k, v, kCache, vCache] = [valuesOf(step.k), valuesOf(step.v), valuesOf(step.kCache), valuesOf(step.vCache)];
    const [slots, positions] = [valuesOf(step.slots), valuesOf(step.positions)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      const row = (slots[t]! * capacity + positions[t]!) * width;
      for (let c = 0; c < width; c++) {
        kCache[row + c] = k[t * width + c]!;
        vCache[row + c] = v[t * width + c]!;
      }
    }
  },

  kvCopy: (step, valuesOf, vars) => {
    const [, capacity, width] = step.kCache.shape as [number, number, number];
    const [from, to, length] = [valuesOf(step.from), valuesOf(step.to), valuesOf(step.length)];
    const n = rowCount(step.rows, vars);
    for (let r = 0; r < n; r++) {
      const begin = from[r]! * capacity * width;
      for (const cache of [valuesOf(step.kCache), valuesOf(step.vCache)])
        cache.copyWithin(to[r]! * capacity * width, begin, begin + length[r]! * width);
    }
  },

  attentionCached: (step, valuesOf, vars) => {
    const { heads, kvHeads, scale } = step;
    const headWidth = step.q.shape[1]! / heads;
    const capacity = step.kCache.shape[1]!;
    const operands = { q: valuesOf(step.q), k: valuesOf(step.kCache), v: valuesOf(step.vCache), o: valuesOf(step.o) };
    const [slots, positions] = [valuesOf(step.slots), valuesOf(step.positions)];
    const n = rowCount(step.rows, vars);
    for (let t = 0; t < n; t++) {
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor((h * kvHeads) / heads);
        const first = firstSeen(0, positions[t]!, step.window);
        const keyAt = (s: number): number => ((slots[t]! * capacity + first + s) * kvHeads + kvHead) * headWidth;
        attend(operands, (t * heads + h) * headWidth, keyAt, positions[t]! - first + 1, headWidth, scale);
      }
    }
  },
};

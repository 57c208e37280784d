// Neighbouring steps of a plan that one dispatch can do: fewer launches a layer, which is what a small model's time is made of.
// A peephole over the straight list, WebGPU's own affair: every step keeps its meaning and every tensor its contents. Only steps whose
// operands all live at once go together, since the arena gives the place of what one step read last to what the next one writes:
// a post-norm and the pre-norm behind it stay two.
//   rope q, rope k                                  → one    (+ kvAppend of k and v: still one)
//   rmsNorm q, rmsNorm k, rope q, rope k            → two    (qkNorm: each head normed and turned)
//   attentionDelta, BackwardQ, BackwardKv           → three  (lse and delta are interleaved on the way)

import { type Rows, type Step, sizeOf } from "../../plan/step.ts";
import { attentionBackwardKv, attentionBackwardQ, attentionDelta } from "./attentionBackward.ts";
import { columnsOf, type Dispatch, flat, flatGroups, kernel } from "./kernel.ts";
import { lower } from "./lower.ts";
import { NORM_THREADS, normed } from "./norm.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const isSameRows = (a: Rows, b: Rows): boolean => a.count === b.count && a.base === b.base && a.capacity === b.capacity;

/** WGSL that turns pair `pair` of row `row` of a tensor in place; sets low, high, turned0 and turned1. */
const turn = (
  name: string,
  pairs: string,
): string => `let low = row * 2u * ${pairs} + 2u * (pair - pair % params.half) + pair % params.half;
    let high = low + params.half;
    let angle = u32(positions[row]) * 2u * params.half + pair % params.half;
    let cosine = table[angle];
    let sine = params.direction * table[angle + params.half];
    let x0 = ${name}[low];
    let x1 = ${name}[high];
    let turned0 = x0 * cosine - x1 * sine;
    let turned1 = x1 * cosine + x0 * sine;
    ${name}[low] = turned0;
    ${name}[high] = turned1;`;

/** Queries and keys, turned by one dispatch; with `append` keys and values go into the cache on the way. */
const ropes = (q: Of<"rope">, k: Of<"rope">, append?: Of<"kvAppend">): Dispatch => {
  const { rows, table, positions, direction } = q;
  const half = columnsOf(table) / 2;
  const [queryPairs, keyPairs] = [q.heads * half, k.heads * half];
  const total = queryPairs + keyPairs;
  const P = append?.kCache.shape[1] ?? 0;
  return kernel({
    label: append ? "rope q k append" : "rope q k",
    bindings: {
      q: q.x,
      k: k.x,
      table,
      positions,
      ...(append && {
        v: append.v,
        slots: append.slots,
        kCache: append.kCache,
        vCache: append.vCache,
      }),
    },
    body: flat(
      "params.rows * params.total",
      `let row = i / params.total;
  let unit = i % params.total;
  if (unit < params.queryPairs) {
    let pair = unit;
    ${turn("q", "params.queryPairs")}
  } else {
    let pair = unit - params.queryPairs;
    ${turn("k", "(params.total - params.queryPairs)")}
    ${
      append
        ? `let place = (u32(slots[row]) * params.P + u32(positions[row])) * 2u * (params.total - params.queryPairs);
    let own = row * 2u * (params.total - params.queryPairs);
    kCache[place + low - own] = turned0;
    kCache[place + high - own] = turned1;
    vCache[place + low - own] = v[low];
    vCache[place + high - own] = v[high];`
        : ""
    }
  }`,
    ),
    sizes: { half, total, queryPairs, ...(append && { P }) },
    numbers: { direction },
    rows,
    groups: (n) => flatGroups(n * total),
    work: 4 * total,
  });
};

/** y = rope(norm(x)), head by head: one workgroup a row and head. */
const normRope = (norm: Of<"rmsNorm">, { table, positions, direction }: Of<"rope">, target: Target): Dispatch =>
  normed(norm, target, {
    label: "rmsNorm rope",
    bindings: { table, positions },
    numbers: { direction },
    text: `let half = params.D / 2u;
  let angle = u32(positions[row]) * params.D;
  for (var d = lane; d < half; d += ${NORM_THREADS}u) {
    let x0 = x[first + d] * r * gain[d];
    let x1 = x[first + half + d] * r * gain[half + d];
    let cosine = table[angle + d];
    let sine = params.direction * table[angle + half + d];
    y[first + d] = x0 * cosine - x1 * sine;
    y[first + half + d] = x1 * cosine + x0 * sine;
  }`,
  });

const isPair = (a: Step | undefined, b: Step | undefined): boolean =>
  a?.op === "rope" &&
  b?.op === "rope" &&
  isSameRows(a.rows, b.rows) &&
  a.table === b.table &&
  a.positions === b.positions &&
  a.direction === b.direction &&
  a.x !== b.x;

/** The dispatches of the steps from `i` on that go together, and how many steps they are; undefined: no pattern begins here. */
const fused = (
  steps: readonly Step[],
  i: number,
  target: Target,
): { readonly count: number; readonly dispatches: Dispatch[] } | undefined => {
  const [a, b, c, d] = [steps[i], steps[i + 1], steps[i + 2], steps[i + 3]];
  if (a?.op === "rope" && b?.op === "rope" && isPair(a, b)) {
    const isAppended =
      c?.op === "kvAppend" && c.k === b.x && c.positions === b.positions && isSameRows(c.rows, b.rows) && columnsOf(c.v) === columnsOf(b.x);
    return isAppended ? { count: 3, dispatches: [ropes(a, b, c)] } : { count: 2, dispatches: [ropes(a, b)] };
  }
  if (a?.op === "rmsNorm" && b?.op === "rmsNorm") {
    if (c?.op === "rope" && d?.op === "rope" && isPair(c, d)) {
      const isOwn = (norm: Of<"rmsNorm">, rope: Of<"rope">): boolean =>
        norm.y === rope.x && !norm.residual && isSameRows(norm.rows, rope.rows) && sizeOf(norm.gain) === columnsOf(rope.table);
      if (isOwn(a, c) && isOwn(b, d)) return { count: 4, dispatches: [normRope(a, c, target), normRope(b, d, target)] };
    }
  }
  if (a?.op === "attentionDelta" && b?.op === "attentionBackwardQ" && c?.op === "attentionBackwardKv") {
    const isOne = a.delta === b.delta && a.delta === c.delta && b.lse === c.lse && a.dO === c.dO && isSameRows(a.rows, c.rows);
    if (isOne)
      return {
        count: 3,
        dispatches: [...attentionDelta(a, c.lse), ...attentionBackwardQ(b, target), ...attentionBackwardKv(c, target, true)],
      };
  }
  return undefined;
};

/** A plan's dispatches, in order. */
export const lowerSteps = (steps: readonly Step[], target: Target): Dispatch[] => {
  const dispatches: Dispatch[] = [];
  for (let i = 0; i < steps.length; ) {
    const found = fused(steps, i, target);
    dispatches.push(...(found?.dispatches ?? lower(steps[i]!, target)));
    i += found?.count ?? 1;
  }
  return dispatches;
};

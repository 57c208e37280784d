// Attention over the packed rows of a run: one workgroup a (tile of queries, query head), online softmax over tiles of keys.
//   s_j = scale·q·k_j, o = Σ_j e^(s_j − lse)·v_j, lse = log Σ_j e^(s_j)
// Keys of a tile are read once for all its queries; no score leaves the registers of a workgroup. Tiles of keys are counted from the
// first key of a row's sequence, and a tile of queries that crosses from one sequence into the next walks each by itself with the
// others masked: so a sequence gives the same bits wherever it is packed. A masked pair adds exactly zero.
// attentionCached.ts walks the same tiles of keys, one row at a time.

import type { Step } from "../../plan/step.ts";
import {
  accumulators,
  bySequence,
  type Operand,
  partsOf,
  pitchOf,
  type SliceType,
  scores,
  sequenceVariables,
  slice,
  sliceWidth,
  storeRows,
  threadsOf,
  weightedSum,
} from "../../wgsl/attentionTile.ts";
import { HALF_PRELUDE } from "../../wgsl/gemm.ts";
import { type AttentionVariant, attentionVariant } from "./attentionVariants.ts";
import { columnsOf, type Dispatch, foldedGroups, kernel, linearGroup, MAIN_ARGUMENTS, times } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Query head h uses KV head ⌊h·K/H⌋: as a WGSL expression of `head`. */
export const KV_HEAD = "head * params.K / params.H";

/** `params.window` of a step: keys that a query sees at most. Without a window it is larger than any count, and row + window stays a u32. */
export const windowOf = ({ window = Number.POSITIVE_INFINITY }: { readonly window?: number }): number => Math.min(window, 0x7fff_ffff);

/** What a text in this variant begins with. */
export const preludeOf = ({ type }: AttentionVariant): string => (type === "f16" ? HALF_PRELUDE : "");

/** Rough length of a walk over keys or queries, only for slicing long plans. */
export const walkOf = (capacity: number): number => Math.min(capacity, 512);

/**
 * Where tiles are f16, everything that is not in a tile is rounded alike: forward, gradient and cache compute one function. Not
 * f32(f16(x)), which a compiler may drop.
 */
export const rounded = (type: SliceType, value: string): string => (type === "f16" ? `quantizeToF16(${value})` : value);

/**
 * NAMEAt(row, end, head, c): what lies beyond reads as zero, so that numbers of other sequences, which may be NaN, meet no weight of
 * zero. `heads`: H or K. `type`: what the number is rounded to.
 */
export const fetch = (
  name: string,
  heads: "H" | "K",
  type: SliceType = "f32",
): string => `fn ${name}At(row: u32, end: u32, head: u32, c: u32) -> f32 {
  if (row >= end || c >= params.C) { return 0.0; }
  return ${rounded(type, `${name}[(row * params.${heads} + head) * params.C + c]`)};
}
`;

/** bool vec4 isSeenI for query 4·ty + i and the four keys from `key` on: causal, in the window, both in the part of one sequence. */
export const seenKeys = (i: number): string => `let row${i} = first + ty * 4u + ${i}u;
      let isSeen${i} = vec4<bool>(row${i} >= begin && row${i} < upTo) & (keys <= vec4u(row${i})) & (keys + params.window > vec4u(row${i}));`;

/** Row i of the thread's four lies in the part of one sequence; `unit`: the thread's place among the rows, in fours. */
export const ownRow =
  (unit: "ty" | "oy") =>
  (i: number): string =>
    `first + ${unit} * 4u + ${i}u >= begin && first + ${unit} * 4u + ${i}u < upTo`;

/** First key of the first tile that a part's first row sees, in tiles of `keys` counted from `bound`, the sequence's first row. */
export const firstKeyTile = (keys: number): string =>
  `bound + (max(bound, begin + 1u - min(begin + 1u, params.window)) - bound) / ${keys}u * ${keys}u`;

export const attention = (step: Of<"attention">, target: Target): Dispatch[] => {
  const { rows, q, k, v, start, o, lse, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const variant = attentionVariant(C, target);
  const { name, tile, type } = variant;
  const parts = partsOf(C, tile.keys);
  const threads = threadsOf(tile);
  const across = tile.keys / 4;
  const queries: Operand = {
    slice: "sliceQ",
    pitch: pitchOf(tile.queries),
    rows: tile.queries,
    element: (row, c) => `qAt(first + ${row}, params.rows, head, ${c})`,
  };
  const keys: Operand = {
    slice: "sliceK",
    pitch: pitchOf(sliceWidth(tile.keys, parts)),
    rows: tile.keys,
    element: (row, c) => `kAt(key0 + ${row}, upTo, kvHead, ${c})`,
  };
  // Largest scores and sums pass between the threads of a row through workgroup memory in f32: the slice of queries, or one of their own.
  const shared = type === "f32" ? "sliceQ" : "rowwise";
  const pitch = pitchOf(tile.queries);
  const overThreads = (value: string, combine: (all: string, one: string) => string): string => `${shared}[tx * ${pitch}u + ty] = ${value};
    workgroupBarrier();
    var all = ${shared}[ty];
    for (var i = 1u; i < ${across}u; i++) { all = ${combine("all", `${shared}[i * ${pitch}u + ty]`)}; }`;
  const body = `${slice("sliceQ", tile.queries, type)}${slice("sliceK", sliceWidth(tile.keys, parts), type)}${type === "f32" ? "" : slice("rowwise", tile.queries, "f32")}${sequenceVariables(tile.queries)}${fetch("q", "H")}${fetch("k", "K")}${fetch("v", "K")}@compute @workgroup_size(${threads})
fn main(${MAIN_ARGUMENTS}) {
  let first = (${linearGroup}) * ${tile.queries}u;
  if (first >= params.rows) { return; }
  let head = group.z;
  let kvHead = ${KV_HEAD};
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  ${accumulators("sum", parts)}
  var largest = vec4f(-3.0e38);
  var total = vec4f();
  ${bySequence(
    tile.queries,
    "start",
    `for (var key0 = ${firstKeyTile(tile.keys)}; key0 < upTo; key0 += ${tile.keys}u) {
    ${scores("s", queries, keys, threads, type)}
    {
      let keys = vec4u(key0 + tx * 4u) + vec4u(0, 1, 2, 3);
      ${times(
        4,
        (i) => `${seenKeys(i)}
      s${i} = select(vec4f(-3.0e38), s${i} * params.scale, isSeen${i});
      let top${i} = max(max(s${i}.x, s${i}.y), max(s${i}.z, s${i}.w));`,
      )}
      ${overThreads("vec4f(top0, top1, top2, top3)", (all, one) => `max(${all}, ${one})`)}
      let newLargest = max(largest, all);
      let keep = exp(largest - newLargest);
      largest = newLargest;
      ${times(4, (i) => `s${i} = select(vec4f(), exp(s${i} - newLargest[${i}]), isSeen${i});`)}
      total = total * keep + vec4f(${[0, 1, 2, 3].map((i) => `(s${i}.x + s${i}.y) + (s${i}.z + s${i}.w)`).join(", ")});
      ${times(parts, (part) => times(4, (i) => `sum${part}_${i} *= keep[${i}];`))}
      workgroupBarrier();
    }
    ${weightedSum({
      into: "sum",
      weights: "s",
      over: "keys",
      tile,
      element: (row, c) => `vAt(key0 + ${row}, upTo, kvHead, ${c})`,
      parts,
      type,
      isOwn: ownRow("ty"),
      slices: { queries: "sliceQ", keys: "sliceK" },
    })}
    }`,
  )}
  ${overThreads("total", (all, one) => `${all} + ${one}`)}
  if (tx == 0u) {
    for (var i = 0u; i < 4u; i++) {
      let row = first + ty * 4u + i;
      if (row < params.rows) { lse[row * params.H + head] = largest[i] + log(all[i]); }
    }
  }
  let mine = first + ty * 4u;
  ${storeRows("sum", parts, across, "tx", "if (mine + r < params.rows) { o[((mine + r) * params.H + head) * params.C + c] = value / all[r]; }")}
}
`;
  return [
    kernel({
      label: `attention ${name}`,
      prelude: preludeOf(variant),
      bindings: {
        q,
        k,
        v,
        start,
        o,
        lse,
      },
      body,
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(Math.ceil(n / tile.queries), H),
      work: 2 * H * C * walkOf(rows.capacity),
    }),
  ];
};

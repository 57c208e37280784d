// Attention over the rows of a run and over the cache: one workgroup a (row, query head), online softmax over chunks of 32 keys.
//   s_j = scale·q·k_j, o = Σ_j e^(s_j − lse)·v_j, lse = log Σ_j e^(s_j)
// Chunks are counted from the row's own first key, never from the batch, so a sequence gives the same bits wherever it is packed, and
// the cached form walks its keys in the same order as the packed one. Left out until a physical GPU has timed it: sharing the keys of
// a tile between queries.

import type { Step } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { BLOCK, byRow, columnsOf, type Dispatch, foldedGroups, kernel, times } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Lanes of a workgroup = keys of a chunk. */
export const LANES = 32;

/** Query head h uses KV head ⌊h·K/H⌋: as a WGSL expression of `head`. */
export const KV_HEAD = "head * params.K / params.H";

/** How many columns of a head a lane owns: the only thing about a shape that the text depends on. */
export const columnsPerLane = (C: number): number => Math.ceil(C / LANES);

/** For each column c of the head that this lane owns (as `c`), run the line with its number. */
export const ownColumns = (perLane: number, line: (i: number) => string): string =>
  times(perLane, (i) => `{ let c = lane + ${i * LANES}u; if (c < params.C) { ${line(i)} } }`);

/** `params.window` of a step: keys that a query sees at most. Without a window it is larger than any count, and row + window stays a u32. */
export const windowOf = ({ window = Number.POSITIVE_INFINITY }: { readonly window?: number }): number => Math.min(window, 0x7fff_ffff);

/** Element where key number `key` of the KV head begins. */
const KEY_BASE = "((bounds[0] + key) * params.K + kvHead) * params.C";

/**
 * `bounds` (WGSL) sets the row of the first key and the number of keys that the query sees. They come from storage, so they pass through
 * workgroupUniformLoad before a barrier depends on them.
 */
const forward = (perLane: number, bounds: string, keys: string, values: string, lse: boolean): string =>
  `var<workgroup> query: array<f32, ${perLane * LANES}>;
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: array<u32, 2>;
${reductions(LANES)}${byRow(
  LANES,
  `let head = group.z;
  let kvHead = ${KV_HEAD};
  if (lane == 0u) { ${bounds} }
  let bounds = workgroupUniformLoad(&bound);
  let count = bounds[1];
  for (var c = lane; c < params.C; c += ${LANES}u) { query[c] = q[(row * params.H + head) * params.C + c]; }
  workgroupBarrier();
  var largest = -3.0e38;
  var total = 0.0;
  ${times(perLane, (i) => `var sum${i} = 0.0;`)}
  for (var chunk = 0u; chunk < count; chunk += ${LANES}u) {
    let key = chunk + lane;
    var score = -3.0e38;
    if (key < count) {
      let base = ${KEY_BASE};
      var product = 0.0;
      for (var c = 0u; c < params.C; c++) { product += query[c] * ${keys}[base + c]; }
      score = product * params.scale;
    }
    let newLargest = max(largest, maxOf(score, lane));
    let p = select(0.0, exp(score - newLargest), key < count);
    weight[lane] = p;
    let chunkTotal = sumOf(p, lane);
    let keep = exp(largest - newLargest);
    total = total * keep + chunkTotal;
    largest = newLargest;
    ${times(perLane, (i) => `sum${i} *= keep;`)}
    let inChunk = min(${LANES / BLOCK}u * params.block, count - chunk);
    for (var j = 0u; j < inChunk; j++) {
      let key = chunk + j;
      let base = ${KEY_BASE};
      let w = weight[j];
      ${ownColumns(perLane, (i) => `sum${i} += w * ${values}[base + c];`)}
    }
    workgroupBarrier();
  }
  ${ownColumns(perLane, (i) => `o[(row * params.H + head) * params.C + c] = sum${i} / total;`)}
  ${lse ? `if (lane == 0u) { lse[row * params.H + head] = largest + log(total); }` : ""}`,
)}`;

export const attention = (step: Of<"attention">): Dispatch[] => {
  const { rows, q, k, v, start, o, lse, heads: H, kvHeads: K, scale } = step;
  const window = windowOf(step);
  const C = columnsOf(q) / H;
  const body = forward(
    columnsPerLane(C),
    "bound[1] = min(row + 1u - u32(start[row]), params.window); bound[0] = row + 1u - bound[1];",
    "k",
    "v",
    true,
  );
  return [
    kernel({
      label: "attention",
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        v: { tensor: v, as: "f32" },
        start: { tensor: start, as: "i32" },
        o: { tensor: o, as: "f32" },
        lse: { tensor: lse, as: "f32" },
      },
      body,
      sizes: { H, K, C, window },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(n, H),
      work: 2 * H * C * Math.min(rows.capacity, 512),
    }),
  ];
};

export const attentionCached = (step: Of<"attentionCached">): Dispatch[] => {
  const { rows, q, kCache, vCache, slots, positions, o, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const P = kCache.shape[1]!;
  const body = forward(
    columnsPerLane(C),
    `let end = u32(positions[row]) + 1u;
    bound[1] = min(end, params.window);
    bound[0] = u32(slots[row]) * params.P + end - bound[1];`,
    "kCache",
    "vCache",
    false,
  );
  return [
    kernel({
      label: "attentionCached",
      bindings: {
        q: { tensor: q, as: "f32" },
        kCache: { tensor: kCache, as: "f32" },
        vCache: { tensor: vCache, as: "f32" },
        slots: { tensor: slots, as: "i32" },
        positions: { tensor: positions, as: "i32" },
        o: { tensor: o, as: "f32" },
      },
      body,
      sizes: { H, K, C, P, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(n, H),
      work: 2 * H * C * Math.min(P, 512),
    }),
  ];
};

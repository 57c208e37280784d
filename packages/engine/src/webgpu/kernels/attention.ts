// Attention over the rows of a run and over the cache: one workgroup a (row, query head), online softmax over chunks of 64 keys.
//   s_j = scale·q·k_j, o = Σ_j e^(s_j − lse)·v_j, lse = log Σ_j e^(s_j)
// Chunks are counted from the row's own first key, never from the batch, so a sequence gives the same bits wherever it is packed, and
// the cached form walks its keys in the same order as the packed one. Left out until a physical GPU has timed it: sharing the keys of
// a tile between queries.

import type { Step } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { byRow, columnsOf, type Dispatch, float, foldedGroups, kernel, times } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Lanes of a workgroup = keys of a chunk. */
export const LANES = 64;

/** Query head h uses KV head ⌊h·K/H⌋: as a WGSL expression of `head`. */
export const kvHeadOf = (heads: number, kvHeads: number): string => `head * ${kvHeads}u / ${heads}u`;

/** How many columns of a head a lane owns. */
export const columnsPerLane = (C: number): number => Math.ceil(C / LANES);

/** For each column c of the head that this lane owns (as `c`), run the line with its number. */
export const ownColumns = (C: number, line: (i: number) => string): string =>
  times(columnsPerLane(C), (i) => `{ let c = lane + ${i * LANES}u; if (c < ${C}u) { ${line(i)} } }`);

interface Shape {
  readonly H: number;
  readonly K: number;
  readonly C: number;
  readonly scale: number;
}

/**
 * `last` is the number of the last key, `keyBase` the element where key number `key` of the KV head begins, both in WGSL; `bounds` sets
 * the workgroup variables that they need. Those come from storage, so they pass through workgroupUniformLoad before a barrier depends on them.
 */
const forward = (
  { H, K, C, scale }: Shape,
  bounds: string,
  last: string,
  keyBase: string,
  keys: string,
  values: string,
  lse: boolean,
): string =>
  `var<workgroup> query: array<f32, ${C}>;
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: array<u32, 2>;
${reductions(LANES)}${byRow(
  LANES,
  `let head = group.z;
  let kvHead = ${kvHeadOf(H, K)};
  if (lane == 0u) { ${bounds} }
  let bounds = workgroupUniformLoad(&bound);
  let count = ${last};
  for (var c = lane; c < ${C}u; c += ${LANES}u) { query[c] = q[(row * ${H}u + head) * ${C}u + c]; }
  workgroupBarrier();
  var largest = -3.0e38;
  var total = 0.0;
  ${times(columnsPerLane(C), (i) => `var sum${i} = 0.0;`)}
  for (var chunk = 0u; chunk < count; chunk += ${LANES}u) {
    let key = chunk + lane;
    var score = -3.0e38;
    if (key < count) {
      let base = ${keyBase};
      var product = 0.0;
      for (var c = 0u; c < ${C}u; c++) { product += query[c] * ${keys}[base + c]; }
      score = product * ${float(scale)};
    }
    let newLargest = max(largest, maxOf(score, lane));
    let p = select(0.0, exp(score - newLargest), key < count);
    weight[lane] = p;
    let chunkTotal = sumOf(p, lane);
    let keep = exp(largest - newLargest);
    total = total * keep + chunkTotal;
    largest = newLargest;
    ${times(columnsPerLane(C), (i) => `sum${i} *= keep;`)}
    let inChunk = min(${LANES}u, count - chunk);
    for (var j = 0u; j < inChunk; j++) {
      let key = chunk + j;
      let base = ${keyBase};
      let w = weight[j];
      ${ownColumns(C, (i) => `sum${i} += w * ${values}[base + c];`)}
    }
    workgroupBarrier();
  }
  ${ownColumns(C, (i) => `o[(row * ${H}u + head) * ${C}u + c] = sum${i} / total;`)}
  ${lse ? `if (lane == 0u) { lse[row * ${H}u + head] = largest + log(total); }` : ""}`,
)}`;

export const attention = ({ rows, q, k, v, start, o, lse, heads: H, kvHeads: K, scale }: Of<"attention">): Dispatch[] => {
  const C = columnsOf(q) / H;
  const body = forward(
    { H, K, C, scale },
    "bound[0] = u32(start[row]);",
    "row + 1u - bounds[0]",
    `((bounds[0] + key) * ${K}u + kvHead) * ${C}u`,
    "k",
    "v",
    true,
  );
  return [
    kernel({
      label: `attention ${H}/${K}x${C}`,
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        v: { tensor: v, as: "f32" },
        start: { tensor: start, as: "i32" },
        o: { tensor: o, as: "f32" },
        lse: { tensor: lse, as: "f32" },
      },
      body,
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
    { H, K, C, scale },
    "bound[0] = u32(slots[row]); bound[1] = u32(positions[row]);",
    "bounds[1] + 1u",
    `((bounds[0] * ${P}u + key) * ${K}u + kvHead) * ${C}u`,
    "kCache",
    "vCache",
    false,
  );
  return [
    kernel({
      label: `attentionCached ${H}/${K}x${C}`,
      bindings: {
        q: { tensor: q, as: "f32" },
        kCache: { tensor: kCache, as: "f32" },
        vCache: { tensor: vCache, as: "f32" },
        slots: { tensor: slots, as: "i32" },
        positions: { tensor: positions, as: "i32" },
        o: { tensor: o, as: "f32" },
      },
      body,
      rows,
      groups: (n) => foldedGroups(n, H),
      work: 2 * H * C * Math.min(P, 512),
    }),
  ];
};

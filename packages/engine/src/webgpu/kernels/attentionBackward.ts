// The gradient of attention in tiles, without atomics and without a score matrix: P is made again from lse.
//   P = e^(s − lse), delta = rowsum(dO∘O), dS = P∘(dO·vᵀ − delta), dq = scale·Σ dS·k, dk = scale·Σ dS·q, dv = Σ P·dO
// dq: one workgroup a (tile of queries, query head) walks tiles of keys as attention.ts does. dk and dv: one workgroup a (tile of keys,
// KV head) walks its query heads and, backwards from the end of the sequence, tiles of queries; tiles are counted from that end, so
// that packing changes no bit. lse and delta reach that kernel interleaved in scratch: with two more bindings it would have nine,
// and WebGPU promises eight. Gradients stay f32 where q and k are f16; scores are rounded as forward rounded them.

import type { Step, Tensor } from "../../plan/step.ts";
import {
  accumulators,
  bySequence,
  type Operand,
  partsOf,
  pitchOf,
  scores,
  sequenceVariables,
  slice,
  sliceWidth,
  storeRows,
  threadsOf,
  weightedSum,
} from "../../wgsl/attentionTile.ts";
import { fetch, firstKeyTile, KV_HEAD, ownRow, seenKeys, walkOf, windowOf } from "./attention.ts";
import { attentionVariant } from "./attentionVariants.ts";
import { columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel, linearGroup, MAIN_ARGUMENTS, SCRATCH, times } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** scratch[2·i], scratch[2·i + 1] = lse[i], delta[i] for each row and query head. */
const pairOf = (delta: string): string => `
  scratch[2u * i] = lse[i];
  scratch[2u * i + 1u] = ${delta};`;

/** With the `lse` of an attentionBackwardKv that follows, lse and delta are interleaved for it on the way. */
export const attentionDelta = ({ rows, o, dO, delta, heads: H }: Of<"attentionDelta">, lse?: Tensor): Dispatch[] => {
  const C = columnsOf(o) / H;
  return [
    kernel({
      label: lse ? "attentionDelta rows" : "attentionDelta",
      bindings: {
        o,
        dO,
        delta,
        ...(lse && { lse, scratch: SCRATCH }),
      },
      body: flat(
        "params.rows * params.H",
        `var sum = 0.0;
  for (var c = 0u; c < params.C; c++) { sum += dO[i * params.C + c] * o[i * params.C + c]; }
  delta[i] = sum;${lse ? pairOf("sum") : ""}`,
      ),
      sizes: { H, C },
      rows,
      groups: (n) => flatGroups(n * H),
      work: H * C,
      scratchBytes: lse ? rows.capacity * H * 8 : 0,
    }),
  ];
};

export const attentionBackwardQ = (step: Of<"attentionBackwardQ">, target: Target): Dispatch[] => {
  const { rows, q, k, v, dO, lse, delta, start, dq, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const variant = attentionVariant(C, target);
  const { name, tile, type } = variant;
  const parts = partsOf(C, tile.keys);
  const threads = threadsOf(tile);
  const across = tile.keys / 4;
  const ofQueries = (name: string): Operand => ({
    slice: "sliceQ",
    pitch: pitchOf(tile.queries),
    rows: tile.queries,
    element: (row, c) => `${name}At(first + ${row}, params.rows, head, ${c})`,
  });
  const ofKeys = (name: string): Operand => ({
    slice: "sliceK",
    pitch: pitchOf(sliceWidth(tile.keys, parts)),
    rows: tile.keys,
    element: (row, c) => `${name}At(key0 + ${row}, upTo, kvHead, ${c})`,
  });
  const body = `${slice("sliceQ", tile.queries, "f32")}${slice("sliceK", sliceWidth(tile.keys, parts), "f32")}${sequenceVariables(tile.queries)}${fetch("q", "H", type)}${fetch("k", "K", type)}${fetch("v", "K", type)}${fetch("dO", "H")}@compute @workgroup_size(${threads})
fn main(${MAIN_ARGUMENTS}) {
  let first = (${linearGroup}) * ${tile.queries}u;
  if (first >= params.rows) { return; }
  let head = group.z;
  let kvHead = ${KV_HEAD};
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  var rowLse = vec4f();
  var rowDelta = vec4f();
  for (var i = 0u; i < 4u; i++) {
    let own = min(first + ty * 4u + i, params.rows - 1u) * params.H + head;
    rowLse[i] = lse[own];
    rowDelta[i] = delta[own];
  }
  ${accumulators("sum", parts)}
  ${bySequence(
    tile.queries,
    "start",
    `for (var key0 = ${firstKeyTile(tile.keys)}; key0 < upTo; key0 += ${tile.keys}u) {
    ${scores("s", ofQueries("q"), ofKeys("k"), threads, "f32")}
    ${scores("dP", ofQueries("dO"), ofKeys("v"), threads, "f32")}
    {
      let keys = vec4u(key0 + tx * 4u) + vec4u(0, 1, 2, 3);
      ${times(
        4,
        (i) => `${seenKeys(i)}
      s${i} = select(vec4f(), exp(s${i} * params.scale - rowLse[${i}]) * (dP${i} - rowDelta[${i}]), isSeen${i});`,
      )}
    }
    ${weightedSum({
      into: "sum",
      weights: "s",
      over: "keys",
      tile,
      element: (row, c) => `kAt(key0 + ${row}, upTo, kvHead, ${c})`,
      parts,
      type: "f32",
      isOwn: ownRow("ty"),
      slices: { queries: "sliceQ", keys: "sliceK" },
    })}
    }`,
  )}
  let mine = first + ty * 4u;
  ${storeRows("sum", parts, across, "tx", "if (mine + r < params.rows) { dq[((mine + r) * params.H + head) * params.C + c] = params.scale * value; }")}
}
`;
  return [
    kernel({
      label: `attentionBackwardQ ${name}`,
      bindings: {
        q,
        k,
        v,
        dO,
        lse,
        delta,
        start,
        dq,
      },
      body,
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(Math.ceil(n / tile.queries), H),
      work: 3 * H * C * walkOf(rows.capacity),
    }),
  ];
};

const rowNumbers = ({ rows, lse, delta, heads: H }: Of<"attentionBackwardKv">): Dispatch =>
  kernel({
    label: "attentionBackwardKv rows",
    bindings: { lse, delta, scratch: SCRATCH },
    body: flat("params.rows * params.H", pairOf("delta[i]")),
    sizes: { H },
    rows,
    groups: (n) => flatGroups(n * H),
    work: 2 * H,
    scratchBytes: rows.capacity * H * 8,
  });

/**
 * Tiles of queries end at the sequence's end and reach back to the part's first key; `last` is the row behind a tile's last. Rows are
 * counted as last + r − queries, which may lie below zero: then last + r is too small. `isPaired`: scratch holds lse and delta already.
 */
export const attentionBackwardKv = (step: Of<"attentionBackwardKv">, target: Target, isPaired = false): Dispatch[] => {
  const { rows, q, k, v, dO, end, dk, dv, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const variant = attentionVariant(C, target);
  const { name, tile, type } = variant;
  const parts = partsOf(C, tile.queries);
  const threads = threadsOf(tile);
  const across = tile.keys / 4;
  const columns = tile.queries / 4;
  const ofQueries = (name: string): Operand => ({
    slice: "sliceQ",
    pitch: pitchOf(sliceWidth(tile.queries, parts)),
    rows: tile.queries,
    element: (row, c) => `${name}At(queryRow(last + ${row}, begin), sequenceEnd, head, ${c})`,
  });
  const ofKeys = (name: string): Operand => ({
    slice: "sliceK",
    pitch: pitchOf(tile.keys),
    rows: tile.keys,
    element: (row, c) => `${name}At(first + ${row}, params.rows, kvHead, ${c})`,
  });
  const sum = (into: string, weights: string, name: string): string =>
    weightedSum({
      into,
      weights,
      over: "queries",
      tile,
      element: ofQueries(name).element,
      parts,
      type: "f32",
      isOwn: ownRow("oy"),
      slices: { queries: "sliceQ", keys: "sliceK" },
    });
  const body = `${slice("sliceQ", sliceWidth(tile.queries, parts), "f32")}${slice("sliceK", tile.keys, "f32")}${sequenceVariables(tile.keys)}${fetch("q", "H", type)}${fetch("k", "K", type)}${fetch("v", "K", type)}${fetch("dO", "H")}fn queryRow(place: u32, begin: u32) -> u32 {
  return select(0xffffffffu, place - ${tile.queries}u, place >= begin + ${tile.queries}u);
}
@compute @workgroup_size(${threads})
fn main(${MAIN_ARGUMENTS}) {
  let first = (${linearGroup}) * ${tile.keys}u;
  if (first >= params.rows) { return; }
  let kvHead = group.z;
  let tx = lane % ${across}u;
  let ty = lane / ${across}u;
  let ox = lane % ${columns}u;
  let oy = lane / ${columns}u;
  let keys = vec4u(first + tx * 4u) + vec4u(0, 1, 2, 3);
  ${accumulators("keySum", parts)}
  ${accumulators("valueSum", parts)}
  ${bySequence(
    tile.keys,
    "end",
    `let sequenceEnd = min(bound, params.rows);
    let lastSeen = min(sequenceEnd, upTo - 1u + params.window);
    let isOwnKey = (keys >= vec4u(begin)) & (keys < vec4u(upTo));
    for (var head = kvHead * (params.H / params.K); head < (kvHead + 1u) * (params.H / params.K); head++) {
    for (var last = sequenceEnd - (sequenceEnd - lastSeen) / ${tile.queries}u * ${tile.queries}u; last > begin; last -= min(last, ${tile.queries}u)) {
    ${scores("p", ofQueries("q"), ofKeys("k"), threads, "f32")}
    ${scores("dS", ofQueries("dO"), ofKeys("v"), threads, "f32")}
    ${times(
      4,
      (i) => `{
      let row = queryRow(last + ty * 4u + ${i}u, begin);
      let isSeen = isOwnKey & vec4<bool>(row < sequenceEnd) & (keys <= vec4u(row)) & (keys + params.window > vec4u(row));
      let own = 2u * (min(row, params.rows - 1u) * params.H + head);
      p${i} = select(vec4f(), exp(p${i} * params.scale - scratch[own]), isSeen);
      dS${i} = select(vec4f(), p${i} * (dS${i} - scratch[own + 1u]), isSeen);
    }`,
    )}
    ${sum("valueSum", "p", "dO")}
    ${sum("keySum", "dS", "q")}
    }
    }`,
  )}
  let mine = first + oy * 4u;
  ${storeRows("keySum", parts, columns, "ox", "if (mine + r < params.rows) { dk[((mine + r) * params.K + kvHead) * params.C + c] = params.scale * value; }")}
  ${storeRows("valueSum", parts, columns, "ox", "if (mine + r < params.rows) { dv[((mine + r) * params.K + kvHead) * params.C + c] = value; }")}
}
`;
  return [
    ...(isPaired ? [] : [rowNumbers(step)]),
    kernel({
      label: `attentionBackwardKv ${name}`,
      bindings: {
        q,
        k,
        v,
        dO,
        scratch: SCRATCH,
        end,
        dk,
        dv,
      },
      body,
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(Math.ceil(n / tile.keys), K),
      work: 5 * H * C * walkOf(rows.capacity),
    }),
  ];
};

// Attention of single rows over the cache: one workgroup a (row, query head, span of keys), online softmax over the same tiles of keys
// as attention.ts, counted from position 0. Plans whose slots are longer than one span cut the keys of a row into spans that run side
// by side, since a decode step has few rows, and a second dispatch adds them up in order. Spans depend on the plan's capacity alone,
// never on the rows of a run, so a row's bits do not depend on its neighbours.
// Left out: keys shared between the query heads of a KV head, and between rows of one slot.

import type { Step } from "../../plan/step.ts";
import { reductions, reductionsFor } from "../../wgsl/reduce.ts";
import { KV_HEAD, rounded, walkOf, windowOf } from "./attention.ts";
import { attentionVariant } from "./attentionVariants.ts";
import { BLOCK, byRow, columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel, SCRATCH, times } from "./kernel.ts";
import type { Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const MIN_SPAN = 256;
const MAX_SPANS = 16;

/** Keys of a span, a multiple of every tile's keys; `positions`: the cache's. */
export const spanOf = (positions: number): number => Math.max(MIN_SPAN, Math.ceil(positions / MAX_SPANS / 64) * 64);

/** Everything that the sums of a span's workgroup leave in scratch: C sums, the largest score, the total. */
const PARTIAL = "(row * params.H + head) * params.spans + span";

export const attentionCached = (step: Of<"attentionCached">, target: Target): Dispatch[] => {
  const { rows, q, kCache, vCache, slots, positions, o, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const P = kCache.shape[1]!;
  const variant = attentionVariant(C, target);
  const { type } = variant;
  const lanes = variant.tile.keys;
  const { how, prelude, suffix } = reductionsFor("attentionCached", target);
  const span = spanOf(P);
  const spans = Math.ceil(P / span);
  const isCut = spans > 1;
  const perLane = Math.ceil(C / lanes);
  /** For each column c of the head that this lane owns, the line with its number. */
  const ownColumns = (line: (i: number) => string): string =>
    times(perLane, (i) => `{ let c = lane + ${i * lanes}u; if (c < params.C) { ${line(i)} } }`);
  const finish = isCut
    ? `${ownColumns((i) => `scratch[(${PARTIAL}) * (params.C + 2u) + c] = sum${i};`)}
  if (lane == 0u) {
    scratch[(${PARTIAL}) * (params.C + 2u) + params.C] = largest;
    scratch[(${PARTIAL}) * (params.C + 2u) + params.C + 1u] = total;
  }`
    : ownColumns((i) => `o[(row * params.H + head) * params.C + c] = sum${i} / total;`);
  const body = `var<workgroup> query: array<f32, ${perLane * lanes}>;
var<workgroup> weight: array<f32, ${lanes}>;
var<workgroup> ends: vec2u;
${reductions(lanes, how)}${byRow(
  lanes,
  `let head = group.z % params.H;
  let span = group.z / params.H;
  let kvHead = ${KV_HEAD};
  if (lane == 0u) {
    let end = u32(positions[row]) + 1u;
    ends = vec2u(max(end - min(end, params.window), span * params.span), min(end, (span + 1u) * params.span));
  }
  let ends_ = workgroupUniformLoad(&ends);
  let begin = ends_.x;
  let end = ends_.y;
  if (begin >= end) { return; }
  let slot = u32(slots[row]) * params.P;
  for (var c = lane; c < params.C; c += ${lanes}u) { query[c] = ${rounded(type, "q[(row * params.H + head) * params.C + c]")}; }
  workgroupBarrier();
  var largest = -3.0e38;
  var part = 0.0;
  ${times(perLane, (i) => `var sum${i} = 0.0;`)}
  for (var key0 = begin / ${lanes}u * ${lanes}u; key0 < end; key0 += ${lanes}u) {
    let key = key0 + lane;
    let isSeen = key >= begin && key < end;
    var score = -3.0e38;
    if (isSeen) {
      let base = ((slot + key) * params.K + kvHead) * params.C;
      var product = 0.0;
      for (var c = 0u; c < params.C; c++) { product += query[c] * ${rounded(type, "kCache[base + c]")}; }
      score = product * params.scale;
    }
    let newLargest = max(largest, maxOf(score, lane));
    let p = select(0.0, exp(score - newLargest), isSeen);
    weight[lane] = ${rounded(type, "p")};
    let keep = exp(largest - newLargest);
    part = part * keep + p;
    largest = newLargest;
    ${times(perLane, (i) => `sum${i} *= keep;`)}
    workgroupBarrier();
    let firstSeen = max(key0, begin) - key0;
    let upTo = min(${lanes / BLOCK}u * params.block, end - key0);
    for (var j = firstSeen; j < upTo; j++) {
      let base = ((slot + key0 + j) * params.K + kvHead) * params.C;
      let w = weight[j];
      ${ownColumns((i) => `sum${i} += w * ${rounded(type, "vCache[base + c]")};`)}
    }
    workgroupBarrier();
  }
  let total = sumOf(part, lane);
  ${finish}`,
  how,
)}`;
  const sizes = { H, K, C, P, window: windowOf(step), span, spans };
  const first = kernel({
    label: `attentionCached ${lanes}${type === "f16" ? " f16" : ""}${isCut ? " spans" : ""}${suffix}`,
    prelude,
    bindings: {
      q,
      kCache,
      vCache,
      slots,
      positions,
      ...(isCut ? { scratch: SCRATCH } : { o }),
    },
    body,
    sizes,
    numbers: { scale },
    rows,
    groups: (n) => foldedGroups(n, H * spans),
    work: 2 * H * C * walkOf(P),
    scratchBytes: isCut ? rows.capacity * H * spans * (C + 2) * 4 : 0,
  });
  if (!isCut) return [first];
  return [
    first,
    kernel({
      label: "attentionCached sum",
      bindings: {
        scratch: SCRATCH,
        positions,
        o,
      },
      body: flat(
        "params.rows * params.H * params.C",
        `let unit = i / params.C;
  let end = u32(positions[unit / params.H]) + 1u;
  let begin = end - min(end, params.window);
  let firstPart = unit * params.spans + begin / params.span;
  let upTo = unit * params.spans + (end - 1u) / params.span + 1u;
  let width = params.C + 2u;
  var largest = -3.0e38;
  for (var part = firstPart; part < upTo; part++) { largest = max(largest, scratch[part * width + params.C]); }
  var sum = 0.0;
  var total = 0.0;
  for (var part = firstPart; part < upTo; part++) {
    let keep = exp(scratch[part * width + params.C] - largest);
    sum += keep * scratch[part * width + i % params.C];
    total += keep * scratch[part * width + params.C + 1u];
  }
  o[i] = sum / total;`,
      ),
      sizes,
      rows,
      groups: (n) => flatGroups(n * H * C),
      work: H * C * spans,
    }),
  ];
};

// The gradient of attention, without atomics: one kernel walks the keys of a query row, two walk the query rows of a key row.
//   P = e^(s − lse), delta = rowsum(dO∘O), dS = P∘(dO·vᵀ − delta), dq = scale·Σ dS·k, dk = scale·Σ dS·q, dv = Σ P·dO
// dk and dv are two dispatches: together they would bind nine buffers, and WebGPU promises eight. Every sum runs in row order.

import type { Step } from "../../plan/step.ts";
import { columnsPerLane, KV_HEAD, LANES, ownColumns, windowOf } from "./attention.ts";
import { BLOCK, byRow, columnsOf, type Dispatch, flat, flatGroups, foldedGroups, kernel, times } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Rough length of the walks, only for slicing long plans. */
const walk = (capacity: number): number => Math.min(capacity, 512);

export const attentionDelta = ({ rows, o, dO, delta, heads: H }: Of<"attentionDelta">): Dispatch[] => {
  const C = columnsOf(o) / H;
  return [
    kernel({
      label: "attentionDelta",
      bindings: { o: { tensor: o, as: "f32" }, dO: { tensor: dO, as: "f32" }, delta: { tensor: delta, as: "f32" } },
      body: flat(
        "params.rows * params.H",
        `var sum = 0.0;
  for (var c = 0u; c < params.C; c++) { sum += dO[i * params.C + c] * o[i * params.C + c]; }
  delta[i] = sum;`,
      ),
      sizes: { H, C },
      rows,
      groups: (n) => flatGroups(n * H),
      work: H * C,
    }),
  ];
};

export const attentionBackwardQ = (step: Of<"attentionBackwardQ">): Dispatch[] => {
  const { rows, q, k, v, dO, lse, delta, start, dq, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const perLane = columnsPerLane(C);
  const body = `var<workgroup> query: array<f32, ${perLane * LANES}>;
var<workgroup> outGradient: array<f32, ${perLane * LANES}>;
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: u32;
${byRow(
  LANES,
  `let head = group.z;
  let kvHead = ${KV_HEAD};
  if (lane == 0u) { bound = min(row + 1u - u32(start[row]), params.window); }
  let count = workgroupUniformLoad(&bound);
  let first = row + 1u - count;
  let own = row * params.H + head;
  for (var c = lane; c < params.C; c += ${LANES}u) {
    query[c] = q[own * params.C + c];
    outGradient[c] = dO[own * params.C + c];
  }
  workgroupBarrier();
  let rowLse = lse[own];
  let rowDelta = delta[own];
  ${times(perLane, (i) => `var sum${i} = 0.0;`)}
  for (var chunk = 0u; chunk < count; chunk += ${LANES}u) {
    var dS = 0.0;
    if (chunk + lane < count) {
      let base = ((first + chunk + lane) * params.K + kvHead) * params.C;
      var s = 0.0;
      var dP = 0.0;
      for (var c = 0u; c < params.C; c++) {
        s += query[c] * k[base + c];
        dP += outGradient[c] * v[base + c];
      }
      dS = exp(s * params.scale - rowLse) * (dP - rowDelta);
    }
    weight[lane] = dS;
    workgroupBarrier();
    let inChunk = min(${LANES / BLOCK}u * params.block, count - chunk);
    for (var j = 0u; j < inChunk; j++) {
      let base = ((first + chunk + j) * params.K + kvHead) * params.C;
      let w = weight[j];
      ${ownColumns(perLane, (i) => `sum${i} += w * k[base + c];`)}
    }
    workgroupBarrier();
  }
  ${ownColumns(perLane, (i) => `dq[own * params.C + c] = params.scale * sum${i};`)}`,
)}`;
  return [
    kernel({
      label: "attentionBackwardQ",
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        v: { tensor: v, as: "f32" },
        dO: { tensor: dO, as: "f32" },
        lse: { tensor: lse, as: "f32" },
        delta: { tensor: delta, as: "f32" },
        start: { tensor: start, as: "i32" },
        dq: { tensor: dq, as: "f32" },
      },
      body,
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(n, H),
      work: 3 * H * C * walk(rows.capacity),
    }),
  ];
};

/**
 * One workgroup a (key row, KV head), over the head's query heads and the query rows from the key's own to the end of its sequence or of its window.
 * `weight` is the coefficient of the row that is summed: `summed` is q (dk, weight dS) or dO (dv, weight P).
 */
const overQueries = (perLane: number, out: "dk" | "dv"): string => {
  const isKey = out === "dk";
  const summed = isKey ? "q" : "dO";
  return `var<workgroup> key: array<f32, ${perLane * LANES}>;
${isKey ? `var<workgroup> value: array<f32, ${perLane * LANES}>;` : ""}
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: u32;
${byRow(
  LANES,
  `let kvHead = group.z;
  if (lane == 0u) { bound = min(min(u32(end[row]), params.rows), row + params.window); }
  let last = workgroupUniformLoad(&bound);
  let own = (row * params.K + kvHead) * params.C;
  for (var c = lane; c < params.C; c += ${LANES}u) {
    key[c] = k[own + c];
    ${isKey ? "value[c] = v[own + c];" : ""}
  }
  workgroupBarrier();
  ${times(perLane, (i) => `var sum${i} = 0.0;`)}
  for (var head = kvHead * (params.H / params.K); head < (kvHead + 1u) * (params.H / params.K); head++) {
    for (var chunk = row; chunk < last; chunk += ${LANES}u) {
      var w = 0.0;
      if (chunk + lane < last) {
        let at = (chunk + lane) * params.H + head;
        var s = 0.0;
        ${isKey ? "var dP = 0.0;" : ""}
        for (var c = 0u; c < params.C; c++) {
          s += q[at * params.C + c] * key[c];
          ${isKey ? `dP += dO[at * params.C + c] * value[c];` : ""}
        }
        w = exp(s * params.scale - lse[at])${isKey ? " * (dP - delta[at])" : ""};
      }
      weight[lane] = w;
      workgroupBarrier();
      let inChunk = min(${LANES / BLOCK}u * params.block, last - chunk);
      for (var j = 0u; j < inChunk; j++) {
        let base = ((chunk + j) * params.H + head) * params.C;
        let w = weight[j];
        ${ownColumns(perLane, (i) => `sum${i} += w * ${summed}[base + c];`)}
      }
      workgroupBarrier();
    }
  }
  ${ownColumns(perLane, (i) => `${out}[own + c] = ${isKey ? "params.scale * " : ""}sum${i};`)}`,
)}`;
};

export const attentionBackwardKv = (step: Of<"attentionBackwardKv">): Dispatch[] => {
  const { rows, q, k, v, dO, lse, delta, end, dk, dv, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const perLane = columnsPerLane(C);
  return [
    kernel({
      label: "attentionBackwardKv dk",
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        v: { tensor: v, as: "f32" },
        dO: { tensor: dO, as: "f32" },
        lse: { tensor: lse, as: "f32" },
        delta: { tensor: delta, as: "f32" },
        end: { tensor: end, as: "i32" },
        dk: { tensor: dk, as: "f32" },
      },
      body: overQueries(perLane, "dk"),
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(n, K),
      work: 3 * H * C * walk(rows.capacity),
    }),
    kernel({
      label: "attentionBackwardKv dv",
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        dO: { tensor: dO, as: "f32" },
        lse: { tensor: lse, as: "f32" },
        end: { tensor: end, as: "i32" },
        dv: { tensor: dv, as: "f32" },
      },
      body: overQueries(perLane, "dv"),
      sizes: { H, K, C, window: windowOf(step) },
      numbers: { scale },
      rows,
      groups: (n) => foldedGroups(n, K),
      work: 2 * H * C * walk(rows.capacity),
    }),
  ];
};

// The gradient of attention, without atomics: one kernel walks the keys of a query row, two walk the query rows of a key row.
//   P = e^(s − lse), delta = rowsum(dO∘O), dS = P∘(dO·vᵀ − delta), dq = scale·Σ dS·k, dk = scale·Σ dS·q, dv = Σ P·dO
// dk and dv are two dispatches: together they would bind nine buffers, and WebGPU promises eight. Every sum runs in row order.

import type { Step } from "../../plan/step.ts";
import { columnsPerLane, kvHeadOf, LANES, ownColumns } from "./attention.ts";
import { byRow, columnsOf, type Dispatch, flat, flatGroups, float, foldedGroups, kernel, times } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

/** Rough length of the walks, only for slicing long plans. */
const walk = (capacity: number): number => Math.min(capacity, 512);

export const attentionDelta = ({ rows, o, dO, delta, heads: H }: Of<"attentionDelta">): Dispatch[] => {
  const C = columnsOf(o) / H;
  return [
    kernel({
      label: `attentionDelta ${H}x${C}`,
      bindings: { o: { tensor: o, as: "f32" }, dO: { tensor: dO, as: "f32" }, delta: { tensor: delta, as: "f32" } },
      body: flat(
        `params.rows * ${H}u`,
        `var sum = 0.0;
  for (var c = 0u; c < ${C}u; c++) { sum += dO[i * ${C}u + c] * o[i * ${C}u + c]; }
  delta[i] = sum;`,
      ),
      rows,
      groups: (n) => flatGroups(n * H),
      work: H * C,
    }),
  ];
};

export const attentionBackwardQ = (step: Of<"attentionBackwardQ">): Dispatch[] => {
  const { rows, q, k, v, dO, lse, delta, start, dq, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const body = `var<workgroup> query: array<f32, ${C}>;
var<workgroup> outGradient: array<f32, ${C}>;
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: u32;
${byRow(
  LANES,
  `let head = group.z;
  let kvHead = ${kvHeadOf(H, K)};
  if (lane == 0u) { bound = u32(start[row]); }
  let first = workgroupUniformLoad(&bound);
  let count = row + 1u - first;
  let own = row * ${H}u + head;
  for (var c = lane; c < ${C}u; c += ${LANES}u) {
    query[c] = q[own * ${C}u + c];
    outGradient[c] = dO[own * ${C}u + c];
  }
  workgroupBarrier();
  let rowLse = lse[own];
  let rowDelta = delta[own];
  ${times(columnsPerLane(C), (i) => `var sum${i} = 0.0;`)}
  for (var chunk = 0u; chunk < count; chunk += ${LANES}u) {
    var dS = 0.0;
    if (chunk + lane < count) {
      let base = ((first + chunk + lane) * ${K}u + kvHead) * ${C}u;
      var s = 0.0;
      var dP = 0.0;
      for (var c = 0u; c < ${C}u; c++) {
        s += query[c] * k[base + c];
        dP += outGradient[c] * v[base + c];
      }
      dS = exp(s * ${float(scale)} - rowLse) * (dP - rowDelta);
    }
    weight[lane] = dS;
    workgroupBarrier();
    let inChunk = min(${LANES}u, count - chunk);
    for (var j = 0u; j < inChunk; j++) {
      let base = ((first + chunk + j) * ${K}u + kvHead) * ${C}u;
      let w = weight[j];
      ${ownColumns(C, (i) => `sum${i} += w * k[base + c];`)}
    }
    workgroupBarrier();
  }
  ${ownColumns(C, (i) => `dq[own * ${C}u + c] = ${float(scale)} * sum${i};`)}`,
)}`;
  return [
    kernel({
      label: `attentionBackwardQ ${H}/${K}x${C}`,
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
      rows,
      groups: (n) => foldedGroups(n, H),
      work: 3 * H * C * walk(rows.capacity),
    }),
  ];
};

/**
 * One workgroup a (key row, KV head), over the head's query heads and the query rows from the key's own to the end of its sequence.
 * `weight` is the coefficient of the row that is summed: `summed` is q (dk, weight dS) or dO (dv, weight P).
 */
const overQueries = ({ H, K, C, scale }: { H: number; K: number; C: number; scale: number }, out: "dk" | "dv"): string => {
  const isKey = out === "dk";
  const summed = isKey ? "q" : "dO";
  return `var<workgroup> key: array<f32, ${C}>;
${isKey ? `var<workgroup> value: array<f32, ${C}>;` : ""}
var<workgroup> weight: array<f32, ${LANES}>;
var<workgroup> bound: u32;
${byRow(
  LANES,
  `let kvHead = group.z;
  if (lane == 0u) { bound = min(u32(end[row]), params.rows); }
  let last = workgroupUniformLoad(&bound);
  let own = (row * ${K}u + kvHead) * ${C}u;
  for (var c = lane; c < ${C}u; c += ${LANES}u) {
    key[c] = k[own + c];
    ${isKey ? "value[c] = v[own + c];" : ""}
  }
  workgroupBarrier();
  ${times(columnsPerLane(C), (i) => `var sum${i} = 0.0;`)}
  for (var head = kvHead * ${H / K}u; head < (kvHead + 1u) * ${H / K}u; head++) {
    for (var chunk = row; chunk < last; chunk += ${LANES}u) {
      var w = 0.0;
      if (chunk + lane < last) {
        let at = (chunk + lane) * ${H}u + head;
        var s = 0.0;
        ${isKey ? "var dP = 0.0;" : ""}
        for (var c = 0u; c < ${C}u; c++) {
          s += q[at * ${C}u + c] * key[c];
          ${isKey ? `dP += dO[at * ${C}u + c] * value[c];` : ""}
        }
        w = exp(s * ${float(scale)} - lse[at])${isKey ? " * (dP - delta[at])" : ""};
      }
      weight[lane] = w;
      workgroupBarrier();
      let inChunk = min(${LANES}u, last - chunk);
      for (var j = 0u; j < inChunk; j++) {
        let base = ((chunk + j) * ${H}u + head) * ${C}u;
        let w = weight[j];
        ${ownColumns(C, (i) => `sum${i} += w * ${summed}[base + c];`)}
      }
      workgroupBarrier();
    }
  }
  ${ownColumns(C, (i) => `${out}[own + c] = ${isKey ? `${float(scale)} * ` : ""}sum${i};`)}`,
)}`;
};

export const attentionBackwardKv = (step: Of<"attentionBackwardKv">): Dispatch[] => {
  const { rows, q, k, v, dO, lse, delta, end, dk, dv, heads: H, kvHeads: K, scale } = step;
  const C = columnsOf(q) / H;
  const shape = { H, K, C, scale };
  return [
    kernel({
      label: `attentionBackwardKv dk ${H}/${K}x${C}`,
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
      body: overQueries(shape, "dk"),
      rows,
      groups: (n) => foldedGroups(n, K),
      work: 3 * H * C * walk(rows.capacity),
    }),
    kernel({
      label: `attentionBackwardKv dv ${H}/${K}x${C}`,
      bindings: {
        q: { tensor: q, as: "f32" },
        k: { tensor: k, as: "f32" },
        dO: { tensor: dO, as: "f32" },
        lse: { tensor: lse, as: "f32" },
        end: { tensor: end, as: "i32" },
        dv: { tensor: dv, as: "f32" },
      },
      body: overQueries(shape, "dv"),
      rows,
      groups: (n) => foldedGroups(n, K),
      work: 2 * H * C * walk(rows.capacity),
    }),
  ];
};

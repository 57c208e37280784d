// The two products of tiled attention, as WGSL text: scores of a tile of queries and a tile of keys (summed over the head's columns),
// and weights of that tile times rows of the head (summed over keys, or over queries in the gradient of k and v).
// Both operands pass through workgroup memory in slices of 16, depth-major, so that two vec4 loads feed the 16 multiply-adds of a
// thread; weights go there slice by slice too, straight from the registers of the threads that made them. So a 64 × 64 tile takes
// 9 KiB whatever the head's width. Every sum is made of blocks of 16, each summed upwards and then added upwards.
// Loops are bounded by params.block, a uniform that is always 16: no compiler unrolls them.

import type { AttentionTile } from "../webgpu/kernels/attentionVariants.ts";
import { BLOCK, times } from "../webgpu/kernels/kernel.ts";

/** f16 slices hold rounded numbers; what is multiplied and added is f32 again. */
export type SliceType = "f32" | "f16";

/** vec4 to a depth of a slice; one more than needed, so that turned columns fall into different banks. */
export const pitchOf = (width: number): number => width / 4 + 1;

export const threadsOf = ({ queries, keys }: AttentionTile): number => (queries / 4) * (keys / 4);

const vector = (type: SliceType): string => (type === "f16" ? "vec4<f16>" : "vec4f");

/** A slice: 16 deep, `width` rows of a tile or columns of a head across. */
export const slice = (name: string, width: number, type: SliceType): string =>
  `var<workgroup> ${name}: array<${vector(type)}, ${BLOCK * pitchOf(width)}>;\n`;

/** An operand: its slice with its pitch, its rows, and a WGSL expression of its element from u32 expressions. */
export interface Operand {
  readonly slice: string;
  readonly pitch: number;
  readonly rows: number;
  readonly element: (row: string, column: string) => string;
}

const load = ({ slice: name, pitch, rows, element }: Operand, threads: number, type: SliceType): string =>
  `for (var i = lane; i < params.block * ${rows / 4}u; i += ${threads}u) {
      let r = i / ${BLOCK}u * 4u;
      let c = c0 + i % ${BLOCK}u;
      var four = vec4f();
      for (var j = 0u; j < params.block; j += 4u) { four[j / 4u] = ${element("r + j / 4u", "c")}; }
      ${name}[(i % ${BLOCK}u) * ${pitch}u + i / ${BLOCK}u] = ${vector(type)}(four);
    }`;

/** Declares NAME0 … NAME3: products of the thread's four queries (4·ty …) with its four keys (4·tx …), over params.C columns. */
export const scores = (name: string, queries: Operand, keys: Operand, threads: number, type: SliceType): string => `
  ${times(4, (i) => `var ${name}${i} = vec4f();`)}
  for (var c0 = 0u; c0 < params.C; c0 += params.block) {
    ${load(queries, threads, type)}
    ${load(keys, threads, type)}
    workgroupBarrier();
    ${times(4, (i) => `var block${i} = vec4f();`)}
    for (var r = 0u; r < params.block; r++) {
      let x = vec4f(${queries.slice}[r * ${queries.pitch}u + ty]);
      let y = vec4f(${keys.slice}[r * ${keys.pitch}u + tx]);
      ${times(4, (i) => `block${i} += x[${i}] * y;`)}
    }
    ${times(4, (i) => `${name}${i} += block${i};`)}
    workgroupBarrier();
  }`;

export interface WeightedSum {
  /** Accumulators NAMEp_i: part p, row i of the thread's four. */
  readonly into: string;
  /** vec4 w0 … w3: row i holds the weights of the thread's query i and its four keys. */
  readonly weights: string;
  /** Summed over keys (rows are queries), or over queries (rows are keys). */
  readonly over: "keys" | "queries";
  readonly tile: AttentionTile;
  /** Element of the summed rows: row of the tile, column of the head. */
  readonly element: (row: string, column: string) => string;
  readonly parts: number;
  readonly type: SliceType;
  /** WGSL bool: row i of the thread's four belongs to the part. Rows of other sequences must not meet this one's numbers: 0·NaN is NaN. */
  readonly isOwn: (i: number) => string;
  /** Names of the slices: one as wide as the tile's queries, one as wide as its keys. */
  readonly slices: { readonly queries: string; readonly keys: string };
}

/** Columns of a head that lie in a slice at once; wider heads take turns. */
const SLICE_COLUMNS = 128;

/** Width of a slice that holds rows of a head as well as rows of a tile. */
export const sliceWidth = (rows: number, parts: number): number => Math.min(parts * rows, SLICE_COLUMNS);

/**
 * into += weights · rows. Four rows and one vec4 of columns a thread and part. Over keys the thread's rows are its queries 4·ty and its
 * columns 4·(tx + part·keys/4); over queries the roles change: rows are keys 4·oy, columns 4·(ox + part·queries/4).
 */
export const weightedSum = ({ into, weights, over, tile, element, parts, type, isOwn, slices }: WeightedSum): string => {
  const threads = threadsOf(tile);
  const isOverKeys = over === "keys";
  const across = (isOverKeys ? tile.keys : tile.queries) / 4;
  const depth = across * 4;
  const weightPitch = pitchOf(isOverKeys ? tile.queries : tile.keys);
  const [weightSlice, rowSlice] = isOverKeys ? [slices.queries, slices.keys] : [slices.keys, slices.queries];
  const rowPitch = pitchOf(sliceWidth(depth, parts));
  const [own, other, rows, columns] = isOverKeys ? ["tx", "ty", "ty", "tx"] : ["ty", "tx", "oy", "ox"];
  const line = (i: number): string =>
    isOverKeys ? `vec4f(${[0, 1, 2, 3].map((q) => `${weights}${q}[${i}]`).join(", ")})` : `${weights}${i}`;
  const together = SLICE_COLUMNS / depth;
  const turns = Array.from({ length: Math.ceil(parts / together) }, (_, turn) => ({
    before: turn * together,
    count: Math.min(together, parts - turn * together),
  }));
  return `
  for (var d0 = 0u; d0 < ${depth / BLOCK}u * params.block; d0 += params.block) {
    if (${own} / 4u == d0 / ${BLOCK}u) {
      let at = ${own} % 4u * 4u;
      ${times(4, (i) => `${weightSlice}[(at + ${i}u) * ${weightPitch}u + ${other}] = ${vector(type)}(${line(i)});`)}
    }
    ${turns
      .map(({ before, count }) => {
        const quads = count * across;
        return `for (var i = lane; i < params.block * ${quads}u; i += ${threads}u) {
      let r = d0 + i / ${quads}u;
      let c = (i % ${quads}u + ${before * across}u) * 4u;
      ${rowSlice}[i / ${quads}u * ${rowPitch}u + i % ${quads}u] = ${vector(type)}(vec4f(${[0, 1, 2, 3].map((q) => element("r", `c + ${q}u`)).join(", ")}));
    }
    workgroupBarrier();
    {
    ${times(count, (part) => times(4, (i) => `var block${part}_${i} = vec4f();`))}
    for (var r = 0u; r < params.block; r++) {
      let x = vec4f(${weightSlice}[r * ${weightPitch}u + ${rows}]);
      ${times(count, (part) => `let y${part} = vec4f(${rowSlice}[r * ${rowPitch}u + ${columns} + ${part * across}u]);`)}
      ${times(count, (part) => times(4, (i) => `block${part}_${i} += x[${i}] * y${part};`))}
    }
    ${times(count, (part) => times(4, (i) => `${into}${before + part}_${i} += select(vec4f(), block${part}_${i}, ${isOwn(i)});`))}
    }
    workgroupBarrier();`;
      })
      .join("\n")}
  }`;
};

/** Writes the four rows of a weighted sum: `line` stores the number `value` at `row` (counted from the thread's first) and column c < params.C. */
export const storeRows = (from: string, parts: number, across: number, column: string, line: string): string => `{
    var rowSums = array<vec4f, ${4 * parts}>(${times(parts, (part) => [0, 1, 2, 3].map((i) => `${from}${part}_${i}`).join(", ")).replaceAll("\n", ", ")});
    for (var i = 0u; i < params.block; i++) {
      let r = i / 4u;
      for (var part = 0u; part < ${parts}u; part++) {
        let c = (${column} + part * ${across}u) * 4u + i % 4u;
        let value = rowSums[part * 4u + r][i % 4u];
        if (c < params.C) { ${line} }
      }
    }
  }`;

/** Accumulators of a weighted sum, zero. */
export const accumulators = (name: string, parts: number): string =>
  times(parts, (part) => times(4, (i) => `var ${name}${part}_${i} = vec4f();`));

/** How many vec4 columns of a head a thread owns: the only thing about a head's width that the text depends on. */
export const partsOf = (C: number, across: number): number => Math.ceil(C / across);

/**
 * Finds, one after the other, the parts of a tile of rows that belong to one sequence. Uses `begin` … `upTo` (rows) and `bound`, the
 * number that all rows of the part share; `first` is the tile's first row. `marks` says where the number of a row comes from.
 */
export const bySequence = (rows: number, source: string, body: string): string => `
  if (lane < ${rows}u && first + lane < params.rows) { marks[lane] = u32(${source}[first + lane]); }
  workgroupBarrier();
  let stop = min(first + ${rows}u, params.rows);
  for (var begin = first; begin < stop; ) {
    if (lane == 0u) {
      var i = begin - first;
      sequence = vec2u(marks[i], 0u);
      while (first + i < stop && marks[i] == sequence.x) { i++; }
      sequence.y = first + i;
    }
    let part = workgroupUniformLoad(&sequence);
    let bound = part.x;
    let upTo = part.y;
    ${body}
    begin = upTo;
  }`;

export const sequenceVariables = (rows: number): string => `var<workgroup> marks: array<u32, ${rows}>;
var<workgroup> sequence: vec2u;
`;

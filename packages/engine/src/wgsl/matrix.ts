// How a kernel reads a stored matrix, four neighbours of a row at a time: f32 as it lies, packed weights (weights/formats.ts) dequantised
// on the way. s·i of a quantised weight is exact in f32 (11 bits times 8), so all kernels see the same numbers, whatever they do next.
// No language extension: bytes and nibbles are shifted out, halves come from unpack2x16float.

import type { Element } from "../webgpu/kernels/kernel.ts";
import { isPacked, type WeightFormat } from "../weights/formats.ts";

/** A matrix [rows, columns], row-major, bound under `name`. */
export interface Matrix {
  readonly name: string;
  /** WGSL u32 expressions, uniform; what lies beyond reads as 0. */
  readonly rows: string;
  readonly columns: string;
  /** Which of its axes is summed over. */
  readonly depth: "rows" | "columns";
  readonly format: WeightFormat;
  /** f32 bound as vec4f: columns, `pitch` and `offset` are multiples of 4. */
  readonly isWide?: boolean;
  /** Elements from row to row, and before the first one: a part of a wider matrix. Default: columns, 0. */
  readonly pitch?: string;
  readonly offset?: string;
  /** q8, q4: where the scales begin, in words. */
  readonly scaleWord?: string;
}

/** As what a matrix is bound. */
export const elementOf = (format: WeightFormat, isWide = false): Element => (isPacked(format) ? "u32" : isWide ? "vec4f" : "f32");

/** Whether single elements cost as much as four. */
export const readsQuads = ({ format, isWide }: Matrix): boolean => isWide === true || isPacked(format);

/** Eight-bit integers of a word, lowest first. */
const BYTES = "vec4f(bitcast<vec4i>(vec4u(u << 24u, u << 16u, u << 8u, u)) >> vec4u(24u))";
const NIBBLES = "(vec4f(vec4u(u, u >> 4u, u >> 8u, u >> 12u) & vec4u(15u)) - 8.0)";

/** The four elements from `e` on, a multiple of 4; `word(i)` is a u32. */
const decode = (format: WeightFormat, word: (index: string) => string): string => {
  switch (format) {
    case "f16":
      return `return vec4f(unpack2x16float(${word("e / 2u")}), unpack2x16float(${word("e / 2u + 1u")}));`;
    case "bf16":
      return `let u = ${word("e / 2u")};
  let v = ${word("e / 2u + 1u")};
  return bitcast<vec4f>(vec4u(u << 16u, u & 0xffff0000u, v << 16u, v & 0xffff0000u));`;
    case "q8":
      return `let u = ${word("e / 4u")};
  return ${BYTES} * scale;`;
    case "q4":
      return `let u = ${word("e / 8u")} >> ((e & 4u) * 4u);
  return ${NIBBLES} * scale;`;
    default:
      throw new Error(`decode: takes a packed format, got ${format}`);
  }
};

const scaleOf = (format: WeightFormat, scaleWord: string, word: (index: string) => string): string =>
  format === "q8" || format === "q4" ? `let scale = unpack2x16float(${word(`${scaleWord} + e / 64u`)})[(e / 32u) & 1u];\n  ` : "";

/** fetch_NAME(row, column) of a matrix that does not read quads, and quad_NAME(row, column): columns column … column + 3, a multiple of 4. */
export const reader = (matrix: Matrix): string => {
  const { name, rows, columns, format, isWide, pitch = columns, offset, scaleWord = "0u" } = matrix;
  const place = `row * ${pitch}${offset ? ` + ${offset}` : ""} + column`;
  if (!readsQuads(matrix)) {
    const four = [0, 1, 2, 3].map((q) => `fetch_${name}(row, column + ${q}u)`).join(", ");
    return `fn fetch_${name}(row: u32, column: u32) -> f32 {
  if (row >= ${rows} || column >= ${columns}) { return 0.0; }
  return ${name}[${place}];
}
fn quad_${name}(row: u32, column: u32) -> vec4f { return vec4f(${four}); }
`;
  }
  const word = (index: string): string => `${name}[${index}]`;
  return `fn quad_${name}(row: u32, column: u32) -> vec4f {
  if (row >= ${rows} || column >= ${columns}) { return vec4f(); }
  let e = ${place};
  ${isWide ? `return ${name}[e / 4u];` : scaleOf(format, scaleWord, word) + decode(format, word)}
}
`;
};

/** Lanes read 16 bytes at once: f32 as vec4f, packed words as vec4u. */
export const wideElementOf = (format: WeightFormat): Element => (isPacked(format) ? "vec4u" : "vec4f");

/**
 * sixteen_NAME(row, column): columns column … column + 15, a multiple of 16, of a matrix bound as wideElementOf(format), whose width is a
 * multiple of 16 (packed: of 32), as is `offset`. Row and column lie inside.
 */
export const sixteenReader = ({ name, columns, format, offset, scaleWord = "0u" }: Matrix): string => {
  const word = (index: string): string => `word_${name}(${index})`;
  const quads = [0, 4, 8, 12];
  const quad = !isPacked(format)
    ? ""
    : `fn word_${name}(i: u32) -> u32 { return ${name}[i / 4u][i % 4u]; }
fn four_${name}(words: vec4u, e: u32${format === "q8" || format === "q4" ? ", scale: f32" : ""}) -> vec4f {
  ${decode(format, (index) => `words[(${index}) % 4u]`)}
}
`;
  const read = (): string => {
    if (format === "f32") return `return array<vec4f, 4>(${quads.map((q) => `${name}[e / 4u + ${q / 4}u]`).join(", ")});`;
    const scale = scaleOf(format, scaleWord, word);
    const at = (q: number): string => `${name}[(e + ${q}u) / ${format === "q4" ? 32 : format === "q8" ? 16 : 8}u]`;
    return `${scale}return array<vec4f, 4>(${quads.map((q) => `four_${name}(${at(q)}, e + ${q}u${scale ? ", scale" : ""})`).join(", ")});`;
  };
  return `${quad}fn sixteen_${name}(row: u32, column: u32) -> array<vec4f, 4> {
  let e = row * ${columns}${offset ? ` + ${offset}` : ""} + column;
  ${read()}
}
`;
};

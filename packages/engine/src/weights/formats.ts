// Packed base weights: how 16-, 8- and 4-bit values of a weight [O, I] lie in 32-bit words, and how they are rounded. Every executor reads
// this layout; one copy serves the forward (rows) and the backward (columns). It computes nothing with the weights.
//
//   words   O·I values, row-major, lowest bits first: 2 (f16, bf16), 4 (q8) or 8 (q4) in a word
//   padding to a multiple of 64 words, so that a GPU can bind the scales by themselves (q8, q4)
//   scales  one f16 for each 32 values of a row, two in a word (q8, q4)
//
// q8: w = s·i, i in −127 … 127, s = max|w|/127.   q4: w = s·(n − 8), n in 1 … 15, s = max|w|/7. A scale is rounded to f16 before the values
// are divided by it; quotients are rounded to nearest, ties to even; a group of zeros has scale 0.

import { EngineError } from "../errors.ts";
import { type PackedDtype, sizeOf, type Tensor } from "../plan/step.ts";
import { halves, toHalf } from "./half.ts";

/** The dtypes that base weights may be kept in. */
export type WeightFormat = "f32" | PackedDtype;

export const WEIGHT_FORMATS: readonly WeightFormat[] = ["f32", "f16", "bf16", "q8", "q4"];

/** Values that share a scale; widths of packed weights are multiples of it. */
export const GROUP = 32;

export const VALUES_PER_WORD: Readonly<Record<PackedDtype, number>> = { f16: 2, bf16: 2, q8: 4, q4: 8 };
/** The largest integer of a quantised value. */
const LARGEST = { q8: 127, q4: 7 } as const;
const SCALE_ALIGNMENT = 64;

export interface PackedLayout {
  /** Where the scales begin, in words; equal to `words` when there are none. */
  readonly scaleWord: number;
  /** Words of the whole tensor. */
  readonly words: number;
}

export const isPacked = (dtype: Tensor["dtype"]): dtype is PackedDtype => Object.hasOwn(VALUES_PER_WORD, dtype);

export const isQuantised = (dtype: PackedDtype): dtype is "q8" | "q4" => Object.hasOwn(LARGEST, dtype);

/** The layout of `count` values, a multiple of 32. */
export const packedLayout = (dtype: PackedDtype, count: number): PackedLayout => {
  const valueWords = count / VALUES_PER_WORD[dtype];
  if (!isQuantised(dtype)) return { scaleWord: valueWords, words: valueWords };
  const scaleWord = Math.ceil(valueWords / SCALE_ALIGNMENT) * SCALE_ALIGNMENT;
  return { scaleWord, words: scaleWord + Math.ceil(count / GROUP / 2) };
};

/** Bytes that a tensor's values take, whatever its dtype. */
export const byteLengthOf = (tensor: Tensor): number =>
  isPacked(tensor.dtype) ? packedLayout(tensor.dtype, sizeOf(tensor)).words * 4 : sizeOf(tensor) * 4;

/** In f64 the numbers from 2^52 on are the integers: adding and taking away 1.5·2^52 rounds to nearest, ties to even, as a GPU's round() does. */
const INTEGERS = 1.5 * 2 ** 52;
const nearest = (x: number): number => x + INTEGERS - INTEGERS;

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

/** f32 → bfloat16 bits, ties to even. Exact for values that came from bfloat16. */
export const toBrain = (value: number): number => {
  float[0] = value;
  return ((bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) >>> 16) & 0xffff;
};

const packHalves = (into: Uint32Array, values: Float32Array): void => {
  for (let i = 0; i < values.length; i += 2) into[i / 2] = toHalf(values[i]!) | (toHalf(values[i + 1]!) << 16);
};

const packGroups = (dtype: "q8" | "q4", into: Uint32Array, scales: Uint16Array, values: Float32Array): void => {
  const largest = LARGEST[dtype];
  const perWord = VALUES_PER_WORD[dtype];
  const width = 32 / perWord;
  const mask = 2 ** width - 1;
  const offset = dtype === "q4" ? 8 : 0;
  for (let start = 0; start < values.length; start += GROUP) {
    let most = 0;
    for (let i = start; i < start + GROUP; i++) most = Math.max(most, Math.abs(values[i]!));
    const stored = toHalf(most / largest);
    const scale = halves()[stored]!;
    scales[start / GROUP] = stored;
    for (let word = 0; word < GROUP / perWord; word++) {
      let packed = 0;
      for (let j = 0; j < perWord; j++) {
        const quotient = scale === 0 ? 0 : nearest(values[start + word * perWord + j]! / scale);
        packed |= ((Math.min(largest, Math.max(-largest, quotient)) + offset) & mask) << (j * width);
      }
      into[start / perWord + word] = packed;
    }
  }
};

/** The first that is larger than the bound, or NaN; −1: none. A plain loop: it runs over every weight of a checkpoint. */
const firstBeyond = (values: Float32Array, bound: number): number => {
  for (let i = 0; i < values.length; i++) if (!(Math.abs(values[i]!) <= bound)) return i;
  return -1;
};

/** toBrain of all, on the bits where they lie. */
const packBrains = (into: Uint32Array, values: Float32Array): void => {
  const stored = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const round = (word: number): number => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  for (let i = 0; i < stored.length; i += 2) into[i / 2] = (round(stored[i]!) & 0xffff) | (round(stored[i + 1]!) << 16);
};

/** Values in their packed form. */
export interface Packed {
  readonly words: Uint32Array;
  /** Halves, one for each 32 values; empty where the dtype has none. */
  readonly scales: Uint16Array;
}

/**
 * Packs `values`, a multiple of 32, which are the elements `first …` of a tensor.
 * Throws EngineError("bad-file") naming the tensor when a value does not fit in f16 (beyond 65504), or a group's scale does not.
 */
export const packPiece = (dtype: PackedDtype, name: string, values: Float32Array, first = 0): Packed => {
  const bound = dtype === "bf16" ? Number.POSITIVE_INFINITY : 65504 * (isQuantised(dtype) ? LARGEST[dtype] : 1);
  const wide = firstBeyond(values, bound);
  if (wide >= 0)
    throw new EngineError(
      "bad-file",
      `${name}: values fit in ${dtype} (|w| ≤ ${bound}), got ${values[wide]} at ${first + wide}; load it as bf16 or f32`,
    );
  const words = new Uint32Array(values.length / VALUES_PER_WORD[dtype]);
  const scales = new Uint16Array(isQuantised(dtype) ? values.length / GROUP : 0);
  if (isQuantised(dtype)) packGroups(dtype, words, scales, values);
  else if (dtype === "f16") packHalves(words, values);
  else packBrains(words, values);
  return { words, scales };
};

/**
 * Packs `values` as the elements `first …` of a tensor whose words are `into` (packedLayout of its dtype and size). `first` and the number of
 * values are multiples of 32: pieces come in any order. Throws EngineError("bad-file") like packPiece.
 */
export const packInto = (tensor: Tensor, into: Uint32Array, values: Float32Array, first = 0): void => {
  const { dtype, name } = tensor;
  if (!isPacked(dtype) || first % GROUP !== 0 || values.length % GROUP !== 0)
    throw new EngineError(
      "bad-request",
      `packInto: takes multiples of ${GROUP} values of a packed tensor, got ${values.length} from ${first} on (${name}, ${dtype})`,
    );
  const { words, scales } = packPiece(dtype, name, values, first);
  into.set(words, first / VALUES_PER_WORD[dtype]);
  const { scaleWord } = packedLayout(dtype, sizeOf(tensor));
  if (scales.length > 0) new Uint16Array(into.buffer, into.byteOffset + scaleWord * 4).set(scales, first / GROUP);
};

/** All values of a packed tensor in f32, as every executor reads them: s·i is rounded once, to f32. */
export const unpack = (tensor: Tensor, words: Uint32Array): Float32Array<ArrayBuffer> => {
  const { dtype } = tensor;
  const count = sizeOf(tensor);
  const values = new Float32Array(count);
  if (dtype === "f16" || dtype === "bf16") {
    const stored = new Uint16Array(words.buffer, words.byteOffset, count);
    const brains = new Uint32Array(values.buffer);
    if (dtype === "bf16") for (let i = 0; i < count; i++) brains[i] = stored[i]! << 16;
    else for (let i = 0; i < count; i++) values[i] = halves()[stored[i]!]!;
    return values;
  }
  if (dtype !== "q8" && dtype !== "q4")
    throw new EngineError("bad-request", `unpack: takes a packed tensor, got ${tensor.name} (${dtype})`);
  const { scaleWord } = packedLayout(dtype, count);
  const scales = new Uint16Array(words.buffer, words.byteOffset + scaleWord * 4);
  const small = new Int8Array(words.buffer, words.byteOffset);
  for (let i = 0; i < count; i++) {
    const scale = halves()[scales[i >> 5]!]!;
    values[i] = scale * (dtype === "q8" ? small[i]! : ((words[i >> 3]! >>> ((i & 7) * 4)) & 15) - 8);
  }
  return values;
};

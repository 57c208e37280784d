// Weights above the device's binding limit are cut at rows into shards, each a packed tensor of its own (values, then scales), in a buffer of
// its own. Only operations that loop over shards read such a weight: embed, linear, linearBackward. Pure: who asks twice gets the same shards.

import { EngineError } from "../errors.ts";
import type { TensorData } from "../plan/backend.ts";
import { sizeOf, type Tensor } from "../plan/step.ts";
import { byteLengthOf, GROUP, isPacked, isQuantised, packedLayout, VALUES_PER_WORD } from "../weights/formats.ts";

export interface Shard {
  /** The whole weight where nothing is cut. */
  readonly tensor: Tensor;
  /** Its first row in the whole. */
  readonly first: number;
}

/** Shards begin at multiples of it: the columns of a tile of the head, blocks of the sum over rows (wgsl/gemm.ts). */
const ROW_UNIT = 64;
const SLICE = 1024;
/** More slices than this would cost more in partial sums than they bring. */
const MAX_SLICES = 16;

/** Depth after which a product hands its sum on (wgsl/gemm.ts): fixed by the width alone. */
export const sliceOf = (depth: number): number => Math.max(SLICE, Math.ceil(depth / MAX_SLICES / ROW_UNIT) * ROW_UNIT);

const shardsOfWeight = new WeakMap<Tensor, Map<number, readonly Shard[]>>();

const cut = (weight: Tensor, bindingBytes: number): readonly Shard[] => {
  const [rows, width] = weight.shape as [number, number];
  const part = (first: number, count: number): Shard => ({
    tensor: { ...weight, name: `${weight.name}[${first}…${first + count - 1}]`, shape: [count, width] },
    first,
  });
  // The layout pads the values to 256 bytes, which the average of all rows does not show.
  let most = Math.floor(bindingBytes / (byteLengthOf(weight) / rows));
  while (most > 0 && byteLengthOf(part(0, most).tensor) > bindingBytes) most--;
  // At slices, so that the sum over rows has the order that it has in one piece; where a slice is too large, the order differs.
  const unit = most >= sliceOf(rows) ? sliceOf(rows) : ROW_UNIT;
  most -= most % unit;
  if (most === 0) {
    throw new EngineError(
      "device",
      `webgpu: ${ROW_UNIT} rows of "${weight.name}" must fit this device's binding limit of ${bindingBytes} bytes, got ${byteLengthOf(part(0, ROW_UNIT).tensor)}; use another device`,
    );
  }
  return Array.from({ length: Math.ceil(rows / most) }, (_, i) => part(i * most, Math.min(most, rows - i * most)));
};

/** Matrices of the model. Tables that are computed (rope) look the same; they are small, and refused where they are used if they are not. */
export const isShardable = ({ home, view, shape }: Tensor): boolean => home === "weights" && !view && shape.length === 2;

/** One shard, the tensor itself, unless it is a weight [rows, width] above the limit. */
export const shardsOf = (tensor: Tensor, bindingBytes: number): readonly Shard[] => {
  if (!isShardable(tensor) || byteLengthOf(tensor) <= bindingBytes) return [{ tensor, first: 0 }];
  const known = shardsOfWeight.get(tensor) ?? new Map<number, readonly Shard[]>();
  const shards = known.get(bindingBytes) ?? cut(tensor, bindingBytes);
  shardsOfWeight.set(tensor, known.set(bindingBytes, shards));
  return shards;
};

/** A run of words that lie together both in the whole tensor (weights/formats.ts) and in a shard. */
interface Section {
  readonly source: number;
  readonly target: number;
  readonly length: number;
}

/** Values, and scales where the format has some. */
const sectionsOf = (whole: Tensor, { tensor, first }: Shard): readonly Section[] => {
  const size = sizeOf(tensor);
  const start = first * (size / tensor.shape[0]!);
  const { dtype } = whole;
  if (!isPacked(dtype)) return [{ source: start, target: 0, length: size }];
  // Both sections begin at words: shards begin at multiples of 16 rows, rows are multiples of 32 values.
  const [all, own] = [packedLayout(dtype, sizeOf(whole)), packedLayout(dtype, size)];
  const perWord = VALUES_PER_WORD[dtype];
  const values: Section = { source: start / perWord, target: 0, length: size / perWord };
  if (!isQuantised(dtype)) return [values];
  return [values, { source: all.scaleWord + start / GROUP / 2, target: own.scaleWord, length: own.words - own.scaleWord }];
};

export interface Piece {
  readonly shard: Tensor;
  readonly part: TensorData;
  /** In words of the shard. */
  readonly offset: number;
}

/** Where the whole tensor's words `data`, from its word `offset` on, lie in its shards. */
export const piecesOf = (whole: Tensor, shards: readonly Shard[], data: TensorData, offset = 0): readonly Piece[] => {
  if (shards.length === 1) return [{ shard: whole, part: data, offset }];
  return shards.flatMap((shard) =>
    sectionsOf(whole, shard).flatMap(({ source, target, length }): Piece[] => {
      const from = Math.max(source, offset);
      const to = Math.min(source + length, offset + data.length);
      return from < to ? [{ shard: shard.tensor, part: data.subarray(from - offset, to - offset), offset: target + from - source }] : [];
    }),
  );
};

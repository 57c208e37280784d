// Weights as a backend took them, kept for the next load: the pieces of a conversion one behind another. The table comes last and its
// place is at the very end, so that a torn file is no file; every piece is hashed, so that a damaged one is noticed before it is used.
//
//   0          "FULG", u32 version
//   8          pieces: 32-bit words, little-endian
//   table      UTF-8 JSON { key, weightsSha256, tensors: [{ name, dtype, shape }], pieces: [[tensor, offset, words, sha256]] }
//   end − 48   f64 position of the table, u32 its bytes, 32 bytes its SHA-256, "FULG"
//
// The key names the model's version, its format and the engine's layout of formats. Where such files lie is the caller's.

import * as z from "zod/mini";
import type { Tensor } from "../plan/step.ts";
import { checkShape, count } from "../schema.ts";
import { byteLengthOf, WEIGHT_FORMATS } from "./formats.ts";
import { sha256 } from "./sha256.ts";
import type { WeightSink } from "./stream.ts";

/** Of one model in one format. Rejections of these are the storage's: no room, no permission. */
export interface ConvertedEntry {
  /** Which version of which model. */
  readonly key: string;
  /** Undefined: there is none. */
  open(): Promise<ConvertedFile | undefined>;
  /** A new file, which replaces the old one at commit and not before. */
  create(): Promise<ConvertedWriter>;
  remove(): Promise<void>;
  /** Told once when the storage failed: the load goes on without it. */
  onFailure?(error: unknown): void;
}

export interface ConvertedFile {
  readonly byteLength: number;
  /** Fewer bytes than asked for where the file ends. */
  read(at: number, byteLength: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

export interface ConvertedWriter {
  write(bytes: Uint8Array): Promise<void>;
  commit(): Promise<void>;
  /** Leaves nothing. */
  abort(): Promise<void>;
}

const MAGIC = "FULG";
/** Of the file and of the packed layouts: another number is another file. */
export const CONVERTED_VERSION = 1;
const START_BYTES = 8;
const END_BYTES = 48;

const hash = z.string().check(z.length(64));
const pieceSchema = z.tuple([count, count, count, hash]);
const tableSchema = z.object({
  key: z.string(),
  weightsSha256: hash,
  tensors: z.array(z.object({ name: z.string(), dtype: z.enum(WEIGHT_FORMATS as [string, ...string[]]), shape: z.array(count) })),
  pieces: z.array(pieceSchema),
});
type Table = z.infer<typeof tableSchema>;

const describe = (tensors: readonly Tensor[]): Table["tensors"] =>
  tensors.map(({ name, dtype, shape }) => ({ name, dtype: dtype as string, shape: [...shape] }));

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);
const fromHex = (hex: string): Uint8Array =>
  Uint8Array.from({ length: hex.length / 2 }, (_, i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16));
const bytesOf = (words: Uint32Array): Uint8Array => new Uint8Array(words.buffer, words.byteOffset, words.byteLength);

const startOf = (): Uint8Array => {
  const bytes = new Uint8Array(START_BYTES);
  bytes.set(ascii(MAGIC));
  new DataView(bytes.buffer).setUint32(4, CONVERTED_VERSION, true);
  return bytes;
};

export interface Recorder {
  piece(tensor: Tensor, words: Uint32Array, offset: number): Promise<void>;
  commit(weightsSha256: string): Promise<void>;
  abort(): Promise<void>;
}

/** Writes while a checkpoint is converted. */
export const createRecorder = async (entry: ConvertedEntry, tensors: readonly Tensor[]): Promise<Recorder> => {
  const writer = await entry.create();
  const indexOf = new Map(tensors.map((tensor, i) => [tensor, i]));
  const pieces: Table["pieces"] = [];
  let position = 0;
  const write = async (bytes: Uint8Array): Promise<void> => {
    await writer.write(bytes);
    position += bytes.length;
  };
  await write(startOf());
  return {
    piece: async (tensor, words, offset) => {
      const bytes = bytesOf(words);
      pieces.push([indexOf.get(tensor)!, offset, words.length, await sha256(bytes)]);
      await write(bytes);
    },
    commit: async (weightsSha256) => {
      const table: Table = { key: entry.key, weightsSha256, tensors: describe(tensors), pieces };
      const json = ascii(JSON.stringify(table));
      const end = new Uint8Array(END_BYTES);
      const view = new DataView(end.buffer);
      view.setFloat64(0, position, true);
      view.setUint32(8, json.length, true);
      end.set(fromHex(await sha256(json)), 12);
      end.set(ascii(MAGIC), END_BYTES - 4);
      await write(json);
      await write(end);
      await writer.commit();
    },
    abort: () => writer.abort(),
  };
};

/** Its cause is what the storage rejected with: the weights are to be had elsewhere. */
export class StorageFailure extends Error {}

const stored = <T>(pending: Promise<T>): Promise<T> =>
  pending.catch((cause: unknown) => {
    throw new StorageFailure("converted weights: the storage gives what it holds, got a failure; load from the source", { cause });
  });

/** The table, if the file is whole as far as it can be told without reading the pieces. */
const readTable = async (file: ConvertedFile): Promise<Table | undefined> => {
  const { byteLength } = file;
  if (byteLength < START_BYTES + END_BYTES) return undefined;
  const start = await stored(file.read(0, START_BYTES));
  const end = await stored(file.read(byteLength - END_BYTES, END_BYTES));
  const isSame = (bytes: Uint8Array, want: Uint8Array): boolean =>
    bytes.length === want.length && bytes.every((byte, i) => byte === want[i]);
  if (!isSame(start, startOf()) || end.length !== END_BYTES || !isSame(end.subarray(END_BYTES - 4), ascii(MAGIC))) return undefined;
  const view = new DataView(end.buffer, end.byteOffset, END_BYTES);
  const [position, length] = [view.getFloat64(0, true), view.getUint32(8, true)];
  if (position + length + END_BYTES !== byteLength || !(position >= START_BYTES)) return undefined;
  const json = await stored(file.read(position, length));
  if (!isSame(fromHex(await sha256(json)), end.subarray(12, 44))) return undefined;
  const { data: table } = checkShape(tableSchema, JSON.parse(new TextDecoder().decode(json)));
  if (!table) return undefined;
  // The pieces are all that lies between, and fill each tensor once.
  const words = new Map<number, number>();
  for (const [tensor, , count] of table.pieces) words.set(tensor, (words.get(tensor) ?? 0) + count);
  const total = [...words.values()].reduce((sum, count) => sum + count * 4, START_BYTES);
  return total === position ? table : undefined;
};

/** Words that a conversion fills: padding before the scales is nobody's. */
const isComplete = (table: Table, tensors: readonly Tensor[]): boolean => {
  const most = tensors.map((tensor) => byteLengthOf(tensor) / 4);
  const seen = new Set<number>();
  for (const [tensor, offset, count] of table.pieces) {
    if (offset + count > (most[tensor] ?? 0)) return false;
    seen.add(tensor);
  }
  return seen.size === tensors.length;
};

/**
 * Fills the sink from the entry. Returns the weights' SHA-256; undefined: there is none of this key, or it is torn or damaged, and the
 * sink may have been filled in part. Rejects with what the sink rejects with, and with StorageFailure.
 */
export const replay = async (
  entry: ConvertedEntry,
  tensors: readonly Tensor[],
  sink: WeightSink,
  onPiece: (bytes: number, totalBytes: number, tensorsDone: number) => void,
  signal?: AbortSignal,
): Promise<string | undefined> => {
  const file = await stored(entry.open());
  if (!file) return undefined;
  try {
    const table = await readTable(file);
    if (!table || table.key !== entry.key || JSON.stringify(table.tensors) !== JSON.stringify(describe(tensors))) return undefined;
    if (!isComplete(table, tensors)) return undefined;
    const left = table.pieces.reduce((counts, [tensor]) => counts.set(tensor, (counts.get(tensor) ?? 0) + 1), new Map<number, number>());
    const began = new Set<number>();
    let [position, done] = [START_BYTES, 0];
    for (const [index, offset, count, hash] of table.pieces) {
      signal?.throwIfAborted();
      const tensor = tensors[index]!;
      const bytes = await stored(file.read(position, count * 4));
      if (bytes.length !== count * 4 || (await sha256(bytes)) !== hash) return undefined;
      position += bytes.length;
      if (!began.has(index)) await sink.begin(tensor);
      began.add(index);
      // a view of words has to begin at one
      const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
      await sink.fill(tensor, new Uint32Array(aligned.buffer, aligned.byteOffset, count), offset);
      left.set(index, left.get(index)! - 1);
      if (left.get(index) === 0) done++;
      onPiece(position, file.byteLength, done);
    }
    return table.weightsSha256;
  } finally {
    await stored(file.close());
  }
};

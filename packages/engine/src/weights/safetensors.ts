// The safetensors container (huggingface/safetensors, "Format"): bytes ⇄ named tensors. It checks everything that a file
// claims before it allocates anything in proportion to that claim; it knows no model and no tensor name.
//
//   0        u64 little-endian   N, byte length of the header
//   8        N bytes             JSON { "__metadata__"?: { string: string }, name: { dtype, shape, data_offsets: [begin, end] } }
//   8 + N    data                offsets count from here; row-major, little-endian, no gaps
//
// Left out: every dtype but F32, F16 and BF16. Quantised checkpoints are not read; the engine takes one input format.

import * as z from "zod/mini";
import { EngineError } from "../errors.ts";
import { checkShape, count } from "../schema.ts";
import { toBrain } from "./formats.ts";
import { halves, toHalf } from "./half.ts";

export type StoredDtype = "F32" | "F16" | "BF16";

/** A tensor where it lies in the file: `bytes` is a view, nothing is copied. */
export interface StoredTensor {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface Safetensors {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly metadata: Readonly<Record<string, string>>;
}

const WIDTH: Readonly<Record<StoredDtype, number>> = { F32: 4, F16: 2, BF16: 2 };
const MAX_HEADER = 100_000_000; // the limit of the reference implementation

const metadataSchema = z.record(z.string(), z.string());
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(count),
  data_offsets: z.tuple([count, count]),
});

/** Long or hostile values are cut, so that an error message stays one line. */
const shown = (value: unknown): string => {
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    text = "a value nested too deeply to print"; // JSON.parse accepts any depth, JSON.stringify does not
  }
  return text.length > 120 ? `${text.slice(0, 117)}…` : text;
};

/** What a file that is no safetensors file probably is. */
const guess = (bytes: Uint8Array): string => {
  const start = new TextDecoder().decode(bytes.subarray(0, 64)).trimStart();
  if (start.startsWith("<"))
    return "it begins with '<': an HTML error page was saved in its place; download it again and check the address";
  if (start.startsWith("version https://git-lfs"))
    return "it is a Git LFS pointer, not the file; run `git lfs pull` or download it from the hub";
  return "it is truncated or no safetensors file; download it again";
};

/** Bytes of a file's beginning that name the length of its header. */
export const LENGTH_BYTES = 8;

const unreadable = (start: Uint8Array, file: string, rule: string, got: string, options?: ErrorOptions): EngineError =>
  new EngineError("bad-file", `${file}: ${rule}, got ${got}; ${guess(start)}`, options);

/**
 * Bytes of the header, from the beginning of a file (8 bytes or more) and its size, if that is known. Nothing has to be allocated for
 * a header before this was asked. Throws EngineError("bad-file").
 */
export const headerLengthOf = (start: Uint8Array, file: string, fileBytes?: number): number => {
  if (start.byteLength < LENGTH_BYTES) throw unreadable(start, file, "a safetensors file has at least 8 bytes", `${start.byteLength}`);
  const length = new DataView(start.buffer, start.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length < 2n || length > MAX_HEADER) throw unreadable(start, file, `the header has 2 to ${MAX_HEADER} bytes`, `${length}`);
  if (fileBytes !== undefined && LENGTH_BYTES + Number(length) > fileBytes)
    throw unreadable(start, file, `the header of ${length} bytes fits in the file`, `a file of ${fileBytes} bytes`);
  return Number(length);
};

/** Where a tensor lies: bytes begin … end − 1 of the data, which starts behind the header. */
export interface PlacedTensor {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

export interface Header {
  /** In the order of the data, without gaps from its first byte on. */
  readonly tensors: readonly PlacedTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly dataBytes: number;
}

/**
 * Reads the JSON of a header, `start` being the file's first bytes with all of it. `fileBytes`: the file's size; where it is not
 * known yet, the caller checks dataBytes later. Throws EngineError("bad-file") when any rule of the format is broken.
 */
export const readHeader = (start: Uint8Array, file: string, fileBytes?: number): Header => {
  const dataStart = LENGTH_BYTES + headerLengthOf(start, file, fileBytes);
  const bad = (rule: string, got: string, advice: string): EngineError =>
    new EngineError("bad-file", `${file}: ${rule}, got ${got}; ${advice}`);
  let header: unknown;
  try {
    if (start[LENGTH_BYTES] !== 0x7b) throw new SyntaxError(`it starts with byte ${start[LENGTH_BYTES]}, not with {`);
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(start.subarray(LENGTH_BYTES, dataStart)));
  } catch (cause) {
    const got = cause instanceof Error ? shown(cause.message) : shown(cause);
    throw unreadable(start, file, "the header is UTF-8 JSON that starts with {", got, { cause });
  }

  const corrupt = "the file is corrupt or forged; download it again";
  const { __metadata__: rawMetadata = {}, ...entries } = header as Record<string, unknown>;
  const metadata = checkShape(metadataSchema, rawMetadata);
  if (metadata.issue) throw bad("__metadata__ maps strings to strings", shown(rawMetadata), corrupt);

  const dataLength = fileBytes === undefined ? Number.MAX_SAFE_INTEGER : fileBytes - dataStart;
  const found: PlacedTensor[] = [];
  for (const [name, raw] of Object.entries(entries)) {
    const where = shown(name);
    const entry = checkShape(entrySchema, raw);
    if (entry.issue) throw bad(`${where} is { dtype, shape, data_offsets } of non-negative integers`, shown(raw), corrupt);
    const { dtype, shape, data_offsets } = entry.data;
    if (!Object.hasOwn(WIDTH, dtype))
      throw bad(
        `the dtype of ${where} is BF16, F16 or F32`,
        shown(dtype),
        "take the unquantised checkpoint of this model (an F8, I8 or U8 file is already quantised)",
      );
    let count = 1;
    for (const size of shape) {
      count *= size;
      if (count > Number.MAX_SAFE_INTEGER) throw bad(`the shape of ${where} has at most 2^53 elements`, shown(shape), corrupt);
    }
    const [begin, end] = data_offsets;
    if (begin > end || end > dataLength)
      throw bad(
        `data_offsets of ${where} are 0 ≤ begin ≤ end ≤ ${dataLength} (bytes of data)`,
        shown(data_offsets),
        "the file is truncated or forged; download it again",
      );
    const byteLength = count * WIDTH[dtype as StoredDtype];
    if (end - begin !== byteLength) throw bad(`${where} has ${byteLength} bytes (${dtype} ${shown(shape)})`, `${end - begin}`, corrupt);
    found.push({ name, dtype: dtype as StoredDtype, shape, begin, end });
  }

  found.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let covered = 0;
  for (const { name, begin, end } of found) {
    if (begin !== covered)
      throw bad(
        "tensors cover the data without holes or overlaps",
        `${shown(name)} at byte ${begin} where ${covered} was expected`,
        "the file is corrupt, or two tensors of its header share one name; download it again",
      );
    covered = end;
  }
  if (fileBytes !== undefined) checkDataBytes(covered, dataLength, file);
  return { tensors: found, metadata: metadata.data, dataBytes: covered };
};

/** Whether the data ends where its tensors do. Throws EngineError("bad-file"). */
export const checkDataBytes = (covered: number, dataLength: number, file: string): void => {
  if (covered !== dataLength)
    throw new EngineError(
      "bad-file",
      `${file}: tensors cover the data to the end of the file, got ${covered} of ${dataLength} bytes; the file is ${covered < dataLength ? "corrupt or has something appended" : "truncated"}; download it again`,
    );
};

/**
 * Reads the header and checks it against the bytes. `file` is only a name for messages.
 * Throws EngineError("bad-file") when any rule of the format is broken. Values are checked by toFloat32.
 */
export const readSafetensors = (bytes: Uint8Array, file: string): Safetensors => {
  const { tensors, metadata, dataBytes } = readHeader(bytes, file, bytes.byteLength);
  const dataStart = bytes.byteLength - dataBytes;
  const placed = tensors.map(({ name, dtype, shape, begin, end }): [string, StoredTensor] => [
    name,
    { name, dtype, shape, bytes: bytes.subarray(dataStart + begin, dataStart + end) },
  ]);
  return { tensors: new Map(placed), metadata };
};

/** Bytes of one stored value. */
export const widthOf = (dtype: StoredDtype): number => WIDTH[dtype];

/**
 * The values of a tensor, or of a piece of it that starts at element `first`, in f32, always a fresh copy. F16 and BF16 are exact in
 * f32. Throws EngineError("bad-file") naming the first NaN or infinity.
 */
export const toFloat32 = (
  { name, dtype, bytes }: Pick<StoredTensor, "name" | "dtype" | "bytes">,
  file: string,
  first = 0,
): Float32Array<ArrayBuffer> => {
  // a tensor may start at any byte, and views need alignment; slice() of a Node Buffer would share memory
  const copy = new Uint8Array(bytes).buffer;
  const values = dtype === "F32" ? new Float32Array(copy) : new Float32Array(bytes.byteLength / 2);
  if (dtype === "BF16") {
    const bits = new Uint32Array(values.buffer);
    const stored = new Uint16Array(copy);
    for (let i = 0; i < stored.length; i++) bits[i] = stored[i]! << 16;
  } else if (dtype === "F16") {
    const table = halves();
    const stored = new Uint16Array(copy);
    for (let i = 0; i < stored.length; i++) values[i] = table[stored[i]!]!;
  }
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i]))
      throw new EngineError(
        "bad-file",
        `${file}: values of ${shown(name)} are finite, got ${values[i]} at element ${first + i}; the checkpoint is damaged, download it again`,
      );
  }
  return values;
};

/** `infinity`: the bits of the exponent, all ones in what the format cannot hold (NaN never comes here). */
const SHORT: Readonly<
  Record<"F16" | "BF16", { readonly round: (value: number) => number; readonly infinity: number; readonly largest: string }>
> = {
  F16: { round: toHalf, infinity: 0x7c00, largest: "65504" },
  BF16: { round: toBrain, infinity: 0x7f80, largest: "3.39e38" },
};

/** Values as a file of that dtype holds them. Throws EngineError("bad-request") for one that it cannot hold. `name` is for the message. */
export const encodeValues = (data: Float32Array, dtype: StoredDtype, name: string): Uint8Array<ArrayBuffer> => {
  if (dtype === "F32") return new Uint8Array(data.slice().buffer);
  const { round, infinity, largest } = SHORT[dtype];
  const bits = new Uint16Array(data.length);
  for (let i = 0; i < data.length; i++) {
    bits[i] = round(data[i]!);
    if ((bits[i]! & infinity) === infinity)
      throw new EngineError(
        "bad-request",
        `writeSafetensors: values of ${shown(name)} fit in ${dtype} (|x| ≤ ${largest}), got ${data[i]}; write F32`,
      );
  }
  return new Uint8Array(bits.buffer);
};

/** A tensor of a file that is yet to be written. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
}

export const entryByteLength = ({ shape, dtype }: TensorEntry): number => shape.reduce((a, b) => a * b, 1) * WIDTH[dtype];

/** The reference implementation's order, so that every tensor is aligned: F32 first, then by name. */
const DTYPE_ORDER: readonly StoredDtype[] = ["F32", "BF16", "F16"];
const before = (a: TensorEntry, b: TensorEntry): number =>
  DTYPE_ORDER.indexOf(a.dtype) - DTYPE_ORDER.indexOf(b.dtype) || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/**
 * The beginning of a safetensors file and the order in which the bytes of its tensors follow, without gaps: what the reference
 * implementation writes for the same tensors, byte for byte. Throws EngineError("bad-request") when a name stands twice.
 */
export const layOut = <Entry extends TensorEntry>(
  entries: readonly Entry[],
  metadata: Readonly<Record<string, string>> = {},
): { readonly header: Uint8Array<ArrayBuffer>; readonly order: readonly Entry[]; readonly byteLength: number } => {
  const order = [...entries].sort(before);
  const names = new Set<string>(["__metadata__"]);
  const header: [string, unknown][] = Object.keys(metadata).length > 0 ? [["__metadata__", metadata]] : [];
  let end = 0;
  for (const entry of order) {
    const { name, dtype, shape } = entry;
    if (names.has(name))
      throw new EngineError(
        "bad-request",
        `writeSafetensors: names are unique and not __metadata__, got ${shown(name)}; rename the tensor`,
      );
    names.add(name);
    const begin = end;
    end += entryByteLength(entry);
    header.push([name, { dtype, shape, data_offsets: [begin, end] }]);
  }
  // Written entry by entry: an object would move integer-like names to the front.
  const json = `{${header.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(",")}}`;
  const text = new TextEncoder().encode(json);
  const headerLength = Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(8 + headerLength).fill(0x20, 8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(headerLength), true);
  bytes.set(text, 8);
  return { header: bytes, order, byteLength: bytes.length + end };
};

export interface TensorToWrite {
  readonly name: string;
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** A whole file in memory (layOut: piece by piece). Throws EngineError("bad-request") like it, and when a shape and its data disagree. */
export const writeSafetensors = (
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> = {},
  dtype: "F32" | "F16" = "F32",
): Uint8Array<ArrayBuffer> => {
  for (const { name, shape, data } of tensors) {
    const count = shape.reduce((a, b) => a * b, 1);
    if (count !== data.length)
      throw new EngineError(
        "bad-request",
        `writeSafetensors: ${shown(name)} of shape ${shown(shape)} has ${count} values, got ${data.length}; pass matching data`,
      );
  }
  const { header, order, byteLength } = layOut(
    tensors.map((tensor) => ({ ...tensor, dtype })),
    metadata,
  );
  const file = new Uint8Array(byteLength);
  file.set(header);
  let at = header.length;
  for (const { name, data } of order) {
    const bytes = encodeValues(data, dtype, name);
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
};

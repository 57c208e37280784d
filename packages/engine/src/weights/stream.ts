// A checkpoint as it arrives → words of the target format, piece by piece. Each header is checked before anything is allocated for its
// tensors, each value while it passes. Beside the part in hand there is one piece of a tensor, whatever the size of the file.

import { EngineError } from "../errors.ts";
import type { ModelSpec } from "../model/spec.ts";
import { sizeOf, type Tensor } from "../plan/step.ts";
import { INDEX, parseIndex, SINGLE, textNames } from "./checkpoint.ts";
import { checkNames, checkTensorShape } from "./checkTensors.ts";
import { isPacked, packedLayout, packPiece, VALUES_PER_WORD } from "./formats.ts";
import {
  checkDataBytes,
  type Header,
  headerLengthOf,
  LENGTH_BYTES,
  type PlacedTensor,
  readHeader,
  toFloat32,
  widthOf,
} from "./safetensors.ts";
import { createSha256, type StreamHash, sha256 } from "./sha256.ts";
import type { WeightSource } from "./source.ts";

export interface WeightProgress {
  readonly file: string;
  /** Of this file. */
  readonly bytes: number;
  /** Undefined: nobody says. */
  readonly totalBytes: number | undefined;
  /** Complete on the device, of all that the model has. */
  readonly tensorsDone: number;
  readonly tensors: number;
}

/** Where words go: a backend, and a file that keeps them for the next time. */
export interface WeightSink {
  /** Before the first piece; again when a file begins anew. */
  begin(tensor: Tensor): Promise<void>;
  /** As Backend.fill. */
  fill(tensor: Tensor, words: Uint32Array, offset: number): Promise<void>;
  /** A file begins anew: its pieces come a second time. */
  restart(): Promise<void>;
}

export interface StreamOptions {
  readonly spec: ModelSpec;
  /** Every tensor that a checkpoint of this model stores. */
  readonly wanted: readonly Tensor[];
  /** Norms' gains, which may be stored as differences from 1. */
  readonly gains: ReadonlySet<Tensor>;
  readonly sink: WeightSink;
  readonly onProgress?: ((progress: WeightProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Stored bytes that are converted at once: a multiple of 64 values, so that every piece begins at a whole word of scales. */
export const PIECE_BYTES: number = 1 << 20;

/** A tensor's values from element `first` on, in words. Scales come in pairs; the last may stand alone. */
const put = async (sink: WeightSink, tensor: Tensor, values: Float32Array, first: number): Promise<void> => {
  const { dtype } = tensor;
  if (!isPacked(dtype)) return sink.fill(tensor, new Uint32Array(values.buffer, values.byteOffset, values.length), first);
  const { words, scales } = packPiece(dtype, tensor.name, values, first);
  await sink.fill(tensor, words, first / VALUES_PER_WORD[dtype]);
  if (scales.length === 0) return;
  const pairs = new Uint16Array(scales.length + (scales.length % 2));
  pairs.set(scales);
  await sink.fill(tensor, new Uint32Array(pairs.buffer), packedLayout(dtype, sizeOf(tensor)).scaleWord + first / 64);
};

interface FileReader {
  begin(totalBytes: number | undefined): void;
  part(bytes: Uint8Array): Promise<void>;
  /** After the last byte. Throws EngineError("bad-file") where bytes are missing. Lower-case hex SHA-256. */
  end(): string;
}

/** The state of one file; `accept` judges its header and says which tensor of the model each stored one is. */
const createFileReader = (
  file: string,
  accept: (header: Header) => (stored: PlacedTensor) => Tensor | undefined,
  { spec, gains, sink, onProgress, signal }: StreamOptions,
  done: Set<Tensor>,
  tensors: number,
  createHash: () => StreamHash,
): FileReader => {
  const staging = new Uint8Array(PIECE_BYTES);
  let hash = createHash();
  let totalBytes: number | undefined;
  let bytesSeen = 0;
  let isAnew = false;
  /** The file's first bytes, until its header is whole. */
  let start = new Uint8Array(0);
  let header: Header | undefined;
  let tensorOf: (stored: PlacedTensor) => Tensor | undefined = () => undefined;
  /** Position in the data, and in its tensors. */
  let [at, index] = [0, 0];
  let [staged, first] = [0, 0];

  const begin = (total: number | undefined): void => {
    isAnew ||= bytesSeen > 0;
    [hash, totalBytes, bytesSeen, start, header] = [createHash(), total, 0, new Uint8Array(0), undefined];
    [at, index, staged, first] = [0, 0, 0, 0];
  };

  const flush = async (stored: PlacedTensor, tensor: Tensor): Promise<void> => {
    const values = toFloat32({ name: stored.name, dtype: stored.dtype, bytes: staging.subarray(0, staged) }, file, first);
    // Rounded to f32 as the reference's own 1 + w is: norms need no switch at run time.
    if (spec.gainOffset !== 0 && gains.has(tensor)) for (let i = 0; i < values.length; i++) values[i]! += spec.gainOffset;
    await put(sink, tensor, values, first);
    first += values.length;
    staged = 0;
  };

  /** Bytes of the data, in order. */
  const consume = async (data: Uint8Array): Promise<void> => {
    let rest = data;
    while (rest.length > 0) {
      const stored = header!.tensors[index];
      if (!stored) return checkDataBytes(header!.dataBytes, at + rest.length, file);
      const take = Math.min(rest.length, stored.end - at, PIECE_BYTES - staged);
      const tensor = tensorOf(stored);
      if (tensor) {
        if (at === stored.begin) await sink.begin(tensor);
        staging.set(rest.subarray(0, take), staged);
        staged += take;
        if (staged === PIECE_BYTES || at + take === stored.end) await flush(stored, tensor);
      }
      at += take;
      rest = rest.subarray(take);
      if (at < stored.end) continue;
      if (tensor) done.add(tensor);
      first = 0;
      index++;
    }
  };

  /** Collects the header; returns the bytes behind it. What a file claims to need is bounded before it is believed. */
  const readStart = (bytes: Uint8Array): Uint8Array => {
    const longer = new Uint8Array(start.length + bytes.length);
    longer.set(start);
    longer.set(bytes, start.length);
    start = longer;
    if (start.length < LENGTH_BYTES) return new Uint8Array(0);
    const end = LENGTH_BYTES + headerLengthOf(start, file, totalBytes);
    if (start.length < end) return new Uint8Array(0);
    header = readHeader(start.subarray(0, end), file, totalBytes);
    tensorOf = accept(header);
    const rest = start.subarray(end);
    start = new Uint8Array(0);
    return rest;
  };

  return {
    begin,
    part: async (bytes) => {
      signal?.throwIfAborted();
      if (isAnew) {
        isAnew = false;
        await sink.restart();
      }
      hash.update(bytes);
      bytesSeen += bytes.length;
      await consume(header ? bytes : readStart(bytes));
      onProgress?.({ file, bytes: bytesSeen, totalBytes, tensorsDone: done.size, tensors });
    },
    end: () => {
      // An empty rest of a header is the error that the bytes so far deserve.
      if (!header) throw headerError(start, file, bytesSeen);
      checkDataBytes(header.dataBytes, at, file);
      return hash.digest("hex");
    },
  };
};

const headerError = (start: Uint8Array, file: string, fileBytes: number): unknown => {
  try {
    headerLengthOf(start, file, fileBytes);
    return new EngineError("bad-file", `${file}: it has a header, got ${fileBytes} bytes; it is truncated, download it again`);
  } catch (error) {
    return error;
  }
};

/** The file of each stored name, and whether a header agrees with it. */
const shardsOf = (bytes: Uint8Array) => {
  const { map, shards } = parseIndex(bytes);
  const bad = (rule: string, got: string): EngineError =>
    new EngineError("bad-file", `${INDEX}: ${rule}, got ${got}; index and shards are of different models; download both again`);
  const agree = (file: string, { tensors }: Header): void => {
    const names = new Set(tensors.map(({ name }) => name));
    for (const [name, where] of map) if (where === file && !names.has(name)) throw bad(`${name} lies in ${file}`, "a file without it");
    for (const name of names) {
      if (!map.has(name)) throw bad("weight_map names every tensor of the shards", `none of ${name}`);
      if (map.get(name) !== file) throw bad(`${name} lies in ${map.get(name)}`, file);
    }
  };
  return { names: [...map.keys()], shards, agree };
};

/**
 * Streams all files through. Returns the SHA-256 of the weights, as hashWeights has it.
 * Throws EngineError("bad-file"), the signal's reason, and what source and sink throw; what was filled is then of no use.
 */
export const streamWeights = async (source: WeightSource, options: StreamOptions): Promise<string> => {
  const { wanted, spec } = options;
  const byName = new Map(wanted.map((tensor) => [tensor.name, tensor]));
  const done = new Set<Tensor>();
  const createHash = source.createHash ?? createSha256;

  const readFile = async (file: string, accept: (header: Header) => (stored: PlacedTensor) => Tensor | undefined): Promise<string> => {
    const reader = createFileReader(file, accept, options, done, wanted.length, createHash);
    await source.read(file, reader);
    options.signal?.throwIfAborted();
    return reader.end();
  };
  /** The model's tensor that a stored one is, shapes compared. */
  const matcher = (names: Iterable<string>, file: string): ((stored: PlacedTensor) => Tensor | undefined) => {
    const nameOf = textNames(names);
    return ({ name, shape }) => {
      const tensor = byName.get(nameOf(name) ?? "");
      if (tensor) checkTensorShape(tensor, shape, file);
      return tensor;
    };
  };
  const checkAll = (names: readonly string[], file: string): void => {
    const nameOf = textNames(names);
    checkNames(file, new Set(names.map(nameOf).filter((name) => name !== undefined)), wanted, spec);
  };
  const accepted = (header: Header, names: Iterable<string>, file: string): ((stored: PlacedTensor) => Tensor | undefined) => {
    const tensorOf = matcher(names, file);
    // All shapes before the first byte of a value.
    const found = new Map(header.tensors.map((stored) => [stored, tensorOf(stored)]));
    return (stored) => found.get(stored);
  };

  const index = await source.index?.();
  if (!index)
    return readFile(SINGLE, (header) => {
      const names = header.tensors.map(({ name }) => name);
      checkAll(names, SINGLE);
      return accepted(header, names, SINGLE);
    });
  const { names, shards, agree } = shardsOf(index);
  checkAll(names, INDEX);
  const lines: string[] = [];
  for (const shard of shards) {
    const hash = await readFile(shard, (header) => {
      agree(shard, header);
      return accepted(header, names, shard);
    });
    lines.push(`${hash}  ${shard}\n`);
  }
  return sha256(new TextEncoder().encode(lines.join("")));
};

/** Bytes of a piece's values in f32: what a conversion holds beside the part in hand. */
export const PIECE_VALUE_BYTES: number = (PIECE_BYTES / widthOf("BF16")) * 4;

// A model folder → tensors on a backend: from the form that an earlier load kept, else from the checkpoint as it arrives, which is then
// kept. Fetching and storing are the caller's.

import { EngineError } from "../errors.ts";
import { parseConfig } from "../model/families.ts";
import { ropeTable } from "../model/rope.ts";
import type { ModelSpec } from "../model/spec.ts";
import { gainsOf, type ModelTensors, modelTensors, storedTensors } from "../model/tensors.ts";
import type { Backend } from "../plan/backend.ts";
import type { Tensor } from "../plan/step.ts";
import { hashWeights, readCheckpoint, type WeightFiles } from "./checkpoint.ts";
import { checkTensors } from "./checkTensors.ts";
import { type ConvertedEntry, createRecorder, type Recorder, replay, StorageFailure } from "./converted.ts";
import type { WeightFormat } from "./formats.ts";
import { parseJson } from "./json.ts";
import { isWeightSource, toSource, type WeightSource } from "./source.ts";
import { streamWeights, type WeightProgress, type WeightSink } from "./stream.ts";

export interface ModelFiles {
  /** config.json */
  readonly config: Uint8Array;
  /** model.safetensors, or the shards and their index by file name; or where they come from. */
  readonly weights: WeightFiles | WeightSource;
}

export interface LoadOptions {
  /** Shortens the rope tables to the positions that will be used. */
  readonly maxContext?: number;
  /** What matrices are kept in. Default f32. */
  readonly weightFormat?: WeightFormat;
  /** Where the converted weights are kept from one load to the next. Absent: nowhere. */
  readonly converted?: ConvertedEntry;
  readonly onProgress?: (progress: WeightProgress) => void;
  readonly signal?: AbortSignal;
}

export interface Model {
  readonly spec: ModelSpec;
  readonly weights: ModelTensors;
  /** Of the checkpoint, as hashWeights has it; for files that were here already it may still be computed, and reject. */
  readonly weightsSha256: Promise<string>;
}

const CONFIG = "config.json";

/** Fills a backend, and a recorder as long as its storage holds out. */
const createSink = (backend: Backend, recording: { recorder?: Recorder | undefined; lose(error: unknown): Promise<void> }): WeightSink => {
  const allocated = new Set<Tensor>();
  return {
    begin: async (tensor) => {
      if (allocated.has(tensor)) return;
      await backend.allocate(tensor);
      allocated.add(tensor);
    },
    fill: async (tensor, words, offset) => {
      await backend.fill(tensor, words, offset);
      try {
        await recording.recorder?.piece(tensor, words, offset);
      } catch (error) {
        await recording.lose(error);
      }
    },
    // What was kept is of two files then; the next load keeps one.
    restart: async () => {
      await recording.recorder?.abort().catch(() => {});
      recording.recorder = undefined;
    },
  };
};

/**
 * Headers are checked before anything is allocated for their tensors, values as they pass; a caller that gets an error disposes the
 * backend. Throws EngineError("bad-file" | "unsupported" | "device"), "aborted" with the signal's reason as cause.
 */
export const loadModel = async (files: ModelFiles, backend: Backend, options: LoadOptions = {}): Promise<Model> => {
  const { maxContext, weightFormat = "f32", converted, onProgress, signal } = options;
  const full = parseConfig(parseJson(files.config, CONFIG), CONFIG);
  const spec: ModelSpec = { ...full, maxPositions: Math.min(full.maxPositions, maxContext ?? full.maxPositions) };
  const weights = modelTensors(spec, weightFormat);
  const wanted = storedTensors(weights);
  if (!isWeightSource(files.weights)) checkTensors(readCheckpoint(files.weights), wanted, spec);
  const source = isWeightSource(files.weights) ? files.weights : toSource(files.weights);

  let storage = converted;
  const recording = {
    recorder: undefined as Recorder | undefined,
    lose: async (error: unknown): Promise<void> => {
      await recording.recorder?.abort().catch(() => {});
      recording.recorder = undefined;
      if (storage) storage.onFailure?.(error);
      storage = undefined;
    },
  };
  const sink = createSink(backend, recording);

  const fromConverted = async (entry: ConvertedEntry): Promise<string | undefined> => {
    const show = (bytes: number, totalBytes: number, tensorsDone: number): void =>
      onProgress?.({ file: "converted weights", bytes, totalBytes, tensorsDone, tensors: wanted.length });
    try {
      return await replay(entry, wanted, sink, show, signal);
    } catch (error) {
      if (!(error instanceof StorageFailure)) throw error;
      await recording.lose(error.cause);
      return undefined;
    }
  };
  const fromSource = async (): Promise<string> => {
    const entry = storage;
    if (entry)
      recording.recorder = await createRecorder(entry, wanted).catch((error: unknown) => recording.lose(error).then(() => undefined));
    const gains = new Set(gainsOf(weights));
    const hash = await streamWeights(source, { spec, wanted, gains, sink, onProgress, signal });
    await recording.recorder?.commit(hash).catch(recording.lose);
    return hash;
  };

  let weightsSha256: string;
  try {
    signal?.throwIfAborted();
    weightsSha256 = (storage && (await fromConverted(storage))) ?? (await fromSource());
    for (const [i, table] of weights.ropes.entries())
      await backend.allocate(table, ropeTable(spec.maxPositions, spec.headWidth, spec.ropes[i]!));
  } catch (cause) {
    await recording.recorder?.abort().catch(() => {});
    if (!signal?.aborted || (cause instanceof EngineError && cause.code === "aborted")) throw cause;
    throw new EngineError("aborted", "load: the caller wants the model, got an abort; load it again", { cause });
  }
  return { spec, weights, weightsSha256: isWeightSource(files.weights) ? Promise.resolve(weightsSha256) : hashWeights(files.weights) };
};

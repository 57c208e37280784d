// Where a policy's weights come from, as data that a worker can be sent, and the load from there: from the converted form that an earlier
// load kept, else from the source, a part at a time.

import {
  type Backend,
  CONVERTED_VERSION,
  type ConvertedEntry,
  createPolicy,
  EngineError,
  type Policy,
  type PolicyOptions,
  type WeightFormat,
} from "@fulgurite/engine";
import { files } from "#files";
import type { StartHooks, StartOptions } from "./edge.ts";
import { type ModelFilesOptions, type ModelWeights, openModelFolder } from "./modelFiles.ts";

export interface WeightPlace {
  readonly source: string;
  /** The commit that the small files are of. */
  readonly commit?: string;
  /** Files that came before, and files in all: progress goes on from there. */
  readonly filesDone: number;
  readonly files: number;
  readonly options: Pick<ModelFilesOptions, "hub" | "token" | "cache" | "cacheFolder">;
}

/** Undefined: nothing is kept of this source, or nothing can be kept here. */
const entryFor = async (
  { name, version }: Pick<ModelWeights, "name" | "version">,
  format: WeightFormat,
  { cacheFolder, cache }: WeightPlace["options"],
  onReport: StartHooks["onReport"],
): Promise<ConvertedEntry | undefined> => {
  if (cache === false || name === undefined || version === undefined) return undefined;
  const onFailure = (error: unknown): void =>
    onReport?.(`loadPolicy: the cache keeps converted weights, got "${(error as Error).message}"; they are loaded without it`);
  try {
    const store = await files.openConverted(cacheFolder);
    return { ...store.entry(`${name} ${format}`, `${name} ${version} ${format} v${CONVERTED_VERSION}`), onFailure };
  } catch (error) {
    onFailure(error);
    return undefined;
  }
};

/** The backend belongs to the policy from here on. Throws what createPolicy and the source's files throw. */
export const startFrom = async (
  { weights: place, device: _, threads: __, precision: ___, ...options }: StartOptions,
  backend: Backend,
  { signal, onProgress, onReport }: StartHooks = {},
): Promise<Policy> => {
  let entry: ConvertedEntry | undefined;
  let weights: ModelWeights | undefined;
  let isPolicys = false;
  try {
    const folder = await openModelFolder(place.source, {
      ...place.options,
      ...(signal && { signal }),
      ...(onReport && { onReport }),
      ...(onProgress && { onProgress }),
    });
    weights = await folder.streamWeights(place);
    const { source, report } = weights;
    entry = await entryFor(weights, options.weightFormat ?? "f32", place.options, onReport);
    const policyOptions: PolicyOptions = {
      ...options,
      backend,
      model: { ...options.model, weights: source },
      onProgress: report,
      ...(entry && { converted: entry }),
      ...(signal && { signal }),
    };
    isPolicys = true;
    return await createPolicy(policyOptions);
  } catch (error) {
    if (!isPolicys) await backend.dispose();
    if (error instanceof EngineError && error.code === "bad-file") await entry?.remove().catch(() => {});
    throw error;
  } finally {
    await weights?.close();
  }
};

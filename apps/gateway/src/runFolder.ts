// A run folder: what a headless run leaves behind, and how it is found again.
//
//   run.json        what was asked for: magic, version and options; written once, before anything else
//   store/          rollouts, spans, checkpoints, adapter versions (a file store)
//   metrics.jsonl   one line a training step, rewritten from the store's record
//   adapter/        the trained LoRA adapter, a PEFT directory
//   result.json     the closing JSON line; its presence means the run is finished

import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { UsageError } from "./usageError.ts";

export interface RunOptions {
  readonly demo: string;
  readonly device: string;
  readonly preset: string;
  readonly seed: number;
  readonly steps: number;
  readonly learningRate: number;
  readonly control: boolean;
  /** Absent: the default. */
  readonly weights?: string;
  /** Absent: f32. */
  readonly precision?: string;
}

const MAGIC = "fulgurite-run";
const VERSION = 1;

/** Whole or not at all: a crash leaves the old file. */
export const writeWhole = async (path: string, content: string | Uint8Array): Promise<void> => {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.tmp`, content);
  await rename(`${path}.tmp`, path);
};

/** The first of runs/<name>, runs/<name>-2, … that is new or unfinished: an interrupted run is found by repeating its command. */
export const findRunFolder = (root: string, name: string): string => {
  for (let i = 1; ; i++) {
    const folder = join(root, i === 1 ? name : `${name}-${i}`);
    if (!existsSync(join(folder, "result.json"))) return folder;
  }
};

/** Makes the folder, or checks that an unfinished one was started with the same options. Returns whether there was one. */
export const openRunFolder = async (folder: string, options: RunOptions): Promise<{ isContinued: boolean }> => {
  const path = join(folder, "run.json");
  if (!existsSync(path)) {
    await writeWhole(path, `${JSON.stringify({ magic: MAGIC, v: VERSION, options }, null, 2)}\n`);
    return { isContinued: false };
  }
  const found = await readRun(path);
  const different = (Object.keys(options) as (keyof RunOptions)[]).filter((key) => found[key] !== options[key]);
  if (different.length > 0) {
    const list = different.map((key) => `${key} ${found[key]} there, ${options[key]} now`).join("; ");
    throw new UsageError(`train: ${folder} holds a run with other options (${list}); repeat its options, or choose another --run folder`);
  }
  return { isContinued: true };
};

const readRun = async (path: string): Promise<RunOptions> => {
  try {
    const parsed = JSON.parse(await readFile(path, "utf8")) as { magic?: unknown; v?: unknown; options?: RunOptions };
    if (parsed.magic === MAGIC && parsed.v === VERSION && parsed.options) return parsed.options;
    throw new Error(`magic ${MAGIC} and version ${VERSION}, got ${JSON.stringify(parsed.magic)} and ${JSON.stringify(parsed.v)}`);
  } catch (cause) {
    throw new UsageError(`train: ${path} is not a run's file (${(cause as Error).message}); choose another --run folder`, { cause });
  }
};

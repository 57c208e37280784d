// A checkpoint: everything that the next step depends on, in one record, so that it is written whole or not at all.
// Bytes, little-endian:
//   0  4  magic "FGCK"
//   4  4  u32 format version, 1
//   8  4  u32 length n of the JSON
//  12  n  JSON in UTF-8: Cursor
//  12+n   the trainer's state, to the end

import type { Json } from "@fulgurite/trace";
import { RlError } from "./errors.ts";
import type { StepReport } from "./train.ts";

export interface Cursor {
  readonly runId: string;
  /** The step to do next. */
  readonly step: number;
  /** Of the policy that the trainer's state holds. */
  readonly version: number;
  readonly seed: number;
  /** What the run was started with; a resumed run must be the same. */
  readonly options: Readonly<Record<string, Json>>;
  /** Of the step that made this version. */
  readonly report: StepReport;
  /** Of the advantage estimator. */
  readonly estimator?: Json;
}

export interface Checkpoint {
  readonly cursor: Cursor;
  readonly trainerState: Uint8Array;
}

const MAGIC = "FGCK";
const FORMAT = 1;
const HEADER = 12;

export function encodeCheckpoint({ cursor, trainerState }: Checkpoint): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(cursor));
  const bytes = new Uint8Array(HEADER + json.length + trainerState.length);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC));
  view.setUint32(4, FORMAT, true);
  view.setUint32(8, json.length, true);
  bytes.set(json, HEADER);
  bytes.set(trainerState, HEADER + json.length);
  return bytes;
}

/** @throws RlError "checkpoint" */
export function decodeCheckpoint(bytes: Uint8Array): Checkpoint {
  const refuse = (rule: string, got: unknown): never => {
    throw new RlError("checkpoint", `checkpoint: ${rule}, got ${got}; the record is damaged or of another program`);
  };
  if (bytes.length < HEADER) refuse(`at least ${HEADER} bytes`, bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = new TextDecoder().decode(bytes.subarray(0, 4));
  if (magic !== MAGIC) refuse(`magic "${MAGIC}"`, JSON.stringify(magic));
  const format = view.getUint32(4, true);
  if (format !== FORMAT) refuse(`format ${FORMAT}`, format);
  const end = HEADER + view.getUint32(8, true);
  if (end > bytes.length) refuse(`at least ${end} bytes`, bytes.length);
  return { cursor: JSON.parse(new TextDecoder().decode(bytes.subarray(HEADER, end))) as Cursor, trainerState: bytes.slice(end) };
}

/** @throws RlError "checkpoint" naming the first option that differs */
export function checkSameRun(cursor: Cursor, options: Readonly<Record<string, Json>>): void {
  for (const name of new Set([...Object.keys(cursor.options), ...Object.keys(options)])) {
    const [was, is] = [cursor.options[name], options[name]].map((value) => JSON.stringify(value));
    if (was !== is)
      throw new RlError(
        "checkpoint",
        `train: run "${cursor.runId}" was checkpointed at step ${cursor.step} with ${name} ${was}, got ${is}; use the same ${name}, or another runId to start anew`,
      );
  }
}

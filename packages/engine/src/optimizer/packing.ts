// From datums to micro-batches: checked at the door, then packed whole, row after row, never padded to a rectangle.
// A datum's rows are its tokens up to the last one that predicts a trained target: what lies behind it cannot matter.
// Pure; the trainer does the I/O.

import type { Datum, Loss } from "../contract.ts";
import { EngineError } from "../errors.ts";

/** The per-token arrays that a pass reads: `old` and `advantage` of plan/step.ts's tokenLoss. */
export interface TokenFields {
  readonly old?: keyof Datum;
  readonly advantage?: keyof Datum;
}

/** A datum that was found good, with what packing needs. */
export interface CheckedDatum {
  readonly tokens: Int32Array;
  readonly targetStart: number;
  /** Offsets j (target = tokens[targetStart + j]) where the mask is 1. */
  readonly trained: readonly number[];
  /** Token rows that it takes. */
  readonly rows: number;
  readonly old?: Float32Array;
  readonly advantage?: Float32Array;
}

export interface Limits {
  readonly vocab: number;
  readonly maxPositions: number;
  /** Rows of one micro-batch. */
  readonly maxRows: number;
}

/** Which field of a datum is what, by loss. A datum without oldLogprobs uses its samplerLogprobs. */
const fieldsOf = (loss: Loss["name"] | undefined, datum: Datum): TokenFields => {
  switch (loss) {
    case undefined:
      return {};
    case "crossEntropy":
      return { advantage: "weights" };
    case "importanceSampling":
      return { old: "samplerLogprobs", advantage: "advantages" };
    case "ppoClip":
      return { old: datum.oldLogprobs ? "oldLogprobs" : "samplerLogprobs", advantage: "advantages" };
  }
};

/** Throws EngineError("bad-request") that names the datum and the field. loss undefined: scoring, no per-token numbers are read. */
export const checkDatum = (datum: Datum, index: number, loss: Loss["name"] | undefined, limits: Limits): CheckedDatum => {
  const fail = (field: string, rule: string, got: unknown, todo: string): never => {
    throw new EngineError("bad-request", `datum ${index}: ${field} ${rule}, got ${String(got)}; ${todo}`);
  };
  const { tokens, targetStart, mask } = datum;
  if (!(tokens instanceof Int32Array)) fail("tokens", "is an Int32Array", Object.prototype.toString.call(tokens), "convert it");
  if (tokens.length < 2) fail("tokens", "has at least 2 entries", tokens.length, "leave the datum out");
  for (const [i, token] of tokens.entries()) {
    if (token < 0 || token >= limits.vocab) {
      fail(`tokens[${i}]`, `is in 0 … ${limits.vocab - 1}`, token, "use the tokenizer of this model");
    }
  }
  if (!Number.isInteger(targetStart) || targetStart < 1 || targetStart >= tokens.length) {
    fail("targetStart", `is an integer in 1 … ${tokens.length - 1}`, targetStart, "the first token cannot be predicted");
  }
  const length = tokens.length - targetStart;
  if (mask && mask.length !== length) fail("mask", `has ${length} entries`, mask.length, "one for each target");
  const trained: number[] = [];
  for (let j = 0; j < length; j++) {
    if (mask && mask[j] !== 0 && mask[j] !== 1) fail(`mask[${j}]`, "is 0 or 1", mask[j], "weigh tokens through advantages");
    if (!mask || mask[j] === 1) trained.push(j);
  }
  const rows = trained.length === 0 ? 0 : targetStart + trained.at(-1)!;
  if (rows > limits.maxRows) {
    fail("tokens", `takes at most ${limits.maxRows} rows of a micro-batch`, rows, "raise microBatchTokens or shorten it");
  }
  if (rows > limits.maxPositions) fail("tokens", `takes at most the model's ${limits.maxPositions} positions`, rows, "shorten it");

  const numbers = (name: keyof Datum | undefined): Float32Array | undefined => {
    if (name === undefined) return undefined;
    const values = datum[name] as Float32Array | undefined;
    if (values === undefined) return fail(name, `is needed by ${loss}`, "none", "fill it in");
    if (values.length !== length) fail(name, `has ${length} entries`, values.length, "one for each target");
    // What is masked may be anything, NaN too.
    for (const j of trained) if (!Number.isFinite(values[j])) fail(`${name}[${j}]`, "is finite", values[j], "mask it or repair it");
    return values;
  };
  const fields = fieldsOf(loss, datum);
  const [old, advantage] = [numbers(fields.old), numbers(fields.advantage)];
  return { tokens, targetStart, trained, rows, ...(old && { old }), ...(advantage && { advantage }) };
};

/** Indices of datums by micro-batch: each goes into the first one that has room. Datums without trained targets are left out. */
export const packDatums = (rowCounts: readonly number[], maxRows: number): number[][] => {
  const batches: { members: number[]; rows: number }[] = [];
  for (const [index, rows] of rowCounts.entries()) {
    if (rows === 0) continue;
    const room = batches.find((batch) => batch.rows + rows <= maxRows);
    if (room) {
      room.members.push(index);
      room.rows += rows;
    } else batches.push({ members: [index], rows });
  }
  return batches.map(({ members }) => members);
};

/** The numbers of one run, and where each output row belongs. */
export interface MicroBatch {
  readonly rows: number;
  readonly outRows: number;
  /** [rows]. */
  readonly tokens: Int32Array;
  readonly positions: Int32Array;
  readonly start: Int32Array;
  readonly end: Int32Array;
  /** [outRows]. */
  readonly outIndex: Int32Array;
  readonly target: Int32Array;
  readonly old: Float32Array;
  readonly advantage: Float32Array;
  /** Output row r is target `offset` of datum `datum`. */
  readonly origin: readonly { readonly datum: number; readonly offset: number }[];
}

export const toMicroBatch = (data: readonly CheckedDatum[], members: readonly number[]): MicroBatch => {
  const rows = members.reduce((sum, index) => sum + data[index]!.rows, 0);
  const outRows = members.reduce((sum, index) => sum + data[index]!.trained.length, 0);
  const [tokens, positions] = [new Int32Array(rows), new Int32Array(rows)];
  const [start, end] = [new Int32Array(rows), new Int32Array(rows)];
  const [outIndex, target] = [new Int32Array(outRows), new Int32Array(outRows)];
  const [old, advantage] = [new Float32Array(outRows), new Float32Array(outRows)];
  const origin: { datum: number; offset: number }[] = [];
  let first = 0;
  for (const index of members) {
    const datum = data[index]!;
    const last = first + datum.rows;
    tokens.set(datum.tokens.subarray(0, datum.rows), first);
    for (let t = first; t < last; t++) positions[t] = t - first;
    start.fill(first, first, last);
    end.fill(last, first, last);
    for (const offset of datum.trained) {
      const r = origin.length;
      // tokens[i] is predicted by the row of tokens[i − 1].
      outIndex[r] = first + datum.targetStart + offset - 1;
      target[r] = datum.tokens[datum.targetStart + offset]!;
      old[r] = datum.old?.[offset] ?? 0;
      advantage[r] = datum.advantage?.[offset] ?? 0;
      origin.push({ datum: index, offset });
    }
    first = last;
  }
  return { rows, outRows, tokens, positions, start, end, outIndex, target, old, advantage, origin };
};

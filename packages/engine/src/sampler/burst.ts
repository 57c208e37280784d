// What the device does between two looks of the host, as data: a list of runs. Pure, but for the slots' `held`, which grows
// with what is scheduled.
//
// A lane is a request that is being sampled; lane n decodes in row n, and `advance` (plan/step.ts) fills that row from the
// token that was sampled. So the rows of a run are: one for each lane, already on the device, then prompt tokens from the
// host. A prompt whose last token is fed becomes the next lane; running lanes never wait for more than one run of others'
// prompts. Lanes are in the order of their length's end where nobody joins: those that have ended lie behind the others and
// their rows are left out. A lane that a stop token ended rests until the burst is over, and is then left out.

import { type Slot, sharedLength } from "./slots.ts";

/** A request with a row of the cache. */
export interface Sequence {
  readonly request: { readonly prompt: Int32Array; readonly maxTokens: number };
  /** Sampled so far. */
  readonly tokens: readonly number[];
  readonly slot: Slot;
}

export interface Copy {
  readonly from: Slot;
  readonly to: Slot;
  readonly length: number;
}

export interface Run {
  /** Beginnings of cache rows that are copied before it. */
  readonly copies: readonly Copy[];
  /** Lanes that decode in it: rows 0 … decoding − 1. */
  readonly decoding: number;
  /** Prompt tokens in the rows from `decoding` on. */
  readonly tokens: readonly number[];
  readonly positions: readonly number[];
  readonly slots: readonly number[];
  /** Their rows after which the first token of a lane is sampled; the lanes follow those that decode. */
  readonly ends: readonly number[];
}

export interface Lane<S> {
  readonly sequence: S;
  /** Its prompt was fed before this burst. */
  readonly isDecoding: boolean;
  /** Tokens that it samples in this burst, if no stop token comes first. */
  readonly sampled: number;
}

export interface Burst<S> {
  readonly lanes: readonly Lane<S>[];
  readonly runs: readonly Run[];
}

/** Fewer tokens are fed as fast as they are copied. */
const WORTH_COPYING = 8;
/** Rows that cost about as much as one: reading the weights is most of a small run. */
const ROWS_OF_A_STEP = 64;

const isFed = ({ request, slot }: Sequence): boolean => slot.held >= request.prompt.length;

/** A row that holds, or will hold when `earlier` prompts are fed, more of the prompt than the request's own. */
const sourceOf = <S extends Sequence>({ request, slot }: S, slots: readonly Slot[], earlier: readonly S[]): Copy | undefined => {
  let best: Copy | undefined;
  const offer = (from: Slot, length: number): void => {
    if (from !== slot && length > (best?.length ?? slot.held + WORTH_COPYING - 1)) best = { from, to: slot, length };
  };
  for (const other of slots) offer(other, sharedLength(request.prompt, other.tokens, other.held));
  for (const { request: other, slot: from } of earlier) offer(from, sharedLength(request.prompt, other.prompt, other.prompt.length));
  return best;
};

export interface BurstOptions {
  /** Rows of a run, ≥ the number of sequences. */
  readonly capacity: number;
  /** Decoding runs, or their worth in larger ones; at least one is scheduled. */
  readonly steps: number;
  /** Rows of the cache to copy beginnings from; empty: every prompt is fed whole. */
  readonly sources: readonly Slot[];
}

export const scheduleBurst = <S extends Sequence>(live: Iterable<S>, { capacity, steps, sources }: BurstOptions): Burst<S> => {
  const leftOf = ({ request, tokens }: S): number => request.maxTokens - tokens.length;
  const sequences = [...live];
  /** Lane n samples in the runs begin … end − 1. */
  const lanes = sequences
    .filter(isFed)
    .sort((a, b) => leftOf(b) - leftOf(a))
    .map((sequence) => ({ sequence, begin: 0, end: leftOf(sequence), isDecoding: true }));
  let feeding = sequences.filter((sequence) => !isFed(sequence));
  const waiting = new Map<S, Copy>();
  if (sources.length > 0) {
    for (const [i, sequence] of feeding.entries()) {
      const source = sourceOf(sequence, sources, feeding.slice(0, i));
      if (source) waiting.set(sequence, source);
    }
  }

  const runs: Run[] = [];
  for (let spent = 0; spent < steps; ) {
    const now = runs.length;
    const decoding = feeding.length > 0 ? lanes.length : lanes.findLastIndex(({ end }) => end > now) + 1;
    if (decoding + feeding.length === 0) break;

    // Copies come before the run, so a source counts with what it held before; one that is being written waits for the next.
    const copies: Copy[] = [];
    for (const [sequence, copy] of waiting) {
      if (copy.from.held < copy.length || copies.some(({ to }) => to === copy.from)) continue;
      copies.push(copy);
      waiting.delete(sequence);
    }
    for (const { from, to, length } of copies) {
      to.tokens.set(from.tokens.subarray(0, length));
      to.held = length;
    }

    const run = { copies, decoding, tokens: [] as number[], positions: [] as number[], slots: [] as number[], ends: [] as number[] };
    for (const sequence of feeding) {
      const { request, slot } = sequence;
      if (waiting.has(sequence)) continue;
      const until = Math.min(request.prompt.length, slot.held + capacity - decoding - run.tokens.length);
      for (; slot.held < until; slot.held++) {
        const token = request.prompt[slot.held]!;
        slot.tokens[slot.held] = token;
        run.tokens.push(token);
        run.positions.push(slot.held);
        run.slots.push(slot.index);
      }
      if (!isFed(sequence)) continue;
      run.ends.push(decoding + run.tokens.length - 1);
      lanes.push({ sequence, begin: now, end: now + leftOf(sequence), isDecoding: false });
    }
    feeding = feeding.filter((sequence) => !isFed(sequence));
    runs.push(run);
    spent += Math.ceil((decoding + run.tokens.length) / ROWS_OF_A_STEP);
  }
  return {
    lanes: lanes.map(({ sequence, begin, end, isDecoding }) => ({
      sequence,
      isDecoding,
      sampled: Math.min(end, runs.length) - begin,
    })),
    runs,
  };
};

/**
 * How many steps a burst takes. A look of the host costs `lookCost` steps; a share `endRate` of all sampled tokens is their
 * completion's last, so a burst of k loses about k/2 steps of a row for endRate·k of the rows. Both together, for each step,
 * lookCost/k + endRate·k/2, are least at k = √(2·lookCost/endRate).
 */
export const burstSteps = (endRate: number, lookCost: number): number => Math.max(1, Math.round(Math.sqrt((2 * lookCost) / endRate)));

// What one object knows of its database without asking, and how it learns that it no longer does.
//
// Each transaction that changes rollouts, attempts or spans leaves a turn: the last seqs, and which running attempts beat. The
// platform numbers turns one by one, and an abort takes its number back. So an append may write before it has read anything: if
// its turn gets the number that follows the last one known here, nobody else wrote in between, and what it went by was right.
// If not, it is undone and done again by reading. A turn whose number is divided by 32, or that ends an attempt, says all beats
// that still count, and those before it go.

import { keyOf } from "../commands.ts";
import type { Attempt, Rollout } from "../vocabulary.ts";

/** A running attempt's last sign of life: rollout, attempt, milliseconds since 1970. */
export type Beat = readonly [rolloutId: string, attemptId: string, atMs: number];

export interface Turn {
  /** From 1, by the platform. */
  readonly turn?: number;
  readonly rolloutSeq: number;
  readonly spanSeq: number;
  readonly beats: readonly Beat[];
}

/** What all turns say together. */
export interface Head {
  readonly turn: number; // 0 before the first
  readonly rolloutSeq: number;
  readonly spanSeq: number;
  /** By attempt. */
  readonly beats: Map<string, Beat>;
}

/** The head as this object left it, and the rows of what runs. */
export interface Known extends Head {
  readonly rollouts: Map<string, Rollout>; // by id
  readonly attempts: Map<string, Attempt>;
}

/** What a transaction found, saw and left. */
export interface Lesson extends Known {
  readonly before: Head;
}

export const TURNS_KEPT = 32;

export const headOf = (turns: readonly Turn[]): Head => ({
  turn: 0,
  rolloutSeq: 0,
  spanSeq: 0,
  ...turns.at(-1),
  beats: new Map(turns.flatMap(({ beats }) => beats.map((beat) => [keyOf(beat[0], beat[1]), beat]))),
});

const keepRunning = <T extends { readonly status: string }>(rows: Map<string, T>, seen: ReadonlyMap<string, T>): void => {
  for (const [key, row] of seen)
    if (row.status === "running") rows.set(key, row);
    else rows.delete(key);
};

/** Changes what is known, if nobody else has written meanwhile; else begins anew. */
export const learn = (known: Known | undefined, { before, beats, rollouts, attempts, ...head }: Lesson): Known => {
  const now: Known =
    known?.turn === before.turn
      ? { ...known, ...head }
      : { ...head, beats: new Map(before.beats), rollouts: new Map(), attempts: new Map() };
  for (const [key, beat] of beats) now.beats.set(key, beat);
  keepRunning(now.rollouts, rollouts);
  keepRunning(now.attempts, attempts);
  for (const [key, { status }] of attempts) if (status !== "running") now.beats.delete(key);
  return now;
};

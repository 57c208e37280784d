// Threads meet here: between steps at a barrier, between runs at the generation counter. The single-thread build compiles to nothing.
// A waiter spins a little, because the next step is usually microseconds away, and then sleeps, because the machine may be shared.

import { ARRIVED, control, GENERATION, NEXT, PHASE, SLEEPERS } from "./control";

const SPINS: i32 = 3000;

/** Returns when the i32 at `at` is no longer `old`. */
function awaitChange(at: usize, old: i32): void {
  if (ASC_FEATURE_THREADS) {
    for (let i = 0; i < SPINS; i++) if (atomic.load<i32>(at) != old) return;
    // Whoever changes the value afterwards sees this count, or atomic.wait sees the change: both are sequentially consistent.
    atomic.add<i32>(control() + SLEEPERS, 1);
    while (atomic.load<i32>(at) == old) atomic.wait<i32>(at, old, -1);
    atomic.sub<i32>(control() + SLEEPERS, 1);
  }
}

function change(at: usize): void {
  if (ASC_FEATURE_THREADS) {
    atomic.add<i32>(at, 1);
    if (atomic.load<i32>(control() + SLEEPERS) != 0) atomic.notify(at, -1);
  }
}

/** Returns when all threads have called it. */
export function barrier(threads: i32): void {
  if (ASC_FEATURE_THREADS) {
    if (threads == 1) return;
    const phase = atomic.load<i32>(control() + PHASE);
    if (atomic.add<i32>(control() + ARRIVED, 1) + 1 == threads) {
      atomic.store<i32>(control() + ARRIVED, 0);
      atomic.store<i32>(control() + NEXT, 0);
      change(control() + PHASE);
    } else {
      awaitChange(control() + PHASE, phase);
    }
  }
}

/**
 * The number of a piece of this step's work that nobody has taken; `previous` is the caller's last one, −1 at first. Pieces are taken, not
 * dealt, so that a slow core, or one that the machine has given to somebody else, holds up no more than one piece.
 */
export function nextPiece(previous: i32, threads: i32): i32 {
  if (ASC_FEATURE_THREADS) {
    if (threads > 1) return atomic.add<i32>(control() + NEXT, 1);
  }
  return previous + 1;
}

/** Wakes the serving threads for a run, or for the end. */
export function startGeneration(): void {
  change(control() + GENERATION);
}

/** Sleeps until a generation other than `seen` has started, and returns it. */
export function awaitGeneration(seen: i32): i32 {
  if (ASC_FEATURE_THREADS) {
    awaitChange(control() + GENERATION, seen);
    return atomic.load<i32>(control() + GENERATION);
  }
  return seen;
}

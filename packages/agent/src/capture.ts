// Spans on their way into the store: in order, one append at a time, never in the agent's way. What is recorded while an append
// is under way goes into the next together. What fails is counted.

import type { Span, Store } from "@fulgurite/trace";

export interface SpanQueue {
  /** Queues what `make` returns; an error in it is a capture failure like any other. */
  record(make: () => Span): void;
  /** Resolves when everything queued so far was appended or counted as failed. */
  settled(): Promise<void>;
  /** What no append has begun to store from here on is the last, and finish()'s. */
  hold(): void;
  /**
   * Calls `end` with the last, to store it with the attempt's end; where that failed, or spans were lost before, the last is appended
   * and `end` called with nothing.
   */
  finish<T>(end: (last: readonly Span[]) => Promise<T>): Promise<T>;
  readonly failures: number;
}

export const createSpanQueue = (store: Pick<Store, "append">): SpanQueue => {
  let tail: Promise<void> = Promise.resolve();
  let waiting: Span[] = [];
  let failures = 0;
  let isHeld = false;
  const count = (): void => {
    failures++;
  };
  const append = async (): Promise<void> => {
    if (isHeld || waiting.length === 0) return;
    const spans = waiting;
    waiting = [];
    try {
      await store.append(spans);
    } catch {
      // the others are not to blame for one; what was appended after all is there once
      if (spans.length === 1) count();
      else for (const span of spans) await store.append([span]).catch(count);
    }
  };
  return {
    record(make) {
      try {
        if (waiting.push(make()) === 1) tail = tail.then(append);
      } catch {
        count();
      }
    },
    settled: () => tail,
    hold: () => {
      isHeld = true;
    },
    finish: async (end) => {
      await tail;
      const last = waiting;
      if (failures === 0 && last.length > 0) {
        waiting = [];
        try {
          return await end(last);
        } catch {
          waiting = last;
        }
      }
      isHeld = false;
      await append();
      return end([]);
    },
    get failures() {
      return failures;
    },
  };
};

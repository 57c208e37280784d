// Spans on their way into the store: in order, one append at a time, never in the agent's way. What is recorded while an append
// is under way goes into the next together. What fails is counted.

import type { Span, Store } from "@fulgurite/trace";

export interface SpanQueue {
  /** Queues what `make` returns; an error in it is a capture failure like any other. */
  record(make: () => Span): void;
  /** Resolves when everything queued so far was appended or counted as failed. */
  settled(): Promise<void>;
  readonly failures: number;
}

export const createSpanQueue = (store: Pick<Store, "append">): SpanQueue => {
  let tail: Promise<void> = Promise.resolve();
  let waiting: Span[] = [];
  let failures = 0;
  const count = (): void => {
    failures++;
  };
  const append = async (): Promise<void> => {
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
    get failures() {
      return failures;
    },
  };
};

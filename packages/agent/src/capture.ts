// Spans on their way into the store: in order, one append at a time, never in the agent's way. What fails is counted.

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
  let failures = 0;
  const count = (): void => {
    failures++;
  };
  return {
    record(make) {
      try {
        const span = make();
        tail = tail.then(() => store.append([span])).catch(count);
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

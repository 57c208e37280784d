// Attempts whose worker has fallen silent are ended by somebody who is still there. Several supervisors of one store, in tabs
// or processes, harm nobody: requeueStale is atomic, so each silent attempt is ended once. What then becomes of its rollout
// the status tables and its config decide.
//
// Silence is measured by this clock against the store's: supervise where the store is. A machine that slept finds everybody
// silent, itself included; so whoever wakes late gives all one more interval to speak.

import type { Store } from "./vocabulary.ts";
import type { Timer } from "./waitBounds.ts";

export interface SuperviseOptions {
  /** Silent for longer is gone. A tab in the background may beat once a minute only. */
  readonly staleAfterMs?: number; // 150 000
  /** Between two looks. */
  readonly everyMs?: number; // a third of staleAfterMs
  /** Milliseconds since 1970. Default: Date.now. */
  readonly clock?: () => number;
  /** Runs `act` once after `ms`; returns the way to stop it. Default: setTimeout, which in Node keeps no process alive. */
  readonly timer?: Timer;
  /** Hears how many attempts were ended, when any were. */
  readonly onRequeued?: (count: number) => void;
  /** Hears what a look failed with; the next one is made all the same. Default: nobody; whoever writes meets the same store. */
  readonly onError?: (error: unknown) => void;
}

const quietTimer: Timer = (act, ms) => {
  const timer = setTimeout(act, ms);
  (timer as unknown as { unref?(): void }).unref?.(); // browsers give a number
  return () => clearTimeout(timer);
};

/** Looks at once and then every `everyMs`, one look at a time, until the returned function is called. Never throws. */
export const supervise = (store: Pick<Store, "requeueStale">, options: SuperviseOptions = {}): (() => void) => {
  const { staleAfterMs = 150_000, clock = Date.now, timer = quietTimer, onRequeued, onError } = options;
  const everyMs = options.everyMs ?? staleAfterMs / 3;
  let isOver = false;
  let cut = (): void => {};
  let dueMs = clock();

  const look = async (): Promise<void> => {
    const nowMs = clock();
    const isLate = nowMs - dueMs > everyMs;
    try {
      const count = isLate ? 0 : await store.requeueStale(nowMs - staleAfterMs);
      if (count > 0) onRequeued?.(count);
    } catch (error) {
      onError?.(error);
    }
    if (isOver) return;
    dueMs = clock() + everyMs;
    cut = timer(() => void look(), everyMs);
  };
  void look();
  return () => {
    isOver = true;
    cut();
  };
};

// What ends a wait early, for every store: the caller's signal, close(), the time that was given.

import { TraceError } from "./errors.ts";

/** Runs `act` once after `ms`; returns the way to stop it. */
export type Timer = (act: () => void, ms: number) => () => void;

export const platformTimer: Timer = (act, ms) => {
  const timer = setTimeout(act, ms);
  return () => clearTimeout(timer);
};

export interface WaitBounds {
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
  readonly timer: Timer;
  /** Aborted by close(), with a TraceError. */
  readonly closing: AbortSignal;
  /** Rollouts that are waited for, for the message. */
  readonly count: number;
}

/** Rejects with the signal's reason, closing's reason or TraceError "timeout". Returns the way to stop listening. */
export const boundWait = (reject: (error: unknown) => void, { signal, timeoutMs, timer, closing, count }: WaitBounds): (() => void) => {
  const onAbort = (): void => reject(signal?.reason);
  const onClose = (): void => reject(closing.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  closing.addEventListener("abort", onClose, { once: true });
  const stopTimer =
    timeoutMs === undefined
      ? undefined
      : timer(() => {
          const rule = `waitFor: ${count} rollouts must end within ${timeoutMs} ms, got at least one that did not`;
          reject(new TraceError("timeout", `${rule}; raise timeoutMs, or see whether a runner is claiming`));
        }, timeoutMs);
  return () => {
    signal?.removeEventListener("abort", onAbort);
    closing.removeEventListener("abort", onClose);
    stopTimer?.();
  };
};

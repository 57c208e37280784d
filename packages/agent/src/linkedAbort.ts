// One AbortController that follows several signals and lets go of them again. AbortSignal.any would keep a listener on a
// run's signal for every call that was ever made.

export interface LinkedAbort {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
  /** Stops following. The signal stays as it is. */
  unlink(): void;
}

export const linkAbort = (signals: readonly (AbortSignal | null | undefined)[]): LinkedAbort => {
  const controller = new AbortController();
  const unlinks: (() => void)[] = [];
  const unlink = (): void => {
    for (const stop of unlinks.splice(0)) stop();
  };
  for (const signal of signals) {
    if (!signal) continue;
    const follow = (): void => controller.abort(signal.reason);
    if (signal.aborted) follow();
    else {
      signal.addEventListener("abort", follow, { once: true });
      unlinks.push(() => signal.removeEventListener("abort", follow));
    }
  }
  return {
    // some platforms make it when it is first asked for
    get signal() {
      return controller.signal;
    },
    abort: (reason) => controller.abort(reason),
    unlink,
  };
};

/** For who only listens: of one signal it is that signal. */
export const followAbort = (signals: readonly (AbortSignal | null | undefined)[]): Pick<LinkedAbort, "signal" | "unlink"> => {
  const given = signals.filter((signal) => signal != null);
  return given.length === 1 ? { signal: given[0] as AbortSignal, unlink: () => {} } : linkAbort(given);
};

// One thing at a time on a backend: its calls must not overlap, and sampler and trainer share one.

/** Runs after everything that was asked for before it has settled. */
export type Lock = <T>(run: () => Promise<T>) => Promise<T>;

export const createLock = (): Lock => {
  let last: Promise<unknown> = Promise.resolve();
  return <T>(run: () => Promise<T>): Promise<T> => {
    const result = last.then(run);
    // A failed run must not fail the next one; its caller has the rejection.
    last = result.catch(() => undefined);
    return result;
  };
};

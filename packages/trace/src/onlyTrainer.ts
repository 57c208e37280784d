// One trainer of a run at a time over all tabs and workers of an origin: two would overwrite each other's checkpoints. By Web
// Locks, which a browser gives on when a tab is gone, however it went. Claims need none: a store's transaction is their lock.
// Not a lease: without Web Locks nobody can be asked, and it says so instead of guessing by clocks.

import { TraceError } from "./errors.ts";

export interface OnlyTrainerOptions {
  /** Waits until the other has ended, instead of being refused. */
  readonly wait?: boolean; // false
  /** Ends the waiting. */
  readonly signal?: AbortSignal;
  /**
   * Default: the platform's. "none": nobody is asked, because there is nobody (a folder has one process, a page may be the only
   * one), or because the caller sees to it.
   */
  readonly locks?: Pick<LockManager, "request"> | "none" | undefined;
}

/**
 * Runs `body` while nobody else of this origin trains under this name, and gives its answer.
 * @throws TraceError "locked" when somebody does; "no-locks" where the platform has no Web Locks (pages without https, Node before
 * 24) and none are given; the signal's reason; what `body` throws.
 */
export const asOnlyTrainer = async <T>(name: string, body: () => Promise<T>, options: OnlyTrainerOptions = {}): Promise<T> => {
  const { wait = false, signal, locks = (globalThis.navigator as Partial<Navigator> | undefined)?.locks } = options;
  signal?.throwIfAborted();
  if (locks === "none") return body();
  if (locks === undefined)
    throw new TraceError(
      "no-locks",
      `${name}: Web Locks must be here, got none; open it over https, or give locks: "none" if nobody else trains`,
    );
  const how: LockOptions = wait ? { ...(signal === undefined ? {} : { signal }) } : { ifAvailable: true };
  return locks.request(`fulgurite/${name}/trainer`, how, async (lock) => {
    if (lock === null)
      throw new TraceError("locked", `${name}: one trainer at a time, got another tab or worker that trains; end it there, or wait for it`);
    return body();
  });
};

// One trainer of a run at a time over all tabs and workers of an origin: two would overwrite each other's checkpoints. By Web
// Locks, which a browser gives on when a tab is gone, however it went. Claims need none: a store's transaction is their lock.

import { TraceError } from "./errors.ts";

export interface OnlyTrainerOptions {
  /** Waits until the other has ended, instead of being refused. */
  readonly wait?: boolean; // false
  /** Ends the waiting. */
  readonly signal?: AbortSignal;
  /** Default: the platform's. Where there are none (Node 20, pages without https) nobody is asked: a folder has one process anyway. */
  readonly locks?: Pick<LockManager, "request"> | undefined;
}

/**
 * Runs `body` while nobody else of this origin trains under this name, and gives its answer.
 * @throws TraceError "locked" when somebody does; the signal's reason; what `body` throws.
 */
export const asOnlyTrainer = async <T>(name: string, body: () => Promise<T>, options: OnlyTrainerOptions = {}): Promise<T> => {
  const { wait = false, signal } = options;
  signal?.throwIfAborted();
  const locks = "locks" in options ? options.locks : (globalThis.navigator as Partial<Navigator> | undefined)?.locks;
  if (locks === undefined) return body();
  const how: LockOptions = wait ? { ...(signal === undefined ? {} : { signal }) } : { ifAvailable: true };
  return locks.request(`fulgurite/${name}/trainer`, how, async (lock) => {
    if (lock === null)
      throw new TraceError("locked", `${name}: one trainer at a time, got another tab or worker that trains; end it there, or wait for it`);
    return body();
  });
};

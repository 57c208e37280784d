// A full disk is not a broken one: what is asked for is refused, and everything else goes on.

import { TraceError } from "../errors.ts";

const FULL: readonly unknown[] = ["ENOSPC", "EDQUOT"];

export const isFull = (error: unknown): boolean => FULL.includes((error as NodeJS.ErrnoException | undefined)?.code);

export const fullDisk = (folder: string, what: string, cause: unknown): TraceError =>
  new TraceError(
    "full",
    `${folder}: room on the disk for ${what}, got ${(cause as NodeJS.ErrnoException).code}; free some, and call again: nothing of this call was kept, and nothing that was acknowledged is lost`,
    { cause },
  );

/** Names a full disk; every other error stays as it is. */
export const namingFull = async <T>(folder: string, what: string, act: () => Promise<T>): Promise<T> => {
  try {
    return await act();
  } catch (error) {
    throw isFull(error) ? fullDisk(folder, what, error) : error;
  }
};

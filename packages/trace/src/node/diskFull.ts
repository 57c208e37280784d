// A full disk is not a broken one: what is asked for is refused, and everything else goes on. What else the platform refuses is
// told with the folder that it is about.

import { TraceError } from "../errors.ts";

const FULL: readonly unknown[] = ["ENOSPC", "EDQUOT"];

export const isFull = (error: unknown): boolean => FULL.includes((error as NodeJS.ErrnoException | undefined)?.code);

export const fullDisk = (folder: string, what: string, cause: unknown): TraceError =>
  new TraceError(
    "full",
    `${folder}: room on the disk for ${what}, got ${(cause as NodeJS.ErrnoException).code}; free some, and call again: nothing of this call was kept, and nothing that was acknowledged is lost`,
    { cause },
  );

const isRefusal = (error: unknown): error is NodeJS.ErrnoException =>
  typeof (error as NodeJS.ErrnoException | undefined)?.errno === "number";

/** Names a full disk, and every other refusal of the platform. */
export const namingFull = async <T>(folder: string, what: string, act: () => Promise<T>): Promise<T> => {
  try {
    return await act();
  } catch (error) {
    if (isFull(error)) throw fullDisk(folder, what, error);
    if (!isRefusal(error)) throw error;
    throw new TraceError(
      "storage",
      `${folder}: a folder that can be read and written for ${what}, got ${error.message}; look at its rights and at the disk`,
      { cause: error },
    );
  }
};

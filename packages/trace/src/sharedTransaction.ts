// Several appends in one transaction: each is checked and answered by itself, and nobody hears before the commit.

import type { Transaction } from "./rows.ts";

/** An append that waits for its transaction. */
export interface Member {
  readonly body: (transaction: Transaction) => Promise<unknown>;
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Runs the bodies in order. What tells each member its answer, or the rule that it broke, is returned for after the commit. Throws an
 * error by which, `isLost` says, the transaction is lost for all.
 */
export const runMembers = async (
  transaction: Transaction,
  members: readonly Member[],
  isLost: (error: unknown) => boolean,
): Promise<(() => void)[]> => {
  const tell: (() => void)[] = [];
  for (const { body, resolve, reject } of members)
    try {
      const answer = await body(transaction);
      tell.push(() => resolve(answer));
    } catch (error) {
      if (isLost(error)) throw error;
      tell.push(() => reject(error));
    }
  return tell;
};

// Appends that share a transaction, and how each hears what became of it.

import type { Appended, AppendRequest, Backend } from "./rows.ts";

export interface Sharer {
  readonly request: AppendRequest;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export type Tell = Parameters<Required<Backend>["gather"]>[2];

/** Once it is committed: listeners first, then everyone who shared it, in order. */
export const settleSharers = (sharers: readonly Sharer[], { broken, events }: Appended, tell: Tell): void => {
  tell(events);
  let at = 0;
  for (const { resolve, reject } of sharers) {
    const rule = broken[at++];
    if (rule === undefined) resolve();
    else reject(rule);
  }
};

// When transactions begin, so that many small appends cost one commit:
//
//   - what one store object was asked first it does first; reads wait for the writes before them, not for each other
//   - appends asked for in one turn, or while an earlier write is on its way, share one transaction and one command: at most 64 spans
//   - an append that breaks a rule fails alone; if the transaction itself fails, each of its appends is tried alone, in order,
//     so that every caller hears of its own failure and of no other's
//
// Resolved still means committed: nobody is told earlier, the sharers are told together.

import { createQueue } from "../memory.ts";
import type { Backend, Durability, RunAppends, Transaction } from "../rows.ts";
import { type Sharer, settleSharers, type Tell } from "../sharers.ts";

export type Mode = "read" | "append" | Durability;

/** One transaction: all or nothing. */
export type RunTransaction = <T>(mode: Mode, body: (transaction: Transaction) => Promise<T>) => Promise<T>;

export interface InOrder extends Required<Pick<Backend, "transact" | "gather">> {
  /** Resolves when all that was asked for is settled. */
  settled(): Promise<void>;
}

const GROUP_SPANS = 64;

export const createInOrder = (run: RunTransaction): InOrder => {
  const inTurn = createQueue();
  const settled = () => inTurn(async () => {});
  let open: { readonly members: Sharer[]; spans: number } | undefined;

  const append = async (members: readonly Sharer[], how: RunAppends, tell: Tell): Promise<void> => {
    const requests = members.map(({ request }) => request);
    try {
      settleSharers(members, await run("append", (transaction) => how(transaction, requests)), tell);
    } catch (error) {
      // nothing of it is stored; whose failure it is, each finds out alone
      if (members.length > 1) for (const member of members) await append([member], how, tell);
      else members[0]?.reject(error);
    }
  };

  return {
    transact: (mode, body) => {
      open = undefined;
      return mode === "read" ? settled().then(() => run(mode, body)) : inTurn(() => run(mode, body));
    },
    gather: (request, how, tell) =>
      new Promise((resolve, reject) => {
        if (open === undefined || open.spans + request.spans.length > GROUP_SPANS) {
          const group = { members: [], spans: 0 };
          open = group;
          void inTurn(async () => {
            if (open === group) open = undefined;
            await append(group.members, how, tell);
          });
        }
        open.spans += request.spans.length;
        open.members.push({ request, resolve, reject });
      }),
    settled,
  };
};

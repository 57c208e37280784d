// When transactions begin, so that many small appends cost one commit:
//
//   - what one store object was asked first it does first; reads wait for the writes before them, not for each other
//   - appends asked for in one turn, or while an earlier write is on its way, share one transaction and one command: at most 64 spans
//   - an append that breaks a rule fails alone; if the transaction itself fails, each of its appends is tried alone, in order,
//     so that every caller hears of its own failure and of no other's
//
// Resolved still means committed: nobody is told earlier, the sharers are told together.

import { createQueue } from "../memory.ts";
import type { AppendRequest, Backend, Durability, RunAppends, Transaction } from "../rows.ts";

export type Mode = "read" | "append" | Durability;

/** One transaction: all or nothing. */
export type RunTransaction = <T>(mode: Mode, body: (transaction: Transaction) => Promise<T>) => Promise<T>;

export interface InOrder extends Required<Pick<Backend, "transact" | "gather">> {
  /** Resolves when all that was asked for is settled. */
  settled(): Promise<void>;
}

const GROUP_SPANS = 64;

interface Member {
  readonly request: AppendRequest;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export const createInOrder = (run: RunTransaction): InOrder => {
  const inTurn = createQueue();
  let open: { readonly members: Member[]; spans: number } | undefined;

  const append = async (members: readonly Member[], how: RunAppends, tell: Parameters<InOrder["gather"]>[2]): Promise<void> => {
    const requests = members.map(({ request }) => request);
    try {
      const { broken, events } = await run("append", (transaction) => how(transaction, requests));
      tell(events);
      for (const [index, { resolve, reject }] of members.entries())
        if (broken[index] === undefined) resolve();
        else reject(broken[index]);
    } catch (error) {
      // nothing of it is stored; whose failure it is, each finds out alone
      if (members.length > 1) for (const member of members) await append([member], how, tell);
      else members[0]?.reject(error);
    }
  };

  return {
    transact: (mode, body) => {
      open = undefined;
      return mode === "read" ? inTurn(async () => {}).then(() => run(mode, body)) : inTurn(() => run(mode, body));
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
    settled: () => inTurn(async () => {}),
  };
};

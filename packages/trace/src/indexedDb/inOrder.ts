// When transactions begin, so that many small appends cost one commit:
//
//   - what one store object was asked first it does first; reads wait for the writes before them, not for each other
//   - appends asked for in the same moment, or while an earlier write is on its way, share one transaction: at most 64 spans
//   - an append that breaks a rule fails alone; if the transaction itself fails, each of its appends is tried alone, in order,
//     so that every caller hears of its own failure and of no other's
//
// Resolved still means committed: nobody is told earlier, the sharers are told together.

import { TraceError } from "../errors.ts";
import type { Backend, Durability, Transaction } from "../rows.ts";
import { type Member, runMembers } from "../sharedTransaction.ts";

export type Mode = "read" | "append" | Durability;

/** One transaction: all or nothing. */
export type RunTransaction = <T>(mode: Mode, body: (transaction: Transaction) => Promise<T>) => Promise<T>;

export interface InOrder {
  transact: Backend["transact"];
  /** A relaxed write of `spans` spans that may share its transaction. Its body writes nothing before its last rule is checked. */
  append<T>(spans: number, body: (transaction: Transaction) => Promise<T>): Promise<T>;
  /** Resolves when all that was asked for is settled. */
  settled(): Promise<void>;
}

const GROUP_SPANS = 64;

interface Group {
  readonly members: Member[];
  spans: number;
}

/** A request failed, and with it the transaction. */
const isOfRequest = (error: unknown): boolean => !(error instanceof TraceError);

const runGroup = async (run: RunTransaction, members: readonly Member[]): Promise<void> => {
  if (members.length > 1)
    try {
      const tell = await run("append", (transaction) => runMembers(transaction, members, isOfRequest));
      for (const told of tell) told();
      return;
    } catch {
      // nothing of it is stored; whose failure it is, each finds out alone
    }
  for (const { body, resolve, reject } of members) await run("append", body).then(resolve, reject);
};

export const createInOrder = (run: RunTransaction): InOrder => {
  let last: Promise<unknown> = Promise.resolve(); // never rejects
  let open: Group | undefined;

  const inTurn = <T>(act: () => Promise<T>): Promise<T> => {
    const mine = last.then(act);
    last = mine.catch(() => {});
    return mine;
  };

  const beginGroup = (): Group => {
    const group: Group = { members: [], spans: 0 };
    void inTurn(async () => {
      if (open === group) open = undefined;
      await runGroup(run, group.members);
    });
    return group;
  };

  return {
    transact: (mode, body) => {
      open = undefined;
      return mode === "read" ? last.then(() => run(mode, body)) : inTurn(() => run(mode, body));
    },
    append: <T>(spans: number, body: (transaction: Transaction) => Promise<T>) =>
      new Promise<T>((resolve, reject) => {
        if (open === undefined || open.spans + spans > GROUP_SPANS) open = beginGroup();
        open.spans += spans;
        open.members.push({ body, resolve: resolve as (answer: unknown) => void, reject });
      }),
    settled: async () => {
      open = undefined;
      await last;
    },
  };
};

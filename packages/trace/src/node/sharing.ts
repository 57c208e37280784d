// Appends that are asked for before the store comes to them share one transaction: its price is paid once for all of them.
// What is asked first is still done first: any other call ends the sharing. An append that breaks a rule fails alone; what
// the log refuses, it refuses to all.

import { TraceError } from "../errors.ts";
import type { Backend, Transaction } from "../rows.ts";
import { type Member, runMembers } from "../sharedTransaction.ts";

const isOfLog = (error: unknown): boolean => error instanceof TraceError && (error.code === "full" || error.code === "storage");

export const createSharing = (transact: Backend["transact"]): Required<Pick<Backend, "transact" | "append">> => {
  let open: Member[] | undefined;

  const run = async (members: Member[]): Promise<void> => {
    try {
      const tell = await transact("relaxed", async (transaction) => {
        if (open === members) open = undefined; // who comes now comes too late for this one
        return runMembers(transaction, members, isOfLog);
      });
      for (const told of tell) told();
    } catch (error) {
      for (const { reject } of members) reject(error);
    }
  };

  return {
    transact: (mode, body) => {
      open = undefined;
      return transact(mode, body);
    },
    append: <T>(_spans: number, body: (transaction: Transaction) => Promise<T>) =>
      new Promise<T>((resolve, reject) => {
        const member: Member = { body, resolve: resolve as (answer: unknown) => void, reject };
        if (open) open.push(member);
        else {
          open = [member];
          void run(open);
        }
      }),
  };
};

// Appends that are asked for before the store comes to them are one transaction and one command: its price is paid once for all
// of them. What is asked first is still done first: any other call ends the sharing. An append that breaks a rule fails alone;
// what the log refuses, it refuses to all.

import type { AppendRequest, Backend, RunAppends, Transaction } from "../rows.ts";

interface Member {
  readonly request: AppendRequest;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** `callers`: so many wait for it. */
export type Transact = <T>(
  mode: Parameters<Backend["transact"]>[0],
  body: (transaction: Transaction) => Promise<T>,
  callers?: () => number,
) => Promise<T>;

export const createSharing = (transact: Transact): Required<Pick<Backend, "transact" | "gather">> => {
  let open: Member[] | undefined;

  const runGroup = async (members: Member[], run: RunAppends, tell: Parameters<Required<Backend>["gather"]>[2]): Promise<void> => {
    try {
      const { broken, events } = await transact(
        "relaxed",
        (transaction) => {
          if (open === members) open = undefined; // who comes now comes too late for this one
          return run(
            transaction,
            members.map(({ request }) => request),
          );
        },
        () => members.length,
      );
      tell(events);
      for (const [index, { resolve, reject }] of members.entries()) {
        const rule = broken[index];
        if (rule === undefined) resolve();
        else reject(rule);
      }
    } catch (error) {
      for (const { reject } of members) reject(error);
    }
  };

  return {
    transact: (mode, body) => {
      open = undefined;
      return transact(mode, body);
    },
    gather: (request, run, tell) =>
      new Promise<void>((resolve, reject) => {
        const member: Member = { request, resolve, reject };
        if (open) open.push(member);
        else {
          open = [member];
          void runGroup(open, run, tell);
        }
      }),
  };
};

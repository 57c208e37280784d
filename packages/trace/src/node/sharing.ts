// Appends that are asked for before the store comes to them are one transaction and one command: its price is paid once for all
// of them. What is asked first is still done first: any other call ends the sharing. An append that breaks a rule fails alone;
// what the log refuses, it refuses to all, but for a record that is too large.
// Where the disk is quick, a crowd goes in halves that take turns (pace.ts).

import { TraceError } from "../errors.ts";
import type { Backend, RunAppends, Transaction } from "../rows.ts";
import { type Sharer, settleSharers, type Tell } from "../sharers.ts";
import { isDiskQuick, type Pace } from "./pace.ts";

/** `callers`: so many wait for it. */
export type Transact = <T>(
  mode: Parameters<Backend["transact"]>[0],
  body: (transaction: Transaction) => Promise<T>,
  callers?: () => number,
) => Promise<T>;

export interface Sharing extends Required<Pick<Backend, "transact" | "gather">> {
  /** What was asked for is done before whatever comes now. */
  end(): void;
}

/** `isIdle`: has the disk nothing to do? */
export const createSharing = (transact: Transact, pace: Pace, isIdle: () => boolean): Sharing => {
  let open: Sharer[] | undefined;

  const runGroup = async (members: Sharer[], run: RunAppends, tell: Tell): Promise<void> => {
    try {
      const appended = await transact(
        "relaxed",
        async (transaction) => {
          if (open === members) {
            open = undefined; // who comes now comes too late for this one
            if (members.length > 1 && isIdle() && isDiskQuick(pace, members.length))
              void begin(members.splice(Math.ceil(members.length / 2)), run, tell);
          }
          const began = performance.now();
          const found = await run(
            transaction,
            members.map(({ request }) => request),
          );
          pace.callerMs = (performance.now() - began) / members.length;
          return found;
        },
        () => members.length,
      );
      settleSharers(members, appended, tell);
    } catch (error) {
      // nothing of it is kept; whose record was too large, each finds out alone
      if (members.length > 1 && error instanceof TraceError && error.code === "too-large")
        for (const member of members) await runGroup([member], run, tell);
      else for (const { reject } of members) reject(error);
    }
  };

  const begin: typeof runGroup = (members, ...how) => {
    open = members;
    return runGroup(members, ...how);
  };

  const end = (): void => {
    open = undefined;
  };

  return {
    end,
    transact: (mode, body) => {
      end();
      return transact(mode, body);
    },
    gather: (request, run, tell) =>
      new Promise<void>((resolve, reject) => {
        const member: Sharer = { request, resolve, reject };
        if (open) open.push(member);
        else void begin([member], run, tell);
      }),
  };
};

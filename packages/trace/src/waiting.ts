// Waiting for rollouts to end: looks at the store, and again when it hears of them.

import { TraceError } from "./errors.ts";
import type { Read } from "./rolloutPages.ts";
import { isTerminal } from "./status.ts";
import { arrayIn } from "./values.ts";
import type { Rollout, Store, StoreEvent } from "./vocabulary.ts";
import { boundWait, type Timer } from "./waitBounds.ts";

/** Where others write too, a hint may be lost with the tab that owed it: waiting looks again this often. */
const RECHECK_MS = 2_000;

export interface WaitingOptions {
  /** Of the store, for messages. */
  readonly name: string;
  readonly read: Read;
  readonly watch: Store["watch"];
  readonly timer: Timer;
  /** Aborted by close(), with what waits then reject with. */
  readonly closing: AbortSignal;
  readonly hasOtherWriters: boolean;
}

/** So many are read at once. */
const IDS_A_LOOK = 1024;

const liveIds = (rollouts: readonly Rollout[]): string[] => rollouts.filter(({ status }) => !isTerminal(status)).map(({ id }) => id);

export const createWaitFor = ({ name, read, watch, timer, closing, hasOtherWriters }: WaitingOptions): Store["waitFor"] => {
  const rolloutsOf = (ids: readonly string[]): Promise<Rollout[]> =>
    read(async (rows) => {
      const found: Rollout[] = [];
      for (let from = 0; from < ids.length; from += IDS_A_LOOK) {
        const some = ids.slice(from, from + IDS_A_LOOK);
        const many = rows.rolloutsOf && (await rows.rolloutsOf(some));
        for (const [at, id] of some.entries()) {
          const rollout = many ? many[at] : await rows.rollout(id);
          if (rollout === undefined)
            throw new TraceError("unknown", `waitFor: rollout ${id} must be in store ${name}, got none; enqueue it first`);
          found.push(rollout);
        }
      }
      return found;
    });

  return async (rolloutIds, { signal, timeoutMs } = {}) => {
    closing.throwIfAborted();
    signal?.throwIfAborted();
    const ids = [...arrayIn(rolloutIds, "waitFor: rolloutIds")];
    const wanted = new Set(ids);
    const stops: (() => void)[] = [];
    try {
      return await new Promise<Rollout[]>((resolve, reject) => {
        stops.push(boundWait(reject, { signal, timeoutMs, timer, closing, count: wanted.size }));
        // one look at a time; what is heard meanwhile asks for one more. What has ended is not looked at again until all have,
        // or one is gone
        let looking = false;
        let again = false;
        let left: readonly string[] = ids;
        let isAnyGone = false;
        const look = async (): Promise<void> => {
          if (looking) {
            again = true;
            return;
          }
          looking = true;
          do {
            again = false;
            if (isAnyGone) left = ids;
            isAnyGone = false;
            const found = await rolloutsOf(left);
            const isAll = left === ids;
            left = liveIds(found);
            if (left.length > 0) continue;
            const all = isAll ? found : await rolloutsOf(ids);
            left = liveIds(all);
            if (left.length === 0) resolve(all);
          } while (again);
          looking = false;
        };
        const check = () => void look().catch(reject);
        const concerns = (event: StoreEvent): boolean =>
          (event.kind === "gone" || (event.kind === "rollout" && isTerminal(event.status))) && wanted.has(event.id);
        stops.push(
          watch((event) => {
            if (!concerns(event)) return;
            isAnyGone ||= event.kind === "gone";
            check();
          }),
        );
        if (hasOtherWriters) {
          let stop = () => {};
          const recheck = () => {
            check();
            stop = timer(recheck, RECHECK_MS);
          };
          stop = timer(recheck, RECHECK_MS);
          stops.push(() => stop());
        }
        check();
      });
    } finally {
      for (const stop of stops) stop();
    }
  };
};

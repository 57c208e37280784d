// What the tests of the stores have in common: a store of a new name with a clock, ids and timers of the test's, closed afterwards.
import type { Span, Store, StoreOptions } from "@fulgurite/trace";
import { afterEach, describe, test } from "vitest";
import { type StoreCase, storeCases } from "./storeCases.ts";

/** Long enough for every microtask and message of what was started. */
export const settle = () => new Promise((resolve) => setTimeout(resolve, 20));

let opened: Store[] = [];
afterEach(async () => {
  for (const store of opened) await store.close();
  opened = [];
});

let names = 0;
const runId = Math.random().toString(36).slice(2); // a browser keeps its databases between runs

export interface World {
  readonly name: string;
  readonly store: Store;
  readonly time: { now: number };
  readonly timers: { act: () => void; ms: number; stopped: boolean }[];
  readonly again: () => Promise<Store>;
}

export const openWorld = async ({ open }: StoreCase, more: StoreOptions = {}): Promise<World> => {
  const name = `store-${runId}-${++names}`;
  const time = { now: 1_000 };
  const timers: World["timers"] = [];
  let ids = 0;
  const options: StoreOptions = {
    ...more,
    clock: () => time.now,
    newId: () => `id-${String(++ids).padStart(4, "0")}`,
    timer: (act, ms) => {
      const timer = { act, ms, stopped: false };
      timers.push(timer);
      return () => {
        timer.stopped = true;
      };
    },
  };
  const again = async () => {
    const store = await open(name, options);
    opened.push(store);
    return store;
  };
  return { name, store: await again(), time, timers, again };
};

export const span = (rolloutId: string, attemptId: string, id: string, more: Partial<Span> = {}): Span => ({
  rolloutId,
  attemptId,
  id,
  name: "step",
  startMs: 1,
  endMs: 2,
  status: "ok",
  attributes: { n: 1 },
  ...more,
});

export const begin = async (store: Store, id: string, config = {}) => {
  await store.enqueue([{ id, input: id, config }]);
  const [claim] = await store.claim("w");
  return claim!.attempt;
};

/** `test`, or a skip that says why. */
export type Test = (title: string, body: () => unknown) => void;

const skipped =
  (reason: string): Test =>
  (title) =>
    test.skip(`${title} (${reason})`, () => {});

/** The same tests for every store. `where(condition, reason)` is for those that a store must be able to do something for. */
export const describeStores = (body: (storeCase: StoreCase, test_: Test, where: (can: unknown, reason: string) => Test) => void): void => {
  describe.each(storeCases)("$name", (storeCase) => {
    const test_ = storeCase.skip === undefined ? test : skipped(storeCase.skip);
    body(storeCase, test_, (can, reason) => (can || storeCase.skip !== undefined ? test_ : skipped(reason)));
  });
};

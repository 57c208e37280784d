// Supervision with a clock and timers of the test's: nothing here waits.
import { createMemoryStore, type Store, supervise } from "@fulgurite/trace";
import { expect, test } from "vitest";

const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

const createWorld = () => {
  const time = { now: 1_000_000 };
  let due: { act: () => void; atMs: number }[] = [];
  const timer = (act: () => void, ms: number) => {
    const one = { act, atMs: time.now + ms };
    due.push(one);
    return () => {
      due = due.filter((other) => other !== one);
    };
  };
  const clock = () => time.now;
  /** To that time, firing what falls due on the way; `asleep`: fires it only then. */
  const pass = async (ms: number, asleep = false): Promise<void> => {
    const until = time.now + ms;
    if (asleep) time.now = until;
    for (;;) {
      await settle();
      const next = due.filter(({ atMs }) => atMs <= until).sort((a, b) => a.atMs - b.atMs)[0];
      if (next === undefined) break;
      due = due.filter((other) => other !== next);
      time.now = Math.max(time.now, next.atMs);
      next.act();
    }
    time.now = until;
  };
  return { time, clock, timer, pass, timers: () => due.length };
};

const begin = async (store: Store, id: string, config = {}) => {
  await store.enqueue([{ id, input: 0, config }]);
  return (await store.claim("w"))[0]!.attempt;
};
const statusOf = async (store: Store, id: string): Promise<string | undefined> => {
  for await (const rollout of store.rollouts({ ids: [id] })) return rollout.status;
  return undefined;
};

test("a silent attempt is ended and tried again as its config says; one that beats, and what is final, is left alone", async () => {
  const { clock, timer, pass, timers } = createWorld();
  const store = createMemoryStore({ clock });
  const requeued: number[] = [];
  const stop = supervise(store, { staleAfterMs: 90, everyMs: 30, clock, timer, onRequeued: (count) => requeued.push(count) });
  const again = await begin(store, "again", { maxAttempts: 2 });
  await begin(store, "never", { maxAttempts: 2, retryOn: ["failed"] });
  await begin(store, "once");
  const beating = await begin(store, "beating");
  const done = await begin(store, "done", { maxAttempts: 2 });
  await store.finish(done, { status: "succeeded" });
  await begin(store, "cancelled", { maxAttempts: 2 });
  await store.cancel("cancelled");
  for (let round = 0; round < 4; round++) {
    await pass(30);
    await store.heartbeat(beating);
  }
  expect(requeued).toEqual([3]);
  const statuses = await Promise.all(["again", "never", "once", "beating", "done", "cancelled"].map((id) => statusOf(store, id)));
  expect(statuses).toEqual(["queued", "failed", "failed", "running", "succeeded", "cancelled"]);
  await expect(store.finish(again, { status: "succeeded" })).rejects.toMatchObject({ code: "status" });
  const [second] = await store.claim("w2");
  expect(second).toMatchObject({ rollout: { id: "again" }, attempt: { sequence: 2 } });
  await pass(60);
  await store.heartbeat(beating);
  await pass(60);
  expect(requeued).toEqual([3, 1]);
  expect(await statusOf(store, "again")).toBe("failed");
  stop();
  expect(timers()).toBe(0);
  await begin(store, "unwatched");
  await pass(1_000);
  expect(await statusOf(store, "unwatched")).toBe("running");
});

test("two supervisors end each silent attempt once", async () => {
  const { clock, timer, pass } = createWorld();
  const store = createMemoryStore({ clock });
  const ended: number[] = [];
  const stops = [1, 2].map(() => supervise(store, { staleAfterMs: 90, clock, timer, onRequeued: (count) => ended.push(count) }));
  for (const id of ["a", "b", "c"]) await begin(store, id, { maxAttempts: 9 });
  await pass(200);
  expect(ended).toEqual([3]);
  expect((await store.stats()).rollouts.queued).toBe(3);
  for (const stop of stops) stop();
});

test("after the machine slept everybody gets one more interval to speak", async () => {
  const { clock, timer, pass } = createWorld();
  const store = createMemoryStore({ clock });
  const stop = supervise(store, { staleAfterMs: 90, everyMs: 30, clock, timer });
  const living = await begin(store, "living");
  await begin(store, "dead");
  await pass(3_600_000, true); // its own timers slept too
  expect(await statusOf(store, "living")).toBe("running");
  await store.heartbeat(living);
  await pass(31);
  expect([await statusOf(store, "living"), await statusOf(store, "dead")]).toEqual(["running", "failed"]);
  stop();
});

test("what a look fails with is told, and the next one is made; a look under way when it is stopped starts no other", async () => {
  const { clock, timer, pass, timers } = createWorld();
  const errors: unknown[] = [];
  let looks = 0;
  const requeueStale = async () => {
    looks += 1;
    if (looks === 2) throw new Error("no disk");
    return 0;
  };
  const stop = supervise({ requeueStale }, { staleAfterMs: 90, everyMs: 30, clock, timer, onError: (error) => errors.push(error) });
  await pass(60);
  expect([looks, errors.map(String)]).toEqual([3, ["Error: no disk"]]);
  stop();
  const stopEarly = supervise({ requeueStale }, { clock, timer });
  stopEarly();
  await settle();
  expect([looks, timers()]).toEqual([4, 0]);
});

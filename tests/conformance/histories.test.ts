// Random histories on every store: whatever memory answers, error codes included, the others answer too, also after reopening.
import { type AttemptRef, createMemoryStore, type Store, type StoreOptions, TraceError } from "@fulgurite/trace";
import * as fc from "fast-check";
import { expect } from "vitest";
import { collect } from "../outcomes.ts";
import { describeStores } from "./world.ts";

type Command =
  | { do: "enqueue"; ids: string[]; maxAttempts: number; input: unknown }
  | { do: "claim"; limit: number; request: number }
  | { do: "append"; attempt: number; spans: { id: string; value: unknown; tokens: Int32Array }[] }
  | { do: "heartbeat"; attempt: number }
  | { do: "finish"; attempt: number; status: "succeeded" | "failed" | "timeout" | "cancelled" }
  | { do: "cancel" | "forget"; id: string }
  | { do: "requeueStale"; beforeMs: number }
  | { do: "publish"; version: number | undefined; byte: number }
  | { do: "unpublish"; version: number }
  | { do: "putState"; byte: number }
  | { do: "clock"; byMs: number }
  | { do: "reopen" };

const rolloutId = fc.constantFrom("a", "b", "c", "d");
const attemptIndex = fc.nat({ max: 4 });
const json = fc.jsonValue({ maxDepth: 2 });
const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("enqueue" as const),
      ids: fc.array(rolloutId, { maxLength: 3 }),
      maxAttempts: fc.integer({ min: 0, max: 3 }),
      input: json,
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("claim" as const), limit: fc.nat({ max: 3 }), request: fc.nat({ max: 9 }) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("append" as const),
      attempt: attemptIndex,
      spans: fc.array(fc.record({ id: fc.constantFrom("s1", "s2", "s3", "s4"), value: json, tokens: fc.int32Array({ maxLength: 4 }) }), {
        maxLength: 3,
      }),
    }),
  },
  fc.record({ do: fc.constant("heartbeat" as const), attempt: attemptIndex }),
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("finish" as const),
      attempt: attemptIndex,
      status: fc.constantFrom("succeeded" as const, "failed" as const, "timeout" as const, "cancelled" as const),
    }),
  },
  fc.record({ do: fc.constantFrom("cancel" as const, "forget" as const), id: rolloutId }),
  fc.record({ do: fc.constant("requeueStale" as const), beforeMs: fc.integer({ min: 900, max: 1_100 }) }),
  fc.record({
    do: fc.constant("publish" as const),
    version: fc.option(fc.integer({ min: 0, max: 4 }), { nil: undefined }),
    byte: fc.nat({ max: 1 }),
  }),
  fc.record({ do: fc.constant("unpublish" as const), version: fc.integer({ min: 1, max: 4 }) }),
  fc.record({ do: fc.constant("putState" as const), byte: fc.nat({ max: 255 }) }),
  fc.record({ do: fc.constant("clock" as const), byMs: fc.integer({ min: -20, max: 40 }) }),
  fc.record({ do: fc.constant("reopen" as const) }),
);

/** A store under test, with its own clock and ids, so that two of them live the same life. */
const createSubject = (open: (options: StoreOptions) => Promise<Store>) => {
  let now = 1_000;
  let ids = 0;
  const options: StoreOptions = { clock: () => now, newId: () => `id-${++ids}` };
  let store: Store;
  const claimed: AttemptRef[] = [];
  const attemptAt = (index: number): AttemptRef => claimed[index] ?? { rolloutId: "a", id: "nobody" };

  const act = async (step: Command): Promise<unknown> => {
    switch (step.do) {
      case "enqueue":
        return store.enqueue(step.ids.map((id) => ({ id, input: step.input as never, config: { maxAttempts: step.maxAttempts } })));
      case "claim": {
        const claims = await store.claim("w", step.limit, `request ${step.request}`);
        claimed.push(...claims.map(({ attempt }) => attempt));
        return claims;
      }
      case "append": {
        const { rolloutId, id } = attemptAt(step.attempt);
        return store.append(
          step.spans.map((span) => ({
            rolloutId,
            attemptId: id,
            id: span.id,
            name: "n",
            startMs: now,
            endMs: now,
            status: "ok",
            attributes: { value: span.value as never, tokens: span.tokens },
          })),
        );
      }
      case "heartbeat":
        return store.heartbeat(attemptAt(step.attempt));
      case "finish":
        return store.finish(attemptAt(step.attempt), { status: step.status });
      case "cancel":
        return store.cancel(step.id);
      case "forget":
        return store.forget(step.id);
      case "requeueStale":
        return store.requeueStale(step.beforeMs);
      case "publish":
        return store.publish({
          name: "p",
          kind: "lora",
          files: { f: Uint8Array.of(step.byte) },
          ...(step.version === undefined ? {} : { version: step.version }),
        });
      case "unpublish":
        return store.unpublish("p", step.version);
      case "putState":
        return store.putState("s", Uint8Array.of(step.byte));
      case "clock":
        now += step.byMs;
        return undefined;
      case "reopen":
        await store.close();
        store = await open(options);
    }
  };

  return {
    start: async () => {
      store = await open(options);
    },
    act: (step: Command): Promise<unknown> =>
      act(step).catch((error) => {
        if (error instanceof TraceError) return error.code;
        throw error;
      }),
    look: async () => ({
      rollouts: await collect(store.rollouts()),
      attempts: await Promise.all(["a", "b", "c", "d"].map((id) => store.attempts(id))),
      spans: await Promise.all(["a", "b", "c", "d"].map((rolloutId) => collect(store.spans({ rolloutId })))),
      resources: await Promise.all([undefined, 1, 2, 3, 4].map((version) => store.resource("p", version))),
      state: await store.getState("s"),
      stats: await store.stats(),
    }),
    close: () => store.close(),
  };
};

const runId = Math.random().toString(36).slice(2); // a browser keeps its databases between runs

describeStores((storeCase, _test, where) => {
  where(storeCase.persists, "it is the model")("every history is answered as memory answers it, also after reopening", async () => {
    let histories = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(command, { minLength: 1, maxLength: 40, size: "max" }), async (steps) => {
        const name = `history-${runId}-${++histories}`;
        let kept: Store | undefined;
        const model = createSubject(async (options) => {
          kept ??= Object.assign(createMemoryStore(options), { close: async () => {} }); // "reopen" leaves memory as it is
          return kept;
        });
        const subject = createSubject((options) => storeCase.open(name, options));
        await model.start();
        await subject.start();
        try {
          for (const step of steps) expect(await subject.act(step), JSON.stringify(step)).toEqual(await model.act(step));
          const expected = await model.look();
          expect(await subject.look()).toEqual(expected);
          await subject.act({ do: "reopen" });
          expect(await subject.look()).toEqual(expected);
        } finally {
          await subject.close();
        }
      }),
      { numRuns: 40, seed: 20261122 },
    );
  });
});

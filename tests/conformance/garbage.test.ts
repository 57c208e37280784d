// What collectGarbage keeps and in which order it deletes, on every store.
import { collectGarbage, modelCallSpan, type Store } from "@fulgurite/trace";
import { afterEach, describe, expect, test } from "vitest";
import { storeCases } from "./storeCases.ts";

const runId = Math.random().toString(36).slice(2);
let names = 0;
let opened: Store[] = [];
afterEach(async () => {
  for (const store of opened) await store.close();
  opened = [];
});

describe.each(storeCases)("$name", ({ open, skip }) => {
  const test_ = skip === undefined ? test : (title: string, _body: () => unknown) => test.skip(`${title} (${skip})`, () => {});

  const begin = async () => {
    const time = { now: 1_000 };
    const store = await open(`garbage-${runId}-${++names}`, { clock: () => time.now });
    opened.push(store);
    const publish = async (name: string, count: number, run = name) => {
      for (let index = 0; index < count; index++) {
        time.now += 10;
        await store.publish({
          name,
          kind: "lora",
          metadata: { run },
          files: { config: Uint8Array.of(0, 0), weights: Uint8Array.of(time.now & 255, time.now >> 8, 1) },
        });
      }
    };
    /** A rollout of a run, with a call by each of these versions of the policy. */
    const roll = async (id: string, metadata: Record<string, string | number>, versions: readonly number[], isOpen = false) => {
      time.now += 10;
      await store.enqueue([{ id, input: 0, metadata }]);
      const [claim] = await store.claim("w");
      const attempt = { rolloutId: id, id: claim!.attempt.id };
      await store.append(
        versions.map((policyVersion, turn) =>
          modelCallSpan({
            attempt,
            id: (turn + 1).toString(16).padStart(16, "0"),
            ...{ startMs: 0, endMs: 1, model: "m", responseId: `r${turn}`, turn, mode: "train", policyVersion },
            ...{ fidelity: "exact", temperature: 1, finishReason: "stop" },
          }),
        ),
      );
      if (!isOpen) await store.finish(claim!.attempt, { status: "succeeded" });
      return claim!.attempt;
    };
    const left = async () => {
      const found: string[] = [];
      for await (const { name, version } of store.resources()) found.push(`${name}${version}`);
      return found.join(" ");
    };
    return { store, time, publish, roll, left };
  };

  test_("the latest stay, and what rollouts of the run name or were sampled with; the rest goes oldest first", async () => {
    const { store, publish, roll, left } = await begin();
    await publish("a", 5);
    await publish("b", 4);
    await publish("a", 1);
    await publish("served", 3, "a"); // an adapter of run a under another name
    await roll("r1", { run: "a", version: 2 }, []);
    await roll("r2", { run: "a" }, [4]);
    await roll("r3", { run: "elsewhere", version: 1 }, [1]);
    const dry = await collectGarbage(store, { dryRun: true });
    expect(dry.removed.map(({ name, version }) => name + version)).toEqual(["a1", "a3", "a5", "b1", "b2", "b3", "served1"]);
    expect([dry.kept, dry.byteLength]).toEqual([6, 7 * 3]); // the config is in versions that stay
    expect((await left()).split(" ").length).toBe(13);
    expect(await collectGarbage(store)).toEqual(dry);
    expect(await left()).toBe("a2 a4 a6 b4 served2 served3");
    expect((await collectGarbage(store)).removed).toEqual([]);
    // what is forgotten needs nothing any more
    await store.forget("r1");
    await collectGarbage(store);
    expect(await left()).toBe("a4 a6 b4 served3");
    expect((await store.resource("a", 4))?.files.config).toEqual(Uint8Array.of(0, 0));
  });

  test_("a rollout without a run keeps its version of every name; states are left alone; keepLatest and isNeeded keep more", async () => {
    const { store, publish, roll, left } = await begin();
    await publish("a", 4);
    await publish("b", 4);
    await store.putState("train/a", Uint8Array.of(1));
    await roll("r", {}, [2]);
    await collectGarbage(store, { isNeeded: ({ name, version }) => name === "b" && version === 1, keepLatest: 2 });
    expect(await left()).toBe("a2 a3 a4 b1 b2 b3 b4");
    await collectGarbage(store, { keepLatest: 0 });
    expect(await left()).toBe("a2 a4 b2 b4");
    expect(await store.getState("train/a")).toEqual(Uint8Array.of(1));
  });

  test_("while a rollout is open, nothing goes that it may be using", async () => {
    const { store, publish, roll, left } = await begin();
    await publish("a", 3);
    const running = await roll("r", { run: "a" }, [], true);
    await publish("a", 3);
    await publish("b", 3);
    await collectGarbage(store);
    expect(await left()).toBe("a3 a4 a5 a6 b3");
    await store.finish(running, { status: "succeeded" });
    await collectGarbage(store);
    expect(await left()).toBe("a6 b3");
  });

  test_("a collection that is aborted has deleted the oldest, and goes on when repeated", async () => {
    const { store, publish, left } = await begin();
    await publish("a", 5);
    const controller = new AbortController();
    let count = 0;
    const stopping: Store = {
      ...store,
      unpublish: async (...args) => {
        count += 1;
        if (count === 2) controller.abort(new Error("enough"));
        return store.unpublish(...args);
      },
    };
    await expect(collectGarbage(stopping, { signal: controller.signal })).rejects.toThrow("enough");
    expect(await left()).toBe("a3 a4 a5");
    await collectGarbage(store);
    expect(await left()).toBe("a5");
  });
});

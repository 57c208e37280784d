import { type Agent, AgentError, createEndpoint, createRunner, type RunnerOptions, seedOf } from "@fulgurite/agent";
import { createMemoryStore, type Rollout, rewardOf, type Store, type StoredSpan, type TaskInput, toTransitions } from "@fulgurite/trace";
import { afterEach, expect, test, vi } from "vitest";
import { type Line, ScriptedSampler, tinyFormat } from "./scripted.ts";

afterEach(() => void vi.useRealTimers());

const setUp = async (
  agent: Agent<never>,
  tasks: readonly TaskInput[] = [{ id: "r", input: 1 }],
  { script = () => "ok", ...options }: Partial<RunnerOptions<never>> & { script?: (prompt: string, call: number) => Line } = {},
) => {
  const format = tinyFormat();
  const sampler = new ScriptedSampler(format, script);
  const store = options.store ?? createMemoryStore();
  await store.enqueue(tasks);
  const endpoint = createEndpoint({ sampler, format, store });
  const runner = createRunner<never>({ store, endpoint, agent, ...options });
  const rollout = async (id = "r"): Promise<Rollout> => {
    for await (const found of store.rollouts({ ids: [id] })) return found;
    throw new Error(`no rollout ${id}`);
  };
  const spans = async (rolloutId = "r"): Promise<StoredSpan[]> => {
    const all: StoredSpan[] = [];
    for await (const span of store.spans({ rolloutId })) all.push(span);
    return all;
  };
  return { runner, store, sampler, endpoint, rollout, spans };
};

const chat = (openai: { baseURL: string; fetch: typeof fetch }, content = "hi", init: RequestInit = {}): Promise<Response> =>
  openai.fetch(`${openai.baseURL}/chat/completions`, {
    method: "POST",
    body: JSON.stringify({ messages: [{ role: "user", content }] }),
    ...init,
  });

const never = new Promise<never>(() => {});
const once = { maxAttempts: 1 };

test("the returned number is the reward of the latest call", async () => {
  const { runner, spans, rollout } = await setUp(async (_, { openai }) => {
    await chat(openai);
    await chat(openai);
    return 0.5;
  });
  await runner.drain();
  expect((await rollout()).status).toBe("succeeded");
  expect(toTransitions(await spans()).map(({ reward }) => reward)).toEqual([undefined, 0.5]);
});

test("rewards on the way stand where they were given, or where they are addressed", async () => {
  const { runner, spans } = await setUp(async (_, { openai, reward }) => {
    const { id } = (await (await chat(openai)).json()) as { id: string };
    reward(0.25);
    await chat(openai);
    reward(2, { name: "style", reason: "neat", responseId: id });
    return 1;
  });
  await runner.drain();
  expect(toTransitions(await spans()).map(({ reward }) => reward)).toEqual([2.25, 1]);
  expect(rewardOf(await spans())).toBe(1);
});

test("what the run decides reaches the sampler: train and val, the seed from the rollout's id", async () => {
  const { runner, sampler, rollout } = await setUp(
    async (_, { openai, mode }) => {
      await chat(openai);
      return mode === "val" ? 1 : 0;
    },
    [
      { id: "t", input: 1 },
      { id: "v", input: 1, mode: "val" },
    ],
    { concurrency: 1 },
  );
  await runner.drain();
  expect(sampler.requests.map(({ temperature, maxTokens }) => [temperature, maxTokens])).toEqual([
    [1, 256],
    [0, 256],
  ]);
  expect(sampler.requests[0]?.seed).not.toBe(sampler.requests[1]?.seed);
  expect((await rollout("v")).status).toBe("succeeded");
  const again = await setUp(async (_, { openai }) => void (await chat(openai)), [{ id: "t", input: 1 }]);
  await again.runner.drain();
  expect(again.sampler.requests[0]?.seed).toBe(sampler.requests[0]?.seed);
  expect(seedOf("t")).not.toBe(seedOf("v"));
});

test("sampling of a rollout can be chosen", async () => {
  const { runner, sampler } = await setUp(async (_, { openai }) => void (await chat(openai)), undefined, {
    sampling: () => ({ temperature: 0.3, maxTokens: 9 }),
  });
  await runner.drain();
  expect(sampler.requests[0]).toMatchObject({ temperature: 0.3, maxTokens: 9 });
});

const failing: [string, Agent<never>, RegExp][] = [
  [
    "throws",
    async () => {
      throw new TypeError("boom");
    },
    /^boom$/,
  ],
  [
    "throws before its first await",
    (() => {
      throw new TypeError("boom");
    }) as Agent<never>,
    /^boom$/,
  ],
  [
    "throws no error",
    async () => {
      throw "boom";
    },
    /^boom$/,
  ],
  ["returns NaN", async () => Number.NaN, /the agent's return value: a reward must be a finite number, got NaN/],
  ["returns infinity", async () => Number.POSITIVE_INFINITY, /got Infinity/],
  ["returns text", (async () => "1") as unknown as Agent<never>, /got a string/],
  ["records NaN", async (_, { reward }) => reward(Number.NaN), /reward\(\): a reward must be a finite number/],
  [
    "records NaN and hides it",
    async (_, { reward }) => {
      try {
        reward(Number.NaN);
      } catch {}
      return 1;
    },
    /reward\(\)/,
  ],
];
test.each(failing)("an agent that %s has failed, and the others go on", async (_, agent, message) => {
  const { runner, store, rollout } = await setUp(
    ((task: number, context: never) =>
      task === 1
        ? (agent as unknown as (t: number, c: never) => Promise<number>)(task, context)
        : Promise.resolve(1)) as unknown as Agent<never>,
    [
      { id: "r", input: 1, config: once },
      { id: "good", input: 2 },
    ],
  );
  const ended: string[] = [];
  await runner.drain({ onEnd: ({ id, status }) => ended.push(`${id} ${status}`) });
  expect(ended.sort()).toEqual(["good succeeded", "r failed"]);
  expect((await rollout()).status).toBe("failed");
  const [attempt] = await store.attempts("r");
  expect(attempt?.status).toBe("failed");
  expect(attempt?.error?.message).toMatch(message);
  if (message.source === "^boom$" && attempt?.error?.name === "TypeError") expect(attempt.error.stack).toContain("boom");
});

test("the store decides on another attempt, and the runner takes it in the same drain", async () => {
  let runs = 0;
  const { runner, store, rollout } = await setUp(async () => {
    if (++runs < 3) throw new Error(`run ${runs}`);
    return 1;
  }, [{ id: "r", input: 1, config: { maxAttempts: 3, retryOn: ["failed"] } }]);
  const ended: string[] = [];
  await runner.drain({ onEnd: ({ status }) => ended.push(status) });
  expect((await store.attempts("r")).map(({ status }) => status)).toEqual(["failed", "failed", "succeeded"]);
  expect((await rollout()).status).toBe("succeeded");
  expect(ended).toEqual(["succeeded"]);
});

test("an agent that hangs and ignores its abort is abandoned after its time, and its key is dead", async () => {
  vi.useFakeTimers();
  let late: (() => Promise<Response>) | undefined;
  let aborted = false;
  const { runner, store, spans, sampler } = await setUp(
    async (_, { openai, signal, reward }) => {
      signal.addEventListener("abort", () => {
        aborted = true;
      });
      await chat(openai);
      late = () => {
        reward(1);
        return chat(openai);
      };
      await never;
    },
    [{ id: "r", input: 1, config: { ...once, timeoutMs: 5000 } }],
  );
  const drained = runner.drain();
  await vi.advanceTimersByTimeAsync(4999);
  expect((await store.attempts("r"))[0]?.status).toBe("running");
  await vi.advanceTimersByTimeAsync(2);
  await drained;
  const [attempt] = await store.attempts("r");
  expect(attempt?.status).toBe("timeout");
  expect(attempt?.error?.message).toContain("5000 ms");
  expect(aborted).toBe(true);
  expect((await late?.())?.status).toBe(401);
  expect(sampler.requests).toHaveLength(1);
  expect(await spans()).toHaveLength(1);
});

test("a timeout in the middle of a model call frees the sampler and keeps the partial answer", async () => {
  vi.useFakeTimers();
  const { runner, store, spans, sampler } = await setUp(
    async (_, { openai }) => void (await chat(openai)),
    [{ id: "r", input: 1, config: { ...once, timeoutMs: 100 } }],
  );
  sampler.beforeToken = (index) => (index === 1 ? new Promise((resolve) => setTimeout(resolve, 1000)) : undefined);
  const drained = runner.drain();
  await vi.advanceTimersByTimeAsync(2000);
  await drained;
  expect((await store.attempts("r"))[0]?.status).toBe("timeout");
  expect((await spans()).map(({ attributes }) => attributes["gen_ai.response.finish_reasons"])).toEqual([["aborted"]]);
});

test("a quiet agent is kept alive by heartbeats", async () => {
  vi.useFakeTimers();
  const store = createMemoryStore();
  const beats = vi.spyOn(store, "heartbeat");
  const { runner } = await setUp(async () => void (await new Promise((resolve) => setTimeout(resolve, 35_000))), undefined, { store });
  const drained = runner.drain();
  await vi.advanceTimersByTimeAsync(40_000);
  await drained;
  expect(beats).toHaveBeenCalledTimes(3);
});

test("the run's abort cancels what runs, leaves what is queued, and rejects with its reason", async () => {
  const controller = new AbortController();
  let started = 0;
  const { runner, rollout, store } = await setUp(
    async (_, { signal }) => {
      if (++started === 2) queueMicrotask(() => controller.abort(new Error("enough")));
      await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    },
    ["a", "b", "c"].map((id) => ({ id, input: 1 })),
    { concurrency: 2 },
  );
  await expect(runner.drain({ signal: controller.signal })).rejects.toThrow("enough");
  expect((await store.attempts("a"))[0]?.status).toBe("cancelled");
  expect((await store.attempts("b"))[0]?.status).toBe("cancelled");
  expect((await rollout("a")).status).toBe("cancelled");
  expect((await rollout("c")).status).toBe("queued");
  await expect(runner.drain({ signal: controller.signal })).rejects.toThrow("enough");
});

test("a rollout that is cancelled in the store stops its agent and fails nobody", async () => {
  const store = createMemoryStore();
  let reason: unknown;
  const { runner, rollout } = await setUp(
    async (_, { signal }) => {
      signal.addEventListener("abort", () => {
        reason = signal.reason;
      });
      await store.cancel("r");
      await never;
    },
    undefined,
    { store },
  );
  await runner.drain();
  expect((await rollout()).status).toBe("cancelled");
  expect(reason).toBeInstanceOf(AgentError);
  expect(String(reason)).toContain("cancelled in the store");
});

test("an attempt that was taken for dead meanwhile ends quietly", async () => {
  const store = createMemoryStore();
  const { runner, rollout } = await setUp(
    async () => {
      await store.requeueStale(Number.MAX_SAFE_INTEGER);
      return 1;
    },
    [{ id: "r", input: 1, config: { ...once, retryOn: [] } }],
    { store },
  );
  await runner.drain();
  expect((await rollout()).status).toBe("failed");
  expect((await store.attempts("r"))[0]?.status).toBe("unresponsive");
});

test("never more than `concurrency` at once, each rollout once, late tasks too", async () => {
  let running = 0;
  let peak = 0;
  const runs = new Map<number, number>();
  const store = createMemoryStore();
  const agent = (async (task: number) => {
    peak = Math.max(peak, ++running);
    runs.set(task, (runs.get(task) ?? 0) + 1);
    if (task === 0) await store.enqueue([{ id: "late", input: 100 }]);
    for (let turn = 0; turn < task % 5; turn++) await Promise.resolve();
    running--;
    return task;
  }) as unknown as Agent<never>;
  const { runner } = await setUp(
    agent,
    Array.from({ length: 20 }, (_, task) => ({ id: `r${task}`, input: task })),
    { concurrency: 3, store },
  );
  await runner.drain();
  expect(peak).toBe(3);
  expect([...runs.values()]).toEqual(Array.from({ length: 21 }, () => 1));
  expect((await store.stats()).rollouts.succeeded).toBe(21);
});

test("an idle slot is woken by a task that comes while another runs", async () => {
  const store = createMemoryStore();
  let finishFirst = (): void => {};
  const agent = (async (task: number) => {
    if (task === 2) return finishFirst();
    await store.enqueue([{ id: "second", input: 2 }]);
    await new Promise<void>((resolve) => {
      finishFirst = resolve;
    });
  }) as unknown as Agent<never>;
  const { runner } = await setUp(agent, [{ id: "first", input: 1 }], { store, concurrency: 2 });
  await runner.drain();
  expect((await store.stats()).rollouts.succeeded).toBe(2);
});

test("lost spans fail the attempt, not the agent", async () => {
  const inner = createMemoryStore();
  const store: Store = { ...inner, append: () => Promise.reject(new Error("quota")) };
  let seen = 0;
  const { runner } = await setUp(
    async (_, { openai }) => {
      seen = (await chat(openai)).status;
      return 1;
    },
    [{ id: "r", input: 1, config: once }],
    { store },
  );
  await runner.drain();
  expect(seen).toBe(200);
  const [attempt] = await inner.attempts("r");
  expect(attempt?.status).toBe("failed");
  expect(attempt?.error?.message).toContain("got 2 that did not");
});

test("what an attempt recorded last is stored together with its end, and each span once", async () => {
  const store = createMemoryStore();
  const append = vi.spyOn(store, "append");
  const finish = vi.spyOn(store, "finish");
  const { runner, spans } = await setUp(
    async (_, { openai, reward }) => {
      await chat(openai);
      await new Promise((resolve) => setTimeout(resolve, 1)); // long enough for its span to be stored
      reward(0.25, { name: "style" });
      await new Promise((resolve) => setTimeout(resolve, 1));
      return 1;
    },
    undefined,
    { store },
  );
  await runner.drain();
  const names = (calls: readonly (readonly { name: string }[])[]): string[][] => calls.map((given) => given.map(({ name }) => name));
  expect(names(append.mock.calls.map(([given]) => given))).toEqual([["chat policy"], ["reward"]]);
  expect(names(finish.mock.calls.map(([, , last]) => last ?? []))).toEqual([["reward"]]);
  expect((await spans()).map(({ name }) => name)).toEqual(["chat policy", "reward", "reward"]);
  expect(rewardOf(await spans())).toBe(1);
});

test("a store that refuses an end with spans gets them first, and then the end", async () => {
  const inner = createMemoryStore();
  const store: Store = {
    ...inner,
    finish: (ref, outcome, last = []) => (last.length > 0 ? Promise.reject(new Error("too much at once")) : inner.finish(ref, outcome)),
  };
  const { runner, rollout, spans } = await setUp(async () => 1, undefined, { store });
  await runner.drain();
  expect((await rollout()).status).toBe("succeeded");
  expect(rewardOf(await spans())).toBe(1);
});

test("of an attempt that was cancelled in the store meanwhile, what it recorded is kept", async () => {
  const store = createMemoryStore();
  const { runner, rollout, spans } = await setUp(
    async (_, { reward, rollout: { id } }) => {
      await store.cancel(id);
      reward(0.5);
      return 1;
    },
    undefined,
    { store },
  );
  await runner.drain();
  expect((await rollout()).status).toBe("cancelled");
  expect((await spans()).map(({ attributes }) => attributes["gen_ai.evaluation.score.value"])).toContain(0.5);
});

test("a rollout that is put back while the runner asks for more is not forgotten", async () => {
  const inner = createMemoryStore();
  let first = true;
  let fail = (): void => {};
  const put = new Promise<void>((resolve) => {
    fail = resolve;
  });
  let claims = 0;
  const store: Store = {
    ...inner,
    claim: async (worker, limit) => {
      const found = await inner.claim(worker, limit);
      // the second claim has seen an empty queue; before it returns, the running attempt fails and is queued again
      if (++claims === 2) {
        fail();
        await vi.waitFor(async () => expect((await inner.stats()).rollouts.queued).toBe(1));
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      return found;
    },
  };
  const agent = (async (task: number) => {
    if (task === 2 || !first) return 1; // the second task ends at once, which makes the runner ask for more
    first = false;
    await put;
    throw new Error("once");
  }) as unknown as Agent<never>;
  const { runner } = await setUp(
    agent,
    [
      { id: "r", input: 1, config: { maxAttempts: 2, retryOn: ["failed"] } },
      { id: "quick", input: 2 },
    ],
    { store, concurrency: 2 },
  );
  await runner.drain();
  expect((await inner.stats()).rollouts).toMatchObject({ queued: 0, running: 0, succeeded: 2 });
});

test("sampling() that throws fails the attempt, not the drain", async () => {
  const { runner, store } = await setUp(async () => 1, [{ id: "r", input: 1, config: once }], {
    sampling: () => {
      throw new Error("no sampling today");
    },
  });
  await runner.drain();
  expect((await store.attempts("r"))[0]).toMatchObject({ status: "failed", error: { message: "no sampling today" } });
});

test("a store that fails ends the drain, with every agent stopped", async () => {
  const inner = createMemoryStore();
  const store: Store = { ...inner, finish: () => Promise.reject(new Error("disk gone")) };
  let stopped = false;
  const { runner } = await setUp(
    (async (task: number, { signal }: { signal: AbortSignal }) => {
      if (task === 1) return 1;
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      stopped = true;
    }) as unknown as Agent<never>,
    [
      { id: "a", input: 1 },
      { id: "b", input: 2 },
    ],
    { store },
  );
  await expect(runner.drain()).rejects.toThrow("disk gone");
  expect(stopped).toBe(true);
});

import { afterEach, describe, expect, test } from "vitest";
import type { GenerateRequest } from "../../../packages/engine/src/contract.ts";
import { pcg, uniform } from "../../../packages/engine/src/random.ts";
import { createSlots } from "../../../packages/engine/src/sampler/slots.ts";
import { neighbours, type OpenedSampler, type OpenOptions, openSampler, plain, request } from "./openSampler.ts";

const opened: OpenedSampler[] = [];
afterEach(async () => {
  for (const { sampler, backend } of opened.splice(0)) {
    await sampler.dispose();
    await backend.dispose();
  }
});

const open = async (options: OpenOptions = {}): Promise<OpenedSampler> => {
  const result = await openSampler(options);
  opened.push(result);
  return result;
};

describe("random numbers", () => {
  test("pcg is the published hash", () => {
    // By the definition in C with uint32_t: pcg(0) = 129708002, pcg(1) = 2831084092
    expect([pcg(0), pcg(1)]).toEqual([129708002, 2831084092]);
  });

  test("uniform numbers are even over [0, 1): χ² of 64 cells", () => {
    const cells = new Array<number>(64).fill(0);
    const n = 64_000;
    for (let i = 0; i < n; i++) cells[Math.floor(uniform(11, i) * 64)]!++;
    const chi = cells.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
    expect(chi).toBeLessThan(63 + 4 * Math.sqrt(126)); // 4 σ; a constant gives 4 million
    expect(chi).toBeGreaterThan(63 - 4 * Math.sqrt(126));
  });
});

describe("slots", () => {
  test("a request gets the free row that holds most of its prompt, and its last token is always fed", () => {
    const slots = createSlots(3, 8);
    const first = slots.take(Int32Array.of(1, 2, 3))!;
    first.tokens.set([1, 2, 3, 4]);
    first.held = 4;
    slots.release(first);
    const other = slots.take(Int32Array.of(9))!;
    expect(other).not.toBe(first); // loses nothing
    expect(slots.take(Int32Array.of(1, 2, 3))).toBe(first);
    expect(first.held).toBe(2);
    expect(slots.freeCount).toBe(1);
    first.held = 4;
    slots.release(first);
    slots.forget();
    expect(first.held).toBe(0);
  });
});

describe("rows that hold more than is wanted", () => {
  const holding = (...lengths: number[]) => {
    const slots = createSlots(lengths.length, 40);
    const taken = lengths.map(() => slots.take(Int32Array.of(1))!);
    for (const [i, slot] of taken.entries()) {
      slot.tokens.set(Array.from({ length: lengths[i]! }, (_, at) => (at < 5 ? at : 10 * i + at)));
      slot.held = lengths[i]!;
      slots.release(slot);
    }
    return { slots, taken };
  };
  const prompt = Int32Array.of(0, 1, 2, 3, 4, 9, 9, 9);

  test("stay as they are while an empty one is free", () => {
    const { slots, taken } = holding(30, 0, 20);
    expect(slots.take(prompt)).toBe(taken[1]);
    expect(taken.map(({ held }) => held)).toEqual([30, 0, 20]);
  });

  test("are given up in the order of their last use", () => {
    const { slots, taken } = holding(30, 25, 20);
    slots.touch(taken[0]!);
    expect(slots.take(prompt)).toBe(taken[1]);
    // the five tokens that it shares stay
    expect(taken[1]!.held).toBe(5);
    expect(slots.take(prompt)).toBe(taken[2]);
    expect(slots.take(prompt)).toBe(taken[0]);
    expect(slots.take(prompt)).toBeUndefined();
  });

  test("of another adapter share nothing", () => {
    const { slots, taken } = holding(8);
    expect(slots.take(prompt, "another")).toBe(taken[0]);
    expect(taken[0]!.held).toBe(0);
  });
});

describe("completions", () => {
  test("the same seed gives the same tokens, another seed others", async () => {
    const { sampler } = await open();
    const [a, b, c] = await Promise.all([request(), request(), request({ seed: 8 })].map((r) => sampler.generate(r)));
    expect(plain(a!)).toEqual(plain(b!));
    expect([...a!.tokens]).not.toEqual([...c!.tokens]);
    expect(a!.tokens.length).toBe(8);
    expect(a!.finishReason).toBe("length");
    expect(a!.policyVersion).toBe(0);
  });

  test("a completion is the same alone and among 20 neighbours that join and leave", async () => {
    const alone: unknown[] = [];
    for (const one of neighbours(20)) {
      const { sampler } = await open({ slots: 1, rows: 5 });
      alone.push(plain(await sampler.generate(one)));
    }
    const { sampler, runs } = await open({ slots: 4, rows: 9 });
    const together = await Promise.all(neighbours(20).map((one) => sampler.generate(one)));
    expect(together.map(plain)).toEqual(alone);
    expect(Math.max(...runs.map(({ rows }) => rows))).toBeLessThanOrEqual(9);
    expect(Math.max(...runs.map(({ outRows }) => outRows))).toBe(4);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
  });

  test("greedy takes the arg-max whatever the seed, with the log-prob at temperature 1", async () => {
    const { sampler } = await open();
    const greedy = await sampler.generate(request({ temperature: 0 }));
    expect(plain(await sampler.generate(request({ temperature: 0, seed: 99 })))).toEqual(plain(greedy));
    // No sampled first token is more likely than the greedy one, and with 60 seeds the likeliest is found.
    const sampled = await Promise.all(Array.from({ length: 60 }, (_, seed) => sampler.generate(request({ maxTokens: 1, seed }))));
    const best = Math.max(...sampled.map(({ logprobs }) => logprobs[0]!));
    expect(best).toBeCloseTo(greedy.logprobs[0]!, 6);
    expect(new Set(sampled.map(({ tokens }) => tokens[0])).size).toBeGreaterThan(3);
  });

  test("sampled tokens come as often as their log-probs say", async () => {
    const { sampler } = await open({ slots: 32, rows: 32 });
    const draws = await Promise.all(Array.from({ length: 600 }, (_, seed) => sampler.generate(request({ maxTokens: 1, seed }))));
    const counts = new Map<number, { seen: number; p: number }>();
    for (const { tokens, logprobs } of draws) {
      const entry = counts.get(tokens[0]!) ?? { seen: 0, p: Math.exp(logprobs[0]!) };
      counts.set(tokens[0]!, { ...entry, seen: entry.seen + 1 });
    }
    const likely = [...counts.values()].filter(({ p }) => p * 600 >= 5);
    const chi = likely.reduce((sum, { seen, p }) => sum + (seen - 600 * p) ** 2 / (600 * p), 0);
    expect(likely.length).toBeGreaterThan(4);
    expect(chi).toBeLessThan(likely.length + 4 * Math.sqrt(2 * likely.length));
  });

  test("a stop token ends the completion and belongs to it", async () => {
    const { sampler } = await open();
    const whole = await sampler.generate(request());
    const stop = whole.tokens[3]!;
    const first = whole.tokens.indexOf(stop);
    const cut = await sampler.generate(request({ stopTokens: [stop] }));
    expect([...cut.tokens]).toEqual([...whole.tokens.subarray(0, first + 1)]);
    expect(cut.finishReason).toBe("stop");
  });

  test("tokens stream in order with their log-probs", async () => {
    const { sampler } = await open();
    const seen: [number, number][] = [];
    const completion = await sampler.generate(request({ onToken: (token, logprob) => void seen.push([token, logprob]) }));
    expect(seen).toEqual([...completion.tokens].map((token, i) => [token, completion.logprobs[i]]));
  });

  test("the next turn of a conversation feeds only what is new, and samples what a fresh sampler would", async () => {
    const { sampler, runs } = await open();
    const first = await sampler.generate(request());
    const prompt = Int32Array.of(...request().prompt, ...first.tokens, 11, 12);
    runs.length = 0;
    const second = await sampler.generate(request({ prompt, maxTokens: 2 }));
    // 14 tokens; 4 + 7 stand in the cache (the last sampled one was never fed).
    expect(runs[0]).toEqual({ rows: 3, outRows: 1 });
    const fresh = await open();
    expect(plain(await fresh.sampler.generate(request({ prompt, maxTokens: 2 })))).toEqual(plain(second));
    expect(fresh.runs[0]).toEqual({ rows: 14, outRows: 1 });
  });

  test("a prompt longer than a tick is fed in pieces while others decode", async () => {
    const { sampler, runs } = await open({ rows: 6, slots: 4 });
    const long = Int32Array.from({ length: 30 }, (_, i) => i);
    const [, second] = await Promise.all([
      sampler.generate(request({ maxTokens: 8 })),
      sampler.generate(request({ prompt: long, maxTokens: 1 })),
    ]);
    expect(second!.tokens.length).toBe(1);
    // 4 prompt rows + 2 of the long one, then 1 decoding row + 5 of the long one.
    expect(runs.slice(0, 3)).toEqual([
      { rows: 6, outRows: 1 },
      { rows: 6, outRows: 1 },
      { rows: 6, outRows: 1 },
    ]);
  });
});

describe("aborting", () => {
  test("what was sampled is kept and the row is free for the next request", async () => {
    const { sampler } = await open({ slots: 1 });
    const whole = await sampler.generate(request({ maxTokens: 20 }));
    const controller = new AbortController();
    let count = 0;
    const onToken = (): void => {
      if (++count === 3) controller.abort();
    };
    const cut = await sampler.generate(request({ maxTokens: 20, signal: controller.signal, onToken }));
    expect(cut.finishReason).toBe("aborted");
    expect([...cut.tokens]).toEqual([...whole.tokens.subarray(0, 3)]);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
    expect(plain(await sampler.generate(request({ maxTokens: 20 })))).toEqual(plain(whole));
  });

  test("a request that still waits ends empty, and the others go on", async () => {
    const { sampler } = await open({ slots: 1 });
    const controller = new AbortController();
    const first = sampler.generate(request({ onToken: () => controller.abort() }));
    const waiting = sampler.generate(request({ signal: controller.signal }));
    const before = sampler.generate(request({ signal: AbortSignal.abort() }));
    expect(plain(await waiting)).toEqual({ tokens: [], logprobs: [], finishReason: "aborted" });
    expect((await before).finishReason).toBe("aborted");
    expect((await first).finishReason).toBe("length");
  });

  test("fifty requests aborted at random leave no row behind", async () => {
    const { sampler } = await open({ slots: 3, rows: 7 });
    const completions = await Promise.all(
      Array.from({ length: 50 }, (_, i) => {
        const controller = new AbortController();
        let left = pcg(i) % 6;
        const onToken = (): void => void (left-- === 0 && controller.abort());
        return sampler.generate(
          request({ prompt: Int32Array.of(i % 48, 3, i % 7), seed: i, maxTokens: 5, signal: controller.signal, onToken }),
        );
      }),
    );
    expect(completions.some(({ finishReason }) => finishReason === "aborted")).toBe(true);
    expect(completions.some(({ finishReason }) => finishReason === "length")).toBe(true);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
    expect((await sampler.generate(request())).tokens.length).toBe(8);
  });
});

describe("publishing", () => {
  test("waits for the live, holds back the new, and a completion has one version", async () => {
    const { sampler } = await open({ slots: 2 });
    const order: string[] = [];
    const before = sampler.generate(request({ maxTokens: 6 })).then((completion) => {
      order.push("before");
      return completion;
    });
    await new Promise<void>((resolve) => void sampler.generate(request({ maxTokens: 1, onToken: () => resolve() })));
    const published = sampler.publish(async () => void order.push("copy"), 3);
    const after = sampler.generate(request({ maxTokens: 1 }));
    await published;
    expect(order).toEqual(["before", "copy"]);
    expect((await before).policyVersion).toBe(0);
    expect((await after).policyVersion).toBe(3);
    expect(sampler.policyVersion).toBe(3);
  });

  test("a new version forgets every key and value of the old one", async () => {
    const { sampler, runs } = await open();
    await sampler.generate(request());
    await sampler.publish(async () => {}, 1);
    runs.length = 0;
    await sampler.generate(request({ maxTokens: 1 }));
    expect(runs[0]!.rows).toBe(4);
  });

  test("a copy that fails leaves the old version serving", async () => {
    const { sampler } = await open();
    await expect(sampler.publish(() => Promise.reject(new Error("no")), 1)).rejects.toThrow("no");
    expect((await sampler.generate(request())).policyVersion).toBe(0);
    await sampler.publish(async () => {}, 2);
    expect(sampler.policyVersion).toBe(2);
  });
});

describe("faults", () => {
  const wrong: [string, Partial<GenerateRequest>, string][] = [
    ["an empty prompt", { prompt: new Int32Array(0) }, "at least one token"],
    ["a plain list", { prompt: [1, 2] as unknown as Int32Array }, "Int32Array"],
    ["a token beyond the vocabulary", { prompt: Int32Array.of(3, 48) }, "0 … 47, got 48 at 1"],
    ["a negative token", { prompt: Int32Array.of(-1) }, "got -1 at 0"],
    ["no tokens to sample", { maxTokens: 0 }, "maxTokens is a positive integer, got 0"],
    ["half a token", { maxTokens: 1.5 }, "maxTokens"],
    ["more than the context holds", { maxTokens: 45 }, "prompt + maxTokens ≤ 48 (maxContext), got 4 + 45"],
    ["a negative temperature", { temperature: -1 }, "temperature is 0 or ≥ 0.001, got -1"],
    ["a temperature that is no number", { temperature: Number.NaN }, "got NaN"],
    ["an infinite temperature", { temperature: Number.POSITIVE_INFINITY }, "temperature"],
    ["a stop token beyond the vocabulary", { stopTokens: [48] }, "stopTokens"],
    ["a negative seed", { seed: -1 }, "seed"],
    ["a seed of 33 bits", { seed: 2 ** 32 }, "seed"],
  ];
  test.each(wrong)("%s is a bad request", async (_, overrides, message) => {
    const { sampler } = await open();
    const result = sampler.generate(request(overrides));
    await expect(result).rejects.toMatchObject({ code: "bad-request" });
    await expect(result).rejects.toThrow(message);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
  });

  test("a prompt and maxTokens that fill the context exactly are taken", async () => {
    const { sampler } = await open();
    expect((await sampler.generate(request({ maxTokens: 44 }))).tokens.length).toBe(44);
  });

  test("a listener that throws ends its own completion only", async () => {
    const { sampler } = await open();
    const other = sampler.generate(request());
    const broken = sampler.generate(
      request({
        onToken: () => {
          throw new Error("listener");
        },
      }),
    );
    await expect(broken).rejects.toThrow("listener");
    expect((await other).tokens.length).toBe(8);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
  });

  test("a device that fails rejects what was running, and serves again when it recovers", async () => {
    let isBroken = false;
    const { sampler } = await open({
      wrap: (backend) => ({
        ...backend,
        read: (tensor, length) => (isBroken ? Promise.reject(new Error("lost")) : backend.read(tensor, length)),
      }),
    });
    const whole = await sampler.generate(request());
    isBroken = true;
    const [a, b] = await Promise.allSettled([sampler.generate(request()), sampler.generate(request({ seed: 3 }))]);
    expect([a.status, b.status]).toEqual(["rejected", "rejected"]);
    isBroken = false;
    expect(plain(await sampler.generate(request()))).toEqual(plain(whole));
  });

  test("logits that are not finite are an error, not a token", async () => {
    const { sampler } = await open({
      wrap: (backend) => ({
        ...backend,
        read: async (tensor, length) =>
          tensor.name === "history" ? new Float32Array(length ?? 1).fill(Number.NaN) : backend.read(tensor, length),
      }),
    });
    await expect(sampler.generate(request())).rejects.toMatchObject({ code: "device" });
  });

  test("disposal rejects the running and the waiting, and what comes later", async () => {
    const { sampler } = await open({ slots: 1 });
    const all = Promise.allSettled([sampler.generate(request()), sampler.generate(request())]);
    await sampler.dispose();
    for (const result of await all) expect(result).toMatchObject({ status: "rejected", reason: { code: "disposed" } });
    await expect(sampler.generate(request())).rejects.toMatchObject({ code: "disposed" });
    await expect(sampler.publish(async () => {}, 1)).rejects.toMatchObject({ code: "disposed" });
    await sampler.dispose();
  });

  test("timers run between two ticks", async () => {
    const { sampler } = await open();
    let ticks = 0;
    let seenAtTimer = -1;
    setTimeout(() => {
      seenAtTimer = ticks;
    }, 0);
    await sampler.generate(request({ maxTokens: 40, onToken: () => void ticks++ }));
    expect(seenAtTimer).toBeGreaterThanOrEqual(0);
    expect(seenAtTimer).toBeLessThan(40);
  });
});

describe("requests that restrict the distribution", () => {
  const words = Math.ceil(48 / 32);
  const all = (): Uint32Array => new Uint32Array(words).fill(0xffff_ffff);

  test("with a mask that allows everything give what they give without, beside neighbours that run in bursts", async () => {
    const plain = await open({ slots: 4 });
    const expected = await Promise.all(neighbours(8).map((one) => plain.sampler.generate(one)));
    const { sampler } = await open({ slots: 4 });
    const found = await Promise.all(
      neighbours(8).map((one, i) => sampler.generate(i % 2 === 0 ? { ...one, mask: async () => all() } : one)),
    );
    for (const [i, { tokens, logprobs, finishReason, drawnLogprobs, forced }] of found.entries()) {
      expect([...tokens]).toEqual([...expected[i]!.tokens]);
      expect(finishReason).toBe(expected[i]!.finishReason);
      for (const [j, logprob] of logprobs.entries()) expect(logprob).toBeCloseTo(expected[i]!.logprobs[j]!, 5);
      expect(drawnLogprobs?.length).toBe(i % 2 === 0 ? tokens.length : undefined);
      expect(forced && [...forced]).toEqual(i % 2 === 0 ? [...tokens].map(() => 0) : undefined);
    }
  });

  test("see the tokens so far and get only what they allow; what could not be otherwise is marked", async () => {
    const { sampler } = await open();
    const seen: number[][] = [];
    const mask = (tokens: readonly number[]): Uint32Array => {
      seen.push([...tokens]);
      const allowed = new Uint32Array(words);
      for (const id of tokens.length === 1 ? [17] : [3, 17, 40]) allowed[id >> 5]! |= 1 << (id & 31);
      return allowed;
    };
    const { tokens, forced, logprobs, drawnLogprobs } = await sampler.generate(request({ mask, maxTokens: 4 }));
    expect([...tokens].every((id) => [3, 17, 40].includes(id))).toBe(true);
    expect(tokens[1]).toBe(17);
    expect([...forced!]).toEqual([0, 1, 0, 0]);
    expect(seen).toEqual([0, 1, 2, 3].map((count) => [...tokens.slice(0, count)]));
    for (const [j, drawn] of drawnLogprobs!.entries()) expect(drawn).toBeGreaterThan(logprobs[j]! - 1e-6);
    expect(drawnLogprobs![1]).toBeCloseTo(0, 6);
  });

  test("top-k of one is the greedy completion", async () => {
    const { sampler } = await open();
    const greedy = await sampler.generate(request({ temperature: 0 }));
    const narrow = await sampler.generate(request({ temperature: 1, topK: 1 }));
    expect([...narrow.tokens]).toEqual([...greedy.tokens]);
    expect(narrow.forced).toBeUndefined();
    const biased = await sampler.generate(request({ temperature: 0, logitBias: [[11, 1e6]] }));
    expect([...biased.tokens].every((id) => id === 11)).toBe(true);
  });

  test("a mask that throws, is too short or allows nothing rejects its own request alone and frees its row", async () => {
    const { sampler } = await open({ slots: 4 });
    const good = sampler.generate(request());
    const thrown = sampler.generate(request({ mask: () => Promise.reject(new TypeError("no grammar")) }));
    const short = sampler.generate(request({ mask: () => new Uint32Array(1) }));
    const none = sampler.generate(request({ mask: () => new Uint32Array(words) }));
    await expect(thrown).rejects.toThrow("no grammar");
    await expect(short).rejects.toThrow("a mask has 2 words (a bit for each of 48 tokens), got 1");
    await expect(none).rejects.toThrow("a mask allows at least one token, got none");
    expect((await good).tokens).toHaveLength(8);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
    await expect(sampler.generate(request({ topK: 0 }))).rejects.toThrow("topK is a positive integer, got 0");
    await expect(sampler.generate(request({ topP: 0 }))).rejects.toThrow("topP is in (0, 1], got 0");
    await expect(sampler.generate(request({ logitBias: [[99, 1]] }))).rejects.toThrow("logitBias adds finite numbers");
  });

  test("a mask that never answers holds up neither an abort of its request nor the sampler's end", async () => {
    const { sampler } = await open({ slots: 2 });
    const controller = new AbortController();
    let asked = (): void => {};
    const isAsked = new Promise<void>((resolve) => {
      asked = resolve;
    });
    const mask = (): Promise<Uint32Array> => {
      asked();
      return new Promise(() => {});
    };
    const silent = sampler.generate(request({ mask, signal: controller.signal }));
    await isAsked;
    controller.abort();
    expect(await silent).toMatchObject({ finishReason: "aborted" });
    const left = sampler.generate(request({ mask }));
    const rejected = expect(left).rejects.toThrow("got a disposed one");
    await sampler.dispose();
    await rejected;
  });
});

// Bursts and shared beginnings, on every backend: they change when the host looks and what is fed, never a completion.

import { afterEach, describe, expect, test } from "vitest";
import type { Completion } from "../../../packages/engine/src/contract.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { Plan, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { pcg } from "../../../packages/engine/src/random.ts";
import { createReferenceBackend, type ReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { createWebGpuBackend } from "../../../packages/engine/src/webgpu/backend.ts";
import { BACKENDS, probe } from "./backends.ts";
import { createRandom } from "./opCases.ts";
import { neighbours, type OpenedSampler, type OpenOptions, openSampler, plain, request } from "./openSampler.ts";
import { createTestBackend, openTestGpu } from "./webgpuDevice.ts";

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

/** Two groups of six with one beginning of 12 tokens each, prompts of 20; every member has its seed, some stop early. */
const groups = () =>
  Array.from({ length: 12 }, (_, i) => {
    const group = i % 2;
    const prompt = Int32Array.from({ length: 20 }, (_, j) => pcg(7 * group + j + (j < 12 ? 0 : 1000 * (i >> 2))) % 48);
    return request({ prompt, maxTokens: 3 + (i % 9), stopTokens: i % 3 === 0 ? [1, 2, 3, 4, 5, 6] : [], seed: i });
  });

for (const { name, create, skip } of BACKENDS.filter(({ name }) => name !== "wasm, 1 thread")) {
  describe.skipIf(skip !== undefined)(skip ? `on ${name} (skipped: ${skip})` : `on ${name}`, () => {
    test("a burst of any length gives the bits of one token at a time", async () => {
      const outcomes: unknown[] = [];
      for (const burst of [1, 16]) {
        const { sampler, backend, counts } = await open({ create, burst, rows: 9 });
        outcomes.push((await Promise.all(neighbours(20).map((one) => sampler.generate(one)))).map(plain));
        outcomes.push((await Promise.all(neighbours(20).map((one) => sampler.generate({ ...one, maxTokens: 20 })))).map(plain));
        if (burst === 16) expect(counts.reads).toBeLessThan(40);
        await sampler.dispose();
        await backend.dispose();
      }
      expect(outcomes.slice(2)).toEqual(outcomes.slice(0, 2));
    });

    test("shared beginnings change no bit of any completion", async () => {
      const outcomes: unknown[] = [];
      const copies: number[] = [];
      for (const sharesPrefixes of [false, true]) {
        const { sampler, counts } = await open({ create, sharesPrefixes, slots: 6 });
        const first = await Promise.all(groups().map((one) => sampler.generate(one)));
        // The next turn of each, all at once: its own conversation, or a copy of a neighbour's.
        const turns = first.map(({ tokens }, i) => ({ ...groups()[i]!, prompt: Int32Array.of(...groups()[i]!.prompt, ...tokens, 3, 4) }));
        const second = await Promise.all(turns.map((one) => sampler.generate(one)));
        outcomes.push([...first, ...second].map(plain));
        copies.push(counts.copies);
      }
      expect(outcomes[1]).toEqual(outcomes[0]);
      expect(copies[0]).toBe(0);
      expect(copies[1]).toBeGreaterThan(4);
    });
  });
}

describe("what is fed and read", () => {
  test("a group's prompt is fed once, and one read brings a burst", async () => {
    const { sampler, runs, counts } = await open({ slots: 8, rows: 64, burst: 16 });
    const prompt = Int32Array.from({ length: 24 }, (_, i) => i);
    const before = counts.reads;
    const completions = await Promise.all(
      Array.from({ length: 8 }, (_, seed) => sampler.generate(request({ prompt, seed, maxTokens: 16 }))),
    );
    expect(new Set(completions.map(({ tokens }) => String(tokens))).size).toBe(8);
    // 24 rows, then the first one's second token and the last prompt token of seven, then rows that decode until each has its 16.
    expect(runs[0]).toEqual({ rows: 24, outRows: 1 });
    expect(runs.slice(1, 16)).toEqual(Array(15).fill({ rows: 8, outRows: 8 }));
    // The others are one token behind: a second burst of one step.
    expect(runs.slice(16)).toEqual([{ rows: 7, outRows: 7 }]);
    const fed = runs.reduce((sum, { rows }) => sum + rows, 0);
    const decoded = 8 * 15;
    expect(fed - decoded).toBe(24 + 7);
    expect(counts.reads - before).toBe(2);
    expect(counts.copies).toBe(7);
  });

  test("a new version shares nothing with the old one", async () => {
    const { sampler, runs, counts } = await open({ rows: 64 });
    const prompt = Int32Array.from({ length: 24 }, (_, i) => i);
    await sampler.generate(request({ prompt, maxTokens: 1 }));
    await sampler.publish(async () => {}, 1);
    runs.length = 0;
    await Promise.all([1, 2].map((seed) => sampler.generate(request({ prompt, seed, maxTokens: 1 }))));
    expect(runs).toEqual([
      { rows: 24, outRows: 1 },
      // the second one's last prompt token, beside the first one's row, which rests
      { rows: 2, outRows: 2 },
    ]);
    expect(counts.copies).toBe(1);
  });

  test("a lane that a stop token ended is left out of the next burst", async () => {
    const { sampler, runs } = await open({ slots: 3, burst: 4 });
    const [short, long] = [await sampler.generate(request()), request({ seed: 8, maxTokens: 12 })];
    const whole = await sampler.generate(long);
    runs.length = 0;
    const [cut, other] = await Promise.all([sampler.generate(request({ stopTokens: [short.tokens[1]!] })), sampler.generate(long)]);
    expect(cut.finishReason).toBe("stop");
    expect(plain(other)).toEqual(plain(whole));
    expect(runs.slice(4).every(({ rows }) => rows === 1)).toBe(true);
    expect(runs).toHaveLength(12);
  });

  test("more stop tokens than the device knows end a completion all the same", async () => {
    const { sampler } = await open({ burst: 16 });
    const whole = await sampler.generate(request({ maxTokens: 40 }));
    const last = whole.tokens.at(-1)!;
    const cutAt = whole.tokens.indexOf(last);
    const never = Array.from({ length: 48 }, (_, id) => id).filter((id) => !whole.tokens.includes(id));
    expect(never.length).toBeGreaterThan(15);
    const cut = await sampler.generate(request({ maxTokens: 40, stopTokens: [...never, last] }));
    expect([...cut.tokens]).toEqual([...whole.tokens.subarray(0, cutAt + 1)]);
    expect(cut.finishReason).toBe("stop");
    // The device went on beyond it in the same row of the cache: nobody sees that.
    const prompt = Int32Array.of(...request().prompt, ...cut.tokens, 7);
    if (prompt.length + 4 > 48) return;
    const fresh = await open({ burst: 1 });
    const next = request({ prompt, maxTokens: 4 });
    expect(plain(await sampler.generate(next))).toEqual(plain(await fresh.sampler.generate(next)));
  });

  test("somebody who listens gets tokens four at a time at most", async () => {
    const { sampler, counts } = await open({ burst: 16 });
    const before = counts.reads;
    const readsAt: number[] = [];
    await sampler.generate(request({ maxTokens: 16, onToken: () => void readsAt.push(counts.reads - before) }));
    expect(readsAt).toEqual([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]);
  });

  test("every row of the cache that a token sees was written for its own sequence, or for the same beginning", async () => {
    const backend = createReferenceBackend();
    const seen = new Set<string>();
    let epoch = 0;
    const { sampler } = await open({ create: async () => watchCache(backend, () => epoch, seen), slots: 3, rows: 8, burst: 5 });
    const sequences: string[] = [];
    const openEnded: string[] = [];
    const generate = async (one: ReturnType<typeof request>): Promise<void> => {
      const { tokens } = await sampler.generate(one);
      sequences.push(`${[epoch, ...one.prompt, ...tokens].join()},`);
    };
    for (; epoch < 2; epoch++) {
      await Promise.all([...groups(), ...neighbours(12)].map(generate));
      await Promise.all(groups().map((one) => generate({ ...one, seed: one.seed + 50, maxTokens: 14 })));
      // Ended in the middle, so that rows are freed which hold part of a prompt.
      const aborted = Array.from({ length: 4 }, (_, seed) => {
        const controller = new AbortController();
        const onToken = (): void => controller.abort();
        return sampler.generate(request({ ...groups()[seed]!, seed, maxTokens: 9, signal: controller.signal, onToken }));
      });
      for (const [i, { tokens }] of (await Promise.all(aborted)).entries()) {
        // The device sampled on beyond the abort: how, nobody knows.
        openEnded.push(`${[epoch, ...groups()[i]!.prompt, ...tokens].join()},`);
      }
      await sampler.publish(async () => {}, epoch + 1);
    }
    expect(seen.size).toBeGreaterThan(200);
    const isKnown = (row: string): boolean =>
      sequences.some((sequence) => sequence.startsWith(row)) || openEnded.some((start) => start.startsWith(row) || row.startsWith(start));
    const strangers = [...seen].filter((row) => !isKnown(row));
    expect(strangers).toEqual([]);
  });
});

/**
 * Keeps, beside the cache, which token made each row of it and in which epoch; `seen` collects what every row of every run
 * attends to, as "epoch,token,token,…,".
 */
const watchCache = (backend: ReferenceBackend, epoch: () => number, seen: Set<string>): Backend => {
  const written = new Map<number, { token: number; epoch: number }[]>();
  const rowOf = (slot: number): { token: number; epoch: number }[] => {
    if (!written.has(slot)) written.set(slot, []);
    return written.get(slot)!;
  };
  const operand = (plan: Plan, op: string, name: string): Tensor => {
    const step = plan.steps.find((one) => one.op === op)! as unknown as Record<string, Tensor>;
    return step[name]!;
  };
  const numbers = (plan: Plan, op: string, names: readonly string[], n: number): number[][] =>
    names.map((name) => [...backend.values(operand(plan, op, name)).subarray(0, n)]);
  return {
    ...backend,
    compile: async (plan) => {
      const executable = await backend.compile(plan);
      return {
        ...executable,
        run: (vars) => {
          if (plan.name.startsWith("prefix")) {
            const [from, to, length] = numbers(plan, "kvCopy", ["from", "to", "length"], vars.rows!) as [number[], number[], number[]];
            for (const [i, source] of from.entries()) written.set(to[i]!, rowOf(source).slice(0, length[i]));
          }
          if (plan.name.startsWith("infer")) {
            const [tokens] = numbers(plan, "embed", ["tokens"], vars.rows!) as [number[]];
            const [slots, positions] = numbers(plan, "kvAppend", ["slots", "positions"], vars.rows!) as [number[], number[]];
            for (const [i, token] of tokens.entries()) rowOf(slots[i]!)[positions[i]!] = { token, epoch: epoch() };
            for (const [i, slot] of slots.entries()) {
              const row = Array.from({ length: positions[i]! + 1 }, (_, at) => rowOf(slot)[at]);
              const isOfNow = row.every((entry) => entry?.epoch === epoch());
              seen.add(isOfNow ? `${[epoch(), ...row.map((entry) => entry!.token)].join()},` : `stale: ${JSON.stringify(row)}`);
            }
          }
          return executable.run(vars);
        },
      };
    },
  };
};

/** A reference whose runs of the model take a turn of the event loop, as a device's do. */
const slow =
  (onRun: (run: number) => void) =>
  (backend: Backend): Backend => ({
    ...backend,
    compile: async (plan) => {
      const executable = await backend.compile(plan);
      let count = 0;
      return {
        ...executable,
        run: async (vars) => {
          await new Promise((resolve) => setTimeout(resolve, 0));
          if (plan.name.startsWith("infer")) onRun(++count);
          await executable.run(vars);
        },
      };
    },
  });

test.each([1, 2, 3, 4])(
  "a crowd with common beginnings, aborts and new versions at any moment, number %i: nobody gets another's tokens",
  async (crowd) => {
    const random = createRandom(crowd);
    const below = (n: number): number => Math.floor(random() * n);
    const backend = createReferenceBackend();
    const seen = new Set<string>();
    const { sampler } = await open({
      create: async () => watchCache(backend, () => sampler.policyVersion, seen),
      slots: 1 + below(5),
      rows: 6 + below(12),
      burst: 1 + below(16),
      wrap: slow(() => {}),
    });
    const alone = await open({ slots: 1, rows: 48, burst: 1, sharesPrefixes: false });
    const beginnings = Array.from({ length: 3 }, () => Int32Array.from({ length: 10 + below(15) }, () => below(48)));
    const sequences: string[] = [];
    let ended = 0;
    const one = async (seed: number): Promise<void> => {
      for (let pauses = below(12); pauses > 0; pauses--) await new Promise((resolve) => setTimeout(resolve, 0));
      const beginning = beginnings[below(3)]!;
      const prompt = Int32Array.of(
        ...beginning.subarray(0, 1 + below(beginning.length)),
        ...Array.from({ length: below(6) }, () => below(48)),
      );
      const wanted = request({
        prompt,
        seed,
        maxTokens: 1 + below(15),
        temperature: below(4) / 2,
        stopTokens: below(2) ? [1, 2, 3, 4] : [],
      });
      const controller = new AbortController();
      if (below(3) === 0) {
        let turns = below(10);
        const later = (): void => void (turns-- === 0 ? controller.abort() : setTimeout(later, 0));
        later();
      }
      const listener = below(4) === 0 ? { onToken: () => {} } : {};
      const got = await sampler.generate({ ...wanted, ...listener, signal: controller.signal });
      const whole = await alone.sampler.generate(wanted);
      sequences.push(`${[...prompt, ...whole.tokens].join()},`);
      const count = got.tokens.length;
      expect([...got.tokens]).toEqual([...whole.tokens.subarray(0, count)]);
      expect([...got.logprobs]).toEqual([...whole.logprobs.subarray(0, count)]);
      if (got.finishReason !== "aborted") expect(got.finishReason).toBe(whole.finishReason);
      if (got.finishReason !== "aborted") ended++;
    };
    const all = Array.from({ length: 30 }, (_, seed) => one(seed));
    for (const version of [1, 2]) {
      for (let pauses = below(30); pauses > 0; pauses--) await new Promise((resolve) => setTimeout(resolve, 0));
      await sampler.publish(async () => {}, version);
    }
    await Promise.all(all);
    expect(ended).toBeGreaterThan(5);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
    const rows = [...seen].map((row) => row.slice(row.indexOf(",") + 1));
    expect(rows.filter((row) => !sequences.some((sequence) => sequence.startsWith(row)))).toEqual([]);
  },
);

describe("faults inside a burst", () => {
  test("an abort is seen when the burst is over, and frees the row", async () => {
    const controller = new AbortController();
    const { sampler, runs } = await open({ slots: 1, burst: 6, wrap: slow((run) => void (run === 8 && controller.abort())) });
    const cut = await sampler.generate(request({ maxTokens: 30, signal: controller.signal }));
    expect(cut.finishReason).toBe("aborted");
    expect(cut.tokens).toHaveLength(6);
    expect(runs).toHaveLength(12);
    expect(sampler.load).toEqual({ live: 0, queued: 0 });
    const fresh = await open();
    const next = request({ prompt: Int32Array.of(...request().prompt, ...cut.tokens), maxTokens: 5 });
    expect(plain(await sampler.generate(next))).toEqual(plain(await fresh.sampler.generate(next)));
  });

  test("disposal in the middle of a burst ends it after the run that is going", async () => {
    let disposal: Promise<void> | undefined;
    const { sampler, runs } = await open({
      burst: 16,
      wrap: slow((run) => {
        if (run === 3) disposal = sampler.dispose();
      }),
    });
    await expect(sampler.generate(request({ maxTokens: 30 }))).rejects.toMatchObject({ code: "disposed" });
    await disposal;
    expect(runs).toHaveLength(3);
  });

  test("a run that fails in the middle rejects its requests, and what it left in the cache is forgotten", async () => {
    let isBroken = true;
    const { sampler, runs } = await open({
      burst: 8,
      wrap: slow((run) => {
        if (isBroken && run === 5) throw new Error("lost");
      }),
    });
    await expect(sampler.generate(request({ maxTokens: 20 }))).rejects.toThrow("lost");
    isBroken = false;
    runs.length = 0;
    const again = await sampler.generate(request({ maxTokens: 20 }));
    expect(runs[0]!.rows).toBe(4);
    const fresh = await open();
    expect(plain(again)).toEqual(plain(await fresh.sampler.generate(request({ maxTokens: 20 }))));
  });

  test("who waits for a row while a run fails is served afterwards", async () => {
    let failures = 0;
    const { sampler } = await open({
      slots: 1,
      burst: 4,
      wrap: slow((run) => {
        if (run !== 3) return;
        failures++;
        throw new Error("lost");
      }),
    });
    const [first, second] = await Promise.allSettled([sampler.generate(request()), sampler.generate(request({ seed: 9 }))]);
    expect([first.status, second.status, failures]).toEqual(["rejected", "fulfilled", 1]);
    const fresh = await open();
    expect(plain((second as PromiseFulfilledResult<Completion>).value)).toEqual(plain(await fresh.sampler.generate(request({ seed: 9 }))));
  });
});

const { skip } = await probe("webgpu", () => createTestBackend());
describe.skipIf(skip !== undefined)(`on a device${skip ? ` (skipped: ${skip})` : ""}`, () => {
  test("a burst is one wait: one mapped read for sixteen tokens of every row, a submit a run", async () => {
    const { gpu, release } = await openTestGpu();
    const counts = { maps: 0, submits: 0 };
    const watched = {
      wgslLanguageFeatures: gpu.wgslLanguageFeatures,
      requestAdapter: async (options?: GPURequestAdapterOptions) => {
        const adapter = (await gpu.requestAdapter(options))!;
        const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
          const device = await adapter.requestDevice(descriptor);
          const [submit, createBuffer] = [device.queue.submit.bind(device.queue), device.createBuffer.bind(device)];
          device.queue.submit = (buffers) => {
            counts.submits++;
            return submit(buffers);
          };
          device.createBuffer = (wanted) => {
            const buffer = createBuffer(wanted);
            const mapAsync = buffer.mapAsync.bind(buffer);
            buffer.mapAsync = (...range) => {
              counts.maps++;
              return mapAsync(...range);
            };
            return buffer;
          };
          return device;
        };
        return { info: adapter.info, limits: adapter.limits, features: adapter.features, requestDevice };
      },
    } as unknown as GPU;
    const { sampler, runs } = await open({ create: () => createWebGpuBackend(watched, { onDispose: release }), burst: 16 });
    const ask = (seed: number) => sampler.generate(request({ prompt: Int32Array.of(seed, 9, 2), seed, maxTokens: 32 }));
    Object.assign(counts, { maps: 0, submits: 0 });
    const completions = await Promise.all([0, 1, 2, 3].map(ask));
    const tokens = completions.reduce((sum, completion) => sum + completion.tokens.length, 0);
    expect(tokens).toBe(128);
    expect(runs).toHaveLength(32);
    expect(counts.maps).toBe(2);
    expect(counts.submits).toBe(32 + 2);
  });
});

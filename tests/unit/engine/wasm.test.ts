// What only the WASM executor promises: one result whatever the threads, rows or repetition; memory that comes back; refusals in words.
// That its numbers are right is the matter of ops.test.ts, which runs it on one thread and on two.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nodeThreads } from "../../../packages/engine/src/node/wasmThreads.ts";
import type { Backend, HostArray } from "../../../packages/engine/src/plan/backend.ts";
import type { Plan, Rows, Step, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { createHeap, createMemory } from "../../../packages/engine/src/wasm/memory.ts";
import type { Thread, ThreadSpawner } from "../../../packages/engine/src/wasm/threads.ts";
import { createNormal, createRandom, opCase, opCases, runCase } from "./opCases.ts";

/** Equal bit by bit, NaN included; compared as bytes, because toEqual takes seconds for large arrays. */
const isSame = (a: HostArray, b: HostArray): boolean => {
  const bytes = ({ buffer, byteOffset, byteLength }: HostArray): Buffer => Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength);
  return bytes(a).equals(bytes(b));
};

const one = (): Promise<Backend> => createWasmBackend({ threads: 1 });
const two = (): Promise<Backend> => createWasmBackend({ threads: 2, spawn: nodeThreads, minThreadedFlop: 0 });

const tensor = (name: string, home: Tensor["home"], ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home });

/** A feed-forward block with a LoRA pair: packed and changing weights, arena and io, several steps in a row. */
const createBlock = (capacity: number) => {
  const [D, F, R] = [128, 384, 8];
  const rows: Rows = { count: "rows", base: 0, capacity };
  const normal = createNormal(createRandom(11));
  const fill = (t: Tensor): Float32Array => Float32Array.from({ length: t.shape.reduce((a, b) => a * b) }, () => normal() / 8);
  const [x, y] = [tensor("x", "io", capacity, D), tensor("y", "io", capacity, D)];
  const [up, down, gain] = [tensor("up", "weights", F, D), tensor("down", "weights", D, F), tensor("gain", "weights", D)];
  const [a, b] = [tensor("a", "state", R, D), tensor("b", "state", F, R)];
  const [n, rstd, h, f, g] = [
    tensor("n", "arena", capacity, D),
    tensor("rstd", "arena", capacity),
    tensor("h", "arena", capacity, R),
    tensor("f", "arena", capacity, F),
    tensor("g", "arena", capacity, F),
  ];
  const steps: Step[] = [
    { op: "rmsNorm", rows, x, gain, y: n, rstd, eps: 1e-6 },
    { op: "linear", rows, x: n, w: up, y: f, scale: 1 },
    { op: "linear", rows, x: n, w: a, y: h, scale: 1 },
    { op: "linear", rows, x: h, w: b, residual: f, y: f, scale: 2 },
    { op: "glu", rows, gate: f, up: f, y: g, activation: "silu" },
    { op: "linear", rows, x: g, w: down, residual: x, y, scale: 1 },
  ];
  const stored = [up, down, gain, a, b].map((t) => [t, fill(t)] as const);
  return { plan: { name: `block of ${capacity}`, steps } satisfies Plan, x, y, stored, input: fill(x), D };
};

const runBlock = async (backend: Backend, rowCounts: readonly number[]): Promise<HostArray[]> => {
  const { plan, x, y, stored, input, D } = createBlock(64);
  for (const [t, data] of stored) await backend.allocate(t, data);
  const executable = await backend.compile(plan);
  backend.write(x, input);
  const results: HostArray[] = [];
  for (const rows of rowCounts) {
    await executable.run({ rows });
    results.push(await backend.read(y, rows * D));
  }
  executable.dispose();
  return results;
};

test("one thread and two threads give the same bits for every operation, and the same run twice does too", async () => {
  const [single, double] = [await one(), await two()];
  for (const { name } of opCases()) {
    const cases = [opCase(name), opCase(name), opCase(name)] as const;
    const [alone, together, again] = [await runCase(single, cases[0]), await runCase(double, cases[1]), await runCase(double, cases[2])];
    for (const [i, output] of cases[0].outputs.entries()) {
      expect(isSame(together.get(cases[1].outputs[i]!)!, alone.get(output)!), name).toBe(true);
      expect(isSame(again.get(cases[2].outputs[i]!)!, alone.get(output)!), name).toBe(true);
    }
  }
  await Promise.all([single.dispose(), double.dispose()]);
});

for (const [name, create] of [
  ["one thread", one],
  ["two threads", two],
] as const) {
  test(`${name}: the first row has the same bits in runs of 1, 3, 5, 64 and again 1 rows`, async () => {
    const backend = await create();
    const results = await runBlock(backend, [64, 1, 3, 5, 64, 1]);
    const [whole] = results as [HostArray];
    expect(new Set(whole).size).toBeGreaterThan(1000);
    for (const part of results) expect(isSame(part, whole.slice(0, part.length))).toBe(true);
    await backend.dispose();
  });
}

test("an adapter that lies in state gives the bits of the same matrix as a packed weight", async () => {
  const backend = await one();
  const normal = createNormal(createRandom(3));
  const rows: Rows = { count: "rows", base: 0, capacity: 9 };
  const data = Float32Array.from({ length: 300 * 20 }, normal);
  const [x, packed, loose] = [tensor("x", "io", 9, 300), tensor("w", "weights", 20, 300), tensor("w", "state", 20, 300)];
  const [y, z] = [tensor("y", "io", 9, 20), tensor("z", "io", 9, 20)];
  await backend.allocate(packed, data);
  await backend.allocate(loose, data);
  const executable = await backend.compile({
    name: "twice",
    steps: [
      { op: "linear", rows, x, w: packed, y, scale: 1 },
      { op: "linear", rows, x, w: loose, y: z, scale: 1 },
    ],
  });
  backend.write(x, Float32Array.from({ length: 9 * 300 }, normal));
  await executable.run({ rows: 9 });
  expect(isSame(await backend.read(z), await backend.read(y))).toBe(true);
  await backend.dispose();
});

test("attention over the cache has the bits of attention over packed rows", async () => {
  const backend = await one();
  const [T, H, K, C] = [13, 4, 2, 20];
  const normal = createNormal(createRandom(5));
  const rows: Rows = { count: "rows", base: 0, capacity: T };
  const index = (name: string): Tensor => ({ name, shape: [T], dtype: "i32", home: "io" });
  const [q, k, v] = [tensor("q", "io", T, H * C), tensor("k", "io", T, K * C), tensor("v", "io", T, K * C)];
  const [o, cached, lse] = [tensor("o", "io", T, H * C), tensor("cached", "io", T, H * C), tensor("lse", "io", T, H)];
  const [start, slots, positions] = [index("start"), index("slots"), index("positions")];
  const [kCache, vCache] = [tensor("kCache", "kv", 3, 16, K * C), tensor("vCache", "kv", 3, 16, K * C)];
  await backend.allocate(kCache);
  await backend.allocate(vCache);
  const shared = { rows, heads: H, kvHeads: K, scale: C ** -0.5 };
  const executable = await backend.compile({
    name: "both",
    steps: [
      { op: "attention", ...shared, q, k, v, start, o, lse },
      { op: "kvAppend", rows, k, v, slots, positions, kCache, vCache },
      { op: "attentionCached", ...shared, q, kCache, vCache, slots, positions, o: cached },
    ],
  });
  for (const t of [q, k, v]) backend.write(t, Float32Array.from({ length: t.shape[0]! * t.shape[1]! }, normal));
  // two sequences: rows 0 … 5 in slot 2, rows 6 … 12 in slot 0
  backend.write(
    start,
    Int32Array.from({ length: T }, (_, t) => (t < 6 ? 0 : 6)),
  );
  backend.write(
    slots,
    Int32Array.from({ length: T }, (_, t) => (t < 6 ? 2 : 0)),
  );
  backend.write(
    positions,
    Int32Array.from({ length: T }, (_, t) => (t < 6 ? t : t - 6)),
  );
  await executable.run({ rows: T });
  expect(isSame(await backend.read(cached), await backend.read(o))).toBe(true);
  await backend.dispose();
});

test("silu is exact to 3 units in the last place from −100 to 100: the exponential is sound", async () => {
  const backend = await one();
  const n = 4001;
  const rows: Rows = { count: "rows", base: 0, capacity: n };
  const [gate, up, y] = [tensor("gate", "io", n, 1), tensor("up", "io", n, 1), tensor("y", "io", n, 1)];
  const executable = await backend.compile({ name: "silu", steps: [{ op: "glu", rows, gate, up, y, activation: "silu" }] });
  const x = Float32Array.from({ length: n }, (_, i) => (i - 2000) / 20);
  backend.write(gate, x);
  backend.write(up, new Float32Array(n).fill(1));
  await executable.run({ rows: n });
  const got = await backend.read(y);
  let worst = 0;
  for (let i = 0; i < n; i++) {
    const want = x[i]! / (1 + Math.exp(-x[i]!));
    // below e^−87.33 the kernel gives 0 instead of subnormal numbers
    if (Math.abs(want) > 1e-35) worst = Math.max(worst, Math.abs(got[i]! - want) / Math.abs(want));
    else expect(Math.abs(got[i]!)).toBeLessThan(1e-35);
  }
  expect(worst).toBeLessThan(3 * 2 ** -23);
  await backend.dispose();
});

describe("memory", () => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await one();
  });
  afterAll(() => backend.dispose());

  test("an executable's table and io tensors are freed with it, shared io tensors with the last that uses them", async () => {
    const x = tensor("x", "io", 1000);
    const compileZero = (): ReturnType<Backend["compile"]> => backend.compile({ name: "zero", steps: [{ op: "zero", x }] });
    const first = await compileZero();
    const withOne = backend.byteLength;
    const second = await compileZero();
    expect(backend.byteLength).toBe(withOne + 256); // the second table
    backend.write(x, Float32Array.of(5));
    first.dispose();
    first.dispose();
    expect((await backend.read(x, 1))[0]).toBe(5);
    await second.run({});
    expect((await backend.read(x, 1))[0]).toBe(0);
    second.dispose();
    expect(backend.byteLength).toBe(withOne - 4096 - 256);
    await expect(backend.read(x)).rejects.toMatchObject({ code: "bad-request" });
    await expect(second.run({})).rejects.toMatchObject({ code: "disposed" });
  });

  test("a plan compiled before the arena moved still runs", async () => {
    const small = createBlock(4);
    for (const [t, data] of small.stored) await backend.allocate(t, data);
    const executable = await backend.compile(small.plan);
    backend.write(small.x, small.input);
    await executable.run({ rows: 4 });
    const before = await backend.read(small.y);
    const held = backend.byteLength;
    const large = createBlock(2048);
    for (const [t, data] of large.stored) await backend.allocate(t, data);
    const other = await backend.compile(large.plan);
    expect(backend.byteLength).toBeGreaterThan(held + 2048 * 384 * 4);
    await other.run({ rows: 2048 });
    await executable.run({ rows: 4 });
    expect(isSame(await backend.read(small.y), before)).toBe(true);
  });

  test("blocks that are freed side by side are one again, and the top goes down", () => {
    const heap = createHeap(createMemory(false), 1000);
    const [a, b, c] = [heap.allocate(1, "a", "state"), heap.allocate(300, "b", "state"), heap.allocate(256, "c", "state")];
    expect([a, b, c]).toEqual([1024, 1280, 1792]);
    expect(heap.byteLength).toBe(256 + 512 + 256);
    heap.free(a);
    heap.free(b);
    expect(heap.allocate(700, "d", "state")).toBe(1024); // 768 bytes, the two together
    heap.free(1024);
    heap.free(c);
    heap.free(c);
    expect(heap.byteLength).toBe(0);
    expect(heap.allocate(10_000, "e", "state")).toBe(1024);
  });

  test("more than wasm32 can address is refused with the bytes needed, and what stood still works", async () => {
    const held = backend.byteLength;
    const huge = tensor("huge", "state", 1025, 1024, 1024);
    await expect(backend.allocate(huge)).rejects.toMatchObject({ code: "device", message: expect.stringContaining("4299161600 bytes") });
    expect(backend.byteLength).toBe(held);
    const x = tensor("x", "state", 2);
    await backend.allocate(x, Float32Array.of(1, 2));
    expect([...(await backend.read(x))]).toEqual([1, 2]);
  });

  test("addresses above 2 GiB work", async () => {
    // Untouched pages cost nothing: only the ends of the tensors are written.
    const heap = createHeap(createMemory(false), 0);
    const low = heap.allocate(2 ** 31, "low", "state");
    const high = heap.allocate(1024, "high", "state");
    expect([low, high]).toEqual([0, 2 ** 31]);
    new Float32Array(heap.memory.buffer, high, 1)[0] = 3;
    expect(new Float32Array(heap.memory.buffer, high, 1)[0]).toBe(3);
  });
});

describe("refusals", () => {
  test("each says the rule and what came", async () => {
    const backend = await one();
    const [w, x] = [tensor("w", "weights", 4), tensor("x", "state", 4)];
    await backend.allocate(w, Float32Array.of(1, 2, 3, 4));
    await backend.allocate(x);
    const rejects = (promise: Promise<unknown>, code: string, text: string): Promise<void> =>
      expect(promise).rejects.toMatchObject({ code, message: expect.stringContaining(text) });
    await rejects(backend.allocate(x), "bad-request", "again");
    await rejects(
      backend.allocate(tensor("short", "state", 4), Float32Array.of(1)),
      "bad-request",
      "has 4 elements in 16 bytes (f32), got 1 in 4",
    );
    await rejects(
      backend.compile({ name: "p", steps: [{ op: "zero", x: tensor("nowhere", "state", 4) }] }),
      "bad-request",
      '"nowhere" (home state) has no storage',
    );
    expect(() => backend.write(w, Float32Array.of(0))).toThrow("takes a state, kv or io tensor");
    expect(() => backend.write(x, Float32Array.of(1, 2), 3)).toThrow("2 from 3 on");
    const rows: Rows = { count: "rows", base: 0, capacity: 2 };
    const of = (name: string): Tensor => tensor(name, "io", 2, 12);
    const start: Tensor = { name: "start", shape: [2], dtype: "i32", home: "io" };
    const lse = tensor("lse", "io", 2, 2);
    await rejects(
      backend.compile({
        name: "odd",
        steps: [{ op: "attention", rows, q: of("q"), k: of("k"), v: of("v"), start, o: of("o"), lse, heads: 2, kvHeads: 2, scale: 1 }],
      }),
      "unsupported",
      "got width 6",
    );
    const y = tensor("y", "io", 2, 4);
    const glu = await backend.compile({ name: "glu", steps: [{ op: "glu", rows, gate: y, up: y, y, activation: "silu" }] });
    await rejects(glu.run({}), "bad-request", "vars.rows");
    await backend.dispose();
    await rejects(glu.run({ rows: 1 }), "disposed", "disposed");
    await rejects(createWasmBackend({ threads: 0 }), "bad-request", "got 0");
  });

  test("an index outside its table gives NaN and never another row's memory", async () => {
    const backend = await one();
    const rows: Rows = { count: "rows", base: 0, capacity: 3 };
    const [table, y] = [tensor("table", "weights", 2, 4), tensor("y", "io", 3, 4)];
    const tokens: Tensor = { name: "tokens", shape: [3], dtype: "i32", home: "io" };
    await backend.allocate(table, Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    const embed = await backend.compile({ name: "embed", steps: [{ op: "embed", rows, table, tokens, y, scale: 1 }] });
    backend.write(tokens, Int32Array.of(1, 2, -1));
    await embed.run({ rows: 3 });
    const NaN4 = [Number.NaN, Number.NaN, Number.NaN, Number.NaN];
    expect([...(await backend.read(y))]).toEqual([5, 6, 7, 8, ...NaN4, ...NaN4]);
    await backend.dispose();
  });
});

describe("threads", () => {
  test("the description counts them; without a spawner there is one", async () => {
    for (const [options, words] of [
      [{ threads: 2, spawn: nodeThreads }, "WASM SIMD, 2 threads"],
      [{ threads: 8 }, "WASM SIMD, 1 thread"],
    ] as const) {
      const backend = await createWasmBackend(options);
      expect(backend.device).toEqual({ kind: "wasm", description: words });
      await backend.dispose();
    }
  });

  test("idle threads hold nothing open, and dispose ends each of them once", async () => {
    const stopped: number[] = [];
    const counting: ThreadSpawner = {
      cores: () => 3,
      spawn: async (job): Promise<Thread> => {
        const thread = await nodeThreads.spawn(job);
        return {
          stop: async () => {
            stopped.push(job.thread);
            await thread.stop();
          },
        };
      },
    };
    const open = (): string[] => process.getActiveResourcesInfo().filter((name) => name === "MessagePort" || name === "Worker");
    const before = open();
    const backend = await createWasmBackend({ spawn: counting, minThreadedFlop: 0 });
    expect(backend.device.description).toBe("WASM SIMD, 3 threads");
    expect(open()).toEqual(before);
    await runBlock(backend, [64, 64]);
    expect(backend.byteLength).toBeGreaterThan(0);
    await backend.dispose();
    await backend.dispose();
    expect(stopped.sort()).toEqual([1, 2]);
    expect(backend.byteLength).toBe(0);
    await expect(backend.compile({ name: "late", steps: [] })).rejects.toMatchObject({ code: "disposed" });
  });

  test("a spawner that fails is an error with its cause, and the threads that started are stopped", async () => {
    let stopped = 0;
    const failing: ThreadSpawner = {
      cores: () => 3,
      spawn: async ({ thread }) => {
        if (thread === 2) throw new Error("no more workers");
        return {
          stop: async () => {
            stopped++;
          },
        };
      },
    };
    await expect(createWasmBackend({ spawn: failing })).rejects.toMatchObject({ code: "device", cause: new Error("no more workers") });
    expect(stopped).toBe(1);
  });
});

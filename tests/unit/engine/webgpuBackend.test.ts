// What the WebGPU backend promises beside the operations' numbers (those are in ops.test.ts): repeatability, replay without allocation,
// errors that name what happened, an end that really ends.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { build } from "vite";
import { describe, expect, test, vi } from "vitest";
import { openNodeGpu, openNodeWebGpu } from "../../../packages/engine/src/node/webgpu.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { Plan, Rows, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createWebGpuBackend } from "../../../packages/engine/src/webgpu/backend.ts";
import { probe } from "./backends.ts";
import { createTestBackend, openTestGpu } from "./webgpuDevice.ts";

const { skip } = await probe("webgpu", () => createTestBackend());
const why = skip ? ` (skipped: ${skip})` : "";

const tensor = (name: string, home: Tensor["home"], ...shape: number[]): Tensor => ({ name, shape, dtype: "f32", home });
const numbers = (length: number, seed: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(seed + 1.7 * i));

/** y = normed x · wᵀ, then the gradient of w: five launches, arena and scratch included. */
const network = (capacity = 80) => {
  const rows: Rows = { count: "rows", base: 0, capacity };
  const [x, y, dy] = [tensor("x", "io", capacity, 12), tensor("y", "io", capacity, 20), tensor("dy", "io", capacity, 20)];
  const [normed, rstd] = [tensor("normed", "arena", capacity, 12), tensor("rstd", "arena", capacity)];
  const [gain, w, dw] = [tensor("gain", "weights", 12), tensor("w", "weights", 20, 12), tensor("dw", "state", 20, 12)];
  const plan: Plan = {
    name: "network",
    steps: [
      { op: "zero", x: dw },
      { op: "rmsNorm", rows, x, gain, y: normed, rstd, eps: 1e-6 },
      { op: "linear", rows, x: normed, w, y, scale: 1 },
      { op: "weightGrad", rows, dy, x: normed, dw, scale: 1 },
    ],
  };
  return { plan, x, y, dy, dw, gain, w, capacity };
};

const prepare = async (backend: Backend, net = network()) => {
  await backend.allocate(net.gain, numbers(12, 1));
  await backend.allocate(net.w, numbers(240, 2));
  await backend.allocate(net.dw);
  const executable = await backend.compile(net.plan);
  backend.write(net.x, numbers(net.capacity * 12, 3));
  backend.write(net.dy, numbers(net.capacity * 20, 4));
  return { ...net, executable };
};

/** A GPU that shows its device, the way a browser's developer tools or a driver reset would reach it. */
const watched = (gpu: GPU): { gpu: GPU; device: () => GPUDevice } => {
  let device: GPUDevice | undefined;
  const requestAdapter = async (options?: GPURequestAdapterOptions): Promise<GPUAdapter | null> => {
    const adapter = await gpu.requestAdapter(options);
    if (!adapter) return null;
    const { info, limits, features } = adapter;
    const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
      device = await adapter.requestDevice(descriptor);
      return device;
    };
    return { info, limits, features, requestDevice } as unknown as GPUAdapter;
  };
  return { gpu: { requestAdapter, wgslLanguageFeatures: gpu.wgslLanguageFeatures } as unknown as GPU, device: () => device! };
};

describe.skipIf(skip !== undefined)(`the WebGPU backend in Node${why}`, () => {
  test("two runs of one plan are bit-equal, and a device says what it is", async () => {
    const backend = await createTestBackend();
    expect(backend.device.kind).toBe("webgpu");
    expect(backend.device.description).toMatch(/^WebGPU, ./);
    const { executable, y, dw } = await prepare(backend);
    const outcome = async () => {
      await executable.run({ rows: 77 });
      return [await backend.read(y), await backend.read(dw)];
    };
    const first = await outcome();
    expect(first[1]!.some((value) => value !== 0)).toBe(true);
    expect(await outcome()).toEqual(first);
    await backend.dispose();
  });

  test("a read waits the way its platform does", async () => {
    const pending: unknown[] = [];
    const wait = <T>(promise: Promise<T>): Promise<T> => {
      pending.push(promise);
      return promise;
    };
    const backend = await createTestBackend({ wait });
    const flat = tensor("flat", "state", 3);
    await backend.allocate(flat, Float32Array.of(1, 2, 3));
    expect(pending.length).toBe(0);
    expect([...(await backend.read(flat))]).toEqual([1, 2, 3]);
    expect(pending.length).toBe(1);
    await backend.dispose();
  });

  test("debug mode gives the same bits", async () => {
    const [plain, debug] = [await createTestBackend(), await createTestBackend({ debug: true })];
    const results = [];
    for (const backend of [plain, debug]) {
      const { executable, y } = await prepare(backend);
      await executable.run({ rows: 5 });
      results.push(await backend.read(y));
    }
    expect(results[0]).toEqual(results[1]);
    await plain.dispose();
    await debug.dispose();
  });

  test("two backends live side by side, and one outlives the other", async () => {
    const [a, b] = [await createTestBackend(), await createTestBackend()];
    const [one, two] = [await prepare(a), await prepare(b)];
    await one.executable.run({ rows: 9 });
    await two.executable.run({ rows: 9 });
    const expected = await a.read(one.y);
    await a.dispose();
    expect(await b.read(two.y)).toEqual(expected);
    await b.dispose();
  });

  test("a plan compiled earlier still runs after a larger one has grown the arena", async () => {
    const backend = await createTestBackend();
    const { executable, y, gain, w, dw } = await prepare(backend);
    await executable.run({ rows: 70 });
    const expected = await backend.read(y);
    const large = network(400);
    const steps = large.plan.steps.map((step) => ({
      ...step,
      ...("gain" in step && { gain }),
      ...("w" in step && { w }),
      ...("dw" in step && { dw }),
    }));
    const bytes = backend.byteLength;
    const second = await backend.compile({ name: "large", steps: steps.filter(({ op }) => op !== "zero") } as Plan);
    expect(backend.byteLength).toBeGreaterThan(bytes);
    await second.run({ rows: 400 });
    await executable.run({ rows: 70 });
    expect(await backend.read(y)).toEqual(expected);
    second.dispose();
    await backend.dispose();
  });

  test("replay creates no buffer, bind group or pipeline", async () => {
    const { gpu, release } = await openTestGpu();
    const spied = watched(gpu);
    const backend = await createWebGpuBackend(spied.gpu, { onDispose: release });
    const { executable, x, y } = await prepare(backend);
    // Each slot of the readback ring is made at its first use.
    for (let i = 0; i < 3; i++) {
      await executable.run({ rows: 80 });
      await backend.read(y);
    }
    const device = spied.device();
    const makers = [
      "createBuffer",
      "createBindGroup",
      "createBindGroupLayout",
      "createComputePipelineAsync",
      "createShaderModule",
    ] as const;
    const spies = makers.map((name) => vi.spyOn(device, name as "createBuffer"));
    for (let i = 0; i < 10; i++) {
      backend.write(x, numbers(12, i));
      await executable.run({ rows: 8 * i });
      await backend.read(y);
    }
    expect(spies.map((spy) => spy.mock.calls.length)).toEqual([0, 0, 0, 0, 0]);
    const other = await backend.compile(network(1).plan).catch((error) => error);
    expect(other.code).toBe("bad-request");
    await backend.allocate(tensor("more", "state", 4));
    expect(spies[0]!.mock.calls.length).toBe(1);
    await backend.dispose();
  });

  test("a device that is lost is an EngineError on the next call, and onLost hears of it", async () => {
    const { gpu, release } = await openTestGpu();
    const spied = watched(gpu);
    const onLost = vi.fn();
    const backend = await createWebGpuBackend(spied.gpu, { onLost, onDispose: release });
    const { executable, y, x } = await prepare(backend);
    await executable.run({ rows: 3 });
    spied.device().destroy();
    await expect(backend.read(y)).rejects.toMatchObject({ name: "EngineError", code: "lost" });
    await expect(executable.run({ rows: 3 })).rejects.toMatchObject({ code: "lost", message: expect.stringContaining("was lost") });
    expect(() => backend.write(x, numbers(12, 0))).toThrow(expect.objectContaining({ code: "lost" }));
    expect(onLost).toHaveBeenCalledTimes(1);
    await backend.dispose();
    expect(onLost).toHaveBeenCalledTimes(1);
  });

  test("after dispose every call says so, and disposing twice is fine", async () => {
    const backend = await createTestBackend();
    const { executable, y } = await prepare(backend);
    await backend.dispose();
    await backend.dispose();
    await expect(executable.run({ rows: 1 })).rejects.toMatchObject({ code: "disposed" });
    await expect(backend.read(y)).rejects.toMatchObject({ code: "disposed" });
    expect(backend.byteLength).toBe(0);
  });

  test("a tensor above the device's limit is refused with both numbers", async () => {
    const backend = await createTestBackend();
    const failing = backend.allocate(tensor("huge", "state", 2 ** 20, 2 ** 15));
    await expect(failing).rejects.toMatchObject({
      code: "device",
      message: expect.stringMatching(/limit of \d+ bytes.*got 137438953472 bytes/),
    });
    const { executable } = await prepare(backend);
    await executable.run({ rows: 2 });
    await backend.dispose();
  });

  test("misuse is named: unallocated, allocated twice, out of range, wrong type", async () => {
    const backend = await createTestBackend();
    const net = network();
    await expect(backend.compile(net.plan)).rejects.toMatchObject({ code: "bad-request" });
    const { gain, x, executable } = await prepare(backend, net);
    await expect(backend.allocate(gain)).rejects.toMatchObject({ code: "bad-request" });
    expect(() => backend.write(x, numbers(12, 0), 80 * 12 - 11)).toThrow(expect.objectContaining({ code: "bad-request" }));
    expect(() => backend.write(x, new Int32Array(1))).toThrow(expect.objectContaining({ code: "bad-request" }));
    await expect(executable.run({})).rejects.toMatchObject({ code: "bad-request" });
    await backend.dispose();
  });

  test("views are written and read at their offset", async () => {
    const backend = await createTestBackend();
    const flat = tensor("flat", "state", 192);
    const view: Tensor = { ...tensor("view", "state", 3, 2), view: { of: flat, offset: 64 } };
    await backend.allocate(flat, numbers(192, 5));
    backend.write(view, Float32Array.of(7, 8), 4);
    expect([...(await backend.read(view))].slice(4)).toEqual([7, 8]);
    expect(Array.from(await backend.read(flat, 70)).slice(66)).toEqual([...numbers(192, 5).slice(66, 68), 7, 8]);
    await backend.dispose();
  });

  test("a process that disposes its backend ends by itself, even when garbage was collected in between", async () => {
    // Node 20 runs no TypeScript: the entry is bundled, the package webgpu stays outside.
    const bundled = (await build({
      configFile: false,
      logLevel: "silent",
      build: { ssr: fileURLToPath(new URL("../../../packages/engine/src/node/webgpu.ts", import.meta.url)), write: false, minify: false },
    })) as { output: { code: string }[] };
    const source = `${bundled.output[0]!.code}
      const collect = async () => { for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((done) => setTimeout(done)); } };
      const backend = await openNodeWebGpu();
      await collect();
      const x = { name: "x", shape: [4], dtype: "f32", home: "state" };
      await backend.allocate(x, Float32Array.of(1, 2, 3, 4));
      console.log(String(await backend.read(x)));
      await backend.dispose();
      await collect();
    `;
    // Through stdin: an argument has at most 128 KiB.
    const child = spawnSync(process.execPath, ["--expose-gc", "--input-type=module", "-"], {
      ...{ input: source, encoding: "utf8", timeout: 60_000 },
    });
    expect(child.stdout.trim(), child.stderr).toBe("1,2,3,4");
    expect([child.status, child.signal]).toEqual([0, null]);
  });
});

describe("opening Dawn in Node", () => {
  test("a missing package is named with the command that installs it", async () => {
    const load = () => Promise.reject(Object.assign(new Error("Cannot find package 'webgpu'"), { code: "ERR_MODULE_NOT_FOUND" }));
    await expect(openNodeGpu({ load })).rejects.toMatchObject({ code: "device", message: expect.stringContaining("npm install webgpu") });
  });

  test("a package that is there but does not load says why", async () => {
    const load = () => Promise.reject(new Error("GLIBC_2.99 not found"));
    await expect(openNodeGpu({ load })).rejects.toMatchObject({ code: "device", message: expect.stringContaining("GLIBC_2.99 not found") });
  });

  test("no adapter is an EngineError, and nothing stays held", async () => {
    const load = async () => ({ create: () => ({ requestAdapter: async () => null }) as unknown as GPU });
    await expect(openNodeWebGpu({ load })).rejects.toMatchObject({ code: "device", message: expect.stringContaining("requestAdapter") });
    const held = (globalThis as { [key: symbol]: Set<GPU> })[Symbol.for("fulgurite.dawn")]!;
    expect(held.size).toBe(0);
  });
});

// A device is tested before it is trusted: planted wrong kernels are found and switched off, a device without a right one is refused
// and WASM takes over, and what was found is kept. The tuner's picks follow from the times that it is given. No clock decides anything.

import { describe, expect, test } from "vitest";
import { openBackend } from "../../../packages/engine/src/device.ts";
import { testGpu } from "../../../packages/engine/src/gpuCheck.ts";
import { openNodeWebGpu } from "../../../packages/engine/src/node/webgpu.ts";
import { OPERANDS } from "../../../packages/engine/src/plan/step.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { describeSelfTest, type SelfTestReport, selfTest } from "../../../packages/engine/src/selfTest.ts";
import { CASE_NAMES, deviceCase } from "../../../packages/engine/src/selfTestCases.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { openChecked, type VerdictStore } from "../../../packages/engine/src/webgpu/checked.ts";
import { classOf, createDecisions, type Decisions } from "../../../packages/engine/src/webgpu/decisions.ts";
import { tune } from "../../../packages/engine/src/webgpu/tuner.ts";
import { createTestBackend, featuresOfTestGpu, openTestGpu } from "./webgpuDevice.ts";

test("the cases cover every operation", () => {
  const ops = CASE_NAMES.flatMap((name) => deviceCase(name).plan.steps.map(({ op }) => op));
  expect(new Set(ops)).toEqual(new Set(Object.keys(OPERANDS)));
});

test("the reference passes its own test, with one way to do everything", async () => {
  const report = await selfTest(createReferenceBackend(), createDecisions());
  expect(report.isUsable).toBe(true);
  expect(report.entries.map(({ name, variant, error }) => [name, variant, error])).toEqual(CASE_NAMES.map((name) => [name, undefined, 0]));
});

const { features, reason } = await featuresOfTestGpu();
const skipped = reason ? ` (skipped: ${reason})` : "";

/** A device whose shaders pass through `spoil` on their way to the compiler. */
const openSpoiled = async (spoil: (label: string, code: string) => string, options: Parameters<typeof openNodeWebGpu>[0] = {}) => {
  const { gpu, release } = await openTestGpu();
  const { requestAdapter } = gpu;
  gpu.requestAdapter = async (...args) => {
    const adapter = (await requestAdapter.apply(gpu, args))!;
    const { requestDevice } = adapter;
    adapter.requestDevice = async (...wanted) => {
      const device = await requestDevice.apply(adapter, wanted);
      const { createShaderModule } = device;
      device.createShaderModule = (descriptor) =>
        createShaderModule.call(device, { ...descriptor, code: spoil(descriptor.label ?? "", descriptor.code) });
      return device;
    };
    return adapter;
  };
  return openNodeWebGpu({ ...options, load: async () => ({ create: () => gpu }), onDispose: release });
};

const inMemory = (): VerdictStore & { readonly kept: Map<string, string>; reads: number } => {
  const kept = new Map<string, string>();
  const store = {
    kept,
    reads: 0,
    read: async (name: string) => {
      store.reads++;
      return kept.get(name);
    },
    write: async (name: string, verdict: string) => void kept.set(name, verdict),
  };
  return store;
};

const run = async (spoil: (label: string, code: string) => string, cases: readonly string[]) => {
  const decisions = createDecisions();
  const backend = await openSpoiled(spoil, { choose: decisions.choose });
  const report: SelfTestReport = await selfTest(backend, decisions, { cases });
  await backend.dispose();
  return { report, failed: [...decisions.failed] };
};

describe.skipIf(reason !== undefined)(`the self-test on a device${skipped}`, () => {
  test("a device that computes right passes, in every variant that it has", async () => {
    const { report, failed } = await run((_, code) => code, ["rmsNorm", "rope", "attention, heads of 32", "attentionCached"]);
    expect(failed).toEqual([]);
    expect(describeSelfTest(report).split("\n")).toHaveLength(1);
    const variants = report.entries.map(({ variant }) => variant);
    expect(variants).toEqual(expect.arrayContaining(["attention f32 32x32", "attention f32 64x64", undefined]));
    if (features.has("subgroups")) expect(variants).toContain("rmsNorm f32 subgroups");
  });

  test("a wrong variant is found and switched off; the others stay, and so does the device", async () => {
    const spoil = (label: string, code: string): string =>
      label === "attention 32x32" ? code.replace("vec4f(-3.0e38), s2 * params.scale", "vec4f(-3.0e38), s2 * 1.01 * params.scale") : code;
    const { report, failed } = await run(spoil, ["attention, heads of 32", "attentionCached"]);
    expect(failed).toEqual(["attention f32 32x32"]);
    expect(report.isUsable).toBe(true);
    expect(describeSelfTest(report)).toMatch(/attention, heads of 32 \(attention f32 32x32\): off by/);
  });

  test("a variant that does not compile is a wrong variant", async () => {
    const { report, failed } = await run(
      (label, code) => (label === "attention 64x32" ? `${code} oops` : code),
      ["attention, heads of 32"],
    );
    expect(failed).toEqual(["attention f32 64x32"]);
    expect(report.entries.find(({ variant }) => variant === "attention f32 64x32")!.message).toContain("must compile");
  });

  test("NaN in a result is an error, and an operation with one way that is wrong makes the device unusable", async () => {
    const spoil = (label: string, code: string): string =>
      label === "rope" ? code.replace("x0 * cosine", "x0 * sqrt(-params.direction)") : code;
    const { report } = await run(spoil, ["rope"]);
    expect(report.isUsable).toBe(false);
    expect(report.entries[0]!.error).toBe(Number.POSITIVE_INFINITY);
  });
});

describe.skipIf(reason !== undefined)(`a device that is tested before it is trusted${skipped}`, () => {
  const cases = ["rope", "attention, heads of 32"];
  /** Times by name: the tile of 64 keys is always the fastest, and the budget ends with the first attention. */
  const createTuning = () => {
    let now = 0;
    return {
      budgetMs: 1,
      now: () => now,
      measure: async (label: string) => {
        if (label.endsWith(": 64x64")) now++;
        return label.endsWith(": 64x64") ? 1 : 2;
      },
    };
  };
  const tuning = createTuning();
  const untimed = { budgetMs: 0 };

  test("the first start tests and times, the next one reads the verdict; another device's verdict is not taken", async () => {
    const verdicts = inMemory();
    let opened = 0;
    const open = ({ choose }: Pick<Decisions, "choose">) => {
      opened++;
      return openSpoiled((label, code) => (label === "attention 32x32" ? code.replace("s2 * params.scale", "s3 * params.scale") : code), {
        choose,
      });
    };
    const options = { verdicts, checksSoftware: true, cases, tuning };
    const first = await openChecked(open, options);
    expect([opened, verdicts.kept.size]).toEqual([2, 1]);
    const verdict = JSON.parse([...verdicts.kept.values()][0]!);
    expect(verdict).toMatchObject({ isUsable: true, failed: ["attention f32 32x32"], picks: { "attention f32 C64": "64x64" } });
    await first.dispose();

    const second = await openChecked(open, options);
    expect(opened).toBe(3);
    const problem = { op: "attention", rows: 0, sizes: { C: 32 }, format: "f32" } as const;
    const candidates = [{ name: "32x32" }, { name: "64x32" }, { name: "64x64" }];
    expect(second.target.choose!(problem, candidates)).toEqual({ name: "64x64" });
    // A class that was never timed: the first candidate that is not switched off.
    expect(second.target.choose!({ ...problem, sizes: { C: 256 } }, candidates)).toEqual({ name: "64x32" });
    await second.dispose();

    const other = await openChecked(async (wanted) => ({ ...(await open(wanted)), identity: "another driver" }), {
      ...options,
      tuning: untimed,
    });
    expect([opened, verdicts.kept.size]).toEqual([5, 2]);
    await other.dispose();
  });

  test("a verdict that is none is found again", async () => {
    const verdicts = inMemory();
    verdicts.read = async () => '{"format":1,"isUsable":tru';
    const backend = await openChecked(createTestBackend, {
      verdicts,
      checksSoftware: true,
      cases: ["rope"],
      tuning,
    });
    expect(verdicts.kept.size).toBe(1);
    await backend.dispose();
  });

  test("a store that fails costs the verdict, not the device", async () => {
    const verdicts: VerdictStore = {
      read: () => Promise.reject(new Error("EACCES")),
      write: () => Promise.reject(new Error("ENOSPC")),
    };
    const backend = await openChecked(createTestBackend, { verdicts, checksSoftware: true, cases: ["rope"], tuning: untimed });
    expect(backend.device.kind).toBe("webgpu");
    await backend.dispose();
  });

  test("software devices are neither tested nor timed unless that is asked for", async () => {
    const backend = await createTestBackend();
    const { isSoftware } = backend.target;
    await backend.dispose();
    if (!isSoftware) return;
    const verdicts = inMemory();
    await (await openChecked(createTestBackend, { verdicts })).dispose();
    expect(verdicts.reads).toBe(0);
  });

  test("a device that computes wrong is refused, also from the verdict; auto takes WASM and says why", async () => {
    const verdicts = inMemory();
    const webgpu = () =>
      openChecked(
        ({ choose }) => openSpoiled((label, code) => (label === "rope" ? code.replace("x1 * sine", "x0 * sine") : code), { choose }),
        { verdicts, checksSoftware: true, cases, tuning: untimed },
      );
    await expect(webgpu()).rejects.toMatchObject({ code: "wrong-results", message: expect.stringMatching(/rope: off by.*\n.*wasm/) });
    await expect(webgpu()).rejects.toMatchObject({ code: "wrong-results" });
    expect(verdicts.kept.size).toBe(1);
    const edges = { webgpu, wasm: createWasmBackend, reference: async () => createReferenceBackend() };
    const backend = await openBackend("auto", edges, { threads: 1 });
    expect(backend.device).toEqual({ kind: "wasm", description: "WASM SIMD, 1 thread (this machine's WebGPU failed the self-test)" });
    await backend.dispose();
    await expect(openBackend("webgpu", edges)).rejects.toMatchObject({ code: "wrong-results" });
  });
});

describe.skipIf(reason !== undefined)(`the tuner${skipped}`, () => {
  test("picks what is faster by a margin, skips what failed, and stops where its budget ends", async () => {
    const decisions = createDecisions();
    decisions.failed.add("attention f32 64x32");
    const backend = await createTestBackend({ choose: decisions.choose });
    const labels: string[] = [];
    let now = 0;
    await tune(backend, decisions, {
      now: () => now,
      budgetMs: 100,
      measure: async (label) => {
        labels.push(label);
        now += label.startsWith("attention") ? 50 : 1;
        // 96 % of the default's time is noise, 90 % is not.
        return label.startsWith("attention") ? (label.endsWith("64x64") ? 96 : 100) : label.endsWith("64x64 wide") ? 90 : 100;
      },
    });
    await backend.dispose();
    expect(decisions.picks.get("linear f32 many rows")).toBe("64x64 wide");
    expect(decisions.picks.get("attention f32 C64")).toBe("32x32");
    expect(labels.some((label) => label.endsWith("64x32"))).toBe(false);
    expect(labels.filter((label) => label.startsWith("attention"))).toHaveLength(2);
    expect(labels.at(-1)).toMatch(/^attention/);
  });

  test("thin products and heads wider than 128 are left to their defaults", () => {
    const problem = { op: "linear", rows: 512, sizes: { O: 1024, I: 16 }, format: "f32" } as const;
    expect(classOf(problem)).toBeUndefined();
    expect(classOf({ ...problem, sizes: { O: 1024, I: 896 } })).toBe("linear f32 many rows");
    expect(classOf({ op: "attention", rows: 0, sizes: { C: 256 }, format: "f32" })).toBeUndefined();
  });
});

test("the report comes through the platform's own createBackend", async () => {
  const seen: string[] = [];
  const create: Parameters<typeof testGpu>[0] = (_, { check }) => check!((options = {}) => createTestBackend(options));
  if (reason !== undefined) return;
  const report = await testGpu(create, { cases: ["rope"], onEntry: ({ name }) => void seen.push(name) });
  expect([report.isUsable, seen]).toEqual([true, ["rope"]]);
  await expect(testGpu(async () => createReferenceBackend())).rejects.toMatchObject({ code: "bad-request" });
});

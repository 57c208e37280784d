// A WebGPU backend that was tested before it is trusted. At its first start on a device the self-test and the tuner run on a backend of
// their own; what they found is kept under a name made of the device, the browser and the kernels' texts, and later starts read it.
// Software devices are skipped: they are tested where the kernels are made, and tuning on them means nothing.

import { EngineError } from "../errors.ts";
import { describeSelfTest, selfTest } from "../selfTest.ts";
import { CASE_NAMES, deviceCase } from "../selfTestCases.ts";
import { sha256 } from "../weights/sha256.ts";
import type { WebGpuBackend } from "./backend.ts";
import { createDecisions, type Decisions } from "./decisions.ts";
import { lowerSteps } from "./kernels/fuse.ts";
import { type TuneOptions, tune } from "./tuner.ts";

/** Where verdicts are kept: a folder in Node, the Cache API in a browser. A verdict is text, below 10 kB. */
export interface VerdictStore {
  read(name: string): Promise<string | undefined>;
  write(name: string, verdict: string): Promise<void>;
}

export interface CheckOptions {
  readonly verdicts: VerdictStore;
  /** Software devices too. Default false. */
  readonly checksSoftware?: boolean;
  readonly tuning?: TuneOptions;
  /** Of the self-test. Default: all. */
  readonly cases?: readonly string[];
}

/** Raised when a verdict's form changes. */
const FORMAT = 1;

interface Verdict {
  readonly format: typeof FORMAT;
  readonly isUsable: boolean;
  /** Failures in words. */
  readonly report: string;
  readonly failed: readonly string[];
  readonly picks: Readonly<Record<string, string>>;
}

/** undefined for what is no verdict of this format: then it is found again. */
const parse = (text: string | undefined): Verdict | undefined => {
  if (text === undefined) return undefined;
  try {
    const found = JSON.parse(text) as Partial<Verdict> | null;
    const isWhole =
      found?.format === FORMAT &&
      typeof found.isUsable === "boolean" &&
      typeof found.report === "string" &&
      Array.isArray(found.failed) &&
      typeof found.picks === "object" &&
      found.picks !== null;
    return isWhole ? (found as Verdict) : undefined;
  } catch {
    return undefined;
  }
};

/** Another driver, browser or kernel is another name. */
const nameOf = async ({ identity, target }: WebGpuBackend): Promise<string> => {
  const { choose: _, ...plain } = target;
  const texts = CASE_NAMES.flatMap((name) => lowerSteps(deviceCase(name).plan.steps, plain).map(({ source }) => source));
  const agent = (globalThis as { navigator?: { userAgent?: string } }).navigator?.userAgent ?? "";
  return sha256(new TextEncoder().encode(JSON.stringify([FORMAT, identity, agent, [...target.features], target.allowsInexact, texts])));
};

const refuse = (report: string): EngineError =>
  new EngineError(
    "wrong-results",
    `webgpu self-test: every operation has a right kernel, got\n${report}\nuse the device wasm, and report this one`,
  );

/**
 * `open` makes a backend whose kernels are chosen by what it is given. Throws EngineError("wrong-results") when an operation has no
 * kernel that computes right on this device.
 */
export const openChecked = async (
  open: (options: Pick<Decisions, "choose">) => Promise<WebGpuBackend>,
  { verdicts, checksSoftware = false, tuning = {}, cases }: CheckOptions,
): Promise<WebGpuBackend> => {
  const decisions = createDecisions();
  const backend = await open({ choose: decisions.choose });
  if (backend.target.isSoftware && !checksSoftware) return backend;
  try {
    const name = await nameOf(backend);
    // A store that fails (a full disk, a private window) costs a test at every start, not the policy.
    const known = parse(await verdicts.read(name).catch(() => undefined));
    if (known) {
      if (!known.isUsable) throw refuse(known.report);
      for (const variant of known.failed) decisions.failed.add(variant);
      for (const [problems, variant] of Object.entries(known.picks)) decisions.picks.set(problems, variant);
      return backend;
    }
    const report = await selfTest(backend, decisions, cases ? { cases } : {});
    if (report.isUsable) await tune(backend, decisions, tuning);
    const verdict: Verdict = {
      format: FORMAT,
      isUsable: report.isUsable,
      report: describeSelfTest(report),
      failed: [...decisions.failed],
      picks: Object.fromEntries(decisions.picks),
    };
    await verdicts.write(name, JSON.stringify(verdict)).catch(() => {});
    if (!report.isUsable) throw refuse(verdict.report);
  } catch (error) {
    await backend.dispose();
    throw error;
  }
  // The test's tensors go with its backend.
  await backend.dispose();
  return open({ choose: decisions.choose });
};

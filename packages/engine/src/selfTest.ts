// The self-test of a device: every kernel variant that may come to be used, on small cases, against the reference executor. Drivers are
// where WebGPU goes wrong (scrambled output, wrong sums), and a wrong kernel trains a wrong policy without a word. A variant that fails
// is switched off; an operation without a right variant makes the device unusable, and the policy runs on WASM.

import type { Backend, HostArray } from "./plan/backend.ts";
import { operandsOf, type Tensor } from "./plan/step.ts";
import { createReferenceBackend } from "./reference/backend.ts";
import { CASE_NAMES, type DeviceCase, deviceCase } from "./selfTestCases.ts";
import { type Decisions, familyOf, type Seen, shortlist } from "./webgpu/decisions.ts";
import type { Variant } from "./webgpu/kernels/target.ts";

export interface SelfTestEntry {
  /** "attention, heads of 64, window". */
  readonly name: string;
  /** "attention f32 64x64": operation, weight format, variant; absent where there is only one way. */
  readonly variant?: string;
  /** Largest |got − want| / (1 + |want|); Infinity where a result is missing or no number. */
  readonly error: number;
  readonly tolerance: number;
  readonly isRight: boolean;
  /** What the device said instead of results. */
  readonly message?: string;
}

export interface SelfTestReport {
  readonly device: string;
  /** Every operation has a right variant. */
  readonly isUsable: boolean;
  readonly entries: readonly SelfTestEntry[];
}

export interface SelfTestOptions {
  /** Default: all. */
  readonly cases?: readonly string[];
  readonly onEntry?: (entry: SelfTestEntry) => void;
}

/** Of f32 against f64, over sums of at most 288 products. A wrong kernel is off by 1. */
const TOLERANCE = 2e-4;
/** f16 tiles round to 11 bits. */
const INEXACT_TOLERANCE = 2e-2;

const errorOf = (got: HostArray, want: HostArray): number => {
  let worst = got.length === want.length ? 0 : Number.POSITIVE_INFINITY;
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(got[i]! - want[i]!) / (1 + Math.abs(want[i]!));
    // NaN on one side alone is as wrong as can be; no case has one on both.
    worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(worst, error);
  }
  return worst;
};

const rootOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;
const outputsOf = ({ plan }: DeviceCase): Tensor[] =>
  [...new Set(plan.steps.flatMap((step) => operandsOf(step).writes.map(rootOf)))].filter(({ home }) => home !== "arena");

const allocate = async (backend: Backend, { data }: DeviceCase): Promise<void> => {
  for (const [tensor, values] of data) if (tensor.home !== "io") await backend.allocate(tensor, values);
};

const run = async (backend: Backend, made: DeviceCase): Promise<HostArray[]> => {
  const executable = await backend.compile(made.plan);
  try {
    for (const [tensor, values] of made.data) if (tensor.home !== "weights") backend.write(tensor, values as HostArray);
    await executable.run(made.vars);
    const results: HostArray[] = [];
    for (const tensor of outputsOf(made)) results.push(await backend.read(tensor));
    return results;
  } finally {
    executable.dispose();
  }
};

/** The problems whose variant the case runs: of those that differ in rows alone, the class that its rows fall into. */
const exercised = (seen: readonly Seen[], { vars: { rows = 0, outRows = 0 } }: DeviceCase): Seen[] => {
  const found = new Map<string, Seen>();
  for (const one of [...seen].sort((a, b) => a.problem.rows - b.problem.rows)) {
    const isLargeEnough = one.problem.rows === 0 || one.problem.rows >= Math.max(rows, outRows);
    if (isLargeEnough && !found.has(familyOf(one.problem))) found.set(familyOf(one.problem), one);
  }
  return [...found.values()];
};

interface Family {
  readonly family: string;
  readonly variants: readonly Variant[];
}
type Choice = readonly { readonly family: string; readonly variant: Variant }[];

/** Every choice of one variant for each family. */
const choicesOf = (families: readonly Family[]): readonly Choice[] =>
  families.reduce<readonly Choice[]>(
    (choices, { family, variants }) => choices.flatMap((choice) => variants.map((variant) => [...choice, { family, variant }])),
    [[]],
  );

/**
 * Runs the cases on a backend that was opened with `decisions.choose`, and writes what fails into `decisions.failed`.
 * Takes as long as the device's compiler needs for about a hundred kernels. A device that is lost meanwhile throws EngineError.
 */
export const selfTest = async (
  backend: Backend,
  decisions: Decisions,
  { cases = CASE_NAMES, onEntry = () => {} }: SelfTestOptions = {},
): Promise<SelfTestReport> => {
  const entries: SelfTestEntry[] = [];
  let isUsable = true;
  for (const name of cases) {
    const [made, spec] = [deviceCase(name), deviceCase(name)];
    const reference = createReferenceBackend();
    await allocate(reference, spec);
    const want = await run(reference, spec);
    await allocate(backend, made);

    const attempt = async (variant: string | undefined, tolerance: number): Promise<SelfTestEntry> => {
      let error = Number.POSITIVE_INFINITY;
      let message: string | undefined;
      try {
        const got = await run(backend, made);
        error = Math.max(...got.map((values, i) => errorOf(values, want[i]!)));
      } catch (cause) {
        // A kernel that does not compile is a failing variant; a device that is gone is not.
        if ((cause as { code?: string }).code !== "device") throw cause;
        ({ message } = cause as Error);
      }
      return { name, error, tolerance, isRight: error <= tolerance, ...(variant && { variant }), ...(message && { message }) };
    };
    const note = (entry: SelfTestEntry): void => {
      entries.push(entry);
      onEntry(entry);
    };

    const seen = decisions.watch();
    // Compiled with what is the choice now, only to find out which problems there are.
    const first = await backend.compile(made.plan).catch(() => undefined);
    first?.dispose();
    const problems = exercised([...seen], made).map(({ problem, candidates }) => ({
      family: familyOf(problem),
      variants: shortlist(problem, candidates),
    }));
    if (problems.length === 0) {
      const entry = await attempt(undefined, TOLERANCE);
      note(entry);
      isUsable &&= entry.isRight;
    }
    for (const one of problems) {
      for (const variant of one.variants) {
        // Wrong results count against a variant only when no choice for the other families of the case gives right ones.
        let best: SelfTestEntry | undefined;
        for (const others of choicesOf(problems.filter((other) => other !== one))) {
          const all = [{ family: one.family, variant }, ...others];
          const tolerance = all.some(({ variant: { isInexact } }) => isInexact) ? INEXACT_TOLERANCE : TOLERANCE;
          const forced = new Map(all.map(({ family, variant: { name } }) => [family, name]));
          const entry = await decisions.force(forced, () => attempt(`${one.family} ${variant.name}`, tolerance));
          if (!best || entry.error < best.error) best = entry;
          if (entry.isRight) break;
        }
        note(best!);
        if (!best!.isRight) decisions.failed.add(`${one.family} ${variant.name}`);
      }
      isUsable &&= one.variants.some(({ name }) => !decisions.failed.has(`${one.family} ${name}`));
    }
  }
  return { device: backend.device.description, isUsable, entries };
};

/** One line for each failure, or one that says that there is none. */
export const describeSelfTest = ({ device, isUsable, entries }: SelfTestReport): string => {
  const wrong = entries.filter(({ isRight }) => !isRight);
  const head = `${device}: ${entries.length - wrong.length} of ${entries.length} kernel checks are right${isUsable ? "" : "; this device cannot be used"}`;
  const line = ({ name, variant, error, tolerance, message }: SelfTestEntry): string =>
    `  ${name}${variant ? ` (${variant})` : ""}: ${message ?? `off by ${error.toExponential(1)}, allowed ${tolerance.toExponential(0)}`}`;
  return [head, ...wrong.map(line)].join("\n");
};

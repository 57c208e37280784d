// What a kernel's text may depend on beside its operation: the device's features and limits, and which of several equivalent variants
// is to be used. A step whose kernels come in variants lists them as candidates, the default first; a tuner may choose another one.
// Nothing here touches WebGPU.

import type { OpName } from "../../plan/step.ts";
import type { WeightFormat } from "../../weights/formats.ts";

/** Optional WebGPU features that a kernel variant may need. */
export type Feature = "shader-f16" | "subgroups";

/** What a choice may depend on: the operation and its sizes, never its tensors. */
export interface Problem {
  readonly op: OpName;
  /** Row class: the largest row count that the choice is for, a power of two or the plan's capacity. */
  readonly rows: number;
  /** Widths by name: { O, I } of a weight, { H, K, C } of an attention. */
  readonly sizes: Readonly<Record<string, number>>;
  /** How the weight is stored; "f32" where there is none. */
  readonly format: WeightFormat;
}

/** One way to do a step's work. Candidates of one problem differ in speed alone, unless isInexact. */
export interface Variant {
  /** Distinct among the candidates of a problem; stands in the kernel's label. */
  readonly name: string;
  readonly needs?: readonly Feature[];
  /** Rounds more than f32 does (f16 tiles): a candidate only where Target.allowsInexact. */
  readonly isInexact?: boolean;
}

export interface Target {
  readonly features: ReadonlySet<Feature>;
  /** A processor that plays a GPU: short texts and fat threads beat tiles that suit a GPU. */
  readonly isSoftware: boolean;
  /** Bytes of the largest storage binding. */
  readonly bindingBytes: number;
  /** Lets variants in whose results are not the f32 ones. */
  readonly allowsInexact: boolean;
  /** The tuner's choice, one of the candidates; undefined: the first of them. */
  readonly choose?: (problem: Problem, candidates: readonly Variant[]) => Variant | undefined;
}

/** WebGPU's guaranteed storage binding. */
const PROMISED_BINDING_BYTES = 128 << 20;

/** What every device can do. */
export const PORTABLE: Target = {
  features: new Set(),
  isSoftware: false,
  bindingBytes: PROMISED_BINDING_BYTES,
  allowsInexact: false,
};

/** One text for equal problems: the key under which a choice is kept. */
export const problemKey = ({ op, rows, sizes, format }: Problem): string =>
  `${op} ${rows} ${Object.entries(sizes)
    .map(([name, value]) => `${name}${value}`)
    .join(" ")} ${format}`;

/** The candidate to use: the tuner's where it has one, else the first that this device can run. */
export const chosen = <V extends Variant>(target: Target, problem: Problem, candidates: readonly V[]): V => {
  const usable = candidates.filter(
    ({ needs = [], isInexact = false }) => needs.every((feature) => target.features.has(feature)) && (!isInexact || target.allowsInexact),
  );
  const wanted = target.choose?.(problem, usable);
  return usable.find(({ name }) => name === wanted?.name) ?? usable[0]!;
};

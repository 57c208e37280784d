// What an operation of the reference executor is: a step, the numbers of its operands, the run-time scalars; it returns nothing.

import type { OpName, Step, Tensor, Vars } from "../plan/step.ts";

/** Frozen weights stay in f32, which is exact; activations, caches and states are f64. */
export type Values = Float64Array | Float32Array | Int32Array;
export type ValuesOf = (tensor: Tensor) => Values;
export type StepOf<Name extends OpName> = Extract<Step, { op: Name }>;
export type Operation<Name extends OpName> = (step: StepOf<Name>, valuesOf: ValuesOf, vars: Vars) => void;
export type Operations<Name extends OpName> = { readonly [N in Name]: Operation<N> };

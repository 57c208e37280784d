// The first values of an adapter: A random, B zero, so that the policy starts as its base model exactly.

import { LINEARS } from "../model/spec.ts";
import type { LoraTensors } from "../model/tensors.ts";
import { sizeOf, type Tensor } from "../plan/step.ts";
import { uniform } from "../random.ts";

/** Where a view of the flat buffer lies in its values. */
export const partOf = (values: Float32Array, view: Tensor): Float32Array => {
  const offset = view.view?.offset ?? 0;
  return values.subarray(offset, offset + sizeOf(view));
};

/**
 * Values of the flat buffer: A [R, I] uniform in ±1/√I (PEFT's Kaiming initialisation with a = √5), B zero, gaps zero.
 * The same seed (u32) and layout give the same values everywhere.
 */
export const initLora = (layout: LoraTensors, seed: number): Float32Array<ArrayBuffer> => {
  const values = new Float32Array(sizeOf(layout.flat));
  for (const layer of layout.layers) {
    for (const linear of LINEARS) {
      const { a } = layer[linear];
      const part = partOf(values, a);
      const bound = 1 / Math.sqrt(a.shape[1]!);
      const first = a.view?.offset ?? 0;
      for (let i = 0; i < part.length; i++) part[i] = (2 * uniform(seed, first + i) - 1) * bound;
    }
  }
  return values;
};

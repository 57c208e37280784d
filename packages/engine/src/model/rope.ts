// Rotary frequencies and the table that the kernels read. Pure. What is left out (dynamic, yarn, longrope) families.ts refuses.

import type { RopeSpec } from "./spec.ts";

/**
 * Angle by which pair i turns from one position to the next: theta^(−2i/C), i < C/2, scaled.
 * llama3 (Llama 3.1): a wavelength beyond original/low is divided by the factor, one below original/high stays, between them the
 * two are mixed linearly in original/wavelength.
 */
export const inverseFrequencies = (headWidth: number, { theta, scaling }: RopeSpec): Float64Array =>
  Float64Array.from({ length: headWidth / 2 }, (_, i) => {
    const frequency = theta ** ((-2 * i) / headWidth);
    if (!scaling) return frequency;
    if (scaling.kind === "linear") return frequency / scaling.factor;
    const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalPositions } = scaling;
    const turns = (originalPositions * frequency) / (2 * Math.PI);
    if (turns < low) return frequency / factor;
    if (turns > high) return frequency;
    const kept = (turns - low) / (high - low);
    return ((1 - kept) * frequency) / factor + kept * frequency;
  });

/**
 * cos and sin of position × frequency, [P, C]: cos in columns 0 … C/2 − 1, sin in the rest. Computed in f64: at position 10⁵
 * an f32 angle is off by up to 0.004 rad.
 */
export const ropeTable = (positions: number, headWidth: number, rope: RopeSpec): Float32Array<ArrayBuffer> => {
  const half = headWidth / 2;
  const frequencies = inverseFrequencies(headWidth, rope);
  const table = new Float32Array(positions * headWidth);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      const angle = p * frequencies[i]!;
      table[p * headWidth + i] = Math.cos(angle);
      table[p * headWidth + half + i] = Math.sin(angle);
    }
  }
  return table;
};

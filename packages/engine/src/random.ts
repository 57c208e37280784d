// Random numbers as a pure function of integers: no state, so a value depends on its seed and its place and nothing else.
// Jarzynski & Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020: pcg_hash. Not for secrets.

/** u32 → u32. */
export const pcg = (value: number): number => {
  const state = (Math.imul(value, 747796405) + 2891336453) >>> 0;
  const word = Math.imul((state >>> ((state >>> 28) + 4)) ^ state, 277803737) >>> 0;
  return ((word >>> 22) ^ word) >>> 0;
};

/** Uniform in [0, 1), a multiple of 2⁻²⁴ and so exact in f32. seed and index are u32. */
export const uniform = (seed: number, index: number): number => (pcg((seed ^ pcg(index)) >>> 0) >>> 8) * 2 ** -24;

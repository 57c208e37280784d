// Numbers from a seed, for tests and benches that want the same ones each time.

/** 0 ≤ x < 1, by a linear congruential generator: good enough to fill arrays and to choose among faults. */
export const randoms = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
};

// Small seeded randomness: order of tasks and seeds of rollouts, equal on every machine and after every crash. Not for secrets.

/** MurmurHash3's finaliser: every input bit flips each output bit about half of the time. u32 → u32. */
const scramble = (value: number): number => {
  let mixed = value >>> 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
};

/** u32 of a list of integers; order matters. */
export const seedFrom = (...parts: readonly number[]): number =>
  parts.reduce((hash, part) => scramble(Math.imul(hash, 31) + scramble(part + 0x9e3779b9)), 0x2545f491);

/** Numbers in [0, 1), 32 bits each (mulberry32). */
export function createRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Fisher–Yates over 0 … length − 1. */
export function permutation(length: number, seed: number): Int32Array {
  const random = createRandom(seed);
  const order = Int32Array.from({ length }, (_, i) => i);
  for (let i = length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

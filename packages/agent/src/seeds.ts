// Seeds by integer hashing: the same rollout samples the same tokens on every machine, after a crash too.

/** MurmurHash3's finaliser: every input bit flips each output bit about half of the time. u32 → u32. */
const scramble = (value: number): number => {
  let mixed = value >>> 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
};

/** u32 of a text: FNV-1a over its UTF-16 code units, finalised. */
export const seedOf = (text: string): number => {
  let hash = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  return scramble(hash);
};

/** The seed of one call: u32 of the attempt's seed and the turn (from 0). */
export const seedOfTurn = (seed: number, turn: number): number => scramble((seed >>> 0) ^ scramble(Math.imul(turn + 1, 0x9e3779b1)));

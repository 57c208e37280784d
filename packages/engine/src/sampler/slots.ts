// Rows of the KV cache, and what each still holds. A freed row keeps its keys and values until somebody else needs it: an
// agent's next turn repeats the conversation, and then only the new tokens are fed. K and V of a row are bitwise the same
// whoever computed them beside whom (plan/step.ts), so reuse never changes a completion.
//
// Left out: sharing one prefix between rows that are alive at the same time. That needs block tables in the cache.

export interface Slot {
  /** Row of the cache. */
  readonly index: number;
  /** [P]: the tokens that were fed, by position. */
  readonly tokens: Int32Array;
  /** Positions 0 … held − 1 have valid K and V. */
  held: number;
  /** The adapter that computed them: another one's are no use to it. */
  owner: unknown;
}

export interface Slots {
  /** A free row, the one that already holds most of this prompt for this owner; undefined when all are taken. held < prompt.length. */
  take(prompt: Int32Array, owner?: unknown): Slot | undefined;
  release(slot: Slot): void;
  /** Nothing held counts any more: K and V depend on the adapter. */
  forget(): void;
  readonly freeCount: number;
}

/** Length of the common beginning of the prompt and what the slot holds. */
const common = (slot: Slot, prompt: Int32Array, owner: unknown): number => {
  if (slot.owner !== owner) return 0;
  // The last prompt token is always fed: its logits are where sampling starts.
  const limit = Math.min(slot.held, prompt.length - 1);
  let length = 0;
  while (length < limit && slot.tokens[length] === prompt[length]) length++;
  return length;
};

export const createSlots = (count: number, positions: number): Slots => {
  const all: Slot[] = Array.from({ length: count }, (_, index) => ({
    index,
    tokens: new Int32Array(positions),
    held: 0,
    owner: undefined,
  }));
  const free = new Set(all);
  return {
    take(prompt, owner) {
      let best: Slot | undefined;
      let bestCommon = -1;
      for (const slot of free) {
        const length = common(slot, prompt, owner);
        // Among equals the row that loses least.
        if (length > bestCommon || (length === bestCommon && slot.held < best!.held)) {
          best = slot;
          bestCommon = length;
        }
      }
      if (!best) return undefined;
      free.delete(best);
      best.held = bestCommon;
      best.owner = owner;
      return best;
    },
    release(slot) {
      free.add(slot);
    },
    forget() {
      for (const slot of all) slot.held = 0;
    },
    get freeCount() {
      return free.size;
    },
  };
};

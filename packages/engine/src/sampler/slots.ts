// Rows of the KV cache, and what each still holds. A freed row keeps its keys and values until somebody else needs it: an
// agent's next turn repeats the conversation, and then only the new tokens are fed. What another row holds can be copied
// (burst.ts), so a group's prompt is fed once. K and V of a token are bitwise the same whoever computed them beside whom
// (plan/step.ts), so neither ever changes a completion.
//
// Left out: block tables. They would also save the memory of shared beginnings; a copy needs no other attention kernel.

export interface Slot {
  /** Row of the cache. */
  readonly index: number;
  /** [P]: the tokens that were fed, by position. */
  readonly tokens: Int32Array;
  /** Positions 0 … held − 1 have valid K and V. */
  held: number;
  /** The adapter that computed them: they are of no use to another. */
  owner: unknown;
}

export interface Slots {
  /** Every row, free or taken. */
  readonly all: readonly Slot[];
  /** A free row; undefined when all are taken. What it holds of the prompt for this owner stays (held < prompt.length), the rest is given up. */
  take(prompt: Int32Array, owner?: unknown): Slot | undefined;
  /** The row is of use to somebody: take gives it away after the others. */
  touch(slot: Slot): void;
  release(slot: Slot): void;
  /** Nothing held counts any more: K and V depend on the adapter. */
  forget(): void;
  readonly freeCount: number;
}

/** Length of the common beginning of the prompt, without its last token, and of `length` other tokens. */
export const sharedLength = (prompt: Int32Array, tokens: Int32Array, length: number): number => {
  // The last prompt token is always fed: its logits are where sampling starts.
  const limit = Math.min(length, prompt.length - 1);
  let shared = 0;
  while (shared < limit && tokens[shared] === prompt[shared]) shared++;
  return shared;
};

export const createSlots = (count: number, positions: number): Slots => {
  const all: Slot[] = Array.from({ length: count }, (_, index) => ({
    index,
    tokens: new Int32Array(positions),
    held: 0,
    owner: undefined,
  }));
  /** The one whose last use is longest ago comes first. */
  const free = new Set(all);
  const sharedWith = (slot: Slot, prompt: Int32Array, owner: unknown): number =>
    slot.owner === owner ? sharedLength(prompt, slot.tokens, slot.held) : 0;
  return {
    all,
    take(prompt, owner) {
      let best: Slot | undefined;
      let shared = -1;
      for (const slot of free) {
        const length = sharedWith(slot, prompt, owner);
        // Among equals the row that loses least.
        if (length > shared || (length === shared && slot.held < best!.held)) {
          best = slot;
          shared = length;
        }
      }
      if (!best) return undefined;
      // A row that would lose most of what it holds is worth more where it is: the beginning can be copied from it.
      if (2 * shared < best.held) {
        const [oldest] = free;
        best = [...free].find(({ held }) => held === 0) ?? oldest!;
        shared = sharedWith(best, prompt, owner);
      }
      free.delete(best);
      best.held = shared;
      best.owner = owner;
      return best;
    },
    touch(slot) {
      if (free.delete(slot)) free.add(slot);
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

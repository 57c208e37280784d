// What was worked out lately, by the text that it came of. Two halves: what is asked for comes into the fresh one, and when that is full
// the other is let go. That costs a look-up; an order of all that is held would cost a deletion, an insertion and their rehashing each time.

export interface Recent<T> {
  get(text: string): T | undefined;
  /** `size`: characters that the value holds beside the text. */
  set(text: string, value: T, size: number): void;
}

/** Holds at most `maxCharacters`, texts and values together; nothing that is more than half of that. */
export const createRecent = <T>(maxCharacters: number): Recent<T> => {
  type Half = Map<string, { readonly value: T; readonly size: number }>;
  let fresh: Half = new Map();
  let stale: Half = new Map();
  let characters = 0; // in the fresh half

  const keep = (text: string, value: T, size: number): void => {
    const added = text.length + size;
    if (added > maxCharacters / 2) return;
    if (characters + added > maxCharacters / 2) {
      stale = fresh;
      fresh = new Map();
      characters = 0;
    }
    fresh.set(text, { value, size });
    characters += added;
  };

  return {
    get(text) {
      const found = fresh.get(text);
      if (found !== undefined) return found.value;
      const old = stale.get(text);
      if (old === undefined) return undefined;
      keep(text, old.value, old.size);
      return old.value;
    },
    set(text, value, size) {
      if (!fresh.has(text)) keep(text, value, size);
    },
  };
};

// What was worked out lately, by the text that it came of. What was asked for longest ago goes first.

export interface Recent<T> {
  get(text: string): T | undefined;
  /** `size`: characters that the value holds beside the text. */
  set(text: string, value: T, size: number): void;
}

/** Holds at most `maxCharacters`, texts and values together. */
export const createRecent = <T>(maxCharacters: number): Recent<T> => {
  const held = new Map<string, { readonly value: T; readonly size: number }>();
  let characters = 0;
  return {
    get(text) {
      const found = held.get(text);
      if (found === undefined) return undefined;
      held.delete(text); // and to the end of the order
      held.set(text, found);
      return found.value;
    },
    set(text, value, size) {
      const added = text.length + size;
      if (added > maxCharacters || held.has(text)) return;
      held.set(text, { value, size: added });
      characters += added;
      for (const [oldest, { size: freed }] of held) {
        if (characters <= maxCharacters) break;
        held.delete(oldest);
        characters -= freed;
      }
    },
  };
};

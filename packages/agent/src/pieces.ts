// Text → ids, a piece at a time: a tokenizer cuts a text at its added tokens before it does anything else, so what lies between
// two of them has its ids wherever it stands, and a history that was tokenised is not tokenised again. Not for the tokenizers
// whose pieces know of each other: those get the whole text.

import { createRecent } from "./recent.ts";

/** About 2 MiB of texts and as much of ids. */
const KEPT_CHARACTERS = 2 ** 20;

interface AddedToken {
  readonly content: string;
  readonly normalized?: boolean | null;
  readonly lstrip?: boolean | null;
  readonly rstrip?: boolean | null;
}

type PreTokenizer =
  | { readonly type: "Sequence"; readonly pretokenizers: readonly PreTokenizer[] }
  | { readonly type: "Metaspace"; readonly prepend_scheme?: string | null }
  | { readonly type: "Split" }; // and all others

/** Metaspace may mark the first piece alone. */
const marksFirst = (part: PreTokenizer): boolean => {
  if (part.type === "Sequence") return part.pretokenizers.some(marksFirst);
  return part.type === "Metaspace" && part.prepend_scheme === "first";
};

/** The words that begin alike share their beginning; by UTF-16 unit, as the library goes. */
interface Trie {
  /** The length of the word that ends here. */
  end?: number;
  readonly next: Map<number, Trie>;
}

const trieOf = (words: readonly string[]): Trie => {
  const root: Trie = { next: new Map() };
  for (const word of words) {
    let node = root;
    for (let at = 0; at < word.length; at++) {
      const unit = word.charCodeAt(at);
      let next = node.next.get(unit);
      if (next === undefined) {
        next = { next: new Map() };
        node.next.set(unit, next);
      }
      node = next;
    }
    node.end = word.length;
  }
  return root;
};

type Cut = { readonly from: number; readonly to: number };

/** Finds the first cut from `start` on: leftmost, then longest, as the library does. */
const cutter = (words: readonly string[]): ((text: string, start: number) => Cut | undefined) => {
  const root = trieOf(words);
  const units = [...root.next.keys()].map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`);
  const first = new RegExp(`[${units.join("")}]`, "g");
  return (text, start) => {
    first.lastIndex = start;
    for (let found = first.exec(text); found !== null; found = first.exec(text)) {
      const from = found.index;
      let length = 0;
      let node: Trie | undefined = root;
      for (let at = from; node !== undefined && at <= text.length; at++) {
        length = node.end ?? length;
        node = node.next.get(text.charCodeAt(at));
      }
      if (length > 0) return { from, to: from + length };
    }
    return undefined;
  };
};

/** undefined: the library cuts nowhere, or only with a look at the neighbours. */
const cutterOf = (tokenizer: Readonly<Record<string, unknown>>): ReturnType<typeof cutter> | undefined => {
  const added = (tokenizer.added_tokens ?? []) as readonly AddedToken[];
  if (added.some(({ lstrip, rstrip }) => lstrip || rstrip)) return undefined;
  if (tokenizer.pre_tokenizer && marksFirst(tokenizer.pre_tokenizer as PreTokenizer)) return undefined;
  // those that are normalized are looked for within a piece
  const words = added.filter(({ content, normalized }) => content !== "" && !(normalized && tokenizer.normalizer));
  return words.length === 0 ? undefined : cutter(words.map(({ content }) => content));
};

/** `tokenizer` is the content of tokenizer.json; `encode` gives the ids of any text. The function gives the same, in arrays of its own. */
export const createPieceEncoder = (
  tokenizer: Readonly<Record<string, unknown>>,
  encode: (text: string) => readonly number[],
): ((text: string) => Int32Array) => {
  const nextCut = cutterOf(tokenizer);
  const recent = createRecent<Int32Array>(KEPT_CHARACTERS);

  const idsOf = (piece: string): Int32Array => {
    const known = recent.get(piece);
    if (known !== undefined) return known;
    const ids = new Int32Array(encode(piece));
    recent.set(piece, ids, 2 * ids.length);
    return ids;
  };

  return (text) => {
    const parts: Int32Array[] = [];
    let length = 0;
    const take = (from: number, to: number): void => {
      if (from === to) return;
      const ids = idsOf(text.slice(from, to));
      parts.push(ids);
      length += ids.length;
    };
    let from = 0;
    for (let cut = nextCut?.(text, 0); cut !== undefined; cut = nextCut?.(text, from)) {
      take(from, cut.from);
      take(cut.from, cut.to);
      from = cut.to;
    }
    take(from, text.length);
    const all = new Int32Array(length);
    let at = 0;
    for (const ids of parts) {
      all.set(ids, at);
      at += ids.length;
    }
    return all;
  };
};

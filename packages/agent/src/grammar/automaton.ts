// A deterministic automaton over UTF-8 bytes: where an answer stands in its grammar, byte by byte, since a token may end inside a character.
// States from which the end cannot be reached do not exist here, so what is alive can always be finished.

import { DFA, NFA } from "refa";
import { AgentError } from "../errors.ts";
import { type Expression, LAST_CHARACTER } from "./expression.ts";

/** A state of the automaton and, inside a character, its first bits and how many bytes are still to come. Interned: equal places are identical. */
export interface Place {
  readonly state: number;
  readonly missing: 0 | 1 | 2 | 3;
  readonly bits: number;
}

export interface Automaton {
  readonly start: Place;
  /** The place after one more byte; undefined when no text of the grammar goes on so. */
  step(place: Place, byte: number): Place | undefined;
  /** May the text end here? */
  isEnd(place: Place): boolean;
}

interface Range {
  readonly min: number;
  readonly max: number;
  readonly to: number;
}

const MAX_NODES = 50_000;
/** Halves of UTF-16 pairs: no characters, and no UTF-8. */
const [FIRST_HALF, LAST_HALF] = [0xd800, 0xdfff];
/** The smallest code point of a character with so many bytes after its first. */
const SMALLEST = [0, 0x80, 0x800, 0x10000];

/** @throws AgentError "bad-request" when nothing matches, or the grammar is too large. */
export const compileAutomaton = (expression: Expression, where: string): Automaton => {
  const { nodes, finals, initial } = toDfa(expression, where);
  const indices = new Map([...nodes].map((node, index) => [node, index]));
  const ranges = [...nodes].map((node): readonly Range[] =>
    [...node.out]
      .flatMap(([{ min, max }, target]) => {
        const to = indices.get(target);
        return to === undefined ? [] : [{ min, max, to }];
      })
      .sort((a, b) => a.min - b.min),
  );
  const isFinal = [...nodes].map((node) => finals.has(node));

  const places = new Map<number, Place>();
  const placeOf = (state: number, missing: Place["missing"], bits: number): Place => {
    const key = (state * 4 + missing) * 2 ** 16 + bits;
    let place = places.get(key);
    if (!place) {
      place = { state, missing, bits };
      places.set(key, place);
    }
    return place;
  };
  /** The first range of a state that ends at or after a code point. */
  const rangeFrom = (state: number, code: number): Range | undefined => {
    const all = ranges[state] as readonly Range[];
    let [low, high] = [0, all.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((all[middle] as Range).max < code) low = middle + 1;
      else high = middle;
    }
    return all[low];
  };
  const character = (state: number, code: number): Place | undefined => {
    if (code >= FIRST_HALF && code <= LAST_HALF) return undefined;
    const range = rangeFrom(state, code);
    return range && range.min <= code ? placeOf(range.to, 0, 0) : undefined;
  };
  const inside = (state: number, missing: 1 | 2 | 3, bits: number, length: number): Place | undefined => {
    const first = Math.max(bits * 2 ** (6 * missing), SMALLEST[length] as number);
    const last = (bits + 1) * 2 ** (6 * missing) - 1;
    if (first >= FIRST_HALF && last <= LAST_HALF) return undefined;
    const range = rangeFrom(state, first);
    return range && range.min <= last ? placeOf(state, missing, bits) : undefined;
  };

  return {
    start: placeOf(indices.get(initial) as number, 0, 0),
    step: ({ state, missing, bits }, byte) => {
      if (missing === 0) {
        if (byte < 0x80) return character(state, byte);
        if (byte >= 0xc2 && byte < 0xe0) return inside(state, 1, byte & 0x1f, 1);
        if (byte >= 0xe0 && byte < 0xf0) return inside(state, 2, byte & 0x0f, 2);
        if (byte >= 0xf0 && byte < 0xf5) return inside(state, 3, byte & 0x07, 3);
        return undefined;
      }
      if ((byte & 0xc0) !== 0x80) return undefined;
      const more = bits * 64 + (byte & 0x3f);
      if (missing > 1) {
        // an overlong form: the first byte's bits were zero, and so are these
        const isOverlong = bits === 0 && (missing === 2 ? more < 0x20 : more < 0x10);
        return isOverlong ? undefined : inside(state, (missing - 1) as 1 | 2, more, 0);
      }
      return character(state, more);
    },
    isEnd: ({ state, missing }) => missing === 0 && (isFinal[state] as boolean),
  };
};

const toDfa = (
  expression: Expression,
  where: string,
): { nodes: ReadonlySet<DFA.ReadonlyNode>; finals: ReadonlySet<DFA.ReadonlyNode>; initial: DFA.ReadonlyNode } => {
  let dfa: DFA;
  try {
    const nfa = NFA.fromRegex(expression, { maxCharacter: LAST_CHARACTER }, {}, new NFA.LimitedNodeFactory(MAX_NODES));
    dfa = DFA.fromFA(nfa, new DFA.LimitedNodeFactory(MAX_NODES));
    dfa.minimize();
  } catch (cause) {
    throw new AgentError(
      "bad-request",
      `${where}: must fit in an automaton of ${MAX_NODES} states, got a larger grammar; use fewer optional properties, smaller bounds, or less nesting`,
      { param: where, cause },
    );
  }
  // only what leads to an end
  const before = new Map<DFA.ReadonlyNode, DFA.ReadonlyNode[]>();
  for (const node of dfa.nodes()) for (const target of node.out.values()) before.set(target, [...(before.get(target) ?? []), node]);
  const nodes = new Set<DFA.ReadonlyNode>(dfa.finals);
  for (const node of nodes) for (const source of before.get(node) ?? []) nodes.add(source);
  if (!nodes.has(dfa.initial))
    throw new AgentError("bad-request", `${where}: must match some text, got a grammar that matches none`, { param: where });
  return { nodes, finals: dfa.finals, initial: dfa.initial };
};

// Regular expressions as values, in the form that refa compiles: what a JSON Schema is turned into. Characters are code points.

import { CharSet, type Concatenation, type Element, type NoParent } from "refa";

/** The largest code point. */
export const LAST_CHARACTER = 0x10ffff;

export type Expression = NoParent<Concatenation>;

const one = (element: NoParent<Element>): Expression => ({ type: "Concatenation", elements: [element] });

export const charSet = (...ranges: readonly (readonly [first: number, last: number])[]): CharSet =>
  CharSet.empty(LAST_CHARACTER).union(ranges.map(([min, max]) => ({ min, max })));

export const characters = (set: CharSet): Expression => one({ type: "CharacterClass", characters: set });

/** Exactly this text. */
export const text = (value: string): Expression => ({
  type: "Concatenation",
  elements: Array.from(value, (character) => {
    const code = character.codePointAt(0) as number;
    return { type: "CharacterClass", characters: charSet([code, code]) } as const;
  }),
});

export const sequence = (...parts: readonly Expression[]): Expression => ({
  type: "Concatenation",
  elements: parts.flatMap(({ elements }) => elements),
});

export const anyOf = (...parts: readonly Expression[]): Expression =>
  parts.length === 1 ? (parts[0] as Expression) : one({ type: "Alternation", alternatives: [...parts] });

export const repeated = (part: Expression, min: number, max: number = Number.POSITIVE_INFINITY): Expression =>
  max === 0 ? sequence() : one({ type: "Quantifier", alternatives: [part], min, max, lazy: false });

export const optional = (part: Expression): Expression => repeated(part, 0, 1);

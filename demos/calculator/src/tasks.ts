// Tasks of the calculator demo: a pure function of (split, seed, index), endless, with exact gold answers.
// Train and val never meet: a set of operands belongs to one split by its hash, and each split has its own names and things.
import { calculate } from "./calculator.ts";
import { type Family, templates } from "./templates.ts";

export type Split = "train" | "val";

export interface CalculatorTask {
  readonly question: string;
  /** An integer ≥ 0, in decimal. */
  readonly answer: string;
  readonly family: string;
  readonly expression: string;
}

/** FNV-1a over UTF-16 units, then murmur3's finaliser: 32 bits. `packages/spark/make/calculator.py` computes the same. */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** One fifth of all operand sets is val. Sorted, so that 3+4 and 4+3 lie on the same side: `splitOf([4, 3]) === splitOf([3, 4])`. */
export function splitOf(operands: readonly number[]): Split {
  const key = [...operands].sort((a, b) => a - b).join(",");
  return hashText(key) % 5 === 0 ? "val" : "train";
}

/** Numbers 0 ≤ n < bound: the k-th draw of a task is a hash of its name and k, so nothing is shared between tasks. */
function createDraw(name: string): (bound: number) => number {
  let count = 0;
  return (bound) => hashText(`${name}/${count++}`) % bound;
}

const fill = (text: string, values: Readonly<Record<string, string>>): string =>
  text.replace(/\{(\w)\}/g, (_, key: string) => values[key]!);

/** @param index ≥ 0; the same (split, seed, index) is the same task on every machine. */
export function calculatorTask(split: Split, seed: number, index: number): CalculatorTask {
  const draw = createDraw(`${split}/${seed}/${index}`);
  const pick = <T>(list: readonly T[]): T => list[draw(list.length)]!;
  const family: Family = pick(templates.families);
  const question = pick(family.questions);
  const n = pick(templates.names[split]);
  const t = pick(templates.things[split]);
  for (;;) {
    const operands = family.operands.map(([low, high]) => low + draw(high - low + 1));
    if (splitOf(operands) !== split) continue;
    const [a, b, c] = operands.map(String);
    const values = { n, t, a: a!, b: b!, c: c ?? "" };
    const expression = fill(family.expression, values);
    const answer = calculate(expression);
    if (!/^\d+$/.test(answer)) continue; // a negative or broken number of things is no story
    return { question: fill(question, values), answer, family: family.id, expression };
  }
}

export function calculatorTasks(split: Split, count: number, seed = 0): CalculatorTask[] {
  return Array.from({ length: count }, (_, index) => calculatorTask(split, seed, index));
}

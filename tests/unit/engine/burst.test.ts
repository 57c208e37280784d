// The schedule of a burst, by hand: which rows each run has, what is copied before it, who joins and who is left out.

import { expect, test } from "vitest";
import { burstSteps, type Run, type Sequence, scheduleBurst } from "../../../packages/engine/src/sampler/burst.ts";
import type { Slot } from "../../../packages/engine/src/sampler/slots.ts";

const slot = (index: number, held: readonly number[] = []): Slot => {
  const tokens = new Int32Array(200);
  tokens.set(held);
  return { index, tokens, held: held.length, owner: undefined };
};
const upTo = (length: number, from = 0): number[] => Array.from({ length }, (_, i) => from + i);

/** A request whose prompt is not fed. */
const fresh = (index: number, prompt: readonly number[], maxTokens = 8): Sequence => ({
  request: { prompt: Int32Array.from(prompt), maxTokens },
  tokens: [],
  slot: slot(index),
});
/** One that has sampled a token already: its prompt is [index]. */
const running = (index: number, left: number): Sequence => ({
  request: { prompt: Int32Array.of(index), maxTokens: left + 1 },
  tokens: [9],
  slot: slot(index, [index]),
});
const schedule = (live: readonly Sequence[], { capacity = 64, steps = 8, sources = live.map((one) => one.slot) } = {}) =>
  scheduleBurst(live, { capacity, steps, sources });

/** rows / rows that sample, run by run. */
const shape = (runs: readonly Run[]): string =>
  runs.map(({ decoding, tokens, ends }) => `${decoding + tokens.length}/${decoding + ends.length}`).join(" ");
const copiesOf = ({ copies }: Run): unknown => copies.map(({ from, to, length }) => [from.index, to.index, length]);

test("lanes that reach their length leave the rows of the runs that follow", () => {
  const { lanes, runs } = schedule([running(0, 2), running(1, 5), running(2, 3)]);
  expect(lanes.map(({ sequence, sampled }) => [sequence.slot.index, sampled])).toEqual([
    [1, 5],
    [2, 3],
    [0, 2],
  ]);
  expect(shape(runs)).toBe("3/3 3/3 2/2 1/1 1/1");
});

test("a prompt joins as the lane after the running ones, and its slot holds what was scheduled", () => {
  const joining = fresh(1, upTo(5));
  const { lanes, runs } = schedule([running(0, 3), joining], { steps: 4 });
  expect(shape(runs)).toBe("6/2 2/2 2/2 2/2");
  expect(runs[0]).toMatchObject({ decoding: 1, tokens: upTo(5), positions: upTo(5), slots: [1, 1, 1, 1, 1], ends: [5] });
  expect(lanes.map(({ isDecoding, sampled }) => [isDecoding, sampled])).toEqual([
    [true, 3],
    [false, 4],
  ]);
  expect([joining.slot.held, [...joining.slot.tokens.subarray(0, 5)]]).toEqual([5, upTo(5)]);
});

test("a long prompt is fed in chunks while the running ones take a token a run", () => {
  const { runs } = schedule([running(0, 20), fresh(1, upTo(25))], { capacity: 11, steps: 4 });
  expect(shape(runs)).toBe("11/1 11/1 6/2 2/2");
});

test("runs of many rows count for more than one step, and the first always takes place", () => {
  const { runs } = schedule([running(0, 20), fresh(1, upTo(190))], { capacity: 128, steps: 4 });
  expect(shape(runs)).toBe("128/1 64/2 2/2");
  const one = schedule([fresh(0, upTo(190))], { capacity: 128, steps: 0.1 });
  expect(shape(one.runs)).toBe("128/0");
  expect(one.lanes).toEqual([]);
});

test("a group feeds its prompt once: the others copy it and feed the last token", () => {
  const group = upTo(4).map((index) => fresh(index, upTo(20)));
  const { runs, lanes } = schedule(group, { steps: 3 });
  expect(shape(runs)).toBe("20/1 4/4 4/4");
  expect(runs.map(copiesOf)).toEqual([
    [],
    [
      [0, 1, 19],
      [0, 2, 19],
      [0, 3, 19],
    ],
    [],
  ]);
  expect(runs[1]).toMatchObject({ decoding: 1, tokens: [19, 19, 19], positions: [19, 19, 19], slots: [1, 2, 3], ends: [1, 2, 3] });
  expect(lanes.map(({ sampled }) => sampled)).toEqual([3, 2, 2, 2]);
});

test("a row that is being copied into is no source before the next run", () => {
  const held = slot(7, upTo(30));
  const [first, second] = [fresh(0, [...upTo(30), 1, 2]), fresh(1, [...upTo(30), 1, 2, ...upTo(20, 50)])];
  const { runs } = schedule([first, second], { sources: [held, first.slot, second.slot] });
  // The first copies 30 from the held row; the second wants the 31 of the first that will be there.
  expect(runs.slice(0, 2).map(copiesOf)).toEqual([[[7, 0, 30]], [[0, 1, 32]]]);
});

test("no row is copied from and into before the same run", () => {
  const held = slot(7, upTo(30));
  const first: Sequence = { ...fresh(0, [...upTo(30), 1, 2]), slot: slot(0, upTo(10)) };
  const second = fresh(1, [...upTo(10), ...upTo(20, 50)]);
  const { runs } = schedule([first, second], { sources: [first.slot, second.slot, held] });
  expect(runs.slice(0, 2).map(copiesOf)).toEqual([[[7, 0, 30]], [[0, 1, 10]]]);
});

test("a copy that saves little is not worth its wait, and no sources means none", () => {
  const near = [fresh(0, upTo(8)), fresh(1, upTo(8))];
  expect(shape(schedule(near, { steps: 1 }).runs)).toBe("16/2");
  const group = upTo(2).map((index) => fresh(index, upTo(20)));
  expect(shape(schedule(group, { steps: 1, sources: [] }).runs)).toBe("40/2");
});

test("a prompt that no run has reached yet is a source of the next burst", () => {
  const [first, second] = [fresh(0, upTo(40)), fresh(1, upTo(40))];
  expect(shape(schedule([first, second], { capacity: 16, steps: 2 }).runs)).toBe("16/0 16/0");
  expect([first.slot.held, second.slot.held]).toEqual([32, 0]);
  const { runs } = schedule([first, second], { capacity: 16, steps: 3 });
  expect(shape(runs)).toBe("8/1 2/2 2/2");
  expect(copiesOf(runs[1]!)).toEqual([[0, 1, 39]]);
});

test("a burst is as long as looking and wasting together cost least", () => {
  // A look costs a step; one token of 32 is a completion's last: √(2·1·32) = 8.
  expect(burstSteps(1 / 32, 1)).toBe(8);
  expect(burstSteps(1 / 32, 1 / 4)).toBe(4);
  expect(burstSteps(1, 1 / 8)).toBe(1);
});

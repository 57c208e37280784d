// Tasks: deterministic, the same in Python, train and val disjoint by structure, gold answers earn 1.
import {
  answerReward,
  calculate,
  calculatorDemo,
  calculatorTask,
  calculatorTasks,
  hashText,
  splitOf,
  templates,
} from "@fulgurite/demo-calculator";
import { expect, test } from "vitest";
import fixture from "./fixture.json" with { type: "json" };

/** The operands as they stand in the expression: the story without its words. */
const operandsOf = (expression: string) => expression.match(/\d+/g)!.map(Number);

test("a task is a function of split, seed and index", () => {
  const tasks = calculatorTasks("val", 50, 3);
  expect(calculatorTasks("val", 50, 3)).toEqual(tasks);
  expect(calculatorTask("val", 3, 49)).toEqual(tasks[49]);
  expect(calculatorTasks("val", 50, 4)).not.toEqual(tasks);
});

test("the first thousand tasks of each split have their golden hash", () => {
  const hashOf = (split: "train" | "val") => hashText(JSON.stringify(calculatorTasks(split, 1000)));
  expect({ train: hashOf("train"), val: hashOf("val") }).toMatchInlineSnapshot(`
    {
      "train": 2003122361,
      "val": 2442045901,
    }
  `);
});

test("the script that made the policy draws the same tasks and splits", () => {
  for (const { split, seed, index, ...task } of fixture.tasks) expect(calculatorTask(split as "train" | "val", seed, index)).toEqual(task);
  for (const { operands, split } of fixture.splits) expect(splitOf(operands)).toBe(split);
  expect(new Set(fixture.splits.map((s) => s.split))).toEqual(new Set(["train", "val"]));
});

test("train and val share no operands, no names, no things", () => {
  const keys = (split: "train" | "val") =>
    new Set(
      calculatorTasks(split, 3000).map((t) =>
        operandsOf(t.expression)
          .sort((a, b) => a - b)
          .join(),
      ),
    );
  const [train, val] = [keys("train"), keys("val")];
  expect(val.size).toBeGreaterThan(1000);
  expect([...val].filter((key) => train.has(key))).toEqual([]);
  for (const words of [templates.names, templates.things]) {
    expect(words.val.filter((word) => words.train.includes(word))).toEqual([]);
    for (const list of [words.train, words.val]) expect(new Set(list).size).toBe(list.length);
  }
});

test("swapping the operands does not change the split", () => {
  for (let a = 2; a < 60; a++) expect(splitOf([a, 17, 5])).toBe(splitOf([5, a, 17]));
});

test("one operand set in five is held out", () => {
  let held = 0;
  for (let a = 2; a < 100; a++) for (let b = a; b < 100; b++) held += Number(splitOf([a, b]) === "val");
  expect(held / ((98 * 99) / 2)).toBeCloseTo(0.2, 1);
});

test("the gold answer is the gold expression's value, a whole number, and earns 1", () => {
  for (const split of ["train", "val"] as const) {
    for (const task of calculatorTasks(split, 500)) {
      expect(calculate(task.expression)).toBe(task.answer);
      expect(task.answer).toMatch(/^\d+$/);
      expect(answerReward(task.answer, task.answer)).toBe(1);
      expect(task.question).not.toMatch(/[{}<|>]|undefined/); // every placeholder filled, no delimiter of the chat format
    }
  }
});

test("every family is drawn, and every operand of the expression is in the question", () => {
  const tasks = calculatorTasks("val", 400);
  expect(new Set(tasks.map((t) => t.family))).toEqual(new Set(templates.families.map((f) => f.id)));
  for (const task of tasks) for (const n of operandsOf(task.expression)) expect(task.question).toMatch(new RegExp(`\\b${n}\\b`));
});

test("the demo's tasks carry unique ids", () => {
  const tasks = [...calculatorDemo.tasks("train", 30), ...calculatorDemo.tasks("val", 30), ...calculatorDemo.tasks("val", 30, 1)];
  expect(new Set(tasks.map((t) => t.id)).size).toBe(90);
});

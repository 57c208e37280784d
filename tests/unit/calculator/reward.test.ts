// The reward, attacked.
import { answerReward, calculatorTasks } from "@fulgurite/demo-calculator";
import { expect, test } from "vitest";

test.each([
  ["122", 1],
  ["The answer is 122.", 1],
  ["122.0", 1],
  ["244/2", 1],
  ["37+85 = 122", 1],
  ["0122", 1],
  ["", 0],
  ["I do not know.", 0],
  ["121", 0],
  ["-122", 0],
  ["1220", 0],
  ["122 or 123", 0],
  ["122/0", 0],
  ["1 2 3 4 5 121", 0],
  ["12 2", 0],
  [`${"9".repeat(70)}`, 0],
  ["error: division by zero", 0],
])("for the answer 122, %j earns %d", (text, reward) => {
  expect(answerReward(text, "122")).toBe(reward);
});

test("fractions and decimals are compared exactly", () => {
  expect(answerReward("0.5", "1/2")).toBe(1);
  expect(answerReward("0.3333333333", "1/3")).toBe(0);
});

test("copying the question earns nothing", () => {
  const tasks = calculatorTasks("val", 300);
  const lucky = tasks.filter((t) => answerReward(t.question, t.answer) === 1);
  expect(lucky.length).toBeLessThan(10); // only where the last operand happens to be the answer
  for (const t of lucky) expect(t.question).toMatch(new RegExp(`\\b${t.answer}\\b`));
});

test("counting up to the answer earns nothing unless it stops there", () => {
  const counting = Array.from({ length: 500 }, (_, i) => i).join(" ");
  for (const t of calculatorTasks("val", 50)) expect(answerReward(counting, t.answer)).toBe(t.answer === "499" ? 1 : 0);
});

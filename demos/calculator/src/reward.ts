// The reward: 1 when the last number of the final text is the answer, exactly; else 0. How the number was found does not matter.
import { CalculatorError, evaluate } from "./calculator.ts";

const number = /-?\d+(?:\.\d+)?(?:\/\d+)?/g;

/**
 * The last number counts, so listing many numbers wins nothing but a guess's chance: `answerReward("1 2 3", "2") === 0`.
 * @param answer decimal or p/q
 */
export function answerReward(finalText: string, answer: string): 0 | 1 {
  const last = finalText.match(number)?.at(-1);
  if (last === undefined) return 0;
  try {
    const [said, gold] = [evaluate(last), evaluate(answer)];
    return said.p === gold.p && said.q === gold.q ? 1 : 0;
  } catch (error) {
    if (error instanceof CalculatorError) return 0; // 1/0, or more digits than the calculator holds
    throw error;
  }
}

// The calculator demo: word problems, a tool-calling agent, an exact reward.
import { type ClientOptions, solve } from "./agent.ts";
import { type Recipe, recipes } from "./recipes.ts";
import { answerReward } from "./reward.ts";
import { type CalculatorTask, calculatorTasks, type Split } from "./tasks.ts";

export { type ClientOptions, solve } from "./agent.ts";
export { CalculatorError, calculate, evaluate, limits, type Rational, toText } from "./calculator.ts";
export { answerReward } from "./reward.ts";
export { type CalculatorTask, calculatorTask, calculatorTasks, hashText, type Split, splitOf } from "./tasks.ts";
export { type Family, type Templates, templates } from "./templates.ts";

export interface DemoTask {
  readonly id: string;
  readonly input: CalculatorTask;
}

export interface Demo {
  readonly name: string;
  readonly title: string;
  readonly description: string;
  /** Deterministic; `seed` chooses other tasks of the same split. */
  tasks(split: Split, count: number, seed?: number): DemoTask[];
  /** Solves one task and returns its reward, 0 or 1. */
  agent(task: CalculatorTask, context: { readonly openai: ClientOptions; readonly signal: AbortSignal }): Promise<number>;
  /** Sizes of a training run, by name. */
  readonly recipes: Readonly<Record<string, Recipe>>;
}

export const calculatorDemo: Demo = {
  name: "calculator",
  title: "Calculator",
  description: "Word problems with a calculator tool, on the Vercel AI SDK. Reward 1 for the exact answer.",
  tasks: (split, count, seed = 0) =>
    calculatorTasks(split, count, seed).map((input, index) => ({ id: `calculator-${split}-${seed}-${index}`, input })),
  agent: async (task, { openai, signal }) => answerReward(await solve(task.question, openai, signal), task.answer),
  recipes,
};

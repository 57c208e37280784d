// Measuring an agent with the policy as it is: one rollout a task, nothing learned.

import { type Evaluation, evaluate as evaluateLoop, type EvaluateOptions as LoopOptions } from "@fulgurite/rl";
import { runnerOf, type Session } from "./session.ts";

export type EvaluateOptions<Task> = Session<Task> & Omit<LoopOptions, "policy" | "store" | "runner">;

/** Temperature 0 (default) is greedy, 1 samples as in training. Repeating it for the same run, label and version costs nothing. */
export const evaluate = <Task>(options: EvaluateOptions<Task>): Promise<Evaluation> =>
  evaluateLoop({ ...options, runner: runnerOf(options) });

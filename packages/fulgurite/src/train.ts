// Training an agent: the loop of @fulgurite/rl with the endpoint and the runner put in.

import { type TrainOptions as LoopOptions, type StepReport, train as trainLoop } from "@fulgurite/rl";
import { runnerOf, type Session } from "./session.ts";

export type TrainOptions<Task> = Session<Task> & Omit<LoopOptions, "policy" | "store" | "runner">;

/**
 * Rolls the agent out on tasks, learns from it, publishes the next adapter; yields after every step. Leave it at any yield, or abort
 * its signal: a later call with the same store, runId and options goes on where it was.
 *
 * Throws RlError ("checkpoint": the run was started with other options; "rollouts-failed": more than half of a step failed),
 * TraceError, EngineError, or the signal's reason.
 */
export const train = <Task>(options: TrainOptions<Task>): AsyncGenerator<StepReport, void, void> =>
  trainLoop({ ...options, runner: runnerOf(options) });

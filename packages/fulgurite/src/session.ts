// Puts policy, store and agent together: what train and evaluate share.

import { type Agent, createEndpoint, createRunner, type Runner } from "@fulgurite/agent";
import { samplingOf } from "@fulgurite/rl";
import type { Rollout, Store } from "@fulgurite/trace";
import type { LoadedPolicy } from "./loadPolicy.ts";

export interface Session<Task> {
  readonly policy: LoadedPolicy;
  readonly store: Store;
  readonly agent: Agent<Task>;
  /** Rollouts in flight at once; default 64. */
  readonly concurrency?: number;
  /** As each rollout ends, in any order. */
  readonly onEnd?: (rollout: Rollout) => void;
}

export const runnerOf = <Task>({ policy, store, agent, concurrency, onEnd }: Session<Task>): Pick<Runner, "drain"> => {
  const runner = createRunner<Task>({
    store,
    endpoint: createEndpoint({ sampler: policy.sampler, format: policy.format, store }),
    agent,
    sampling: samplingOf,
    ...(concurrency !== undefined && { concurrency }),
  });
  return { drain: (options) => runner.drain({ ...options, ...(onEnd && { onEnd }) }) };
};

// A run small enough to watch: tasks are single tokens, the agent asks the policy once or twice, the reward is known in closed form.
// Real store, real spans, a bigram policy, and a runner that finishes rollouts in an order of its own.
import { type Algorithm, type RunnerLike, type StepReport, samplingOf, type Task, type TrainOptions, train } from "@fulgurite/rl";
import { type CallTokens, type Claim, createMemoryStore, modelCallSpan, type Rollout, rewardSpan, type Store } from "@fulgurite/trace";
import { type BigramPolicy, createBigramPolicy } from "./bigramPolicy.ts";

export const VOCABULARY = 8;
export const TASKS: Task[] = [0, 1, 2, 3].map((token) => ({ id: `task ${token}`, input: token }));
/** Asked token t, the right answer is t + 4. */
export const isRight = (task: number, answer: number): boolean => answer === task + 4;

export type Reward = (task: number, answer: number, rollout: Rollout) => number | undefined;

export interface BanditOptions {
  readonly policy: BigramPolicy;
  readonly store: Store;
  readonly reward?: Reward;
  /** Called before each attempt; throwing here is the agent throwing. */
  readonly before?: (rollout: Rollout, claims: number) => void | Promise<void>;
  /** false: the calls carry no token ids. */
  readonly isRecorded?: boolean;
  /** Thrown by drain itself: the process dies and leaves the attempt running. */
  readonly diesAtClaim?: number;
}

export class Crash extends Error {}

/** Answers, shows the answer to the policy again, and takes the second answer: two calls that merge into one row. */
export function createBanditRunner(options: BanditOptions): RunnerLike & { claims: number } {
  const { policy, store, before, isRecorded = true } = options;
  const reward: Reward = options.reward ?? ((task, answer) => (isRight(task, answer) ? 1 : 0));

  async function run({ rollout, attempt }: Claim): Promise<void> {
    const { temperature = 1, seed = 0 } = samplingOf(rollout);
    const ref = { rolloutId: rollout.id, id: attempt.id };
    const task = rollout.input as number;
    let prompt = Int32Array.of(7, task);
    let answer = -1;
    for (let turn = 0; turn < 2; turn++) {
      const { tokens, logprobs, finishReason, policyVersion } = await policy.sampler.generate({
        prompt,
        maxTokens: 1,
        temperature,
        stopTokens: [],
        seed: seed + turn,
      });
      answer = tokens[0]!;
      await store.append([
        modelCallSpan({
          ...{ attempt: ref, id: `${turn}`.padStart(16, "0"), startMs: 0, endMs: 0, model: "bigram", responseId: `r${turn}`, turn },
          ...{ mode: rollout.mode, policyVersion, fidelity: "exact", temperature, finishReason },
          ...((isRecorded ? { promptTokens: prompt, responseTokens: tokens, samplerLogprobs: logprobs } : {}) as CallTokens),
        }),
      ]);
      prompt = Int32Array.of(...prompt, ...tokens, task);
    }
    const value = reward(task, answer, rollout);
    if (value !== undefined) await store.append([rewardSpan({ attempt: ref, id: "f".repeat(16), atMs: 0, value })]);
    await store.finish(ref, { status: "succeeded" });
  }

  const runner = {
    claims: 0,
    drain: async ({ signal }: { signal?: AbortSignal } = {}) => {
      for (;;) {
        signal?.throwIfAborted();
        const claims = await store.claim("bandit", 5);
        if (claims.length === 0) return;
        for (const claim of claims.reverse()) {
          runner.claims++;
          if (runner.claims === options.diesAtClaim) throw new Crash("the process died");
          try {
            await before?.(claim.rollout, runner.claims);
          } catch (error) {
            await store.finish(
              { rolloutId: claim.rollout.id, id: claim.attempt.id },
              { status: "failed", error: { name: (error as Error).name, message: (error as Error).message } },
            );
            continue;
          }
          await run(claim);
        }
      }
    },
  };
  return runner;
}

export interface Bandit {
  readonly policy: BigramPolicy;
  readonly store: Store;
  readonly options: TrainOptions;
}

export function createBandit(more: Partial<TrainOptions> & { bandit?: Partial<BanditOptions>; algorithm?: Algorithm } = {}): Bandit {
  const { bandit, ...options } = more;
  const store = bandit?.store ?? createMemoryStore();
  const policy = bandit?.policy ?? createBigramPolicy(VOCABULARY);
  const runner = createBanditRunner({ ...bandit, policy, store });
  return {
    policy,
    store,
    options: { policy, store, runner, tasks: TASKS, steps: 4, tasksPerStep: 4, groupSize: 6, adam: { learningRate: 0.1 }, ...options },
  };
}

export async function all(options: TrainOptions): Promise<StepReport[]> {
  const reports: StepReport[] = [];
  for await (const report of train(options)) reports.push(report);
  return reports;
}

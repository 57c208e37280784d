// Claims rollouts and executes the agent. An agent that throws, hangs or lies is a failed attempt, never a crash; an agent
// that ignores its abort is abandoned: its key is dead, its answers and rewards go nowhere.
//
// How an attempt ends:            the agent …                                     its rollout then
//   succeeded   returned a finite number, or nothing                              succeeded
//   failed      threw, returned or recorded no finite number, or lost spans       as retryOn says
//   timeout     was not done after config.timeoutMs                               as retryOn says
//   cancelled   met drain's abort, or its rollout was cancelled in the store      as retryOn says; else cancelled
// Whether a rollout is queued again is the store's decision alone.

import {
  type AttemptError,
  type AttemptRef,
  type Claim,
  type Json,
  mintId,
  mintSpanId,
  type Outcome,
  type Rollout,
  rewardSpan,
  type Span,
  type Store,
} from "@fulgurite/trace";
import { AgentError } from "./errors.ts";
import { linkAbort } from "./linkedAbort.ts";
import { seedOf } from "./seeds.ts";
import type { AgentContext, OpenedAttempt, Runner, RunnerOptions, Sampling } from "./types.ts";

const CONCURRENCY = 64;
const MAX_TOKENS = 256;
const HEARTBEAT_MS = 10_000;
/** Timers of the platform overflow above this and fire at once. */
const LONGEST_TIMER_MS = 0x7fffffff;

const toAttemptError = (error: unknown): AttemptError =>
  error instanceof Error
    ? { name: error.name, message: error.message, ...(error.stack !== undefined && { stack: error.stack }) }
    : { name: "Error", message: String(error) };

const samplingOf = (rollout: Rollout, chosen: Partial<Sampling> | undefined): Sampling => ({
  mode: rollout.mode,
  temperature: rollout.mode === "train" ? 1 : 0,
  maxTokens: MAX_TOKENS,
  // of the rollout, not of the attempt: a retry after a crash samples the same tokens
  seed: seedOf(rollout.id),
  ...chosen,
});

const toFinite = (value: unknown, where: string): number => {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  const got = typeof value === "number" ? String(value) : `a ${value === null ? "null" : typeof value}`;
  throw new AgentError("bad-reward", `${where}: a reward must be a finite number, got ${got}; return a number, or nothing`);
};

/** How an aborted attempt ends: what aborted it is its signal's reason. */
const abortedOutcome = (reason: unknown): Outcome => ({
  status: reason instanceof AgentError && reason.code === "timeout" ? "timeout" : "cancelled",
  error: toAttemptError(reason),
});

const hasEnded = (rollout: Rollout): boolean => rollout.status !== "queued" && rollout.status !== "running";

/**
 * Tolerates that someone else ended the attempt meanwhile: it was cancelled in the store, or taken for dead. Not while there are spans
 * to keep all the same.
 */
const finishAttempt = async (store: Store, ref: AttemptRef, outcome: Outcome, last: readonly Span[] = []): Promise<Rollout> => {
  try {
    return await store.finish(ref, outcome, last);
  } catch (error) {
    if (last.length > 0) throw error;
    const known = (await store.attempts(ref.rolloutId)).find(({ id }) => id === ref.id);
    if (known === undefined || known.status === "running") throw error;
    for await (const current of store.rollouts({ ids: [ref.rolloutId] })) return current;
    throw error;
  }
};

/**
 * Runs one claimed attempt to its end in the store, or until `abort` is. Rejects only when the store fails. `ended` is what its signal says
 * afterwards, of all attempts the same: an error costs as much as the rest of ending one.
 */
const runAttempt = async <Task>(
  options: RunnerOptions<Task>,
  { rollout, attempt }: Claim,
  abort: AbortController,
  ended: AgentError,
): Promise<Rollout> => {
  const { store, endpoint, agent } = options;
  const clock = options.clock ?? Date.now;
  const ref = { rolloutId: rollout.id, id: attempt.id };
  const { signal } = abort;
  let opened: OpenedAttempt;
  try {
    opened = endpoint.open(ref, samplingOf(rollout, options.sampling?.(rollout)), signal);
  } catch (error) {
    return finishAttempt(store, ref, { status: "failed", error: toAttemptError(error) });
  }
  const { timeoutMs } = rollout.config;
  const timer =
    timeoutMs <= LONGEST_TIMER_MS
      ? setTimeout(
          () =>
            abort.abort(
              new AgentError(
                "timeout",
                `runner: the agent must end within ${timeoutMs} ms, got no result; raise config.timeoutMs or bound its turns`,
              ),
            ),
          timeoutMs,
        )
      : undefined;

  let over = false;
  let badReward: unknown;
  const record = (value: number, details: Parameters<AgentContext["reward"]>[1] = {}): void => {
    const atMs = clock();
    opened.record(() => rewardSpan({ attempt: ref, id: mintSpanId(), atMs, value, ...details }));
  };
  const reward: AgentContext["reward"] = (value, details) => {
    if (over) return;
    try {
      toFinite(value, "reward()");
    } catch (error) {
      badReward ??= error; // an agent that catches it has failed all the same
      throw error;
    }
    record(value, details);
  };

  let stopHearing = (): void => {};
  const aborted = new Promise<Outcome>((resolve) => {
    const end = (): void => resolve(abortedOutcome(signal.reason));
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
    stopHearing = () => signal.removeEventListener("abort", end);
  });
  let lastReward: number | undefined;
  const executed = async (): Promise<Outcome> => {
    try {
      const context = { openai: opened.openai, signal, mode: rollout.mode, rollout, attempt: ref, reward };
      const returned: unknown = await agent(rollout.input as Task, context);
      if (over) return { status: "cancelled" };
      if (returned !== undefined) lastReward = toFinite(returned, "the agent's return value");
      if (badReward !== undefined) throw badReward;
      return { status: "succeeded" };
    } catch (error) {
      // an agent that honours its abort throws because of it
      return signal.aborted ? abortedOutcome(signal.reason) : { status: "failed", error: toAttemptError(error) };
    }
  };

  const outcome = signal.aborted ? await aborted : await Promise.race([executed(), aborted]);
  over = true;
  stopHearing();
  clearTimeout(timer);
  if (lastReward !== undefined) record(lastReward); // just now, so that it is stored with the attempt's end
  return opened.finish((last, { captureFailures }) => {
    abort.abort(ended);
    if (captureFailures === 0 || outcome.status !== "succeeded") return finishAttempt(store, ref, outcome, last);
    const lost = `runner: every span must reach the store, got ${captureFailures} that did not; its transitions would be incomplete`;
    return finishAttempt(store, ref, { status: "failed", error: toAttemptError(new AgentError("capture", lost)) }, last);
  });
};

export const createRunner = <Task = Json>(options: RunnerOptions<Task>): Runner => {
  const { store } = options;
  const concurrency = options.concurrency ?? CONCURRENCY;
  let { workerId } = options;
  if (!Number.isInteger(concurrency) || concurrency < 1) {
    throw new AgentError("bad-request", `createRunner: concurrency must be an integer ≥ 1, got ${concurrency}`);
  }

  const drain: Runner["drain"] = async ({ signal, onEnd } = {}) => {
    signal?.throwIfAborted();
    workerId ??= `worker_${mintId((options.clock ?? Date.now)())}`; // an edge worker may not ask for randomness while it loads
    const id = workerId;
    const run = linkAbort([signal]);
    const running = new Map<string, { ref: AttemptRef; done: Promise<void>; cancel: (reason: unknown) => void }>();
    const ended = new AgentError("closed", "runner: the attempt has ended");
    let failure: { error: unknown } | undefined;
    const fail = (error: unknown): void => {
      failure ??= { error };
      run.abort(error);
    };

    let wake = (): void => {};
    let woken: Promise<void> = Promise.resolve();
    let stirred = false;
    const rearm = (): void => {
      stirred = false;
      woken = new Promise((resolve) => {
        wake = () => {
          stirred = true;
          resolve();
        };
      });
    };
    // one listener for all attempts: Node warns of a leak at eleven on one signal
    run.signal.addEventListener("abort", () => {
      for (const { cancel } of running.values()) cancel(run.signal.reason);
      wake();
    });
    const unwatch = store.watch((event) => {
      if (event.kind !== "rollout") return;
      if (event.status === "queued") wake();
      else if (event.status === "cancelled") {
        running.get(event.id)?.cancel(new AgentError("aborted", `runner: rollout ${event.id} was cancelled in the store`));
      }
    });

    const start = (claim: Claim): void => {
      const { id } = claim.rollout;
      const abort = new AbortController();
      const execute = async (): Promise<void> => {
        try {
          const rollout = await runAttempt(options, claim, abort, ended);
          if (hasEnded(rollout)) onEnd?.(rollout);
        } catch (error) {
          fail(error);
        }
        running.delete(id);
        wake();
      };
      running.set(id, { ref: { rolloutId: id, id: claim.attempt.id }, done: execute(), cancel: (reason) => abort.abort(reason) });
    };
    // one for all; a beat that fails is no news: finish() meets the same store
    const beats = setInterval(() => {
      for (const { ref } of running.values()) void store.heartbeat(ref).catch(() => {});
    }, HEARTBEAT_MS);

    try {
      while (!run.signal.aborted) {
        rearm(); // before the claim, so that nothing queued meanwhile is slept through
        const free = concurrency - running.size;
        const claims = free > 0 ? await store.claim(id, free) : [];
        for (const claim of claims) start(claim);
        if (run.signal.aborted) for (const { cancel } of running.values()) cancel(run.signal.reason); // aborted while claiming
        // an attempt that ended while the claim was under way may have put its rollout back
        if (running.size === 0 && claims.length === 0 && !stirred) break;
        if (!run.signal.aborted) await woken;
      }
    } catch (error) {
      fail(error);
    } finally {
      await Promise.all([...running.values()].map(({ done }) => done));
      clearInterval(beats);
      unwatch();
      run.unlink();
    }
    if (failure) throw failure.error;
    signal?.throwIfAborted();
  };
  return { drain };
};

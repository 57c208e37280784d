// Continuous batching over one plan. Requests queue; a free row of the cache takes the next one at once. The device works in bursts of
// several runs (burst.ts): a sampled token feeds the next run where it is, and the host looks once a burst, hands out the tokens, lets
// finished rows go and admits waiting requests. Each adapter that has live requests gets its burst. Requests that restrict the
// distribution (a mask, top-k, …) take bursts of one run, and the host chooses (choose.ts).
// Kept promises
// - Token j depends on the seed, j and the logits, never on the neighbours, on the burst it came in, or on who fed its prompt.
// - A completion has one adapter version: publish stops admission, waits for the live ones, then copies.
// - The event loop has a turn after each burst of every adapter. An abort is seen at the end of a burst.
// - A run that fails rejects the requests that were in it, and no other.
// Left out: penalties, and stop strings (the caller has the tokenizer).

import type { Completion, FinishReason, GenerateRequest, Sampler } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { type InferPlan, type KvCache, logitsTensor, withLogits } from "../model/plans.ts";
import type { ModelSpec } from "../model/spec.ts";
import type { Backend, Executable } from "../plan/backend.ts";
import type { Lock } from "../plan/lock.ts";
import { sizeOf } from "../plan/step.ts";
import { type Burst, burstSteps, type Lane, scheduleBurst } from "./burst.ts";
import { checkRequest } from "./checkRequest.ts";
import { isRestricted } from "./choose.ts";
import { createSamplingDevice, type LaneState } from "./device.ts";
import { chooseOnHost } from "./hostChoice.ts";
import { createSlots, type Slot } from "./slots.ts";
import { createTurn } from "./turn.ts";

export interface SamplerParts {
  readonly backend: Backend;
  readonly spec: ModelSpec;
  /** Its row capacity is ≥ cache.slots, its outRows capacity is cache.slots. */
  readonly plan: InferPlan;
  readonly cache: KvCache;
  readonly lock: Lock;
  /** Tokens of a request between two looks of the host. Changes no completion. Default: what wastes least, at most the plan's steps. */
  readonly burst?: number;
  /** false: every prompt is fed whole. Changes no completion. Default true. */
  readonly sharesPrefixes?: boolean;
}

/** An adapter that requests can ask for by name, beside the published one. */
export interface NamedAdapter {
  readonly name: string;
  /** Over the sampler's own cache, with the io tensors of its plan; the adapter is io of it too. */
  readonly plan: InferPlan;
  /** What its completions say as policyVersion. */
  readonly version: number;
  /** Writes the adapter's numbers; runs once, under the lock. */
  readonly write: () => void;
}

/** The contract's sampler and what its policy needs of it. */
export interface LocalSampler extends Sampler {
  /** Waits for live requests while new ones queue, runs `copy` under the lock, then serves as `version`. */
  publish(copy: () => Promise<void>, version: number): Promise<void>;
  /** Serves an adapter under its name. One that had the name ends its completions first, and is freed. */
  add(adapter: NamedAdapter): Promise<void>;
  /** The name is unknown from now on; resolves when its completions have ended and it is freed. */
  remove(name: string): Promise<void>;
  /** Requests that hold a row of the cache · requests that wait for one. */
  readonly load: { readonly live: number; readonly queued: number };
  /** Rejects everything pending. Idempotent. */
  dispose(): Promise<void>;
}

/** An adapter with its compiled plan. Whoever generates with it is in `uses`. */
interface Served {
  readonly executable: Executable;
  readonly plan: InferPlan;
  /** Compiled when the first request needs its logits on the host. */
  readable?: Executable;
  readonly uses: Set<Promise<unknown>>;
  version: number;
}

interface Request {
  readonly request: GenerateRequest;
  readonly served: Served;
  readonly stop: ReadonlySet<number>;
  readonly resolve: (completion: Completion) => void;
  readonly reject: (error: unknown) => void;
  readonly tokens: number[];
  readonly logprobs: number[];
  /** The host chooses its tokens. */
  readonly isRestricted: boolean;
  readonly drawnLogprobs: number[];
  readonly forced: number[];
}

interface Live extends Request {
  readonly slot: Slot;
}

/** Where somebody watches the tokens come, so many come at once. */
const LISTENED_STEPS = 4;
/**
 * A look of the host, in steps: measured for memory that is its own; on a device it is the wait for the last run, the way back
 * and the way in. And the multiply-adds of a burst, since an abort waits for its end; in host memory a run also holds up the thread.
 */
const HOST_LOOK = { cost: 1 / 8, work: 2.5e8 };
const DEVICE_LOOK = { cost: 1, work: 2.5e11 };
/** How far the share of last tokens looks back, in tokens, and what it is taken to be before there were any. */
const MEMORY = 1000;
const FIRST_END_RATE = 1 / 64;

/**
 * Allocates the cache, compiles the plans and starts serving version 0. Owns the executables, not the backend.
 * Throws EngineError("device") when memory is short.
 */
export const createSampler = async (parts: SamplerParts): Promise<LocalSampler> => {
  const { backend, spec, plan, cache, lock, sharesPrefixes = true } = parts;
  const limits = { maxContext: Math.min(cache.positions, spec.maxPositions), vocabSize: spec.vocab };
  const device = await createSamplingDevice(backend, plan, cache);
  const logits = logitsTensor(spec, { rows: device.capacity, outRows: cache.slots });
  const main: Served = { executable: await backend.compile(plan.plan), plan, uses: new Set(), version: 0 };
  const named = new Map<string, Served>();
  const maxSteps = Math.min(parts.burst ?? device.maxSteps, device.maxSteps);
  const look = backend.isHostMemory ? HOST_LOOK : DEVICE_LOOK;
  /** Multiply-adds of a row. */
  const rowWork = plan.plan.steps.reduce((sum, step) => sum + (step.op === "linear" || step.op === "sample" ? sizeOf(step.w) : 0), 0);

  const slots = createSlots(cache.slots, cache.positions);
  const live = new Set<Live>();
  let queue: Request[] = [];
  let isPaused = false;
  let isRunning = false;
  let isDisposed = false;
  /** Fires with the disposal. */
  const ended = new AbortController();
  let loopEnd: Promise<void> = Promise.resolve();
  let publishing: Promise<unknown> = Promise.resolve();
  let onDrained: () => void = () => {};
  /** Of the sampled tokens, those that ended their completion; both fade. */
  const seen = { tokens: MEMORY, ends: MEMORY * FIRST_END_RATE };

  const disposedError = (): EngineError =>
    new EngineError("disposed", "sampler: the policy is alive, got a disposed one; create a new policy");

  const finish = (one: Request, finishReason: FinishReason): void =>
    one.resolve({
      tokens: Int32Array.from(one.tokens),
      logprobs: Float32Array.from(one.logprobs),
      ...(one.isRestricted && { drawnLogprobs: Float32Array.from(one.drawnLogprobs) }),
      ...(one.request.mask && { forced: Uint8Array.from(one.forced) }),
      finishReason,
      policyVersion: one.served.version,
    });

  const leave = (one: Live): void => {
    live.delete(one);
    slots.release(one.slot);
    seen.ends++;
  };

  const rejectAll = (error: unknown): void => {
    const pending = [...live, ...queue];
    for (const one of live) slots.release(one.slot);
    live.clear();
    queue = [];
    for (const { reject } of pending) reject(error);
  };

  const sweepAborted = (): void => {
    for (const one of live) {
      if (!one.request.signal?.aborted) continue;
      leave(one);
      finish(one, "aborted");
    }
    if (!queue.some(({ request }) => request.signal?.aborted)) return;
    const aborted = queue.filter(({ request }) => request.signal?.aborted);
    queue = queue.filter(({ request }) => !request.signal?.aborted);
    for (const one of aborted) finish(one, "aborted");
  };

  const admit = (): void => {
    while (queue.length > 0) {
      const slot = slots.take(queue[0]!.request.prompt, queue[0]!.served);
      if (!slot) return;
      if (!sharesPrefixes) slot.held = 0;
      live.add({ ...queue.shift()!, slot });
    }
  };

  /** Tokens of a request that may be sampled before the host has to look: 1 for whoever chooses the next token on the host. */
  const stepsOf = ({ request, isRestricted: isChosenHere }: Live): number =>
    isChosenHere ? 1 : request.onToken ? Math.min(LISTENED_STEPS, maxSteps) : maxSteps;

  const schedule = (served: Served): Burst<Live> => {
    const mine = [...live].filter((one) => one.served === served);
    const best = parts.burst ?? Math.min(burstSteps(seen.ends / seen.tokens, look.cost), look.work / (rowWork * mine.length));
    const steps = mine.reduce((most, one) => Math.min(most, stepsOf(one)), best);
    const sources = sharesPrefixes ? slots.all.filter(({ owner }) => owner === served) : [];
    return scheduleBurst(mine, { capacity: device.capacity, steps, sources });
  };

  const stateOf = ({ sequence, isDecoding }: Lane<Live>): LaneState => {
    const { request, tokens, slot } = sequence;
    const { prompt, maxTokens, seed, temperature, stopTokens } = request;
    return {
      slot: slot.index,
      position: prompt.length + tokens.length,
      last: isDecoding ? tokens.at(-1)! : undefined,
      left: maxTokens - tokens.length,
      drawn: tokens.length,
      seed,
      temperature,
      stopTokens,
    };
  };

  /** One token more; what it ends leaves. */
  const deliver = (one: Live, token: number, logprob: number): void => {
    const { request, stop, slot } = one;
    seen.tokens++;
    try {
      if (!Number.isFinite(logprob) || token < 0 || token >= limits.vocabSize)
        throw new EngineError(
          "device",
          `sampler: logits are finite, got token ${token} with log-prob ${logprob}; the adapter has diverged: load an earlier state`,
        );
      // The token before it was fed to make it.
      const fed = one.tokens.at(-1);
      if (fed !== undefined) slot.tokens[slot.held++] = fed;
      one.tokens.push(token);
      one.logprobs.push(logprob);
      request.onToken?.(token, logprob);
    } catch (error) {
      leave(one);
      one.reject(error);
      return;
    }
    const isStop = stop.has(token);
    if (!isStop && one.tokens.length < request.maxTokens) return;
    leave(one);
    finish(one, isStop ? "stop" : "length");
  };

  /** Runs a burst of one run and leaves its logits on the host, [lanes][V], as far as a lane needs them. */
  const runReadable = (served: Served, lanes: readonly Lane<Live>[], burst: Parameters<typeof device.run>[1]) =>
    lock(async () => {
      served.readable ??= await backend.compile(withLogits(served.plan, logits));
      const sampled = await device.run(served.readable, burst);
      const count = lanes.findLastIndex(({ sequence }) => sequence.isRestricted) + 1;
      return { sampled, rows: (await backend.read(logits, count * limits.vocabSize)) as Float32Array };
    });

  const deliverChosen = async (one: Live, row: Float32Array): Promise<void> => {
    try {
      const choice = await chooseOnHost(one.request, one.tokens, row, ended.signal);
      if (!choice || !live.has(one) || one.request.signal?.aborted) return;
      one.drawnLogprobs.push(choice.drawnLogprob);
      one.forced.push(choice.isForced ? 1 : 0);
      deliver(one, choice.token, choice.logprob);
    } catch (error) {
      if (live.has(one)) leave(one);
      one.reject(error);
    }
  };

  const work = async (served: Served): Promise<void> => {
    const { lanes, runs } = schedule(served);
    if (runs.length === 0) return; // its requests ended while another adapter ran
    for (const { copies } of runs) for (const { from } of copies) slots.touch(from);
    const burst = { lanes: lanes.map(stateOf), runs, isEnded: () => isDisposed };
    const isReadable = lanes.some(({ sequence }) => sequence.isRestricted);
    const { sampled, rows } = isReadable
      ? await runReadable(served, lanes, burst)
      : { sampled: await lock(() => device.run(served.executable, burst)), rows: undefined };
    const chosen: Promise<void>[] = [];
    for (const [n, { sequence: one, sampled: count }] of lanes.entries()) {
      if (one.isRestricted) {
        if (count > 0) chosen.push(deliverChosen(one, rows!.subarray(n * limits.vocabSize, (n + 1) * limits.vocabSize)));
        continue;
      }
      // It may end before `count` (a stop token, a listener that throws), and an abort or a dispose may have come meanwhile.
      for (let j = 0; j < count && live.has(one) && !one.request.signal?.aborted; j++) {
        const at = 2 * (n * device.maxSteps + j);
        deliver(one, sampled[at]!, sampled[at + 1]!);
      }
    }
    await Promise.all(chosen);
    const fade = MEMORY / Math.max(seen.tokens, MEMORY);
    seen.tokens *= fade;
    seen.ends *= fade;
  };

  const tick = async (): Promise<void> => {
    for (const served of new Set([...live].map((one) => one.served))) {
      const mine = [...live].filter((one) => one.served === served);
      try {
        await work(served);
      } catch (error) {
        for (const one of mine) {
          // What stands in their rows after a failed run is unknown; nobody else's were written.
          one.slot.held = 0;
          if (!live.has(one)) continue;
          leave(one);
          one.reject(error);
        }
      }
    }
  };

  const loop = async (): Promise<void> => {
    const turn = createTurn();
    try {
      for (;;) {
        // First the turn: requests that are made together start together.
        await turn.next();
        sweepAborted();
        if (!isPaused) admit();
        if (live.size === 0) break;
        await tick();
      }
    } finally {
      // In one synchronous piece with the break: a request that comes later starts a new loop.
      isRunning = false;
      turn.close();
      onDrained();
    }
  };

  const wake = (): void => {
    if (isRunning || isDisposed) return;
    isRunning = true;
    loopEnd = loop();
  };

  const servedFor = (name: string | undefined): Served => {
    const served = name === undefined ? main : named.get(name);
    if (served) return served;
    const known = named.size > 0 ? [...named.keys()].join(", ") : "none";
    throw new EngineError("bad-request", `generate: adapter is a loaded one (${known}), got ${JSON.stringify(name)}; load it first`);
  };

  const disposeServed = ({ executable, readable }: Served): void => {
    executable.dispose();
    readable?.dispose();
  };

  /** Frees an adapter that no name leads to any more, after its last completion. */
  const retire = async (served: Served | undefined): Promise<void> => {
    if (!served) return;
    await Promise.allSettled(served.uses);
    await lock(async () => disposeServed(served));
  };

  return {
    limits,
    get policyVersion() {
      return main.version;
    },
    get adapters() {
      return [...named.keys()];
    },
    get load() {
      return { live: live.size, queued: queue.length };
    },
    async generate(request) {
      if (isDisposed) throw disposedError();
      checkRequest(request, limits);
      const served = servedFor(request.adapter);
      const completion = new Promise<Completion>((resolve, reject) => {
        queue.push({
          ...{ request, served, stop: new Set(request.stopTokens), resolve, reject, tokens: [], logprobs: [] },
          ...{ isRestricted: isRestricted(request), drawnLogprobs: [], forced: [] },
        });
        wake();
      });
      const use: Promise<unknown> = completion.then(
        () => served.uses.delete(use),
        () => served.uses.delete(use),
      );
      served.uses.add(use);
      return completion;
    },
    async add({ name, plan, version, write }) {
      const executable = await lock(async () => {
        const compiled = await backend.compile(plan.plan);
        write();
        return compiled;
      });
      const previous = named.get(name);
      named.set(name, { executable, plan, uses: new Set(), version });
      await retire(previous);
    },
    async remove(name) {
      const served = servedFor(name);
      named.delete(name);
      await retire(served);
    },
    publish(copy, version) {
      const mine = publishing.then(async () => {
        if (isDisposed) throw disposedError();
        isPaused = true;
        try {
          if (live.size > 0)
            await new Promise<void>((resolve) => {
              onDrained = resolve;
            });
          if (isDisposed) throw disposedError();
          await lock(copy);
          slots.forget();
          main.version = version;
        } finally {
          isPaused = false;
          onDrained = () => {};
          if (queue.length > 0) wake();
        }
      });
      publishing = mine.catch(() => {});
      return mine;
    },
    async dispose() {
      if (isDisposed) return;
      isDisposed = true;
      ended.abort();
      rejectAll(disposedError());
      await loopEnd;
      await publishing;
      for (const served of [main, ...named.values()]) disposeServed(served);
      device.dispose();
    },
  };
};

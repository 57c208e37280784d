// Continuous batching over one plan. Requests queue; a free row of the cache takes the next one at once. Every tick feeds one
// token for each request that decodes and as much prompt of the others as the plan has room for, so a long prompt never
// stalls the running ones for more than a tick. Every request whose last token was fed gets one sampled token.
// Requests may name one of several adapters: a tick runs once for each adapter that has live requests.
//
// Kept promises
// - Token j depends on the seed, j and the logits, never on the neighbours: the uniform number is hashed on the host.
// - A completion has one adapter version: publish stops admission, waits for the live ones, then copies.
// - A tick leaves the event loop one turn. An abort is seen at the next tick.
//
// Left out: top-k, top-p and penalties (samplerLogprobs must be those of the whole distribution), stop strings (the caller
// has the tokenizer), and feeding a token on the device without a readback.

import type { Completion, FinishReason, GenerateRequest, Sampler } from "../contract.ts";
import { EngineError } from "../errors.ts";
import type { InferPlan, KvCache } from "../model/plans.ts";
import type { ModelSpec } from "../model/spec.ts";
import type { Backend, Executable } from "../plan/backend.ts";
import type { Lock } from "../plan/lock.ts";
import { sizeOf } from "../plan/step.ts";
import { uniform } from "../random.ts";
import { createSlots, type Slot } from "./slots.ts";
import { createTurn } from "./turn.ts";

export interface SamplerParts {
  readonly backend: Backend;
  readonly spec: ModelSpec;
  /** Its row capacity is ≥ cache.slots, its outRows capacity is cache.slots. */
  readonly plan: InferPlan;
  readonly cache: KvCache;
  readonly lock: Lock;
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
}

interface Live extends Request {
  readonly slot: Slot;
}

/** Below it, 1/τ times a logit leaves what f32 holds; who wants less wants 0. */
const MIN_TEMPERATURE = 1e-3;
const U32 = 2 ** 32;

const checkRequest = (
  { prompt, maxTokens, temperature, stopTokens, seed }: GenerateRequest,
  { maxContext, vocabSize }: Sampler["limits"],
): void => {
  const bad = (rule: string, got: unknown, advice: string): EngineError =>
    new EngineError("bad-request", `generate: ${rule}, got ${got}; ${advice}`);
  const isToken = (id: unknown): boolean => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize;
  if (!(prompt instanceof Int32Array) || prompt.length === 0)
    throw bad("prompt is an Int32Array of at least one token", prompt, "pass the ids of the tokenizer");
  const wrong = prompt.findIndex((id) => !isToken(id));
  if (wrong >= 0) throw bad(`prompt tokens are 0 … ${vocabSize - 1}`, `${prompt[wrong]} at ${wrong}`, "use the tokenizer of this model");
  if (!Number.isInteger(maxTokens) || maxTokens < 1) throw bad("maxTokens is a positive integer", maxTokens, "ask for at least one token");
  if (prompt.length + maxTokens > maxContext)
    throw bad(
      `prompt + maxTokens ≤ ${maxContext} (maxContext)`,
      `${prompt.length} + ${maxTokens}`,
      "shorten one of them or create the policy with a larger maxContext",
    );
  if (temperature !== 0 && !(temperature >= MIN_TEMPERATURE && temperature < Number.POSITIVE_INFINITY))
    throw bad(`temperature is 0 or ≥ ${MIN_TEMPERATURE}`, temperature, "use 0 for the most likely token");
  if (!Array.isArray(stopTokens) || !stopTokens.every(isToken))
    throw bad(`stopTokens are among 0 … ${vocabSize - 1}`, stopTokens, "use the tokenizer of this model");
  if (!Number.isInteger(seed) || seed < 0 || seed >= U32) throw bad("seed is an integer 0 … 2^32 − 1", seed, "take it modulo 2^32");
};

/**
 * Allocates the cache, compiles the plan and starts serving version 0. Owns the executable, not the backend.
 * Throws EngineError("device") when memory is short.
 */
export const createSampler = async ({ backend, spec, plan, cache, lock }: SamplerParts): Promise<LocalSampler> => {
  const limits = { maxContext: Math.min(cache.positions, spec.maxPositions), vocabSize: spec.vocab };
  const capacity = sizeOf(plan.tokens);
  for (const { k, v } of cache.layers) {
    await backend.allocate(k);
    await backend.allocate(v);
  }
  const main: Served = { executable: await backend.compile(plan.plan), uses: new Set(), version: 0 };
  const named = new Map<string, Served>();

  const slots = createSlots(cache.slots, cache.positions);
  const live = new Set<Live>();
  let queue: Request[] = [];
  let isPaused = false;
  let isRunning = false;
  let isDisposed = false;
  let loopEnd: Promise<void> = Promise.resolve();
  let publishing: Promise<unknown> = Promise.resolve();
  let onDrained: () => void = () => {};

  // Host mirrors of the plan's inputs, filled from the start in every tick.
  const tokens = new Int32Array(capacity);
  const positions = new Int32Array(capacity);
  const slotOfRow = new Int32Array(capacity);
  const outIndex = new Int32Array(cache.slots);
  const inverseTemperature = new Float32Array(cache.slots);
  const uniforms = new Float32Array(cache.slots);

  const disposedError = (): EngineError =>
    new EngineError("disposed", "sampler: the policy is alive, got a disposed one; create a new policy");

  const finish = ({ tokens, logprobs, resolve, served }: Request, finishReason: FinishReason): void =>
    resolve({ tokens: Int32Array.from(tokens), logprobs: Float32Array.from(logprobs), finishReason, policyVersion: served.version });

  const leave = (one: Live): void => {
    live.delete(one);
    slots.release(one.slot);
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
      live.add({ ...queue.shift()!, slot });
    }
  };

  /** Tokens that are known but not fed: 1 while decoding, more while the prompt is fed. */
  const pendingOf = ({ request, tokens, slot }: Live): number => request.prompt.length + tokens.length - slot.held;

  /** Fills the host mirrors with rows of one adapter. Returns their number and, in order, the requests that get a token. */
  const schedule = (served: Served): { rows: number; outs: Live[] } => {
    const mine = [...live].filter((one) => one.served === served);
    let rows = 0;
    const outs: Live[] = [];
    const feed = (one: Live, count: number): void => {
      const { request, tokens: sampled, slot } = one;
      for (let i = 0; i < count; i++, rows++) {
        const position = slot.held++;
        const token = position < request.prompt.length ? request.prompt[position]! : sampled[position - request.prompt.length]!;
        slot.tokens[position] = token;
        tokens[rows] = token;
        positions[rows] = position;
        slotOfRow[rows] = slot.index;
      }
      if (pendingOf(one) > 0) return;
      outIndex[outs.length] = rows - 1;
      inverseTemperature[outs.length] = request.temperature === 0 ? 0 : 1 / request.temperature;
      uniforms[outs.length] = uniform(request.seed, sampled.length);
      outs.push(one);
    };
    const prefilling = mine.filter((one) => pendingOf(one) > 1);
    for (const one of mine) if (pendingOf(one) === 1) feed(one, 1);
    for (const one of prefilling) feed(one, Math.min(pendingOf(one), capacity - rows));
    return { rows, outs };
  };

  const run = (
    { executable }: Served,
    rows: number,
    outRows: number,
  ): Promise<{ sampled: ArrayLike<number>; logprobs: ArrayLike<number> }> =>
    lock(async () => {
      backend.write(plan.tokens, tokens.subarray(0, rows));
      backend.write(plan.positions, positions.subarray(0, rows));
      backend.write(plan.slots, slotOfRow.subarray(0, rows));
      if (outRows > 0) {
        backend.write(plan.outIndex, outIndex.subarray(0, outRows));
        backend.write(plan.inverseTemperature, inverseTemperature.subarray(0, outRows));
        backend.write(plan.uniform, uniforms.subarray(0, outRows));
      }
      await executable.run({ rows, outRows });
      if (outRows === 0) return { sampled: [], logprobs: [] };
      // both are asked for before either is awaited: on a GPU that is one wait instead of two
      const [sampled, logprobs] = await Promise.all([backend.read(plan.token, outRows), backend.read(plan.logprob, outRows)]);
      return { sampled, logprobs };
    });

  const deliver = (one: Live, token: number, logprob: number): void => {
    const { request, stop } = one;
    // An abort or a dispose may have come while the plan ran.
    if (!live.has(one)) return;
    try {
      if (!Number.isFinite(logprob) || token < 0 || token >= limits.vocabSize)
        throw new EngineError(
          "device",
          `sampler: logits are finite, got token ${token} with log-prob ${logprob}; the adapter has diverged: load an earlier state`,
        );
      one.tokens.push(token);
      one.logprobs.push(logprob);
      request.onToken?.(token, logprob);
    } catch (error) {
      leave(one);
      one.reject(error);
      return;
    }
    const finishReason = stop.has(token) ? "stop" : one.tokens.length === request.maxTokens ? "length" : undefined;
    if (!finishReason) return;
    leave(one);
    finish(one, finishReason);
  };

  const tick = async (): Promise<void> => {
    try {
      for (const served of new Set([...live].map((one) => one.served))) {
        const { rows, outs } = schedule(served);
        if (rows === 0) continue; // its requests ended while another adapter ran
        const { sampled, logprobs } = await run(served, rows, outs.length);
        for (const [i, one] of outs.entries()) deliver(one, sampled[i]!, logprobs[i]!);
      }
    } catch (error) {
      // What stands in the cache after a failed run is unknown.
      slots.forget();
      rejectAll(error);
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

  /** Frees an adapter that no name leads to any more, after its last completion. */
  const retire = async (served: Served | undefined): Promise<void> => {
    if (!served) return;
    await Promise.allSettled(served.uses);
    await lock(async () => served.executable.dispose());
  };

  return {
    limits,
    get policyVersion() {
      return main.version;
    },
    get load() {
      return { live: live.size, queued: queue.length };
    },
    async generate(request) {
      if (isDisposed) throw disposedError();
      checkRequest(request, limits);
      const served = servedFor(request.adapter);
      const completion = new Promise<Completion>((resolve, reject) => {
        queue.push({ request, served, stop: new Set(request.stopTokens), resolve, reject, tokens: [], logprobs: [] });
        wake();
      });
      const use: Promise<unknown> = completion.then(
        () => served.uses.delete(use),
        () => served.uses.delete(use),
      );
      served.uses.add(use);
      return completion;
    },
    async add({ name, plan: { plan }, version, write }) {
      const executable = await lock(async () => {
        const compiled = await backend.compile(plan);
        write();
        return compiled;
      });
      const previous = named.get(name);
      named.set(name, { executable, uses: new Set(), version });
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
      rejectAll(disposedError());
      await loopEnd;
      await publishing;
      for (const { executable } of [main, ...named.values()]) executable.dispose();
    },
  };
};

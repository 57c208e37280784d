// A policy that outlives its device. Losing one is ordinary: a driver is reset, a laptop sleeps, a browser is short of memory. The next
// call opens another policy, brings it to the same state and repeats what was interrupted: a caller sees the numbers of an undisturbed
// run (bit for bit on a device of the same kind). It stands on the contract alone: whatever opens a Policy can be recovered.
//
//   snapshot   adapter, moments, step: read back after every optimStep, so that it is never older than one step
//   journal    the forwardBackward calls since the snapshot, which are repeated
//   served     the state that publish copied, and its version; the files of every adapter that is served beside it
//
// Left out: losses without end. A call gets a bounded number of devices; then its error says so.

import type { Datum, ForwardOptions, GenerateRequest, Loss, PeftFiles, Policy } from "./contract.ts";
import { EngineError } from "./errors.ts";
import { createLock } from "./plan/lock.ts";

export interface RecoveryOptions {
  /** New devices for one call, and attempts to get one. Default 3. */
  readonly maxRecoveries?: number;
  /** Before each attempt; `attempt` counts from 1. */
  readonly onRecovery?: (loss: Error, attempt: number) => void;
  /** Waits before an attempt; browsers refuse a device for a moment after a loss. Default: not before the first, then 1 s, 4 s. */
  readonly pause?: (attempt: number) => Promise<void>;
}

interface Update {
  readonly data: readonly Datum[];
  readonly loss: Loss;
  readonly options: Omit<ForwardOptions, "signal">;
}

const MAX_RECOVERIES = 3;

const backOff = (attempt: number): Promise<void> =>
  new Promise((resolve) => {
    if (attempt === 1) resolve();
    else setTimeout(resolve, 1000 * 4 ** (attempt - 2));
  });

const hasCode = (error: unknown, ...codes: EngineError["code"][]): error is EngineError =>
  error instanceof EngineError && codes.includes(error.code);

/** The caller's arrays are the caller's: they may change before a call has to be repeated. */
const copyOf = <T extends object>(arrays: T): T =>
  Object.fromEntries(
    Object.entries(arrays).map(([name, value]) => [name, ArrayBuffer.isView(value) ? (value as Uint8Array).slice() : value]),
  ) as T;

const disposedError = (): EngineError => new EngineError("disposed", "policy: it is alive, got a disposed one; create a new policy");

/**
 * Calls `open` now and after every loss: it returns a policy on a new device with the same model and options (adapter seed included),
 * whose state is the fresh one. Every loss is noticed by the next call, which waits for the new policy. Training calls and publish are
 * kept in their order. A completion that was interrupted is sampled again from its prompt, with its seed; a listener hears each token once.
 *
 * Calls reject with EngineError("lost") when the device was lost too often, and with whatever `open` rejects with.
 */
export const withRecovery = async (open: () => Promise<Policy>, options: RecoveryOptions = {}): Promise<Policy> => {
  const { maxRecoveries = MAX_RECOVERIES, onRecovery, pause = backOff } = options;
  const inOrder = createLock();
  const adaptersInOrder = createLock();
  const adapters = new Map<string, PeftFiles>();
  const completions = new Set<Promise<unknown>>();
  let latest = await open();
  let current: Promise<Policy> = Promise.resolve(latest);
  /** Undefined: the state of a fresh policy. */
  let snapshot: Uint8Array | undefined;
  let journal: Update[] = [];
  let served: { readonly state: Uint8Array | undefined; readonly version: number } | undefined;
  const lost = new WeakSet<Policy>();
  let disposal: Promise<void> | undefined;

  const restore = async (policy: Policy): Promise<void> => {
    const { trainer } = policy;
    for (const [name, files] of adapters) await policy.loadAdapter(name, files);
    if (served) {
      if (served.state) await trainer.loadState(served.state);
      await policy.publish(served.version);
    }
    // The copy that is served may be older than what is trained.
    if (snapshot && snapshot !== served?.state) await trainer.loadState(snapshot);
    for (const { data, loss, options } of journal) await trainer.forwardBackward(data, loss, options);
  };

  const reopen = async (former: Policy, first: EngineError): Promise<Policy> => {
    let loss: Error = first;
    await former.dispose().catch(() => {}); // a lost device has nothing more to say
    for (let attempt = 1; attempt <= maxRecoveries; attempt++) {
      onRecovery?.(loss, attempt);
      await pause(attempt);
      if (disposal) throw disposedError();
      let policy: Policy | undefined;
      try {
        policy = await open();
        await restore(policy);
        latest = policy;
        return policy;
      } catch (error) {
        await policy?.dispose().catch(() => {});
        if (!hasCode(error, "lost", "device")) throw error;
        loss = error;
      }
    }
    throw new EngineError(
      "lost",
      `policy: a lost device comes back within ${maxRecoveries} attempts, got "${loss.message}"; reload, and load the last saved state`,
      { cause: loss },
    );
  };

  /** Runs on the policy of the moment, and again on the next one when that is lost meanwhile. */
  const repeated = async <T>(run: (policy: Policy, losses: number) => Promise<T>): Promise<T> => {
    for (let losses = 0; ; losses++) {
      const policy = await current;
      if (disposal) throw disposedError();
      try {
        return await run(policy, losses);
      } catch (error) {
        // A lost policy is disposed: what still ran on it hears that instead.
        if (!hasCode(error, "lost") && !(lost.has(policy) && hasCode(error, "disposed"))) throw error;
        if (disposal) throw disposedError();
        if (losses === maxRecoveries)
          throw new EngineError(
            "lost",
            `policy: one call takes at most ${maxRecoveries} new devices, got one more loss ("${error.message}"); lower microBatchTokens or slots if memory is short`,
            { cause: error },
          );
        // The first call that notices opens the next policy; the others wait for it.
        if (!lost.has(policy)) {
          lost.add(policy);
          current = reopen(policy, error);
          current.catch(() => {}); // every call that waits for it is told
        }
      }
    }
  };

  const keep = async ({ trainer }: Policy): Promise<void> => {
    snapshot = await trainer.saveState();
    journal = [];
  };

  /** What ran when the device was lost began before this call, and ends under the adapter that it began with. */
  const drained = (): Promise<unknown> => Promise.all(completions);

  const generate = (request: GenerateRequest) => {
    const { onToken } = request;
    const prompt = request.prompt instanceof Int32Array ? request.prompt.slice() : request.prompt;
    const heard: number[] = [];
    const completion = repeated(({ sampler }) => {
      let place = 0;
      const listen = (token: number, logprob: number): void => {
        const known = heard[place++];
        if (known === undefined) {
          heard.push(token);
          onToken?.(token, logprob);
        } else if (known !== token)
          throw new EngineError(
            "device",
            `generate: a new device samples the tokens again that were streamed, got ${token} where ${known} was; repeat the request`,
          );
      };
      return sampler.generate({ ...request, prompt, ...(onToken && { onToken: listen }) });
    });
    const settled = completion.then(
      () => {},
      () => {},
    );
    completions.add(settled);
    void settled.then(() => completions.delete(settled));
    return completion;
  };

  return {
    get device() {
      return latest.device;
    },
    sampler: {
      limits: latest.sampler.limits,
      get policyVersion() {
        return served?.version ?? latest.sampler.policyVersion;
      },
      get adapters() {
        return [...adapters.keys()];
      },
      generate,
    },
    trainer: {
      forward: (data, options) => inOrder(() => repeated(({ trainer }) => trainer.forward(data, options))),
      forwardBackward: (data, loss, { signal, ...options } = {}) => {
        const update: Update = { data: data.map(copyOf), loss, options };
        return inOrder(() =>
          repeated(async ({ trainer }) => {
            try {
              const output = await trainer.forwardBackward(update.data, loss, { ...options, ...(signal && { signal }) });
              journal.push(update);
              return output;
            } catch (error) {
              if (error instanceof EngineError && error.clearsGradients && !hasCode(error, "lost", "disposed")) journal = [];
              throw error;
            }
          }),
        );
      },
      optimStep: (adam) =>
        inOrder(() =>
          repeated(async (policy) => {
            const output = await policy.trainer.optimStep(adam);
            await keep(policy);
            return output;
          }),
        ),
      exportAdapter: () => inOrder(() => repeated(({ trainer }) => trainer.exportAdapter())),
      importAdapter: (files) =>
        inOrder(() =>
          repeated(async (policy) => {
            await policy.trainer.importAdapter(files);
            await keep(policy);
          }),
        ),
      saveState: () => inOrder(() => (snapshot ? Promise.resolve(snapshot.slice()) : repeated(({ trainer }) => trainer.saveState()))),
      loadState: (bytes) =>
        inOrder(() =>
          repeated(async ({ trainer }) => {
            await trainer.loadState(bytes);
            snapshot = bytes.slice();
            journal = [];
          }),
        ),
    },
    publish: (version) =>
      inOrder(() =>
        repeated(async (policy, losses) => {
          if (losses > 0) await drained();
          await policy.publish(version);
          served = { state: snapshot, version };
        }),
      ),
    loadAdapter: (name, files) => {
      const kept = copyOf(files);
      return adaptersInOrder(() =>
        repeated(async (policy, losses) => {
          if (losses > 0) await drained();
          await policy.loadAdapter(name, kept);
          adapters.set(name, kept);
        }),
      );
    },
    unloadAdapter: (name) =>
      adaptersInOrder(() =>
        repeated(async (policy, losses) => {
          if (losses > 0) await drained();
          await policy.unloadAdapter(name);
          adapters.delete(name);
        }),
      ),
    dispose: () => {
      disposal ??= (async () => {
        await (await current.catch(() => latest)).dispose();
      })();
      return disposal;
    },
  };
};

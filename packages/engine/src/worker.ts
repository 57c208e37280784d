// A policy in a worker, behind the same contract. comlink carries the calls; what it lacks is added here: abort (a message
// with the call's id), streaming in order, error codes, and an end.
//
//   worker:  exposePolicy(self, (options) => createPolicy({ ...options, backend: await createBackend() }))
//   page:    const policy = await wrapPolicy(worker, options)
//
// Results are transferred, since the engine made them for the caller; arguments are copied, since the caller may use them
// again (`transfer` says which of the options may be moved).

import { type Endpoint, expose, proxy, releaseProxy, transfer, wrap } from "comlink";
import type {
  AdamParams,
  Completion,
  Datum,
  DeviceInfo,
  ForwardOptions,
  ForwardOutput,
  GenerateRequest,
  Loss,
  PeftFiles,
  Policy,
  SamplerLimits,
  StepOutput,
  UpdateOutput,
} from "./contract.ts";
import { EngineError, type EngineErrorCode } from "./errors.ts";

/** Names a call, so that it can be aborted and its tokens find their listener. */
type CallId = number;

interface Call {
  readonly id: CallId;
  /** Its signal had fired before the call was made: a message of its own would come too late. */
  readonly isAborted: boolean;
}

type Unsignalled<T> = Omit<T, "signal" | "onToken" | "mask">;
type TokenListener = (id: CallId, token: number, logprob: number) => void | Promise<void>;
type MaskSource = (id: CallId, tokens: readonly number[]) => Uint32Array | Promise<Uint32Array>;

/** Which of a request's functions stayed on the page and are called back. */
interface Callbacks {
  readonly onToken: boolean;
  readonly mask: boolean;
}

interface Facts {
  readonly device: DeviceInfo;
  readonly limits: SamplerLimits;
  readonly policyVersion: number;
}

/** What the worker answers. Everything in it survives a structured clone but the two functions of open, which are comlink proxies. */
interface RemotePolicy<Options> {
  open(options: Options, onToken: TokenListener, mask: MaskSource): Promise<Facts>;
  generate(call: Call, request: Unsignalled<GenerateRequest>, callbacks: Callbacks): Promise<Completion>;
  forward(call: Call, data: readonly Datum[], options: Unsignalled<ForwardOptions>): Promise<ForwardOutput>;
  forwardBackward(call: Call, data: readonly Datum[], loss: Loss, options: Unsignalled<ForwardOptions>): Promise<UpdateOutput>;
  optimStep(adam: AdamParams): Promise<StepOutput>;
  exportAdapter(): Promise<PeftFiles>;
  importAdapter(files: PeftFiles): Promise<void>;
  saveState(): Promise<Uint8Array>;
  loadState(bytes: Uint8Array): Promise<void>;
  publish(version: number): Promise<void>;
  loadAdapter(name: string, files: PeftFiles): Promise<void>;
  unloadAdapter(name: string): Promise<void>;
  abort(id: CallId): void;
  dispose(): Promise<void>;
}

/** An error as data: comlink's own form of an Error loses `code`. */
interface WireError {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
  readonly code: EngineErrorCode | undefined;
  readonly clearsGradients: boolean;
}

const toWire = (error: unknown): WireError => {
  const { name, message, stack } = error instanceof Error ? error : new Error(String(error));
  const own = error instanceof EngineError ? error : undefined;
  return { name, message, stack, code: own?.code, clearsGradients: own?.clearsGradients ?? false };
};

const fromWire = (wire: unknown): unknown => {
  if (typeof wire !== "object" || wire === null || !("message" in wire)) return wire;
  const { name, message, stack, code, clearsGradients } = wire as WireError;
  const error = code ? new EngineError(code, message, { clearsGradients }) : Object.assign(new Error(message), { name });
  // The worker's stack: where it happened is more useful than where it arrived.
  if (stack) error.stack = stack;
  return error;
};

/** Buffers of every array in a result that its array fills alone; parts of larger buffers are copied. */
const buffersOf = (value: unknown, found: Set<ArrayBuffer> = new Set()): ArrayBuffer[] => {
  if (ArrayBuffer.isView(value)) {
    if (value.buffer instanceof ArrayBuffer && value.byteLength === value.buffer.byteLength) found.add(value.buffer);
  } else if (typeof value === "object" && value !== null) {
    for (const part of Object.values(value)) buffersOf(part, found);
  }
  return [...found];
};

/** Worker side. `open` makes the policy when the page asks for it. One policy for each endpoint. */
export const exposePolicy = <Options extends object>(scope: Endpoint, open: (options: Options) => Promise<Policy>): void => {
  const controllers = new Map<CallId, AbortController>();
  let policy: Policy | undefined;
  let release: () => void = () => {};
  let emit: TokenListener = () => {};
  let askMask: MaskSource;

  const opened = (): Policy => {
    if (!policy) throw new EngineError("bad-request", "exposePolicy: open comes first, got another call; use wrapPolicy on the other side");
    return policy;
  };
  const answer = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      const result = await work();
      return typeof result === "object" && result !== null ? transfer(result, buffersOf(result)) : result;
    } catch (error) {
      throw toWire(error);
    }
  };
  const abortable = <T>({ id, isAborted }: Call, work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    const controller = new AbortController();
    if (isAborted) controller.abort();
    controllers.set(id, controller);
    return answer(() => work(controller.signal)).finally(() => controllers.delete(id));
  };

  const remote: RemotePolicy<Options> = {
    open: (options, onToken, mask) =>
      answer(async () => {
        if (policy)
          throw new EngineError("bad-request", "exposePolicy: one policy for each worker, got a second open; start another worker");
        emit = onToken;
        askMask = mask;
        release = () => {
          for (const remote of [onToken, mask]) (remote as unknown as { [releaseProxy](): void })[releaseProxy]();
        };
        policy = await open(options);
        const { device, sampler } = policy;
        return { device, limits: { ...sampler.limits }, policyVersion: sampler.policyVersion };
      }),
    generate: (call, request, callbacks) =>
      abortable(call, async (signal) => {
        // Tokens go over a port of their own: waiting for their receipt puts them before the completion.
        const received: Promise<void>[] = [];
        const failures: unknown[] = [];
        const onToken = (token: number, logprob: number): void => {
          if (failures.length > 0) throw failures[0]; // the page's listener threw: end the completion as it would there
          received.push(Promise.resolve(emit(call.id, token, logprob)).catch((error: unknown) => void failures.push(error)));
        };
        const mask = (tokens: readonly number[]): Uint32Array | Promise<Uint32Array> => askMask(call.id, tokens);
        const completion = await opened().sampler.generate({
          ...request,
          signal,
          ...(callbacks.onToken && { onToken }),
          ...(callbacks.mask && { mask }),
        });
        await Promise.all(received);
        if (failures.length > 0) throw failures[0];
        return completion;
      }),
    forward: (call, data, options) => abortable(call, (signal) => opened().trainer.forward(data, { ...options, signal })),
    forwardBackward: (call, data, loss, options) =>
      abortable(call, (signal) => opened().trainer.forwardBackward(data, loss, { ...options, signal })),
    optimStep: (adam) => answer(() => opened().trainer.optimStep(adam)),
    exportAdapter: () => answer(() => opened().trainer.exportAdapter()),
    importAdapter: (files) => answer(() => opened().trainer.importAdapter(files)),
    saveState: () => answer(() => opened().trainer.saveState()),
    loadState: (bytes) => answer(() => opened().trainer.loadState(bytes)),
    publish: (version) => answer(() => opened().publish(version)),
    loadAdapter: (name, files) => answer(() => opened().loadAdapter(name, files)),
    unloadAdapter: (name) => answer(() => opened().unloadAdapter(name)),
    abort: (id) => controllers.get(id)?.abort(),
    dispose: () =>
      answer(async () => {
        await policy?.dispose();
        release();
      }),
  };
  expose(remote, scope);
};

/**
 * Page side: opens the policy of a worker that called exposePolicy. Rejects with what `open` rejected with there. The
 * worker itself stays its creator's to terminate, after dispose().
 */
export const wrapPolicy = async <Options extends object>(
  worker: Endpoint,
  options: Options,
  transferred: Transferable[] = [],
): Promise<Policy> => {
  const remote = wrap(worker) as unknown as RemotePolicy<Options> & { [releaseProxy](): void };
  const listeners = new Map<CallId, Pick<GenerateRequest, "onToken" | "mask">>();
  const pending = new Set<(error: unknown) => void>();
  let lastId: CallId = 0;
  let ended: EngineError | undefined;
  let disposal: Promise<void> | undefined;

  const rejectAll = (error: EngineError): void => {
    ended ??= error;
    for (const reject of pending) reject(ended);
    pending.clear();
  };
  // A worker whose script fails never answers.
  worker.addEventListener("error", (event) => {
    const { type, message } = event as { type?: string; message?: string };
    if (type === "error") rejectAll(new EngineError("device", `worker: it runs, got the error ${message ?? "event"}; create a new policy`));
  });

  const call = <T>(work: () => Promise<T>): Promise<T> =>
    new Promise((resolve, reject) => {
      if (ended) throw ended;
      pending.add(reject);
      work()
        .then(resolve, (error: unknown) => reject(fromWire(error)))
        .finally(() => pending.delete(reject));
    });
  const abortable = <T>(signal: AbortSignal | undefined, work: (call: Call) => Promise<T>): Promise<T> => {
    const id = ++lastId;
    const abort = (): void => void (ended ? undefined : remote.abort(id));
    const result = call(() => work({ id, isAborted: signal?.aborted ?? false }));
    signal?.addEventListener("abort", abort);
    return result.finally(() => signal?.removeEventListener("abort", abort));
  };
  const unsignalled = ({ signal: _, ...rest }: ForwardOptions = {}): Unsignalled<ForwardOptions> => rest;

  const onToken = proxy((id: CallId, token: number, logprob: number): void => listeners.get(id)?.onToken?.(token, logprob));
  const onMask = proxy((id: CallId, tokens: readonly number[]): ReturnType<MaskSource> => {
    const mask = listeners.get(id)?.mask;
    if (!mask) throw new EngineError("bad-request", "worker: a mask is asked while its completion lives, got a call after its end");
    return mask(tokens);
  });
  const facts = await call(() => remote.open(transfer(options, transferred), onToken, onMask));
  let { policyVersion } = facts;
  const adapters = new Set<string>();

  return {
    device: facts.device,
    sampler: {
      limits: facts.limits,
      get policyVersion() {
        return policyVersion;
      },
      get adapters() {
        return [...adapters];
      },
      generate: ({ signal, onToken: listener, mask, ...request }) =>
        abortable(signal, (call) => {
          listeners.set(call.id, { ...(listener && { onToken: listener }), ...(mask && { mask }) });
          const callbacks = { onToken: listener !== undefined, mask: mask !== undefined };
          return remote.generate(call, request, callbacks).finally(() => listeners.delete(call.id));
        }),
    },
    trainer: {
      forward: (data, options) => abortable(options?.signal, (call) => remote.forward(call, data, unsignalled(options))),
      forwardBackward: (data, loss, options) =>
        abortable(options?.signal, (call) => remote.forwardBackward(call, data, loss, unsignalled(options))),
      optimStep: (adam) => call(() => remote.optimStep(adam)),
      exportAdapter: () => call(() => remote.exportAdapter()),
      importAdapter: (files) => call(() => remote.importAdapter(files)),
      saveState: () => call(() => remote.saveState()),
      loadState: (bytes) => call(() => remote.loadState(bytes)),
    },
    publish: async (version) => {
      await call(() => remote.publish(version));
      policyVersion = version;
    },
    loadAdapter: async (name, files) => {
      await call(() => remote.loadAdapter(name, files));
      adapters.add(name);
    },
    unloadAdapter: (name) => {
      adapters.delete(name); // over there it is unknown as soon as it is asked for
      return call(() => remote.unloadAdapter(name));
    },
    dispose: () => {
      disposal ??= (async () => {
        if (ended) return;
        const done = remote.dispose();
        rejectAll(new EngineError("disposed", "worker: the policy is alive, got a disposed one; create a new policy"));
        await done;
        remote[releaseProxy]();
      })();
      return disposal;
    },
  };
};

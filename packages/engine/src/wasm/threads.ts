// Threads of the WASM executor: what a spawner is, and the one for browsers. A thread instantiates the same module on the same memory
// and calls serve(), in which it sleeps between runs and from which it returns when the backend is disposed.
//
// The worker's script is text in a Blob: it needs no file beside the bundle, so it works the same from sources, from dist and from any
// bundler. Pages whose content security policy forbids blob: workers pass their own spawner, or run on one thread.

export interface ThreadJob {
  readonly module: WebAssembly.Module;
  /** Shared. */
  readonly memory: WebAssembly.Memory;
  /** From 1 on; the caller is thread 0. */
  readonly thread: number;
}

export interface Thread {
  /** Ends the thread, asleep or not. */
  stop(): Promise<void>;
}

export interface ThreadSpawner {
  /** Resolves when the thread has instantiated the module and is about to call serve(thread); rejects when it cannot. */
  spawn(job: ThreadJob): Promise<Thread>;
  /** How many threads this machine runs at once. */
  cores(): number;
}

const SCRIPT = `onmessage = ({ data: { module, memory, thread } }) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  postMessage("ready");
  exports.serve(thread);
  close();
};`;

const spawnBrowserThread = (job: ThreadJob): Promise<Thread> =>
  new Promise((resolve, reject) => {
    const url = URL.createObjectURL(new Blob([SCRIPT], { type: "text/javascript" }));
    const worker = new Worker(url, { name: `fulgurite-wasm-${job.thread}` });
    worker.onmessage = () => {
      URL.revokeObjectURL(url);
      resolve({ stop: async () => worker.terminate() });
    };
    worker.onerror = (event) => {
      URL.revokeObjectURL(url);
      worker.terminate();
      reject(new Error(`wasm thread ${job.thread}: a blob: worker starts, got ${event.message || "no reason"}`));
    };
    worker.postMessage(job);
  });

/** A page's main thread may not sleep; workers and Node may. Asking with a value that differs returns at once. */
export const mayWait = (): boolean => {
  if (typeof SharedArrayBuffer === "undefined") return false;
  try {
    return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1, 0) === "not-equal";
  } catch {
    return false;
  }
};

/** The spawner of this place; undefined: one thread only (a plain page, a page that is not cross-origin isolated, Node without node/wasmThreads.ts). */
export const findSpawner = (): ThreadSpawner | undefined =>
  globalThis.crossOriginIsolated === true && typeof Worker === "function" && typeof URL.createObjectURL === "function" && mayWait()
    ? { spawn: spawnBrowserThread, cores: () => navigator.hardwareConcurrency }
    : undefined;

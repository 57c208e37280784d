// Threads of the WASM executor in Node: createWasmBackend({ spawn: nodeThreads }). They sleep in Atomics.wait between runs and do
// not keep the process alive.

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Thread, ThreadJob, ThreadSpawner } from "../wasm/threads.ts";

const SCRIPT = `const { parentPort, workerData: { module, memory, thread } } = require("node:worker_threads");
const { exports } = new WebAssembly.Instance(module, { env: { memory } });
parentPort.postMessage("ready");
exports.serve(thread);`;

const spawn = (job: ThreadJob): Promise<Thread> =>
  new Promise((resolve, reject) => {
    // execArgv: the caller's loaders are of no use to this script
    const worker = new Worker(SCRIPT, { eval: true, workerData: job, execArgv: [], name: `fulgurite-wasm-${job.thread}` });
    worker.once("error", reject);
    worker.once("message", () => {
      worker.off("error", reject);
      worker.unref();
      resolve({
        stop: async () => {
          await worker.terminate();
        },
      });
    });
  });

export const nodeThreads: ThreadSpawner = { spawn, cores: availableParallelism };

// A browser's Worker for peers that were written for browsers: without one jax-js runs on a single thread in Node, and would be no fair peer.
// Only what it uses: a script by blob URL, messages both ways, errors. The threads end with the process.
import { resolveObjectURL } from "node:buffer";
import { Worker as Thread } from "node:worker_threads";

const BOOTSTRAP = `
const { parentPort } = require("node:worker_threads");
parentPort.once("message", (script) => {
  globalThis.self = globalThis;
  globalThis.postMessage = (data) => parentPort.postMessage(data);
  (0, eval)(script);
  parentPort.on("message", (data) => globalThis.onmessage({ data }));
});`;

export class WebWorker {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onerror: ((event: { message: string }) => void) | null = null;
  private readonly thread: Thread;
  private readonly started: Promise<void>;

  constructor(url: string) {
    this.thread = new Thread(BOOTSTRAP, { eval: true });
    this.thread.unref();
    this.thread.on("message", (data) => this.onmessage?.({ data }));
    this.thread.on("error", ({ message }) => this.onerror?.({ message }));
    const script = resolveObjectURL(url)?.text() ?? Promise.reject(new Error(`no script at ${url}`));
    this.started = script.then((text) => this.thread.postMessage(text));
  }

  postMessage(data: unknown): void {
    void this.started.then(() => this.thread.postMessage(data));
  }

  terminate(): void {
    void this.thread.terminate();
  }
}

// The running kernels: a module on a memory, and the threads that serve it. The build for several threads needs shared memory; the one for
// a single thread runs everywhere.

import { EngineError } from "../errors.ts";
import { KERNELS } from "./kernels.ts";
import { createHeap, createMemory, type Heap } from "./memory.ts";
import type { Thread, ThreadSpawner } from "./threads.ts";

/** Exports of assembly/index.ts. */
export interface Kernels {
  controlAddress(): number;
  heapAddress(): number;
  gemmScratch(): number;
  toPanels(kind: number, w: number, scales: number, outputs: number, inputs: number, scratch: number): void;
  run(program: number, threads: number): void;
  stop(): void;
}

const toBytes = (base64: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

export interface Machine {
  readonly heap: Heap;
  readonly kernels: Kernels;
  readonly threads: readonly Thread[];
}

/** `kernels`: base64, or compiled already. */
const instantiate = async (
  kernels: string | WebAssembly.Module,
  memory: WebAssembly.Memory,
): Promise<{ module: WebAssembly.Module; kernels: Kernels }> => {
  const module = typeof kernels === "string" ? await WebAssembly.compile(toBytes(kernels)) : kernels;
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  return { module, kernels: exports as unknown as Kernels };
};

/** One thread more than `count` spawned ones. A place that refuses threads gets the single build, unless the caller brought the spawner. */
export const startMachine = async (
  count: number,
  spawner: ThreadSpawner | undefined,
  isOwnSpawner: boolean,
  compiled?: WebAssembly.Module,
): Promise<Machine> => {
  if (count > 0 && spawner) {
    const memory = createMemory(true);
    const { module, kernels } = await instantiate(KERNELS.threaded, memory);
    const started = await Promise.allSettled(Array.from({ length: count }, (_, i) => spawner.spawn({ module, memory, thread: i + 1 })));
    const threads = started.filter((result) => result.status === "fulfilled").map((result) => result.value);
    const failed = started.find((result) => result.status === "rejected");
    if (!failed) return { heap: createHeap(memory, kernels.heapAddress() >>> 0), kernels, threads };
    await Promise.all(threads.map((thread) => thread.stop()));
    if (isOwnSpawner)
      throw new EngineError("device", `wasm threads: ${count} start, got a failure; ask for one thread`, { cause: failed.reason });
  }
  const memory = createMemory(false);
  const { kernels } = await instantiate(compiled ?? KERNELS.single, memory);
  return { heap: createHeap(memory, kernels.heapAddress() >>> 0), kernels, threads: [] };
};

// The backends that are held to the reference in ops.test.ts, model.test.ts and trainer.test.ts. One line each; what this
// machine lacks is skipped with its reason.

import { nodeThreads } from "../../../packages/engine/src/node/wasmThreads.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { createTestBackend } from "./webgpuDevice.ts";

export interface BackendUnderTest {
  readonly name: string;
  readonly create: () => Promise<Backend>;
  /** Why it cannot run here; undefined: it runs. */
  readonly skip?: string | undefined;
}

/** A backend whose module may be absent, or whose device may be: the reason becomes the skip. */
export const probe = async (name: string, create: () => Promise<Backend>): Promise<BackendUnderTest> => {
  try {
    const backend = await create();
    await backend.dispose();
    return { name, create };
  } catch (cause) {
    return { name, create, skip: cause instanceof Error ? cause.message : String(cause) };
  }
};

export const BACKENDS: readonly BackendUnderTest[] = [
  // The reference against itself: it checks the test body and the row rules (independence, untouched rows).
  { name: "reference", create: async () => createReferenceBackend() },
  { name: "wasm, 1 thread", create: () => createWasmBackend({ threads: 1 }) },
  // minThreadedFlop 0: the cases are far too small to be given to two threads otherwise.
  { name: "wasm, 2 threads", create: () => createWasmBackend({ threads: 2, spawn: nodeThreads, minThreadedFlop: 0 }) },
  await probe("webgpu (Dawn)", () => createTestBackend()),
];

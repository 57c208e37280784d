// The backends that are held to the reference in ops.test.ts, model.test.ts and trainer.test.ts. One line each; what this
// machine lacks is skipped with its reason.

import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";

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

// A fast backend joins with one line, for instance:
//   await probe("wasm", async () => (await import("../../../packages/engine/src/wasm/backend.ts")).createWasmBackend()),
export const BACKENDS: readonly BackendUnderTest[] = [
  // The reference against itself: it checks the test body and the row rules (independence, untouched rows).
  { name: "reference", create: async () => createReferenceBackend() },
];

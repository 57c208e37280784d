// The backends that are held to the reference in ops.test.ts, model.test.ts and trainer.test.ts. One line each; what this
// machine lacks is skipped with its reason.

import { EngineError } from "../../../packages/engine/src/errors.ts";
import { nodeThreads } from "../../../packages/engine/src/node/wasmThreads.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { PackedDtype, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { createWasmBackend } from "../../../packages/engine/src/wasm/backend.ts";
import { byteLengthOf } from "../../../packages/engine/src/weights/formats.ts";
import { createTestBackend } from "./webgpuDevice.ts";

export interface BackendUnderTest {
  readonly name: string;
  readonly create: () => Promise<Backend>;
  /** Why it cannot run here; undefined: it runs. */
  readonly skip?: string | undefined;
  /** Packed dtypes that it does not read, with its reason. */
  readonly refusals: ReadonlyMap<PackedDtype, string>;
}

const PACKED: readonly PackedDtype[] = ["f16", "bf16", "q8", "q4"];

/** Asked with a tensor of each dtype: only a refusal by name counts. */
const refusalsOf = async (backend: Backend): Promise<ReadonlyMap<PackedDtype, string>> => {
  const refusals = new Map<PackedDtype, string>();
  for (const dtype of PACKED) {
    const tensor: Tensor = { name: `${dtype} weights`, shape: [32, 32], dtype, home: "weights" };
    try {
      await backend.allocate(tensor, new Uint32Array(byteLengthOf(tensor) / 4));
    } catch (error) {
      if (!(error instanceof EngineError) || error.code !== "unsupported") throw error;
      refusals.set(dtype, error.message);
    }
  }
  return refusals;
};

/** A backend whose module may be absent, or whose device may be: the reason becomes the skip. */
export const probe = async (name: string, create: () => Promise<Backend>): Promise<BackendUnderTest> => {
  try {
    const backend = await create();
    const refusals = await refusalsOf(backend);
    await backend.dispose();
    return { name, create, refusals };
  } catch (cause) {
    return { name, create, refusals: new Map(), skip: cause instanceof Error ? cause.message : String(cause) };
  }
};

export const BACKENDS: readonly BackendUnderTest[] = [
  // The reference against itself: it checks the test body and the row rules (independence, untouched rows).
  { name: "reference", create: async () => createReferenceBackend(), refusals: new Map() },
  { name: "wasm, 1 thread", create: () => createWasmBackend({ threads: 1 }), refusals: new Map() },
  // minThreadedFlop 0: the cases are far too small to be given to two threads otherwise.
  {
    name: "wasm, 2 threads",
    create: () => createWasmBackend({ threads: 2, spawn: nodeThreads, minThreadedFlop: 0 }),
    refusals: new Map(),
  },
  await probe("webgpu (Dawn)", () => createTestBackend()),
];

/**
 * The kernels that a GPU gets, tiles, subgroups and row classes included, on whatever device there is: on a software device they are not the
 * default, which compiles faster. For the operations alone; a model is the same kernels.
 */
export const GPU_KERNELS: BackendUnderTest = await probe("webgpu (Dawn), a GPU's kernels", () => createTestBackend({ isSoftware: false }));

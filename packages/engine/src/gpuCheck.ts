// The engine's door for testing a GPU before it is trusted (createBackend's `check`), and for a page or a command that shows the result.
// A door of its own: a page that trusts its device, or runs on WASM, loads none of it.

import type { BackendOptions } from "./device.ts";
import { EngineError } from "./errors.ts";
import type { Backend } from "./plan/backend.ts";
import { type SelfTestOptions, type SelfTestReport, selfTest } from "./selfTest.ts";
import { createDecisions } from "./webgpu/decisions.ts";

export { describeSelfTest, type SelfTestEntry, type SelfTestOptions, type SelfTestReport } from "./selfTest.ts";
export { type CheckOptions, openChecked, type VerdictStore } from "./webgpu/checked.ts";

/**
 * Runs every kernel of this machine's WebGPU, in every variant, against the reference executor, and says what is right. `createBackend`:
 * the engine's, of the platform. Nothing is kept. Throws EngineError("device") without WebGPU.
 */
export const testGpu = async (
  createBackend: (kind: "webgpu", options: BackendOptions) => Promise<Backend>,
  options: SelfTestOptions = {},
): Promise<SelfTestReport> => {
  let report: SelfTestReport | undefined;
  const backend = await createBackend("webgpu", {
    check: async (open) => {
      const decisions = createDecisions();
      const opened = await open({ choose: decisions.choose, allowsInexact: true });
      try {
        report = await selfTest(opened, decisions, options);
      } catch (error) {
        await opened.dispose();
        throw error;
      }
      return opened;
    },
  });
  await backend.dispose();
  if (!report)
    throw new EngineError("bad-request", "testGpu: createBackend runs its option check, got one that does not; pass the engine's");
  return report;
};

// How the Node tests find a WebGPU device: the machine's own GPU, else Mesa's software device (lavapipe), which proves correctness
// and says nothing about speed. What is absent becomes a visible skip (see probe in backends.ts).

import { existsSync } from "node:fs";
import { type NodeGpu, openNodeGpu, openNodeWebGpu } from "../../../packages/engine/src/node/webgpu.ts";

import type { WebGpuBackend, WebGpuOptions } from "../../../packages/engine/src/webgpu/backend.ts";

const LAVAPIPE = ["/usr/share/vulkan/icd.d/lvp_icd.json", "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json"];

/** Dawn asks the Vulkan loader on first use, so this comes before the first create(). */
const offerLavapipe = async (): Promise<void> => {
  if (process.env.VK_ICD_FILENAMES) return;
  const { gpu, release } = await openNodeGpu();
  const found = await gpu.requestAdapter();
  release();
  const file = LAVAPIPE.find(existsSync);
  if (!found && file) process.env.VK_ICD_FILENAMES = file;
};

export const openTestGpu = async (): Promise<NodeGpu> => {
  await offerLavapipe();
  return await openNodeGpu();
};

export const createTestBackend = async (options: WebGpuOptions = {}): Promise<WebGpuBackend> => {
  await offerLavapipe();
  return await openNodeWebGpu(options);
};

/** What the device of the tests offers, with subgroups only where WGSL has subgroup_id; `reason`: why there is no device. */
export const featuresOfTestGpu = async (): Promise<{ features: ReadonlySet<string>; reason?: string }> => {
  try {
    const { gpu, release } = await openTestGpu();
    const adapter = await gpu.requestAdapter();
    const features = new Set<string>(adapter?.features);
    if (!gpu.wgslLanguageFeatures.has("subgroup_id")) features.delete("subgroups");
    release();
    return adapter ? { features } : { features, reason: "no adapter" };
  } catch (cause) {
    return { features: new Set(), reason: (cause as Error).message };
  }
};

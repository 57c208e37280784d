// Dispatch → pipeline. Layouts are explicit and shared by all kernels with the same access pattern ("rwww"); two dispatches with the
// same text are one pipeline. All pipelines of a plan are built at once, off the calling thread where the browser can.

import { EngineError } from "../errors.ts";
import type { OpenDevice } from "./device.ts";
import { type Dispatch, PARAMS_BYTES } from "./kernels/kernel.ts";

const COMPUTE = 4; // GPUShaderStage.COMPUTE

export interface Pipelines {
  pipelineFor(dispatch: Dispatch): Promise<GPUComputePipeline>;
  layoutFor(access: string): GPUBindGroupLayout;
}

export const createPipelines = ({ device }: OpenDevice): Pipelines => {
  const layouts = new Map<string, { group: GPUBindGroupLayout; pipeline: GPUPipelineLayout }>();
  const pipelines = new Map<string, Promise<GPUComputePipeline>>();

  const layout = (access: string): { group: GPUBindGroupLayout; pipeline: GPUPipelineLayout } => {
    const found = layouts.get(access);
    if (found) return found;
    const group = device.createBindGroupLayout({
      label: access,
      entries: [
        { binding: 0, visibility: COMPUTE, buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: PARAMS_BYTES } },
        ...Array.from(
          access,
          (mode, i): GPUBindGroupLayoutEntry => ({
            binding: i + 1,
            visibility: COMPUTE,
            buffer: { type: mode === "r" ? "read-only-storage" : "storage" },
          }),
        ),
      ],
    });
    const made = { group, pipeline: device.createPipelineLayout({ label: access, bindGroupLayouts: [group] }) };
    layouts.set(access, made);
    return made;
  };

  const build = async ({ label, source, access }: Dispatch): Promise<GPUComputePipeline> => {
    // Without the scope a rejected shader would also count as an uncaptured error and end the backend.
    device.pushErrorScope("validation");
    const module = device.createShaderModule({ label, code: source });
    const shaderError = device.popErrorScope();
    try {
      return await device.createComputePipelineAsync({ label, layout: layout(access).pipeline, compute: { module, entryPoint: "main" } });
    } catch (cause) {
      const found = await shaderError.catch(() => null);
      throw new EngineError(
        "device",
        `webgpu: kernel "${label}" must compile on this device, got "${found?.message ?? (cause as Error).message}"; use another device and report this one`,
        { cause },
      );
    }
  };

  return {
    pipelineFor: (dispatch): Promise<GPUComputePipeline> => {
      // Equal text means equal bindings: declarations are part of it.
      const found = pipelines.get(dispatch.source);
      if (found) return found;
      const made = build(dispatch);
      pipelines.set(dispatch.source, made);
      made.catch(() => pipelines.delete(dispatch.source));
      return made;
    },
    layoutFor: (access): GPUBindGroupLayout => layout(access).group,
  };
};

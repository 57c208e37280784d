// What an executor is. Three exist: reference/, wasm/, webgpu/; one test body runs them all.
// Calls on one backend never overlap: the policy that owns it holds a lock.

import type { DeviceInfo } from "../contract.ts";
import type { Plan, Tensor, Vars } from "./step.ts";

export type HostArray = Float32Array | Int32Array;

/** What a tensor is filled with: Float32Array (f32), Int32Array (i32), Uint32Array (a packed dtype, laid out by weights/formats.ts). */
export type TensorData = HostArray | Uint32Array;

export interface Backend {
  readonly device: DeviceInfo;
  /** Tensors lie in the host's own memory: reading one is a copy, not a wait for a device. */
  readonly isHostMemory?: boolean;
  /** Bytes of the largest tensor that it can hold, matrices of the model aside: those may be cut. Absent: none but its memory's. */
  readonly maxTensorBytes?: number;
  /** Bytes of the largest arena. Absent: no limit but its memory's. */
  readonly maxArenaBytes?: number;
  /** Gives a weights, state or kv tensor (not a view) its storage, filled with data, else zeros. Once for each tensor. */
  allocate(tensor: Tensor, data?: TensorData): Promise<void>;
  /**
   * Host → an allocated weights tensor (not a view): 32-bit words of what `allocate` would have taken whole, from word `offset` (default 0)
   * on. Checkpoints arrive in pieces, in any order; all of them come before the first plan that uses the tensor is compiled.
   * `words` may be used again when it resolves. Throws EngineError("bad-request") for another tensor, or words beyond its end.
   */
  fill(tensor: Tensor, words: Uint32Array, offset?: number): Promise<void>;
  /**
   * Prepares a plan: io tensors get storage, arena tensors get offsets in the one arena that all plans of the backend
   * share (its contents do not survive from one run to the next), pipelines are built. Every weights, state and kv
   * tensor must have been allocated. Throws EngineError("device") when memory is short, with the bytes needed.
   */
  compile(plan: Plan): Promise<Executable>;
  /** Host → tensor (state, kv, io; views too), from element `offset` (default 0) on. Ordered with run and read. */
  write(tensor: Tensor, data: HostArray, offset?: number): void;
  /** Tensor → host: the first `length` elements (default: all). Float32Array or Int32Array by dtype. Arena tensors cannot be read. */
  read(tensor: Tensor, length?: number): Promise<HostArray>;
  /** Bytes of storage that this backend holds now. */
  readonly byteLength: number;
  dispose(): Promise<void>;
}

export interface Executable {
  run(vars: Vars): Promise<void>;
  dispose(): void;
}

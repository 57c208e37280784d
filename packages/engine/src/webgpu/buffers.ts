// Every buffer of a backend: limits checked first, memory asked for inside error scopes, bytes counted.

import { EngineError } from "../errors.ts";
import type { TensorData } from "../plan/backend.ts";
import { adviceFor } from "../plan/shortage.ts";
import type { Home } from "../plan/step.ts";
import type { OpenDevice } from "./device.ts";

// WebGPU's flag values; the globals that name them do not exist in Node.
export const USAGE = { MAP_READ: 0x01, COPY_SRC: 0x04, COPY_DST: 0x08, UNIFORM: 0x40, STORAGE: 0x80 } as const;

/** One writeBuffer copies its bytes into a staging buffer first: large uploads go in pieces, and wait for each other now and then. */
const UPLOAD_BYTES = 8 << 20;
const UPLOADS_IN_FLIGHT = 8;

const STORAGE = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;

const mebibytes = (bytes: number): string => `${bytes} bytes (${(bytes / 2 ** 20).toFixed(1)} MiB)`;

export interface BufferOptions {
  /** What it is for: an error says what to lower. */
  readonly home: Home;
  /** false: it must fit one buffer, not one binding. Default true. */
  readonly isBoundWhole?: boolean;
  /** Default: storage that can be copied from and to. */
  readonly usage?: number;
}

export interface Buffers {
  /** A zeroed buffer. Throws EngineError("device") with the bytes wanted and in use, and what to lower. */
  create(name: string, byteLength: number, options: BufferOptions): Promise<GPUBuffer>;
  /** `data` from the buffer's word `offset` on. */
  upload(buffer: GPUBuffer, data: TensorData, offset?: number): Promise<void>;
  destroy(buffer: GPUBuffer): void;
  readonly byteLength: number;
}

export const createBuffers = ({ device, check, failure }: OpenDevice): Buffers => {
  const live = new Set<GPUBuffer>();
  let byteLength = 0;
  /** Handed to writeBuffer since the queue was last seen empty. */
  let stagedBytes = 0;

  const destroy = (buffer: GPUBuffer): void => {
    if (!live.delete(buffer)) return;
    byteLength -= buffer.size;
    buffer.destroy();
  };

  return {
    create: async (name, size, { home, isBoundWhole = true, usage = STORAGE }): Promise<GPUBuffer> => {
      const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
      const limit = isBoundWhole ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
      if (size > limit) {
        throw new EngineError(
          "device",
          `webgpu: "${name}" must fit this device's limit of ${mebibytes(limit)}, got ${mebibytes(size)}; ${adviceFor(home)}, or use another device`,
        );
      }
      device.pushErrorScope("validation");
      device.pushErrorScope("out-of-memory");
      const buffer = device.createBuffer({ label: name, size, usage });
      const errors = await Promise.all([device.popErrorScope(), device.popErrorScope()]).catch(async (cause: unknown) => {
        buffer.destroy();
        throw await failure(`allocating "${name}"`, cause);
      });
      const error = errors.find((found) => found !== null);
      if (error) {
        buffer.destroy();
        throw new EngineError(
          "device",
          `webgpu: the device must have ${mebibytes(size)} free for "${name}" beside the ${mebibytes(byteLength)} in use, got "${error.message}"; ${adviceFor(home)}`,
        );
      }
      check(`allocating "${name}"`);
      live.add(buffer);
      byteLength += size;
      return buffer;
    },
    upload: async (buffer, data, offset = 0): Promise<void> => {
      const step = UPLOAD_BYTES / 4;
      for (let from = 0; from < data.length; from += step) {
        const part = data.subarray(from, from + step) as TensorData & { buffer: ArrayBuffer };
        device.queue.writeBuffer(buffer, (offset + from) * 4, part);
        // Counted over all uploads: a checkpoint comes in thousands of small ones.
        stagedBytes += part.byteLength;
        if (stagedBytes < UPLOAD_BYTES * UPLOADS_IN_FLIGHT) continue;
        stagedBytes = 0;
        await device.queue.onSubmittedWorkDone();
      }
    },
    destroy,
    get byteLength(): number {
      return byteLength;
    },
  };
};

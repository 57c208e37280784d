// Device → host through a small ring of mappable buffers that are kept: a read of a size seen before allocates nothing.

import { EngineError } from "../errors.ts";
import type { HostArray } from "../plan/backend.ts";
import { type Buffers, USAGE } from "./buffers.ts";
import type { OpenDevice } from "./device.ts";

const RING = 3;
const SMALLEST = 4096;
/** Longer reads come in pieces of this size. */
const LARGEST = 16 << 20;
const MAP_READ = 1;

export interface Readback {
  /** Fills `into` from `source`, byte `offset` on. Ordered after everything submitted before the call. */
  read(source: GPUBuffer, offset: number, into: HostArray): Promise<void>;
}

export const createReadback = ({ device, check, failure, wait }: OpenDevice, buffers: Buffers): Readback => {
  const ring: (GPUBuffer | undefined)[] = Array.from({ length: RING });
  /** Resolves when the slot's last read is over. */
  const free: Promise<void>[] = Array.from({ length: RING }, () => Promise.resolve());
  let next = 0;

  const stagingFor = async (slot: number, byteLength: number): Promise<GPUBuffer> => {
    const found = ring[slot];
    if (found && found.size >= byteLength) return found;
    if (found) buffers.destroy(found);
    ring[slot] = undefined;
    let size = SMALLEST;
    while (size < byteLength) size *= 2;
    const made = await buffers.create(`readback ${slot}`, size, {
      ...{ home: "io", isBoundWhole: false },
      usage: USAGE.MAP_READ | USAGE.COPY_DST,
    });
    ring[slot] = made;
    return made;
  };

  const readPiece = async (source: GPUBuffer, offset: number, into: HostArray): Promise<void> => {
    const slot = next++ % RING;
    const before = free[slot]!;
    let release = (): void => {};
    free[slot] = new Promise((resolve) => {
      release = resolve;
    });
    try {
      await before;
      check("read");
      const staging = await stagingFor(slot, into.byteLength);
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(source, offset, staging, 0, into.byteLength);
      device.queue.submit([encoder.finish()]);
      await wait(staging.mapAsync(MAP_READ, 0, into.byteLength));
      const bytes = new Uint8Array(staging.getMappedRange(0, into.byteLength));
      new Uint8Array(into.buffer, into.byteOffset, into.byteLength).set(bytes);
      staging.unmap();
    } finally {
      release();
    }
  };

  return {
    read: async (source, offset, into): Promise<void> => {
      try {
        for (let from = 0; from < into.byteLength; from += LARGEST) {
          await readPiece(source, offset + from, into.subarray(from / 4, (from + LARGEST) / 4));
        }
      } catch (cause) {
        throw cause instanceof EngineError ? cause : await failure("read", cause);
      }
      check("read");
    },
  };
};

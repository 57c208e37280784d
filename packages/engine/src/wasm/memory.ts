// The one linear memory, and who has which part of it. Blocks are aligned to 256 bytes; freed ones are merged and given away again,
// the memory itself never shrinks before the whole backend is dropped.

import { EngineError } from "../errors.ts";
import { adviceFor } from "../plan/shortage.ts";
import type { Home } from "../plan/step.ts";

const PAGE = 65536;
export const ALIGNMENT = 256;
/** wasm32 addresses this much. */
const ADDRESS_SPACE = 2 ** 32;

interface Block {
  readonly address: number;
  readonly byteLength: number;
}

export interface Heap {
  readonly memory: WebAssembly.Memory;
  /** Address of a block with undefined contents. Throws EngineError("device") with the bytes needed and what to lower. */
  allocate(byteLength: number, what: string, home: Home): number;
  free(address: number): void;
  /** Bytes in blocks that are not free. */
  readonly byteLength: number;
}

/** A shared memory has to name its maximum, and some devices refuse to reserve 4 GiB of addresses: the largest that is granted. */
export const createMemory = (shared: boolean): WebAssembly.Memory => {
  if (!shared) return new WebAssembly.Memory({ initial: 1 });
  for (let maximum = ADDRESS_SPACE / PAGE; maximum > 1024; maximum /= 2) {
    try {
      return new WebAssembly.Memory({ initial: 1, maximum, shared });
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
    }
  }
  throw new EngineError("device", "wasm memory: 64 MiB of shared address space are needed, got none; close other pages, or use one thread");
};

export const createHeap = (memory: WebAssembly.Memory, firstAddress: number): Heap => {
  const used = new Map<number, number>();
  /** Sorted by address, never adjacent. */
  let free: Block[] = [];
  let end = Math.ceil(firstAddress / ALIGNMENT) * ALIGNMENT;
  let usedBytes = 0;

  const growTo = (limit: number, byteLength: number, what: string, home: Home): void => {
    const missing = limit - memory.buffer.byteLength;
    if (missing <= 0) return;
    try {
      // the very last page stays out: one past the end must still be an address
      if (limit > ADDRESS_SPACE - PAGE) throw new RangeError("beyond the addresses of wasm32");
      memory.grow(Math.ceil(missing / PAGE));
    } catch (cause) {
      throw new EngineError(
        "device",
        `wasm memory: ${what} needs ${byteLength} bytes, ${limit} in all; the device gives no more than ${memory.buffer.byteLength} (at most ${ADDRESS_SPACE}); ${adviceFor(home)}`,
        { cause },
      );
    }
  };

  return {
    memory,
    allocate: (byteLength, what, home) => {
      const size = Math.max(Math.ceil(byteLength / ALIGNMENT), 1) * ALIGNMENT;
      const at = free.findIndex((block) => block.byteLength >= size);
      let address = end;
      if (at >= 0) {
        const block = free[at]!;
        address = block.address;
        free.splice(at, 1, ...(block.byteLength > size ? [{ address: address + size, byteLength: block.byteLength - size }] : []));
      } else {
        growTo(end + size, byteLength, what, home);
        end += size;
      }
      used.set(address, size);
      usedBytes += size;
      return address;
    },
    free: (address) => {
      const byteLength = used.get(address);
      if (byteLength === undefined) return;
      used.delete(address);
      usedBytes -= byteLength;
      const merged: Block[] = [];
      for (const block of [...free, { address, byteLength }].sort((a, b) => a.address - b.address)) {
        const last = merged.at(-1);
        if (last && last.address + last.byteLength === block.address) {
          merged[merged.length - 1] = { address: last.address, byteLength: last.byteLength + block.byteLength };
        } else merged.push(block);
      }
      const top = merged.at(-1);
      if (top && top.address + top.byteLength === end) {
        end = top.address;
        merged.pop();
      }
      free = merged;
    },
    get byteLength() {
      return usedBytes;
    },
  };
};

// Copies of arrays that are kept for a moment: many in one buffer, because a buffer for each costs more than the copying.

import type { CopyArray } from "../rows.ts";

const SLAB_BYTES = 2 ** 16;
/** What is larger gets a buffer of its own. */
const SMALL_BYTES = 2 ** 13;

export const createSlabCopy = (): CopyArray => {
  let slab = new ArrayBuffer(SLAB_BYTES);
  let used = 0;
  return <T extends Int32Array | Float32Array>(array: T): T => {
    if (array.byteLength > SMALL_BYTES) return array.slice() as T;
    if (used + array.byteLength > SLAB_BYTES) {
      slab = new ArrayBuffer(SLAB_BYTES);
      used = 0;
    }
    const copy = array instanceof Int32Array ? new Int32Array(slab, used, array.length) : new Float32Array(slab, used, array.length);
    used += array.byteLength;
    copy.set(array);
    return copy as T;
  };
};

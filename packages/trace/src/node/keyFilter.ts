// Which keys are not among many: a Bloom filter (B. H. Bloom, Space/time trade-offs in hash coding with allowable errors, 1970).
// Most spans that a store is given are new, and to look for each in the files of a long rollout costs more than to write it.

import type { Key } from "./sidecar.ts";

const BITS_A_KEY = 16;
const PROBES = 4;

/** A key that was added is always found; one that was not, less than 3 times in 1000. */
export class KeyFilter {
  readonly #words: Int32Array;

  /** For so many keys: 2 to 4 bytes each. */
  constructor(keys: number) {
    this.#words = new Int32Array(2 ** Math.ceil(Math.log2(Math.max(keys, 64) * BITS_A_KEY)) / 32);
  }

  add({ high, low }: Key): void {
    const words = this.#words;
    for (let probe = 0, bit = high; probe < PROBES; probe++, bit += low | 1) {
      const word = (bit >>> 5) & (words.length - 1);
      words[word] = (words[word] as number) | (1 << (bit & 31));
    }
  }

  mayHold({ high, low }: Key): boolean {
    const words = this.#words;
    for (let probe = 0, bit = high; probe < PROBES; probe++, bit += low | 1)
      if ((((words[(bit >>> 5) & (words.length - 1)] as number) >> (bit & 31)) & 1) === 0) return false;
    return true;
  }
}

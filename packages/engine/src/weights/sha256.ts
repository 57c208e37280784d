// SHA-256 (FIPS 180-4): of whole arrays by the platform's WebCrypto, which knows no pieces, and of a stream by our own. Hashes name
// base models and adapters in files; nothing secret is hashed.

import { EngineError } from "../errors.ts";

export const toHex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Lower-case hex. Throws EngineError("unsupported") where the page is no secure context. */
export const sha256 = async (bytes: Uint8Array): Promise<string> => {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) throw new EngineError("unsupported", "sha256: crypto.subtle exists, got none; serve the page over https or from localhost");
  // WebCrypto takes no view of shared memory.
  const plain = bytes.buffer instanceof ArrayBuffer ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
  return toHex(new Uint8Array(await subtle.digest("SHA-256", plain)));
};

/** A hash of bytes that come one after the other; node:crypto's Hash is one. */
export interface StreamHash {
  update(bytes: Uint8Array): unknown;
  /** Once, at the end. */
  digest(encoding: "hex"): string;
}

const BLOCK = 64;
/** The first 32 bits of the fractional part. */
const fraction = (value: number): number => Math.floor((value - Math.floor(value)) * 2 ** 32) | 0;
const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));

let constants: { readonly start: Int32Array; readonly rounds: Int32Array } | undefined;
/** Of the square roots of the first 8 primes and the cube roots of the first 64. */
const makeConstants = (): NonNullable<typeof constants> => {
  const primes: number[] = [];
  for (let candidate = 2; primes.length < 64; candidate++) if (primes.every((prime) => candidate % prime !== 0)) primes.push(candidate);
  return {
    start: Int32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p))),
    rounds: Int32Array.from(primes, (p) => fraction(Math.cbrt(p))),
  };
};

/** For runtimes without a platform's; about 100 MB a second. */
export const createSha256 = (): StreamHash => {
  constants ??= makeConstants();
  const { rounds } = constants;
  const state = constants.start.slice();
  const words = new Int32Array(64);
  const rest = new Uint8Array(BLOCK);
  let restBytes = 0;
  let totalBytes = 0;

  const block = (view: DataView, at: number): void => {
    for (let t = 0; t < 16; t++) words[t] = view.getInt32(at + t * 4);
    for (let t = 16; t < 64; t++) {
      const [before2, before15] = [words[t - 2]!, words[t - 15]!];
      const low = rotate(before15, 7) ^ rotate(before15, 18) ^ (before15 >>> 3);
      const high = rotate(before2, 17) ^ rotate(before2, 19) ^ (before2 >>> 10);
      words[t] = (words[t - 16]! + low + words[t - 7]! + high) | 0;
    }
    let [a, b, c, d] = [state[0]!, state[1]!, state[2]!, state[3]!];
    let [e, f, g, h] = [state[4]!, state[5]!, state[6]!, state[7]!];
    for (let t = 0; t < 64; t++) {
      const first = (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + rounds[t]! + words[t]!) | 0;
      const second = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + first) | 0;
      d = c;
      c = b;
      b = a;
      a = (first + second) | 0;
    }
    for (const [i, word] of [a, b, c, d, e, f, g, h].entries()) state[i]! += word;
  };

  const update = (bytes: Uint8Array): void => {
    totalBytes += bytes.length;
    let at = 0;
    if (restBytes > 0) {
      at = Math.min(BLOCK - restBytes, bytes.length);
      rest.set(bytes.subarray(0, at), restBytes);
      restBytes += at;
      if (restBytes < BLOCK) return;
      block(new DataView(rest.buffer), 0);
      restBytes = 0;
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (; at + BLOCK <= bytes.length; at += BLOCK) block(view, at);
    rest.set(bytes.subarray(at));
    restBytes = bytes.length - at;
  };

  return {
    update,
    digest: () => {
      const [high, low] = [Math.floor(totalBytes / 2 ** 29), (totalBytes * 8) >>> 0];
      // one bit, zeros, the length in bits
      const padding = new Uint8Array(restBytes < 56 ? BLOCK - restBytes : 2 * BLOCK - restBytes);
      padding[0] = 0x80;
      const view = new DataView(padding.buffer);
      view.setUint32(padding.length - 8, high);
      view.setUint32(padding.length - 4, low);
      update(padding);
      return Array.from(state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
    },
  };
};

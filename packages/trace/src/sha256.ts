// SHA-256 (FIPS 180-4) as 64 lower-case hex digits. The platform's where a page may use it; ours where it may not (pages that
// came over plain http) and where nothing may be awaited (inside an IndexedDB transaction).

const hexOf = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The first 32 bits of the fractional part. */
const fraction = (value: number): number => Math.floor((value - Math.floor(value)) * 2 ** 32) | 0;

let constants: { readonly start: Int32Array; readonly rounds: Int32Array } | undefined;

/** Of the square roots of the first 8 primes and the cube roots of the first 64. */
const makeConstants = (): NonNullable<typeof constants> => {
  const primes: number[] = [];
  for (let candidate = 2; primes.length < 64; candidate++) if (primes.every((prime) => candidate % prime !== 0)) primes.push(candidate);
  return {
    start: Int32Array.from(primes.slice(0, 8), (prime) => fraction(Math.sqrt(prime))),
    rounds: Int32Array.from(primes, (prime) => fraction(Math.cbrt(prime))),
  };
};

const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));

/** The message, a one bit, zeros, and its length in bits as 64 bits, big-endian: whole blocks of 64 bytes. Only the last one or two are a copy. */
const tailOf = (bytes: Uint8Array): Uint8Array => {
  const rest = bytes.subarray(bytes.length - (bytes.length % 64));
  const tail = new Uint8Array(rest.length < 56 ? 64 : 128);
  tail.set(rest);
  tail[rest.length] = 0x80;
  new DataView(tail.buffer).setBigUint64(tail.length - 8, BigInt(bytes.length) * 8n);
  return tail;
};

/** About 100 MB a second. */
export const sha256Sync = (bytes: Uint8Array): string => {
  constants ??= makeConstants();
  const { rounds } = constants;
  const state = constants.start.slice();
  const words = new Int32Array(64);
  const blocks = (part: Uint8Array, byteLength: number): void => {
    const view = new DataView(part.buffer, part.byteOffset, part.byteLength);
    for (let at = 0; at < byteLength; at += 64) {
      for (let t = 0; t < 16; t++) words[t] = view.getInt32(at + t * 4);
      for (let t = 16; t < 64; t++) {
        const [before2, before15] = [words[t - 2] as number, words[t - 15] as number];
        const low = rotate(before15, 7) ^ rotate(before15, 18) ^ (before15 >>> 3);
        const high = rotate(before2, 17) ^ rotate(before2, 19) ^ (before2 >>> 10);
        words[t] = ((words[t - 16] as number) + low + (words[t - 7] as number) + high) | 0;
      }
      let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
      for (let t = 0; t < 64; t++) {
        const chosen = (e & f) ^ (~e & g);
        const first = (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + chosen + (rounds[t] as number) + (words[t] as number)) | 0;
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
      for (const [index, word] of [a, b, c, d, e, f, g, h].entries()) state[index] = (state[index] as number) + word;
    }
  };
  blocks(bytes, bytes.length - (bytes.length % 64));
  const tail = tailOf(bytes);
  blocks(tail, tail.length);
  return Array.from(state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
};

export const sha256 = async (bytes: Uint8Array): Promise<string> => {
  const subtle: SubtleCrypto | undefined = globalThis.crypto?.subtle; // absent on pages without https
  return subtle === undefined ? sha256Sync(bytes) : hexOf(new Uint8Array(await subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>)));
};

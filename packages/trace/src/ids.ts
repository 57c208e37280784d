// Ids: 26 characters of Crockford's base-32 (48-bit time, 80-bit random: sortable by creation, unique without asking anyone)
// and OpenTelemetry's 16 hex digits for spans. Randomness and time come from outside.

const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";

export type RandomBytes = (length: number) => Uint8Array;

const POOL_BYTES = 4096;
let pool: Uint8Array<ArrayBuffer> | undefined;
let spent = POOL_BYTES;

/** Cryptographic randomness of the platform, asked for a page at a time: an id needs ten bytes, and each question costs more than they do. */
export const platformRandom: RandomBytes = (length) => {
  if (length > POOL_BYTES) return globalThis.crypto.getRandomValues(new Uint8Array(length));
  pool ??= new Uint8Array(POOL_BYTES);
  if (spent + length > POOL_BYTES) {
    globalThis.crypto.getRandomValues(pool);
    spent = 0;
  }
  const bytes = pool.slice(spent, spent + length);
  pool.fill(0, spent, spent + length); // given once, and kept nowhere
  spent += length;
  return bytes;
};

/** `value` in base-32, `digits` characters: whole numbers below 2^53, in plain arithmetic, for BigInt costs ten times as much. */
const toBase32 = (value: number, digits: number): string => {
  let text = "";
  for (let rest = value; text.length < digits; rest = Math.floor(rest / 32)) text = (ALPHABET[rest % 32] as string) + text;
  return text;
};

/** Five bytes, big-endian: 40 bits. */
const wordAt = (bytes: Uint8Array, at: number): number => {
  let word = 0;
  for (let index = at; index < at + 5; index++) word = word * 256 + (bytes[index] as number);
  return word;
};

const TIME_RANGE = 2 ** 48;

/** 10 characters of time, 16 of randomness. `nowMs` is floored and taken modulo 2^48. @throws RangeError when it is not finite. */
export const mintId = (nowMs: number, randomBytes: RandomBytes = platformRandom): string => {
  if (!Number.isFinite(nowMs)) throw new RangeError(`mintId: milliseconds are finite, got ${nowMs}; pass a clock's`);
  const time = Math.floor(nowMs) % TIME_RANGE;
  const random = randomBytes(10);
  return toBase32(time < 0 ? time + TIME_RANGE : time, 10) + toBase32(wordAt(random, 0), 8) + toBase32(wordAt(random, 5), 8);
};

const HEX: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** 16 hex digits, never all zero (OpenTelemetry reserves that). */
export const mintSpanId = (randomBytes: RandomBytes = platformRandom): string => {
  let id = "";
  for (const byte of randomBytes(8)) id += HEX[byte] as string;
  return id === "0000000000000000" ? "0000000000000001" : id;
};

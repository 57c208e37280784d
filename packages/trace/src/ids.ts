// Ids: 26 characters of Crockford's base-32 (48-bit time, 80-bit random: sortable by creation, unique without asking anyone)
// and OpenTelemetry's 16 hex digits for spans. Randomness and time come from outside.

const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";

export type RandomBytes = (length: number) => Uint8Array;

/** Cryptographic randomness of the platform, looked up at the call. */
export const platformRandom: RandomBytes = (length) => globalThis.crypto.getRandomValues(new Uint8Array(length));

/** 130 bits hold 128: the first character is 0–7. `nowMs` is floored and taken modulo 2^48. */
export const mintId = (nowMs: number, randomBytes: RandomBytes = platformRandom): string => {
  let bits = BigInt.asUintN(48, BigInt(Math.floor(nowMs)));
  for (const byte of randomBytes(10)) bits = (bits << 8n) | BigInt(byte);
  let id = "";
  for (let shift = 125n; shift >= 0n; shift -= 5n) id += ALPHABET[Number((bits >> shift) & 31n)];
  return id;
};

/** 16 hex digits, never all zero (OpenTelemetry reserves that). */
export const mintSpanId = (randomBytes: RandomBytes = platformRandom): string => {
  const id = Array.from(randomBytes(8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return id === "0000000000000000" ? "0000000000000001" : id;
};

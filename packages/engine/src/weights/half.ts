// IEEE 754 binary16 (half precision) ⇄ numbers, both ways exact to the last bit.

/** IEEE 754 binary16 → number, subnormals included. */
const fromHalf = (bits: number): number => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
};

/** All 65536 halves: made on first use, since a lookup is ~10 × faster than the arithmetic on a checkpoint of 10⁸ weights. */
let halfTable: Float32Array | undefined;
export const halves = (): Float32Array => {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, bits) => fromHalf(bits));
  return halfTable;
};

const floatBits = new Uint32Array(1);
const floatValue = new Float32Array(floatBits.buffer);

/** f32 → binary16 bits, rounded to nearest, ties to even; infinity beyond 65504 (65520 before rounding). */
export const toHalf = (value: number): number => {
  floatValue[0] = value;
  const bits = floatBits[0]!;
  const sign = (bits >>> 16) & 0x8000;
  const size = Math.abs(value);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  // The spacing of halves around `size` is 2^(exponent − 10): scaling by it is exact, so only one rounding happens.
  const exponent = Math.max(((bits >>> 23) & 0xff) - 127, -14);
  const scaled = size * 2 ** (10 - exponent);
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const rounded = rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
  // A carry out of the fraction moves into the exponent by plain addition.
  return sign | (rounded + ((exponent + 14) << 10));
};

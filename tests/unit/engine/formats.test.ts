import { describe, expect, test } from "vitest";
import type { Tensor } from "../../../packages/engine/src/plan/step.ts";
import { byteLengthOf, packedLayout, packInto, unpack, type WeightFormat } from "../../../packages/engine/src/weights/formats.ts";

const tensor = (dtype: WeightFormat, rows: number, columns: number): Tensor => ({
  name: "w",
  shape: [rows, columns],
  dtype,
  home: "weights",
});

const random = (count: number): Float32Array => {
  let state = 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 4;
  });
};

const roundTrip = (dtype: WeightFormat, values: Float32Array, rows: number): Float32Array => {
  const weight = tensor(dtype, rows, values.length / rows);
  const words = new Uint32Array(byteLengthOf(weight) / 4);
  packInto(weight, words, values);
  return unpack(weight, words);
};

describe("packed weights", () => {
  test("take the bits that the plan counts on", () => {
    const bits = (dtype: WeightFormat): number => (byteLengthOf(tensor(dtype, 576, 576)) * 8) / 576 ** 2;
    expect([bits("f32"), bits("f16"), bits("bf16"), bits("q8"), bits("q4")]).toEqual([32, 16, 16, 8.5, 4.5]);
    expect(packedLayout("q4", 32)).toEqual({ scaleWord: 64, words: 65 });
  });

  test("a value moves by at most half a step of its format", () => {
    const values = random(7 * 96);
    for (const [dtype, bound] of [
      ["f16", (group: number) => group * 2 ** -11],
      ["bf16", (group: number) => group * 2 ** -8],
      // half a step, and what rounding the scale to f16 adds to the largest integer
      ["q8", (group: number) => group / 127 / 2 + group * 2 ** -11],
      ["q4", (group: number) => group / 7 / 2 + group * 2 ** -11],
    ] as const) {
      const back = roundTrip(dtype, values, 7);
      for (let i = 0; i < values.length; i++) {
        const start = i - (i % 32);
        const most = Math.max(...values.subarray(start, start + 32).map(Math.abs));
        expect(Math.abs(back[i]! - values[i]!)).toBeLessThanOrEqual(bound(most));
      }
    }
  });

  test("bfloat16 and half keep what they can hold to the bit, and ties go to even", () => {
    const exact = Float32Array.from({ length: 32 }, (_, i) => (i - 16) * 0.25);
    expect(roundTrip("bf16", exact, 1)).toEqual(exact);
    expect(roundTrip("f16", exact, 1)).toEqual(exact);
    // 127 is the largest, so the scale is 1: 0.5 and 2.5 lie between two integers
    const ties = new Float32Array(32);
    ties.set([127, 0.5, 1.5, 2.5, -0.5, -1.5]);
    expect([...roundTrip("q8", ties, 1).subarray(0, 6)]).toEqual([127, 0, 2, 2, 0, -2]);
  });

  test("a group of zeros stays zero, and one too small for a scale becomes it", () => {
    expect(roundTrip("q4", new Float32Array(64), 2)).toEqual(new Float32Array(64));
    expect(roundTrip("q8", new Float32Array(32).fill(1e-9), 1).every((value) => value === 0)).toBe(true);
  });

  test("pieces in any order give the words of the whole", () => {
    const values = random(4 * 64);
    for (const dtype of ["f16", "bf16", "q8", "q4"] as const) {
      const weight = tensor(dtype, 4, 64);
      const [whole, pieces] = [new Uint32Array(byteLengthOf(weight) / 4), new Uint32Array(byteLengthOf(weight) / 4)];
      packInto(weight, whole, values);
      for (const first of [160, 0, 64])
        packInto(weight, pieces, values.subarray(first, first === 160 ? 256 : first === 0 ? 64 : 160), first);
      expect(pieces).toEqual(whole);
    }
  });

  test("a value beyond its format is refused by name and place", () => {
    const values = new Float32Array(32);
    values[3] = 70000;
    expect(() => roundTrip("f16", values, 1)).toThrow("w: values fit in f16 (|w| ≤ 65504), got 70000 at 3; load it as bf16 or f32");
    expect(roundTrip("bf16", values, 1)[3]).toBeCloseTo(70000, -3);
    values[3] = Number.NaN;
    expect(() => roundTrip("q8", values, 1)).toThrow("got NaN at 3");
  });
});

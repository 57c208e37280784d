import { mintId, platformRandom } from "@fulgurite/trace";
import { expect, test } from "vitest";

/** The same bits, written out one after the other. */
const byBits = (nowMs: number, random: readonly number[]): string => {
  const bits = BigInt.asUintN(48, BigInt(Math.floor(nowMs)))
    .toString(2)
    .padStart(48, "0");
  const all = `00${bits}${random.map((byte) => byte.toString(2).padStart(8, "0")).join("")}`;
  return (all.match(/.{5}/g) ?? []).map((five) => "0123456789abcdefghjkmnpqrstvwxyz"[Number.parseInt(five, 2)]).join("");
};

test("an id is 48 bits of time and 80 of randomness in base-32", () => {
  const bytes = [255, 0, 1, 128, 77, 254, 3, 9, 200, 31];
  for (const nowMs of [0, 1, 1_790_000_000_000.9, 2 ** 48 - 1, 2 ** 48 + 5, -1, -0.5])
    expect(
      mintId(nowMs, () => Uint8Array.from(bytes)),
      String(nowMs),
    ).toBe(byBits(nowMs, bytes));
  expect(() => mintId(Number.NaN)).toThrow("mintId: milliseconds are finite, got NaN");
});

test("randomness is given once, whatever the lengths that are asked for", () => {
  const given = new Set<string>();
  for (let count = 0; count < 3_000; count++) given.add(platformRandom(8 + (count % 5)).join());
  expect(given.size).toBe(3_000);
  expect(platformRandom(10_000).some((byte) => byte !== 0)).toBe(true);
  const mine = platformRandom(16);
  const before = mine.join();
  platformRandom(8);
  expect(mine.join()).toBe(before);
});

// The size of a submit, on made-up devices with a made-up clock.

import { describe, expect, test } from "vitest";
import { createPacing, FIRST_WORK, LEAST_WORK, MOST_WORK, nextWork, TARGET_MS } from "../../../packages/engine/src/webgpu/pacing.ts";

describe("nextWork", () => {
  test("aims at the target: half of it taken is twice the work, twice it taken is half", () => {
    expect(nextWork(4e9, { done: 4e9, ms: TARGET_MS })).toBe(4e9);
    expect(nextWork(4e9, { done: 4e9, ms: TARGET_MS / 2 })).toBe(8e9);
    expect(nextWork(4e9, { done: 4e9, ms: TARGET_MS * 2 })).toBe(2e9);
  });

  test("grows by at most two, shrinks by at most four, and stays within its bounds", () => {
    expect(nextWork(4e9, { done: 4e9, ms: 0 })).toBe(8e9);
    expect(nextWork(4e9, { done: 4e9, ms: 60_000 })).toBe(1e9);
    expect(nextWork(LEAST_WORK, { done: LEAST_WORK, ms: 1e6 })).toBe(LEAST_WORK);
    expect(nextWork(MOST_WORK, { done: MOST_WORK, ms: 1 })).toBe(MOST_WORK);
  });

  test("learns nothing from a small submit that was fast, but from one that was slow", () => {
    expect(nextWork(4e9, { done: 1e6, ms: 3 })).toBe(4e9);
    expect(nextWork(4e9, { done: 1e9, ms: 400 })).toBe(1e9);
  });
});

/** A device of so many multiply-adds a millisecond that is always sent the next submits, up to four ahead. */
const simulate = (speed: number, submits: number): number[] => {
  let [clock, deviceFree] = [0, 0];
  const pacing = createPacing(() => clock);
  const flying: { end: number; ended: () => void }[] = [];
  const lengths: number[] = [];
  for (let i = 0; i < submits; i++) {
    const { work } = pacing;
    const ms = work / speed;
    deviceFree = Math.max(deviceFree, clock) + ms;
    flying.push({ end: deviceFree, ended: pacing.submitted(work) });
    lengths.push(ms);
    if (flying.length <= 4) continue;
    const first = flying.shift()!;
    clock = first.end;
    first.ended();
  }
  return lengths;
};

describe("a device", () => {
  test.each([1e6, 2e7, 1e9, 3e10])(
    "of %d multiply-adds a millisecond is sent about 100 ms at a time, and never nears a watchdog",
    (speed) => {
      const lengths = simulate(speed, 60);
      const settled = lengths.slice(30);
      const least = LEAST_WORK / speed;
      for (const ms of settled) {
        expect(ms).toBeGreaterThan(TARGET_MS * 0.9);
        expect(ms).toBeLessThan(Math.max(TARGET_MS, least) * 1.1);
      }
      // The first guess is sent before anything is known.
      expect(Math.max(...lengths.slice(8))).toBeLessThan(Math.max(4 * TARGET_MS, FIRST_WORK / speed / 16));
    },
  );
});

import fc from "fast-check";
import { expect, test } from "vitest";
import { KeyFilter } from "../../../packages/trace/src/node/keyFilter.ts";
import { keyOf } from "../../../packages/trace/src/node/sidecar.ts";

test("a filter of keys holds every key that was added, and few others", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 5_000 }), fc.string(), (count, salt) => {
      const keys = Array.from({ length: count }, (_, index) => keyOf("rollout r", salt, String(index)));
      const filter = new KeyFilter(count);
      for (const key of keys) filter.add(key);
      expect(keys.every((key) => filter.mayHold(key))).toBe(true);
      const others = Array.from({ length: 10_000 }, (_, index) => keyOf("rollout r", salt, `${index} of others`));
      expect(others.filter((key) => filter.mayHold(key)).length).toBeLessThan(60);
    }),
    { numRuns: 30 },
  );
});

import fc from "fast-check";
import { expect, test } from "vitest";
import { rowsByKey } from "../../../packages/trace/src/node/sidecar.ts";

test("rows come in the order of their keys, those of one key in any", () => {
  const part = fc.oneof(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 2 ** 32 - 3, max: 2 ** 32 - 1 }));
  fc.assert(
    fc.property(fc.array(fc.tuple(part, part), { maxLength: 200 }), (keys) => {
      const rows = [
        ...rowsByKey(
          Uint32Array.from(keys, ([high]) => high),
          Uint32Array.from(keys, ([, low]) => low),
        ),
      ];
      expect([...rows].sort((a, b) => a - b)).toEqual(keys.map((_, row) => row));
      const sorted = [...keys].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      expect(rows.map((row) => keys[row])).toEqual(sorted);
    }),
  );
});

// Corrections on one row of two tokens, ρ = 2 and ½, with numbers to check by hand.
import { type Correction, geometric, icePop, opsm, rowK3, rowMask, rowTis, tokenK1, tokenTis } from "@fulgurite/rl";
import { expect, test } from "vitest";

const LN2 = Math.log(2);
/** log ρ of each token; the last one is masked and holds NaN. */
const weights = (correction: Correction, logRho: readonly number[], advantage = 1): number[] =>
  [
    ...correction.weights({
      oldLogprobs: [...logRho.map((value) => value - 3), Number.NaN],
      samplerLogprobs: [...logRho.map(() => -3), -3],
      mask: [...logRho.map(() => 1), 0],
      advantages: [...logRho.map(() => advantage), 0],
    }),
  ].map((weight) => Number(weight.toFixed(9)));

test.each<[string, Correction, readonly number[], readonly number[]]>([
  ["tokenTis cuts each ratio", tokenTis({ cap: 1.5 }), [LN2, -LN2], [1.5, 0.5, 0]],
  ["rowTis cuts the product of the row", rowTis({ cap: 3 }), [LN2, LN2], [3, 3, 0]],
  ["rowMask keeps a product below the cap", rowMask({ cap: 5 }), [LN2, LN2], [4, 4, 0]],
  ["rowMask drops a product above the cap", rowMask({ cap: 3 }), [LN2, LN2], [0, 0, 0]],
  ["icePop drops what is outside on either side", icePop({ min: 0.6, max: 1.9 }), [LN2, 0, -LN2], [0, 1, 0, 0]],
  ["geometric looks at the mean, not the sum", geometric({ min: 0.4, max: 2.1 }), [LN2, LN2], [1, 1, 0]],
  ["geometric drops a row that moved one way", geometric({ min: 0.9, max: 1.1 }), [LN2, LN2], [0, 0, 0]],
  ["geometric keeps a row whose moves cancel", geometric({ min: 0.9, max: 1.1 }), [LN2, -LN2], [1, 1, 0]],
  ["rowK3 does not let moves cancel", rowK3({ max: 0.1 }), [LN2, -LN2], [0, 0, 0]],
  ["tokenK1 bounds 1/ρ", tokenK1({ min: 0.6, max: 3 }), [LN2, -LN2], [0, 1, 0]],
])("%s", (_, correction, logRho, wanted) => {
  expect(weights(correction, logRho)).toEqual(wanted);
});

test("opsm drops a drifted row only where its advantage is negative", () => {
  const drifted = [-LN2, -LN2];
  expect(weights(opsm({ delta: 0.5 }), drifted, -1)).toEqual([0, 0, 0]);
  expect(weights(opsm({ delta: 0.5 }), drifted, 1)).toEqual([1, 1, 0]);
  expect(weights(opsm({ delta: 0.8 }), drifted, -1)).toEqual([1, 1, 0]);
});

// The tool: exact arithmetic, limits, and errors that are text.
import { calculate, limits } from "@fulgurite/demo-calculator";
import fc from "fast-check";
import { expect, test } from "vitest";

test.each([
  ["37+85", "122"],
  ["2+3*4", "14"],
  ["(2+3)*4", "20"],
  ["10-4-3", "3"],
  ["2^3^2", "512"],
  ["-2^2", "-4"],
  ["2^-2", "0.25"],
  ["--5", "5"],
  ["2*-3", "-6"],
  ["0.1+0.2", "0.3"],
  ["1/3+1/6", "0.5"],
  ["1/3", "1/3"],
  ["-7/3", "-7/3"],
  ["1/-8", "-0.125"],
  ["-7%3", "2"],
  ["7.5%2", "1.5"],
  ["007", "7"],
  [" 6 * 7 ", "42"],
  ["sqrt(9/4)", "1.5"],
  ["sqrt(0)", "0"],
  ["abs(-3)+min(4, 2, 9)*max(1,5)", "13"],
  ["floor(-2.5)", "-3"],
  ["round(2.5)", "3"],
  ["round(-2.5)", "-2"],
])("%s is %s", (expression, result) => {
  expect(calculate(expression)).toBe(result);
});

test.each([
  ["", "error: unexpected end"],
  ["3+", "error: unexpected end"],
  ["3 4", 'error: unexpected "4"'],
  ["(3", "error: unexpected end"],
  ["3)", 'error: unexpected ")"'],
  ["*3", 'error: unexpected "*"'],
  ["1..2", 'error: unexpected "."'],
  ["x+1", 'error: unexpected "x"'],
  ["constructor(1)", 'error: unexpected "constructor"'],
  ["1 toString 2", 'error: unexpected "to"'],
  ["process.exit()", 'error: unexpected "process"'],
  ["abs(1,2)", "error: abs of 2 arguments"],
  ["min()", 'error: unexpected ")"'],
  ["5/0", "error: division by zero"],
  ["5%0", "error: division by zero"],
  ["0^-1", "error: division by zero"],
  ["2^0.5", "error: exponent must be an integer"],
  ["2^65", `error: exponent above ${limits.exponent}`],
  ["99^64", `error: more than ${limits.digits} digits`],
  ["9".repeat(61), `error: more than ${limits.digits} digits`],
  ["1".repeat(201), `error: longer than ${limits.length} characters`],
  ["(".repeat(40), `error: nested deeper than ${limits.depth}`],
  ["-".repeat(40), `error: nested deeper than ${limits.depth}`],
  ["sqrt(2)", "error: the root is not exact"],
  ["sqrt(-4)", "error: root of a negative number"],
])("%s is refused: %s", (expression, error) => {
  expect(calculate(expression)).toBe(error);
});

test("any text gets an answer or an error, never an exception", () => {
  const pieces = fc.constantFrom("1", "23", "0.5", "+", "-", "*", "/", "%", "^", "(", ")", ",", "sqrt", "min", "x", " ", "é", "🙂");
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(pieces, { maxLength: 30 }).map((list) => list.join("")),
      ),
      (text) => {
        expect(calculate(text)).toMatch(/^(error: .+|-?\d+(\.\d+|\/\d+)?)$/s);
      },
    ),
  );
});

test("sums, differences and products of integers are those of BigInt, quotients are undone by multiplication", () => {
  const integer = fc.bigInt({ min: -(10n ** 20n), max: 10n ** 20n });
  fc.assert(
    fc.property(integer, integer, integer, (a, b, c) => {
      expect(calculate(`(${a})+(${b})*(${c})`)).toBe((a + b * c).toString());
      expect(calculate(`${a}-(${b})-(${c})`)).toBe((a - b - c).toString());
      if (b !== 0n) expect(calculate(`(${a})/(${b})*(${b})`)).toBe(a.toString());
    }),
  );
});

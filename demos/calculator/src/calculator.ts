// The tool: a Pratt parser over exact rationals on BigInt, so that 0.1 + 0.2 is 0.3. Text in, text out; it never throws and never evals.
// Left out: names other than the seven functions, irrational results (sqrt of a non-square is an error, as is a broken exponent).

/** p/q in lowest terms, q > 0. */
export interface Rational {
  readonly p: bigint;
  readonly q: bigint;
}

export const limits = { length: 200, depth: 32, exponent: 64, digits: 60 } as const;

export type CalculatorErrorCode = "syntax" | "limit" | "domain";

/** What went wrong, in words that the model reads as the tool's output. */
export class CalculatorError extends Error {
  readonly code: CalculatorErrorCode;
  constructor(code: CalculatorErrorCode, message: string) {
    super(message);
    this.name = "CalculatorError";
    this.code = code;
  }
}

const magnitude = (n: bigint): bigint => (n < 0n ? -n : n);
const bound = 10n ** BigInt(limits.digits);

function gcd(a: bigint, b: bigint): bigint {
  while (b !== 0n) [a, b] = [b, a % b];
  return a;
}

function ratio(p: bigint, q: bigint): Rational {
  if (q === 0n) throw new CalculatorError("domain", "division by zero");
  const shared = gcd(magnitude(p), magnitude(q)) * (q < 0n ? -1n : 1n);
  const value = { p: p / shared, q: q / shared };
  if (magnitude(value.p) >= bound || value.q >= bound) throw new CalculatorError("limit", `more than ${limits.digits} digits`);
  return value;
}

const floorOf = ({ p, q }: Rational): bigint => (p >= 0n || p % q === 0n ? p / q : p / q - 1n);
const compare = (a: Rational, b: Rational): number => Number(a.p * b.q > b.p * a.q) - Number(a.p * b.q < b.p * a.q);

function power(base: Rational, exponent: Rational): Rational {
  if (exponent.q !== 1n) throw new CalculatorError("domain", "exponent must be an integer");
  if (magnitude(exponent.p) > BigInt(limits.exponent)) throw new CalculatorError("limit", `exponent above ${limits.exponent}`);
  const factor = exponent.p < 0n ? ratio(base.q, base.p) : base;
  let result = ratio(1n, 1n);
  for (let i = magnitude(exponent.p); i > 0n; i--) result = ratio(result.p * factor.p, result.q * factor.q);
  return result;
}

/** The exact root of a perfect square, by Newton's steps from above. */
function integerRoot(n: bigint): bigint {
  if (n < 0n) throw new CalculatorError("domain", "root of a negative number");
  let x = n;
  for (let next = (n + 1n) / 2n; next < x; next = (x + n / x) / 2n) x = next;
  if (x * x !== n) throw new CalculatorError("domain", "the root is not exact");
  return x;
}

type Operator = "+" | "-" | "*" | "/" | "%" | "^";

/** Left binding power; `^` binds to the right. % is the remainder with the divisor's sign, as in Python. */
const operators: Readonly<Record<Operator, { power: number; apply: (a: Rational, b: Rational) => Rational }>> = {
  "+": { power: 10, apply: (a, b) => ratio(a.p * b.q + b.p * a.q, a.q * b.q) },
  "-": { power: 10, apply: (a, b) => ratio(a.p * b.q - b.p * a.q, a.q * b.q) },
  "*": { power: 20, apply: (a, b) => ratio(a.p * b.p, a.q * b.q) },
  "/": { power: 20, apply: (a, b) => ratio(a.p * b.q, a.q * b.p) },
  "%": { power: 20, apply: (a, b) => ratio(a.p * b.q - b.p * a.q * floorOf(ratio(a.p * b.q, a.q * b.p)), a.q * b.q) },
  "^": { power: 40, apply: power },
};
const unaryPower = 30; // between * and ^: −2^2 is −4

const functions: Readonly<Record<string, { arity: [number, number]; apply: (args: Rational[]) => Rational }>> = {
  sqrt: { arity: [1, 1], apply: ([x]) => ratio(integerRoot(x!.p), integerRoot(x!.q)) },
  abs: { arity: [1, 1], apply: ([x]) => ratio(magnitude(x!.p), x!.q) },
  floor: { arity: [1, 1], apply: ([x]) => ratio(floorOf(x!), 1n) },
  round: { arity: [1, 1], apply: ([x]) => ratio(floorOf(ratio(2n * x!.p + x!.q, 2n * x!.q)), 1n) }, // halves go up
  min: { arity: [1, 8], apply: (args) => args.reduce((a, b) => (compare(a, b) <= 0 ? a : b)) },
  max: { arity: [1, 8], apply: (args) => args.reduce((a, b) => (compare(a, b) >= 0 ? a : b)) },
};

/** @throws CalculatorError */
export function evaluate(source: string): Rational {
  if (source.length > limits.length) throw new CalculatorError("limit", `longer than ${limits.length} characters`);
  const tokens = source.match(/\d+(?:\.\d+)?|[a-z]+|\S/g) ?? [];
  let at = 0;
  let depth = 0;

  const unexpected = () => new CalculatorError("syntax", at < tokens.length ? `unexpected "${tokens[at]}"` : "unexpected end");
  const expect = (token: string) => {
    if (tokens[at] !== token) throw unexpected();
    at++;
  };

  const primary = (): Rational => {
    const token = tokens[at];
    if (token === undefined) throw unexpected();
    if (/^\d/.test(token)) {
      at++;
      const [whole, fraction = ""] = token.split(".");
      return ratio(BigInt(whole! + fraction), 10n ** BigInt(fraction.length));
    }
    if (token === "+" || token === "-") {
      at++;
      const value = expression(unaryPower);
      return token === "-" ? { p: -value.p, q: value.q } : value;
    }
    if (token === "(") {
      at++;
      const value = expression(0);
      expect(")");
      return value;
    }
    if (!Object.hasOwn(functions, token)) throw unexpected();
    at++;
    expect("(");
    const { arity, apply } = functions[token]!;
    const args = [expression(0)];
    while (tokens[at] === ",") {
      at++;
      args.push(expression(0));
    }
    expect(")");
    if (args.length < arity[0] || args.length > arity[1]) throw new CalculatorError("syntax", `${token} of ${args.length} arguments`);
    return apply(args);
  };

  const expression = (binding: number): Rational => {
    if (++depth > limits.depth) throw new CalculatorError("limit", `nested deeper than ${limits.depth}`);
    let left = primary();
    for (;;) {
      const token = tokens[at];
      if (token === undefined || !Object.hasOwn(operators, token)) break;
      const operator = operators[token as Operator];
      if (operator.power <= binding) break;
      at++;
      left = operator.apply(left, expression(token === "^" ? operator.power - 1 : operator.power));
    }
    depth--;
    return left;
  };

  const value = expression(0);
  if (at < tokens.length) throw unexpected();
  return value;
}

/** Integers and terminating decimals as decimals, everything else as p/q: "122", "-0.5", "1/3". */
export function toText({ p, q }: Rational): string {
  if (q === 1n) return p.toString();
  let places = 0;
  let scale = 1n;
  while (places <= limits.digits && scale % q !== 0n) {
    scale *= 10n;
    places++;
  }
  if (scale % q !== 0n) return `${p}/${q}`;
  const digits = ((magnitude(p) * scale) / q).toString().padStart(places + 1, "0");
  return `${p < 0n ? "-" : ""}${digits.slice(0, -places)}.${digits.slice(-places)}`;
}

/** The tool's whole behaviour: an exact result, or "error: …". */
export function calculate(source: string): string {
  try {
    return toText(evaluate(source));
  } catch (error) {
    if (error instanceof CalculatorError) return `error: ${error.message}`;
    throw error;
  }
}

// A JavaScript regular expression → an expression that is matched from the first character to the last. What no finite automaton can do
// (look-around, back-references, anchors inside) is refused by name.

import { type Element, JS, type NoParent } from "refa";
import { AgentError, messageOf } from "../errors.ts";
import type { Expression } from "./expression.ts";

const refuse = (where: string, rule: string, got: string, cause?: unknown): AgentError =>
  new AgentError("bad-request", `${where}: ${rule}, got ${JSON.stringify(got)}; rewrite the pattern`, {
    param: where,
    ...(cause === undefined ? {} : { cause }),
  });

/** @throws AgentError "bad-request" for a pattern that is no regular expression, or one that needs more than a finite automaton. */
export const regexExpression = (pattern: string, where: string): Expression => {
  // the whole answer is matched anyway; an escaped dollar is a character
  const source = pattern.replace(/^\^/, "").replace(/(?<!\\)((?:\\\\)*)\$$/, "$1");
  try {
    const parsed = JS.Parser.fromLiteral({ source, flags: "u" }).parse({ assertions: "throw", backreferences: "throw" });
    const alternatives = parsed.expression.alternatives as readonly NoParent<Expression>[];
    const [first] = alternatives;
    if (alternatives.length === 1 && first) return first as Expression;
    return { type: "Concatenation", elements: [{ type: "Alternation", alternatives } as NoParent<Element>] };
  } catch (cause) {
    throw refuse(where, `must be a regular expression that a finite automaton can match (${messageOf(cause)})`, pattern, cause);
  }
};

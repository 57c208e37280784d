// What comes from outside is checked with zod's small build, which a page downloads in a quarter of the whole one's bytes. It has no words
// of its own, so they are given with every call: zod's global settings belong to the page, and its English weighs as much as a kernel.

import * as z from "zod/mini";

/** The rule that was broken; what broke it the caller shows. */
const ruleOf = (issue: z.core.$ZodRawIssue): string => {
  switch (issue.code) {
    case "invalid_type":
      return `is of type ${issue.expected}`;
    case "invalid_value":
      return `is one of ${JSON.stringify(issue.values)}`;
    case "too_small":
      return `is ${issue.inclusive ? "≥" : ">"} ${issue.minimum}`;
    default:
      return `is well-formed (${issue.code})`;
  }
};

/** An integer ≥ 1. */
export const positive: z.ZodMiniNumber = z.int().check(z.positive());
/** An integer ≥ 0. */
export const count: z.ZodMiniNumber = z.int().check(z.nonnegative());
/** A finite number > 0. */
export const amount: z.ZodMiniNumber = z.number().check(z.positive());

/** The value as the schema says, or what is wrong with it first. */
export const checkShape = <T extends z.ZodMiniType>(
  schema: T,
  value: unknown,
): { readonly data: z.output<T>; readonly issue?: never } | { readonly data?: never; readonly issue: z.core.$ZodIssue } => {
  const parsed = z.safeParse(schema, value, { error: ruleOf });
  return parsed.success ? { data: parsed.data } : { issue: parsed.error.issues[0]! };
};

// What comes from outside is checked with zod's small build, which a page downloads in a quarter of the whole one's bytes. It has no words
// of its own, so they are given with every call: zod's global settings belong to the page.

import * as z from "zod/mini";
import english from "zod/v4/locales/en.js";

const { localeError } = english();

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
  const parsed = z.safeParse(schema, value, { error: localeError });
  return parsed.success ? { data: parsed.data } : { issue: parsed.error.issues[0]! };
};

// The demos that the command line knows, loaded when asked for.

import type { Demo } from "fulgurite";
import { UsageError } from "./usageError.ts";

const DEMOS: Readonly<Record<string, () => Promise<Demo<never>>>> = {
  calculator: async () => (await import("@fulgurite/demo-calculator")).calculatorDemo as unknown as Demo<never>,
};

/** Throws UsageError for a name that is not a demo. */
export const loadDemo = async (name: string): Promise<Demo<never>> => {
  const load = Object.hasOwn(DEMOS, name) ? DEMOS[name] : undefined;
  if (!load) throw new UsageError(`train: demo is one of ${Object.keys(DEMOS).join(", ")}, got ${JSON.stringify(name)}`);
  return load();
};

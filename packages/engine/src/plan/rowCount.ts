// The one dynamic size of a step: how many of its rows exist in this run.

import { EngineError } from "../errors.ts";
import type { Rows, Vars } from "./step.ts";

/** n = clamp(vars[rows.count] − rows.base, 0, rows.capacity). */
export const rowCount = (rows: Rows, vars: Vars): number => {
  const total = vars[rows.count];
  if (total === undefined) throw new EngineError("bad-request", `run: a step counts vars.${rows.count}, got none; pass it to run`);
  return Math.min(Math.max(total - rows.base, 0), rows.capacity);
};

// What to do when memory is short, by what it was asked for.

import type { Home } from "./step.ts";

const NEXT: Readonly<Record<Home, string>> = {
  weights: "take a smaller model or a denser weight format",
  state: "lower lora.rank",
  kv: "lower slots or maxContext",
  arena: "lower microBatchTokens or set checkpoint",
  io: "lower microBatchTokens",
};

/** "lower …": ends an EngineError("device"). */
export const adviceFor = (home: Home): string => `${NEXT[home]}, or close other programs`;

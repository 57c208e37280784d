// Step → dispatches: the table is complete or it does not compile.

import type { OpName, Step } from "../../plan/step.ts";
import { attention } from "./attention.ts";
import { attentionBackwardKv, attentionBackwardQ, attentionDelta } from "./attentionBackward.ts";
import { attentionCached } from "./attentionCached.ts";
import { logprob, logprobBackward, sample, tokenLoss } from "./head.ts";
import type { Dispatch } from "./kernel.ts";
import { linear, linearBackward, weightGrad } from "./linear.ts";
import { rmsNorm, rmsNormBackward } from "./norm.ts";
import { adamW, sumSquares } from "./optimizer.ts";
import { copy, embed, gatherRows, glu, gluBackward, kvAppend, rope, scatterRows, zero } from "./rows.ts";
import { BASELINE, type Variant } from "./variant.ts";

const LOWERINGS: { readonly [Name in OpName]: (step: Extract<Step, { op: Name }>, variant: Variant) => Dispatch[] } = {
  embed,
  rmsNorm,
  rmsNormBackward,
  linear,
  linearBackward,
  weightGrad,
  rope,
  attention,
  attentionDelta,
  attentionBackwardQ,
  attentionBackwardKv,
  kvAppend,
  attentionCached,
  glu,
  gluBackward,
  gatherRows,
  scatterRows,
  logprob,
  tokenLoss,
  logprobBackward,
  sample,
  sumSquares,
  adamW,
  zero,
  copy,
};

/** A step's dispatches, in the variant that a backend uses for all its plans. */
export const lower = (step: Step, variant: Variant = BASELINE): Dispatch[] =>
  (LOWERINGS[step.op] as (step: Step, variant: Variant) => Dispatch[])(step, variant);

// Step → dispatches: the table is complete or it does not compile.

import type { OpName, Step } from "../../plan/step.ts";
import { advance } from "./advance.ts";
import { attention } from "./attention.ts";
import { attentionBackwardKv, attentionBackwardQ, attentionDelta } from "./attentionBackward.ts";
import { attentionCached } from "./attentionCached.ts";
import { logprob, logprobBackward, tokenLoss } from "./head.ts";
import type { Dispatch } from "./kernel.ts";
import { linear, linearBackward } from "./linear.ts";
import { rmsNorm, rmsNormBackward } from "./norm.ts";
import { adamW, sumSquares } from "./optimizer.ts";
import { copy, embed, gatherRows, glu, gluBackward, kvAppend, kvCopy, rope, scatterRows, zero } from "./rows.ts";
import { sample } from "./sample.ts";
import { PORTABLE, type Target } from "./target.ts";
import { weightGrad } from "./weightGrad.ts";

const LOWERINGS: { readonly [Name in OpName]: (step: Extract<Step, { op: Name }>, target: Target) => Dispatch[] } = {
  embed,
  rmsNorm,
  rmsNormBackward,
  linear,
  linearBackward,
  weightGrad,
  rope,
  attention,
  attentionDelta: (step) => attentionDelta(step),
  attentionBackwardQ,
  attentionBackwardKv: (step, target) => attentionBackwardKv(step, target),
  kvAppend,
  kvCopy,
  attentionCached,
  glu,
  gluBackward,
  gatherRows,
  scatterRows,
  logprob,
  tokenLoss,
  logprobBackward,
  sample,
  advance,
  sumSquares,
  adamW,
  zero,
  copy,
};

/** The step's dispatches on such a device; by default on any. */
export const lower = (step: Step, target: Target = PORTABLE): Dispatch[] =>
  (LOWERINGS[step.op] as (step: Step, target: Target) => Dispatch[])(step, target);

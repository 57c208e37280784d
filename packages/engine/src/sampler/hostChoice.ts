// One token of a restricted request, from its logits on the host: asks the request's mask, then choose.ts. A mask is somebody else's code and
// may take for ever: an abort of the request, or the sampler's end, is not kept waiting by it.

import type { GenerateRequest } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { uniform } from "../random.ts";
import { type Choice, chooseToken } from "./choose.ts";

/** Resolves when one of the signals has fired; `forget` takes its listeners away. */
const firstAbort = (signals: readonly (AbortSignal | undefined)[]): { readonly fired: Promise<undefined>; forget(): void } => {
  const forgetting = new AbortController();
  const fired = new Promise<undefined>((resolve) => {
    for (const signal of signals) {
      if (signal?.aborted) resolve(undefined);
      signal?.addEventListener("abort", () => resolve(undefined), { signal: forgetting.signal });
    }
  });
  return { fired, forget: () => forgetting.abort() };
};

/**
 * logits [V]; tokens: those sampled so far; ended: the sampler's. undefined when the request or the sampler ended meanwhile.
 * Throws what the mask throws, and EngineError("bad-request") for a mask of another length or one that allows nothing.
 */
export const chooseOnHost = async (
  request: GenerateRequest,
  tokens: readonly number[],
  logits: Float32Array,
  ended: AbortSignal,
): Promise<Choice | undefined> => {
  const words = Math.ceil(logits.length / 32);
  let mask: Uint32Array | undefined;
  if (request.mask) {
    const { fired, forget } = firstAbort([request.signal, ended]);
    mask = await Promise.race([request.mask([...tokens]), fired]).finally(forget);
    if (!mask) return undefined;
    if (mask.length !== words)
      throw new EngineError(
        "bad-request",
        `generate: a mask has ${words} words (a bit for each of ${logits.length} tokens), got ${mask.length}; set the bit id mod 32 of word ⌊id/32⌋`,
      );
  }
  const choice = chooseToken(logits, request, uniform(request.seed, tokens.length), mask);
  if (!choice) throw new EngineError("bad-request", "generate: a mask allows at least one token, got none; end with a stop token");
  return choice;
};

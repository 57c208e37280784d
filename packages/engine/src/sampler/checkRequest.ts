// What a request must be before it waits for a row of the cache. Throws EngineError("bad-request").

import type { GenerateRequest, SamplerLimits } from "../contract.ts";
import { EngineError } from "../errors.ts";

/** Below it, 1/τ times a logit leaves what f32 holds; who wants less wants 0. */
const MIN_TEMPERATURE = 1e-3;
const U32 = 2 ** 32;

export const checkRequest = (
  { prompt, maxTokens, temperature, stopTokens, seed, topK, topP, logitBias = [] }: GenerateRequest,
  { maxContext, vocabSize }: SamplerLimits,
): void => {
  const bad = (rule: string, got: unknown, advice: string): EngineError =>
    new EngineError("bad-request", `generate: ${rule}, got ${got}; ${advice}`);
  const isToken = (id: unknown): boolean => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize;
  if (!(prompt instanceof Int32Array) || prompt.length === 0)
    throw bad("prompt is an Int32Array of at least one token", prompt, "pass the ids of the tokenizer");
  const wrong = prompt.findIndex((id) => !isToken(id));
  if (wrong >= 0) throw bad(`prompt tokens are 0 … ${vocabSize - 1}`, `${prompt[wrong]} at ${wrong}`, "use the tokenizer of this model");
  if (!Number.isInteger(maxTokens) || maxTokens < 1) throw bad("maxTokens is a positive integer", maxTokens, "ask for at least one token");
  if (prompt.length + maxTokens > maxContext)
    throw bad(
      `prompt + maxTokens ≤ ${maxContext} (maxContext)`,
      `${prompt.length} + ${maxTokens}`,
      "shorten one of them or create the policy with a larger maxContext",
    );
  if (temperature !== 0 && !(temperature >= MIN_TEMPERATURE && temperature < Number.POSITIVE_INFINITY))
    throw bad(`temperature is 0 or ≥ ${MIN_TEMPERATURE}`, temperature, "use 0 for the most likely token");
  if (!Array.isArray(stopTokens) || !stopTokens.every(isToken))
    throw bad(`stopTokens are among 0 … ${vocabSize - 1}`, stopTokens, "use the tokenizer of this model");
  if (!Number.isInteger(seed) || seed < 0 || seed >= U32) throw bad("seed is an integer 0 … 2^32 − 1", seed, "take it modulo 2^32");
  if (topK !== undefined && (!Number.isInteger(topK) || topK < 1))
    throw bad("topK is a positive integer", topK, "leave it out for all tokens");
  if (topP !== undefined && !(topP > 0 && topP <= 1)) throw bad("topP is in (0, 1]", topP, "leave it out for all tokens");
  const wrongBias = logitBias.find(([id, bias]) => !isToken(id) || !Number.isFinite(bias));
  if (wrongBias) throw bad(`logitBias adds finite numbers to tokens of 0 … ${vocabSize - 1}`, wrongBias, "use a mask to forbid tokens");
};

// What every store is given to keep. Runs in a tab too.
import type { Span } from "@fulgurite/trace";

/** A model call as the endpoint records it: 200 tokens in, 50 out, about 3 kB of JSON. */
export const spanOf = (attempt: { rolloutId: string; id: string }, index: number): Span => ({
  rolloutId: attempt.rolloutId,
  attemptId: attempt.id,
  id: index.toString(16).padStart(16, "0"),
  name: "chat spark",
  startMs: 1_790_000_000_000 + index,
  endMs: 1_790_000_000_040 + index,
  status: "ok",
  attributes: {
    "gen_ai.request.model": "spark",
    "gen_ai.usage.input_tokens": 200,
    "gen_ai.usage.output_tokens": 50,
    "fulgurite.prompt_token_ids": Int32Array.from({ length: 200 }, (_, at) => (at * 7919 + index) % 32_000),
    "fulgurite.response_token_ids": Int32Array.from({ length: 50 }, (_, at) => (at * 104_729 + index) % 32_000),
    "fulgurite.sampler_logprobs": Float32Array.from({ length: 50 }, (_, at) => -((at * 31 + index) % 97) / 13),
  },
});

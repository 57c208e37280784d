// Transitions for other programs: one JSON object a line, typed arrays as lists of numbers. A 32-bit float is written as the
// double it equals, so that reading it back into 32 bits gives the same float.

import type { Transition } from "./vocabulary.ts";

/** Every line ends with a newline; no transitions, no text. Names and meaning are those of Transition. */
export const toJsonl = (transitions: Iterable<Transition>): string => {
  let text = "";
  for (const transition of transitions) {
    const { promptTokens, responseTokens, samplerLogprobs } = transition;
    const lists = { promptTokens: [...promptTokens], responseTokens: [...responseTokens], samplerLogprobs: [...samplerLogprobs] };
    text += `${JSON.stringify({ ...transition, ...lists })}\n`;
  }
  return text;
};

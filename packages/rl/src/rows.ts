// Rows: the calls of a trajectory, merged into one token sequence while each next prompt starts with everything so far, token for
// token. Same gradient as a row a call, O(T) instead of O(T²) tokens. Text is never compared, only ids: nothing is tokenised again.

import type { Transition } from "@fulgurite/trace";

/** Per-target arrays are [tokens.length − targetStart]; entry j belongs to tokens[targetStart + j]. */
export interface Row {
  readonly tokens: Int32Array;
  readonly targetStart: number;
  /** 1 where the token was sampled, 0 where the environment added it or a grammar left no choice. */
  readonly mask: Uint8Array;
  /** 0 where mask is 0. */
  readonly samplerLogprobs: Float32Array;
  /** Index of the call that sampled the token, −1 where mask is 0. */
  readonly callOf: Int32Array;
  /** Indices into the trajectory's transitions, in order. */
  readonly calls: readonly number[];
  readonly temperature: number;
}

/** "transition": a row a call. */
export type RowMode = "trajectory" | "transition";

export interface MergedRows {
  readonly rows: Row[];
  /** Rows beyond a trajectory's first, whose prompt started with no open row: edited history, a sub-agent, a summary, other ids for the same text. */
  readonly breaks: number;
  readonly dropped: { readonly overlong: number; readonly empty: number };
}

interface OpenRow {
  readonly calls: number[];
  /** Prompt and response of the last call: everything so far. */
  context: Int32Array;
}

const startsWith = (tokens: Int32Array, prefix: Int32Array): boolean =>
  tokens.length >= prefix.length && prefix.every((token, i) => tokens[i] === token);

const joined = (prompt: Int32Array, response: Int32Array): Int32Array => {
  const tokens = new Int32Array(prompt.length + response.length);
  tokens.set(prompt);
  tokens.set(response, prompt.length);
  return tokens;
};

function closeRow(transitions: readonly Transition[], { calls, context }: OpenRow): Row {
  const first = transitions[calls[0]!]!;
  const targetStart = first.promptTokens.length;
  const targets = context.length - targetStart;
  const mask = new Uint8Array(targets);
  const samplerLogprobs = new Float32Array(targets);
  const callOf = new Int32Array(targets).fill(-1);
  for (const call of calls) {
    const { promptTokens, responseTokens, samplerLogprobs: logprobs, forcedTokens = [] } = transitions[call]!;
    const start = promptTokens.length - targetStart;
    mask.fill(1, start, start + responseTokens.length);
    callOf.fill(call, start, start + responseTokens.length);
    samplerLogprobs.set(logprobs, start);
    for (const place of forcedTokens) {
      mask[start + place] = 0;
      callOf[start + place] = -1;
      samplerLogprobs[start + place] = 0;
    }
  }
  return { tokens: context, targetStart, mask, samplerLogprobs, callOf, calls, temperature: first.temperature };
}

/**
 * Several rows stay open, and a call extends the one with the longest matching context, so that interleaved agents (A, B, A, B) merge
 * too. Temperatures are not mixed inside a row.
 *
 * Example: [1 2 3] → [4 5], then [1 2 3 4 5 6 7] → [8], then [1 2 9] → [10 11] make two rows:
 * 1 2 3 | 4 5 6 7 8 with mask 1 1 0 0 1, and 1 2 9 | 10 11 with mask 1 1.
 *
 * @param maxTokens a call of more tokens is dropped and counted
 */
export function mergeCalls(
  transitions: readonly Transition[],
  { rows: mode = "trajectory", maxTokens = Number.POSITIVE_INFINITY }: { rows?: RowMode; maxTokens?: number } = {},
): MergedRows {
  const open: OpenRow[] = [];
  const dropped = { overlong: 0, empty: 0 };
  transitions.forEach(({ promptTokens, responseTokens, temperature }, call) => {
    if (responseTokens.length === 0) {
      dropped.empty++;
      return;
    }
    if (promptTokens.length + responseTokens.length > maxTokens) {
      dropped.overlong++;
      return;
    }
    let best: OpenRow | undefined;
    if (mode === "trajectory")
      for (const row of open) {
        const isLonger = best === undefined || row.context.length > best.context.length;
        if (isLonger && transitions[row.calls[0]!]!.temperature === temperature && startsWith(promptTokens, row.context)) best = row;
      }
    const context = joined(promptTokens, responseTokens);
    if (best) {
      best.calls.push(call);
      best.context = context;
    } else open.push({ calls: [call], context });
  });
  return {
    rows: open.map((row) => closeRow(transitions, row)),
    breaks: mode === "trajectory" ? Math.max(open.length - 1, 0) : 0,
    dropped,
  };
}

// Tokens to text while they are sampled. A character may span tokens and a decoder may look back one token (a leading
// space), so text is read off the growing difference of two decodings and given out only when it is whole.

import { openingLength } from "./toolCalls.ts";
import type { ChatFormat } from "./types.ts";

const INCOMPLETE = "\ufffd";

export interface TextStream {
  push(token: number): string;
  /** Many at once: one decoding instead of two a token. */
  pushAll(added: Iterable<number>): string;
  /** What was held back; bytes that never became a character come out as U+FFFD. */
  end(): string;
}

export const createTextStream = (format: Pick<ChatFormat, "decode">): TextStream => {
  const tokens: number[] = [];
  let windowStart = 0;
  let emittedEnd = 0;
  const fresh = (): string => {
    const known = format.decode(tokens.slice(windowStart, emittedEnd));
    return format.decode(tokens.slice(windowStart)).slice(known.length);
  };
  const pushAll: TextStream["pushAll"] = (added) => {
    for (const token of added) tokens.push(token);
    const text = fresh();
    if (text === "" || text.endsWith(INCOMPLETE)) return "";
    windowStart = emittedEnd;
    emittedEnd = tokens.length;
    return text;
  };
  return { push: (token) => pushAll([token]), pushAll, end: () => (emittedEnd === tokens.length ? "" : fresh()) };
};

export interface StopMatcher {
  /** Text before any stop string. Once one was met, `stopped` is true and nothing more comes. */
  push(text: string): string;
  end(): string;
  readonly stopped: boolean;
}

/** Stop strings are matched on text, as they may begin and end inside tokens. The stop string itself is not given out. */
export const createStopMatcher = (stops: readonly string[]): StopMatcher => {
  let pending = "";
  let stopped = false;
  return {
    push(text) {
      if (stopped) return "";
      pending += text;
      let cut = -1;
      for (const stop of stops) {
        const at = pending.indexOf(stop);
        if (at >= 0 && (cut < 0 || at < cut)) cut = at;
      }
      stopped = cut >= 0;
      if (!stopped) cut = pending.length - stops.reduce((held, stop) => Math.max(held, openingLength(pending, stop)), 0);
      const out = pending.slice(0, cut);
      pending = stopped ? "" : pending.slice(cut);
      return out;
    },
    end() {
      const out = pending;
      pending = "";
      return out;
    },
    get stopped() {
      return stopped;
    },
  };
};

// A grammar over the tokens of one vocabulary: which ids may come next, as a bit set. Tokens lie in a tree by their bytes, and tree and
// automaton are walked together, so that a branch that dies takes all its tokens with it. Masks are kept by place: answers of one
// grammar meet the same places again and again.

import { AgentError } from "../errors.ts";
import type { ChatFormat } from "../types.ts";
import type { Automaton, Place } from "./automaton.ts";

export interface TokenGrammar {
  /** A new answer. */
  begin(): TokenWalk;
}

export interface TokenWalk {
  /** Bit id mod 32 of word ⌊id / 32⌋: the token may come next. Stop tokens may where the text may end. */
  mask(): Uint32Array;
  /** @throws AgentError "sampler" for a token that the mask forbids. */
  push(token: number): void;
}

interface TreeNode {
  readonly children: Map<number, TreeNode>;
  readonly tokens: number[];
}

export type Vocabulary = TreeNode;

/** The tokens of a format by their bytes. @throws AgentError "bad-format" for one that cannot tell them. */
export const toVocabulary = (format: Pick<ChatFormat, "vocabSize" | "tokenBytes">): Vocabulary => {
  if (!format.tokenBytes)
    throw new AgentError(
      "bad-format",
      "grammar: the chat format must know its tokens' bytes, got one without tokenBytes; use loadChatFormat",
    );
  const root: TreeNode = { children: new Map(), tokens: [] };
  for (let id = 0; id < format.vocabSize; id++) {
    const bytes = format.tokenBytes(id);
    // a special token is no text, and an empty one would never get on
    if (!bytes || bytes.length === 0) continue;
    let node = root;
    for (const byte of bytes) {
      let child = node.children.get(byte);
      if (!child) {
        child = { children: new Map(), tokens: [] };
        node.children.set(byte, child);
      }
      node = child;
    }
    node.tokens.push(id);
  }
  return root;
};

/** `vocabSize` is the model's: ids beyond the tokenizer's are never allowed. */
export const createTokenGrammar = (
  automaton: Automaton,
  vocabulary: Vocabulary,
  format: Pick<ChatFormat, "stopTokens" | "tokenBytes">,
  vocabSize: number,
): TokenGrammar => {
  const masks = new Map<Place, Uint32Array>();
  const stops = new Set(format.stopTokens);

  const maskOf = (place: Place): Uint32Array => {
    const mask = new Uint32Array(Math.ceil(vocabSize / 32));
    const allow = (id: number): void => {
      mask[id >> 5] = (mask[id >> 5] as number) | (1 << (id & 31));
    };
    const visit = (node: TreeNode, at: Place): void => {
      for (const id of node.tokens) allow(id);
      for (const [byte, child] of node.children) {
        const next = automaton.step(at, byte);
        if (next) visit(child, next);
      }
    };
    visit(vocabulary, place);
    for (const id of stops) {
      if (automaton.isEnd(place)) allow(id);
      else mask[id >> 5] = (mask[id >> 5] as number) & ~(1 << (id & 31));
    }
    if (mask.every((word) => word === 0))
      throw new AgentError(
        "bad-request",
        "grammar: some token must continue the answer, got a vocabulary without one; use another grammar",
      );
    return mask;
  };

  return {
    begin: () => {
      let place: Place | undefined = automaton.start;
      const alive = (): Place => {
        if (!place) throw new AgentError("sampler", "grammar: the answer goes on, got one that a stop token has ended");
        return place;
      };
      return {
        mask: () => {
          const at = alive();
          let mask = masks.get(at);
          if (!mask) {
            mask = maskOf(at);
            masks.set(at, mask);
          }
          return mask;
        },
        push: (token) => {
          let at: Place | undefined = alive();
          if (stops.has(token)) {
            place = undefined;
            return;
          }
          for (const byte of format.tokenBytes?.(token) ?? []) at = at && automaton.step(at, byte);
          if (!at)
            throw new AgentError(
              "sampler",
              `grammar: the sampler takes allowed tokens, got ${token}; it does not honour GenerateRequest.mask`,
            );
          place = at;
        },
      };
    },
  };
};

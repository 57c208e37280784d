// What a request wants its answer to be, as a grammar over the tokens of the policy's format. Loaded with the first request that asks for it:
// nobody else pays for the automata.

import type { ChatFormat, Tool } from "../types.ts";
import { compileAutomaton } from "./automaton.ts";
import { anyOf, type Expression, optional, repeated, sequence, text } from "./expression.ts";
import { jsonObjectExpression, jsonSchemaExpression } from "./jsonSchema.ts";
import { regexExpression } from "./regex.ts";
import type { GrammarSpec } from "./spec.ts";
import { createTokenGrammar, type TokenGrammar, toVocabulary, type Vocabulary } from "./tokenMask.ts";

export type { TokenGrammar, TokenWalk } from "./tokenMask.ts";

/** Compiled grammars of one format: the most recent ones, since agents ask for the same few again and again. */
interface Compiled {
  readonly vocabulary: Vocabulary;
  readonly grammars: Map<string, TokenGrammar>;
}

const KEPT = 16;
const compiled = new WeakMap<ChatFormat, Compiled>();

const expressionOf = ({ kind, value, where }: GrammarSpec): Expression => {
  switch (kind) {
    case "jsonObject":
      return jsonObjectExpression();
    case "jsonSchema":
      return jsonSchemaExpression(value, where);
    case "regex":
      return regexExpression(value, where);
    case "choice":
      return anyOf(...value.map(text));
  }
};

/** A tool whose parameters no automaton can keep gets any object: its own validation sees them. */
const argumentsOf = ({ parameters }: Tool): Expression => {
  try {
    return parameters === undefined ? jsonObjectExpression() : jsonSchemaExpression(parameters, "parameters");
  } catch {
    return jsonObjectExpression();
  }
};

/** Calls as Hermes and Qwen write them (toolCalls.ts). */
const callsOf = (tools: readonly Tool[]): Expression => {
  const call = anyOf(
    ...tools.map((tool) => sequence(text(`{"name": ${JSON.stringify(tool.name)}, "arguments": `), argumentsOf(tool), text("}"))),
  );
  const line = optional(text("\n"));
  return repeated(sequence(text("<tool_call>"), line, call, line, text("</tool_call>"), line), 1);
};

/**
 * The grammar of an answer: what `spec` says, or, where there are tools, calls of them instead.
 * @throws AgentError "bad-request" naming the field that cannot be kept; "bad-format" for a format without tokenBytes.
 */
export const grammarFor = (spec: GrammarSpec, tools: readonly Tool[], format: ChatFormat, vocabSize: number): TokenGrammar => {
  let known = compiled.get(format);
  if (!known) {
    known = { vocabulary: toVocabulary(format), grammars: new Map() };
    compiled.set(format, known);
  }
  const key = JSON.stringify([spec, tools.map(({ name, parameters }) => [name, parameters]), vocabSize]);
  let grammar = known.grammars.get(key);
  if (!grammar) {
    const answer = expressionOf(spec);
    const automaton = compileAutomaton(tools.length > 0 ? anyOf(answer, callsOf(tools)) : answer, spec.where);
    grammar = createTokenGrammar(automaton, known.vocabulary, format, vocabSize);
  }
  known.grammars.delete(key);
  known.grammars.set(key, grammar);
  for (const oldest of known.grammars.keys()) {
    if (known.grammars.size <= KEPT) break;
    known.grammars.delete(oldest);
  }
  return grammar;
};

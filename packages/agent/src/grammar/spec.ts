// What a request may ask its answer to be. Types only: the automata behind them are loaded on first use.

import type { Json } from "@fulgurite/trace";

/** `where` is the request's field, for messages. */
export type GrammarSpec = { readonly where: string } & (
  | { readonly kind: "jsonObject"; readonly value?: never }
  | { readonly kind: "jsonSchema"; readonly value: Json }
  | { readonly kind: "regex"; readonly value: string }
  | { readonly kind: "choice"; readonly value: readonly string[] }
);

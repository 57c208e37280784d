// The bytes that each token of a Hugging Face tokenizer stands for. Two ways of writing bytes as text exist: GPT-2's, where every byte has
// a printable character ("ByteLevel"), and SentencePiece's, where "▁" is a space and <0xNN> a byte. The decoder of tokenizer.json tells which.

import { z } from "zod";

const decoderSchema = z.looseObject({
  type: z.string().optional(),
  decoders: z.array(z.looseObject({ type: z.string().optional() })).optional(),
});
const addedSchema = z.array(z.looseObject({ id: z.int(), content: z.string(), special: z.boolean().optional() }));

const utf8 = new TextEncoder();

/** GPT-2's table: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order. */
const byteOfCharacter = (): ReadonlyMap<string, number> => {
  const table = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    table.set(String.fromCodePoint(isPrintable ? byte : next++), byte);
  }
  return table;
};

/**
 * A function of the id; undefined for a special token and for an id without one. `tokenizer` is the content of tokenizer.json.
 * `tokenOf` gives a token as the vocabulary writes it.
 */
export const readTokenBytes = (
  tokenizer: Readonly<Record<string, unknown>>,
  tokenOf: (id: number) => string | undefined,
): ((id: number) => Uint8Array | undefined) => {
  const decoder = decoderSchema.safeParse(tokenizer.decoder);
  const types = decoder.success ? [decoder.data, ...(decoder.data.decoders ?? [])].map(({ type }) => type) : [];
  const added = addedSchema.safeParse(tokenizer.added_tokens);
  const addedOf = new Map(added.success ? added.data.map((token) => [token.id, token] as const) : []);
  const table = types.includes("ByteLevel") ? byteOfCharacter() : undefined;

  return (id) => {
    const found = addedOf.get(id);
    if (found?.special) return undefined;
    // Gemma's added tokens for runs of spaces are written "▁▁", as in the vocabulary; byte-level ones are written as they are
    if (found && table) return utf8.encode(found.content);
    const token = found?.content ?? tokenOf(id);
    if (token === undefined) return undefined;
    if (!table) {
      const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
      return byte ? Uint8Array.of(Number.parseInt(byte[1] as string, 16)) : utf8.encode(token.replaceAll("▁", " "));
    }
    // a character outside the table was never a byte: the token stands for its own text
    const bytes = Array.from(token, (character) => table.get(character));
    return bytes.includes(undefined) ? utf8.encode(token) : Uint8Array.from(bytes as number[]);
  };
};

// tokenizer.json as @huggingface/tokenizers may have it: its parts checked, for that library reads a wrong part without a word and fails
// at the first text, or encodes nothing; and what it would read otherwise than Rust's tokenizers written so that both agree.
// Only text that a template rendered is encoded, so post-processors, which add special tokens, are left out.

import { z } from "zod";
import { AgentError } from "./errors.ts";

type Part = { readonly type: string };
type Normalizer = Part & { readonly normalizers?: readonly Normalizer[] };
type PreTokenizer = Part & { readonly pretokenizers?: readonly PreTokenizer[]; readonly individual_digits?: boolean };
type Decoder = Part & { readonly decoders?: readonly Decoder[] };

/** A sparse list of this length is still walked in an instant. */
const MAX_ID = 2 ** 24;

const id = z
  .int()
  .min(0)
  .max(MAX_ID - 1);
const flag = z.boolean().nullish();
const pattern = z.union([z.strictObject({ Regex: z.string() }), z.strictObject({ String: z.string() })]);
const plain = <const T extends readonly [string, ...string[]]>(...types: T) => z.looseObject({ type: z.enum(types) });

const normalizer: z.ZodType<Normalizer> = z.lazy(() =>
  z.union([
    z.looseObject({ type: z.literal("Sequence"), normalizers: z.array(normalizer) }),
    z.looseObject({ type: z.literal("Replace"), pattern, content: z.string() }),
    z.looseObject({ type: z.literal("Prepend"), prepend: z.string() }),
    z.looseObject({ type: z.literal("Precompiled"), precompiled_charsmap: z.string().nullish() }),
    plain("NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents", "Lowercase", "BertNormalizer"),
  ]),
);
const preTokenizer: z.ZodType<PreTokenizer> = z.lazy(() =>
  z.union([
    z.looseObject({ type: z.literal("Sequence"), pretokenizers: z.array(preTokenizer) }),
    z.looseObject({ type: z.literal("Split"), pattern, behavior: z.string(), invert: flag }),
    z.looseObject({ type: z.literal("Digits"), individual_digits: z.boolean() }),
    z.looseObject({ type: z.literal("ByteLevel"), add_prefix_space: flag, use_regex: flag }),
    z.looseObject({
      type: z.literal("Metaspace"),
      replacement: z.string().min(1),
      prepend_scheme: z.enum(["always", "first", "never"]).nullish(),
    }),
    z.looseObject({ type: z.literal("FixedLength"), length: z.int().min(1) }),
    z.looseObject({ type: z.literal("Replace"), pattern, content: z.string() }),
    plain("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation"),
  ]),
);
const decoder: z.ZodType<Decoder> = z.lazy(() =>
  z.union([
    z.looseObject({ type: z.literal("Sequence"), decoders: z.array(decoder) }),
    z.looseObject({ type: z.literal("Replace"), pattern, content: z.string() }),
    z.looseObject({ type: z.literal("Strip"), content: z.string(), start: z.int().min(0).max(64), stop: z.int().min(0).max(64) }),
    z.looseObject({ type: z.literal("Metaspace"), replacement: z.string().min(1) }),
    z.looseObject({ type: z.literal("WordPiece"), prefix: z.string() }),
    z.looseObject({ type: z.literal("BPEDecoder"), suffix: z.string() }),
    plain("ByteLevel", "ByteFallback", "Fuse", "CTC"),
  ]),
);
const added = z.looseObject({ id, content: z.string(), special: flag, normalized: flag, lstrip: flag, rstrip: flag });
const file = z.looseObject({
  added_tokens: z.array(added).nullish(),
  normalizer: normalizer.nullish(),
  pre_tokenizer: preTokenizer.nullish(),
  decoder: decoder.nullish(),
  // the vocabulary is large: it is walked below
  model: z.looseObject({
    type: z.string().nullish(),
    vocab: z.unknown(),
    merges: z.unknown().optional(),
    unk_token: z.string().nullish(),
    unk_id: id.nullish(),
    continuing_subword_prefix: z.string().nullish(),
    end_of_word_suffix: z.string().nullish(),
    byte_fallback: flag,
    ignore_merges: flag,
    fuse_unk: flag,
  }),
});

const refuse = (path: string, rule: string, got: unknown): never => {
  const shown = JSON.stringify(got) ?? "nothing";
  const short = shown.length > 80 ? `${shown.slice(0, 80)}…` : shown;
  throw new AgentError("bad-format", `tokenizer.json: ${path} must be ${rule}, got ${short}; download the file again`);
};

/** One more than the largest id. Unigram's vocabulary is a list of [token, score], the others' a table of ids. */
const checkVocabulary = (vocab: unknown, type: unknown): number => {
  if (Array.isArray(vocab) && (type === "Unigram" || !type)) {
    const bad = vocab.findIndex((entry) => !Array.isArray(entry) || typeof entry[0] !== "string" || typeof entry[1] !== "number");
    return bad < 0 && vocab.length > 0 ? vocab.length : refuse(`model.vocab[${bad}]`, "a token with its score", vocab[bad]);
  }
  if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab) || type === "Unigram") {
    return refuse("model.vocab", `the tokens of ${JSON.stringify(type)}`, vocab);
  }
  let size = 0;
  for (const [token, value] of Object.entries(vocab)) {
    if (!Number.isInteger(value) || value < 0 || value >= MAX_ID) {
      refuse(`model.vocab[${JSON.stringify(token)}]`, `an id below ${MAX_ID}`, value);
    }
    if (value >= size) size = value + 1;
  }
  return size > 0 ? size : refuse("model.vocab", "tokens with ids", vocab);
};

/** A merge that makes no token would lose the text that it meets. */
const checkMerges = (vocab: object, merges: unknown, prefix: string): void => {
  const isText = Array.isArray(merges) && typeof merges[0] === "string";
  for (const [index, merge] of Array.isArray(merges) ? merges.entries() : refuse("model.merges", "a list of pairs", merges)) {
    const pair = isText && typeof merge === "string" ? merge.split(" ") : merge;
    if (
      (typeof merge === "string") !== isText ||
      !Array.isArray(pair) ||
      pair.length !== 2 ||
      typeof pair[0] !== "string" ||
      typeof pair[1] !== "string"
    ) {
      refuse(`model.merges[${index}]`, "a pair of tokens", merge);
    }
    const whole = pair[0] + pair[1].slice(prefix.length);
    if (!Object.hasOwn(vocab, whole)) refuse(`model.merges[${index}]`, "a pair that makes a token of the vocabulary", merge);
  }
};

/** Rust takes every numeric character for a digit (٣, ², Ⅷ), the library ASCII's ten. */
const asRustReads = (part: PreTokenizer): PreTokenizer => {
  if (part.type === "Sequence") return { ...part, pretokenizers: part.pretokenizers?.map(asRustReads) } as PreTokenizer;
  if (part.type !== "Digits") return part;
  const Regex = part.individual_digits ? "\\p{N}" : "\\p{N}+";
  return { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false } as PreTokenizer;
};

/**
 * What the library's Tokenizer takes, and one more than the largest id.
 * @throws AgentError "bad-format" naming the part.
 */
export const readTokenizerFile = (written: object): { readonly fields: Readonly<Record<string, unknown>>; readonly vocabSize: number } => {
  const parsed = file.safeParse(written);
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0] as z.core.$ZodIssue;
    const got = path.reduce<unknown>((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], written);
    return refuse(path.join(".") || "it", `what tokenizers writes (${message})`, got);
  }
  const { model, added_tokens, ...parts } = parsed.data;
  const tokens = added_tokens ?? [];
  const inVocabulary = checkVocabulary(model.vocab, model.type);
  const vocab = model.vocab as object;
  if (model.type === "BPE") checkMerges(vocab, model.merges, model.continuing_subword_prefix ?? "");
  const unknown = model.unk_token ?? undefined;
  if (
    unknown !== undefined &&
    !Array.isArray(vocab) &&
    !Object.hasOwn(vocab, unknown) &&
    !tokens.some(({ content }) => content === unknown)
  ) {
    refuse("model.unk_token", "a token of the vocabulary", unknown);
  }
  const fields = {
    ...parts,
    model,
    added_tokens: tokens,
    normalizer: parts.normalizer ?? null,
    pre_tokenizer: parts.pre_tokenizer ? asRustReads(parts.pre_tokenizer) : null,
    decoder: parts.decoder ?? null,
    post_processor: null,
  };
  return { fields, vocabSize: tokens.reduce((size, token) => Math.max(size, token.id + 1), inVocabulary) };
};

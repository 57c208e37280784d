// Headers that let somebody in are never stored, wherever they come from: spans, OTLP attributes and events, tasks, metadata,
// errors. They are known by name and place; a bare `authorization` or `apiKey` also by a value that looks like credentials, so
// that a task about somebody's authorization, or about cookies, stays what it is. In texts they are looked for where programs
// print them: errors, headers, the arguments of tools, addresses. Not a search for secrets in prose: that is `redact`.

export const REMOVED = "[removed]";

/**
 * Ends of names: `X-Api-Key`, `proxy_authorization`, `http.request.header.x-auth-token`. Those of the group are nothing else; the others
 * are words with other meanings, and secret among headers, or with credentials as their value.
 */
const NAMES =
  /(?:^|[^a-z])(?:(proxy[-_]authorization|x[-_](?:goog[-_])?api[-_]key|api-key|(?:auth|access|security)[-_]token)|authorization|api_?key|(?:set[-_])?cookie)$/i;
/** A scheme and what goes with it, or one long word with a digit. */
const CREDENTIALS = /^\s*(?:(?:bearer|basic|negotiate|api-?key|digest|token|hawk|aws4-hmac-sha256)\s+\S|(?=\S*\d)\S{16,}\s*$)/i;

/** What a name says of its value, as bits. */
export const HEADERS = 1;
/** A text that a program made: what it said when it failed, headers, a tool's arguments, an address. */
export const PRINTED_TEXT = 2;
const SECRET = 4;
const SECRET_AMONG_HEADERS = 8;
const HEADER = 16;

const meaningOf = (name: string): number => {
  const found = NAMES.exec(name);
  return (
    (/headers?$/i.test(name) ? HEADERS : 0) |
    (/^(?:exception|error)\.|status_description$|^stack$|headers?$|arguments$|ur[il](?:\.full|\.query)?$/i.test(name) ? PRINTED_TEXT : 0) |
    (found ? (found[1] ? SECRET : SECRET_AMONG_HEADERS) : 0) |
    (/headers?[.:]/i.test(name) ? HEADER : 0)
  );
};

/** The same few names come with every span. */
const known = new Map<string, number>();

export const meaning = (name: string): number => {
  let bits = known.get(name);
  if (bits === undefined) {
    bits = meaningOf(name);
    if (known.size > 999) known.clear();
    if (name.length < 99) known.set(name, bits);
  }
  return bits;
};

const someText = (value: unknown, isIt: (text: string) => unknown): boolean =>
  typeof value === "string" ? !!isIt(value) : Array.isArray(value) && value.some((item) => someText(item, isIt));

/** `place`: what the name above says. */
export const isSecret = (bits: number, value: unknown, place: number): boolean =>
  (bits & (SECRET | SECRET_AMONG_HEADERS)) > 0 &&
  (((place & HEADERS) | (bits & HEADER)) > 0 || someText(value, (text) => bits & SECRET || CREDENTIALS.test(text)));

/** Is a part of a list what the one before it names? In a list of two, or of headers as they came: ["accept", "*", "authorization", "…"]. */
export const isSecretPart = (list: readonly unknown[], index: number, place: number): boolean => {
  const name = list[index - 1];
  return typeof name === "string" && (list.length === 2 || (index & place & HEADERS) > 0) && isSecret(meaning(name), list[index], place);
};

/** Whether an object is a secret header told as { name, value } or { key, value }. */
export const isSecretField = (object: object, place: number): boolean => {
  const { name, key = name, header = key, value } = object as { name?: unknown; key?: unknown; header?: unknown; value?: unknown };
  return value !== undefined && typeof header === "string" && isSecret(meaning(header), value, place);
};

/** A header or a key as it is printed: its value ends with its quotes, with its line where it has parts, or with its word. */
const PRINTED =
  /((?:authorization|api[-_]?key|(?:auth|access|security)[-_]token|cookie)(?:\\*["']?\s*(?:[:=]|=>)|\\*["']\s*,)(?!\s*(?:\[\s*)?\\*["']?\[removed)\s*(?:\[\s*)?)(?:(\\*["'])[^\r\n]*?\2|(?:digest|token|hawk|aws4-hmac-sha256)\s[^\r\n]+|[\w.-]+=[^\r\n]+|(?:(?:bearer|basic|negotiate|api-?key)\s+)?[^\s"',;&}\]]+)/gi;
/** Keys and passwords of addresses. */
const IN_ADDRESS = /([?&](?:key|token|sig)=)[^\s&"'#]+|(:\/\/[^\s/?#@:]*:)[^\s/?#@]+(?=@)/gi;
/** Credentials that stand alone: after their scheme, or as OpenAI writes its keys. */
const ALONE = /\b((?:bearer|basic)\s+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{12,}|\bsk-[\w-]{20,}/gi;

/** Without one of these none of them is there: most texts are spared the rest. */
const MAY_HOLD = /auth|key|token|cookie|bearer|basic|sk-|:\/\/|sig=/i;

/** The text without the secrets that are printed in it. */
export const withoutSecrets = (text: string): string =>
  MAY_HOLD.test(text)
    ? text.replace(PRINTED, `$1$2${REMOVED}$2`).replace(IN_ADDRESS, `$1$2${REMOVED}`).replace(ALONE, `$1${REMOVED}`)
    : text;

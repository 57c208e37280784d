// Headers that let somebody in are never stored, wherever they come from: spans, OTLP attributes and events, tasks, metadata,
// errors. They are known by name and place; a bare `authorization` also by a value that begins like credentials, so that a
// task about somebody's authorization, or about cookies, stays what it is. Not a search for secrets in prose: that is `redact`.

export const REMOVED = "[removed]";

/** Ends of names: `X-Api-Key`, `proxy_authorization`, `http.request.header.x-auth-token`. */
const ALWAYS = /(?:^|[.:/])(?:proxy[-_]authorization|x[-_](?:goog[-_])?api[-_]key|x[-_]auth[-_]token|api-key)$/i;
/** Words with other meanings: secret among headers, or with credentials as their value. */
const AMONG_HEADERS = /(?:^|[.:/])(?:authorization|api_?key|(?:set[-_])?cookie)$/i;
const HEADERS = /headers?(?:\[\d+\])?$/i;
const HEADER_DOT = /headers?[.:]/i;
const CREDENTIALS = /^\s*(?:bearer|basic|digest|negotiate|token|api-?key|hawk|aws4-hmac-sha256)\s+\S/i;

/** The last letter of every name that the patterns above look for: it spares nearly all names the patterns. */
const mayBeSecret = (name: string): boolean => {
  switch (name.charCodeAt(name.length - 1) | 0x20) {
    case 0x6e: // authorization, x-auth-token
    case 0x79: // api-key
    case 0x65: // cookie
      return true;
    default:
      return false;
  }
};

const isText = (value: unknown): boolean =>
  typeof value === "string" || (Array.isArray(value) && value.some((item) => typeof item === "string"));
const areCredentials = (value: unknown): boolean =>
  typeof value === "string" ? CREDENTIALS.test(value) : Array.isArray(value) && value.some(areCredentials);

/** `where` is the path of the object or list that this is a part of. */
export const isSecretHeader = (name: string, value: unknown, where: string): boolean =>
  mayBeSecret(name) &&
  isText(value) &&
  (ALWAYS.test(name) || (AMONG_HEADERS.test(name) && (HEADERS.test(where) || HEADER_DOT.test(name) || areCredentials(value))));

/** Which part of a list of two is a secret header's value: ["authorization", "…"]. */
export const isSecretPair = (list: readonly unknown[], where: string): boolean =>
  list.length === 2 && typeof list[0] === "string" && typeof list[1] === "string" && isSecretHeader(list[0], list[1], where);

/** Whether an object is a secret header told as { name, value } or { key, value }. */
export const isSecretField = (object: object, where: string): boolean => {
  const { name, key, value } = object as { name?: unknown; key?: unknown; value?: unknown };
  const called = typeof name === "string" ? name : key;
  return typeof called === "string" && isSecretHeader(called, value, where);
};

/** Members whose texts are what a program said when it failed. */
export const isErrorText = (name: string): boolean => /^(?:exception|error)\.|status_description$/.test(name);

/** A header as it is printed, to the end of its value; and credentials that stand alone. */
const PRINTED =
  /((?:proxy-)?authorization|x-(?:goog-)?api-key|api-key|x-auth-token|(?:set-)?cookie)(["']?\s*[:=]\s*(?!\[removed\])(?:\[\s*)?["']?)(?!\[removed\])(?:(?:bearer|basic|digest|negotiate|token|api-?key|hawk)\s+)?[^\s"',;}\]]+/gi;
const ALONE = /\b(bearer|basic)\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{12,}/gi;

/** The text of an error without the secrets that are printed in it. */
export const withoutSecrets = (text: string): string => text.replace(PRINTED, `$1$2${REMOVED}`).replace(ALONE, `$1 ${REMOVED}`);

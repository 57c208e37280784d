// What is asked of the endpoint, whichever way it came: as a Request, or through an attempt's own fetch. Of the latter a Request
// is made only where it has something to say: making and reading one costs more than all else that happens before sampling.

/** Never resolved by anyone: calls to it stay in the process. */
export const ORIGIN = "http://fulgurite.local";

export interface Incoming {
  readonly method: string;
  readonly url: URL;
  readonly signal: AbortSignal | undefined;
  header(name: string): string | null;
  text(): Promise<string>;
}

export const fromRequest = (request: Request, signal: AbortSignal | null | undefined): Incoming => ({
  method: request.method,
  url: new URL(request.url),
  signal: signal ?? undefined,
  header: (name) => request.headers.get(name),
  text: () => request.text(),
});

/**
 * The arguments of a fetch: a post of a JSON text to us, which is what every client sends, is taken as it is.
 * @throws TypeError as fetch does.
 */
export const fromFetch = (input: string | URL | Request, init: RequestInit = {}): Incoming => {
  const { body, signal } = init;
  const isOurs = typeof input === "string" && input.startsWith(`${ORIGIN}/`);
  // a text that begins otherwise may have a mark of its byte order, which a Request takes away
  if (!isOurs || typeof body !== "string" || !body.startsWith("{") || !/^post$/i.test(init.method ?? ""))
    return fromRequest(new Request(input, init), signal ?? (input instanceof Request ? input.signal : undefined));
  const headers = init.headers && new Headers(init.headers);
  return {
    method: "POST",
    url: new URL(input),
    signal: signal ?? undefined,
    header: (name) => headers?.get(name) ?? null,
    text: async () => body,
  };
};

// Which pages of other origins may talk to a served store (CORS). A browser asks before it sends a token or JSON; the answer is
// given without a key, for such a question carries none. Tokens travel in a header of ours, so cookies are never allowed.

import { AGAIN, LENGTH, PREFIX, REQUEST } from "./protocol.ts";

export interface Origins {
  /** Whether the request comes from no page, or from one that may ask. */
  admits(request: Request): boolean;
  /** The answer to a browser's question; undefined for every other request. */
  preflight(request: Request): Response | undefined;
  /** The same response, readable by the page that asked. */
  opened(request: Request, response: Response): Response;
}

/** A browser asks again after this. */
const MAX_AGE_SECONDS = 600;

/** "*": every page; a list: those origins, as browsers write them ("https://host", "http://localhost:5173"). */
export const createOrigins = (allowed: "*" | readonly string[]): Origins => {
  const allows = (origin: string): boolean => allowed === "*" || allowed.includes(origin);
  const opened: Origins["opened"] = (request, response) => {
    const origin = request.headers.get("origin");
    if (allowed !== "*") response.headers.append("vary", "origin");
    if (origin !== null && allows(origin)) {
      response.headers.set("access-control-allow-origin", allowed === "*" ? "*" : origin);
      response.headers.set("access-control-expose-headers", LENGTH);
    }
    return response;
  };
  return {
    admits: (request) => {
      const origin = request.headers.get("origin");
      return origin === null || allows(origin);
    },
    preflight: (request) => {
      if (request.method !== "OPTIONS" || !request.headers.has("access-control-request-method")) return undefined;
      if (!new URL(request.url).pathname.startsWith(`${PREFIX}/`)) return undefined;
      const headers: Record<string, string> = {
        "access-control-allow-methods": "GET, POST, PUT",
        "access-control-allow-headers": `authorization, content-type, last-event-id, ${REQUEST}, ${AGAIN}`,
        "access-control-max-age": String(MAX_AGE_SECONDS),
      };
      // a public page that asks for a machine of the user's own network
      if (request.headers.get("access-control-request-private-network") === "true")
        headers["access-control-allow-private-network"] = "true";
      return new Response(null, { status: 204, headers });
    },
    opened,
  };
};

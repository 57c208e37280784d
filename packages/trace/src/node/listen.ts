// A handler of web standards behind node:http: requests in, responses out, streams as streams. A client that leaves aborts its
// request's signal; one that reads slowly is waited for.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

export interface ListenOptions {
  /** 0: any free one. */
  readonly port?: number; // 0
  readonly host?: string; // "127.0.0.1"
}

export interface Listener {
  /** Without a slash at its end. */
  readonly url: string;
  /** Takes no more connections, and resolves when what is under way has ended, or was cut off after `graceMs`. */
  close(graceMs?: number): Promise<void>;
}

const GRACE_MS = 10_000;

const toRequest = (incoming: IncomingMessage, signal: AbortSignal): Request => {
  const headers = new Headers();
  for (const [name, value] of Object.entries(incoming.headers))
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) headers.append(name, one);
  const hasBody = incoming.method !== "GET" && incoming.method !== "HEAD";
  return new Request(new URL(incoming.url ?? "/", `http://${incoming.headers.host ?? "localhost"}`), {
    method: incoming.method ?? "GET",
    headers,
    signal,
    ...(hasBody ? { body: Readable.toWeb(incoming) as ReadableStream<Uint8Array>, duplex: "half" } : {}),
  } as RequestInit);
};

const send = async (response: Response, outgoing: ServerResponse): Promise<void> => {
  outgoing.writeHead(response.status, Object.fromEntries(response.headers));
  if (response.body === null) return void outgoing.end();
  outgoing.flushHeaders(); // a stream may have nothing to say for a while
  await pipeline(Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0]), outgoing);
};

/** Resolves when it listens. @throws the platform's error (EADDRINUSE, EACCES). */
export const listen = async (
  handler: (request: Request) => Promise<Response>,
  { port = 0, host = "127.0.0.1" }: ListenOptions = {},
): Promise<Listener> => {
  let isClosing = false;
  const server = createServer(async (incoming, outgoing) => {
    const left = new AbortController();
    outgoing.on("close", () => {
      left.abort(new Error("the client left"));
      if (isClosing) setImmediate(() => server.closeIdleConnections()); // else a connection that is kept alive is waited for
    });
    try {
      let request: Request;
      try {
        request = toRequest(incoming, left.signal);
      } catch {
        return void outgoing.writeHead(400).end(); // an address, a method or a header that the web does not know
      }
      await send(await handler(request), outgoing);
    } catch {
      outgoing.destroy(); // the client left, or the body broke: there is nobody to tell, or no way to
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => {
      server.off("error", reject);
      resolve();
    });
  });
  const bound = (server.address() as AddressInfo).port;
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${bound}`,
    close: async (graceMs = GRACE_MS) => {
      isClosing = true;
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeIdleConnections();
      const cut = setTimeout(() => server.closeAllConnections(), graceMs);
      await closed;
      clearTimeout(cut);
    },
  };
};

// An http server with the files of a model and the faults of the real ones, each named. It counts what was asked for.

import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Files } from "./modelFolder.ts";

export interface Asked {
  readonly path: string;
  readonly range: string | undefined;
  readonly ifRange: string | undefined;
  readonly authorization: string | undefined;
  /** Of the body, that were handed to the connection. */
  bytes: number;
}

export interface Faults {
  /** Path → after how many bytes of the n-th answer's body the connection breaks; past the list it holds. */
  cuts?: Record<string, number[]>;
  ignoresRange?: boolean;
  ignoresIfRange?: boolean;
  hasNoValidator?: boolean;
  /** Answers every file in pieces without Content-Length. */
  hidesLength?: boolean;
  /** Wants this token for every file. */
  token?: string;
  /** The hub's commit, told with every answer. */
  commit?: string;
  /** Path → statuses of the first answers. */
  statuses?: Record<string, number[]>;
  /** Sends a page instead of 404, as servers of single-page apps do. */
  answersPages?: boolean;
  /** Sends weights to another server, as the hub does. */
  redirect?: (path: string) => string | undefined;
  /** Before the n-th request of a path is answered. */
  before?: (path: string, n: number) => void;
}

export interface ModelServer {
  readonly url: string;
  readonly asked: Asked[];
  readonly faults: Faults;
  /** Path → bytes; may be changed while it runs. */
  readonly files: Files;
  askedFor(file: string): Asked[];
  close(): Promise<void>;
}

export const etagOf = (bytes: Uint8Array): string => `"${createHash("md5").update(bytes).digest("hex")}"`;

/** The paths of a hub: /owner/repo/resolve/revision/file. */
export const onHub = (name: string, revisions: readonly string[], files: Files): Files =>
  Object.fromEntries(
    revisions.flatMap((revision) => Object.entries(files).map(([file, bytes]) => [`/${name}/resolve/${revision}/${file}`, bytes])),
  );
export const inFolder = (folder: string, files: Files): Files =>
  Object.fromEntries(Object.entries(files).map(([file, bytes]) => [`/${folder}/${file}`, bytes]));

export const startModelServer = async (files: Files, faults: Faults = {}): Promise<ModelServer> => {
  const asked: Asked[] = [];
  const counts = new Map<string, number>();

  const answer = (request: IncomingMessage, response: ServerResponse): ServerResponse => {
    const path = decodeURIComponent(request.url!);
    const { range, "if-range": ifRange, authorization } = request.headers;
    const record: Asked = { path, range, ifRange: ifRange as string | undefined, authorization, bytes: 0 };
    asked.push(record);
    const n = counts.get(path) ?? 0;
    counts.set(path, n + 1);
    faults.before?.(path, n);

    const end = (status: number, body = "", headers: Record<string, string> = {}): ServerResponse =>
      response.writeHead(status, { ...(faults.commit && { "x-repo-commit": faults.commit }), ...headers }).end(body);
    if (request.method !== "GET") return end(405);
    if (faults.token !== undefined && authorization !== `Bearer ${faults.token}`) return end(401);
    const status = faults.statuses?.[path]?.[n];
    if (status !== undefined) return end(status);
    const elsewhere = faults.redirect?.(path);
    if (elsewhere !== undefined) return end(302, "", { location: elsewhere });
    const bytes = files[path];
    if (!bytes) return faults.answersPages ? end(200, "<!doctype html><title>app</title>", { "content-type": "text/html" }) : end(404);

    const etag = etagOf(bytes);
    const isStale = ifRange !== undefined && ifRange !== etag && !faults.ignoresIfRange;
    const from = range && !faults.ignoresRange && !isStale ? Number(/^bytes=(\d+)-$/.exec(range)![1]) : undefined;
    if (from !== undefined && from >= bytes.length) return end(416);
    const body = bytes.subarray(from ?? 0);
    response.writeHead(from === undefined ? 200 : 206, {
      ...(!faults.hidesLength && { "content-length": String(body.length) }),
      ...(!faults.hasNoValidator && { etag }),
      ...(from !== undefined && { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` }),
      ...(faults.commit && { "x-repo-commit": faults.commit }),
    });
    const cut = faults.cuts?.[path]?.[n];
    record.bytes = Math.min(cut ?? body.length, body.length);
    if (cut === undefined) return response.end(body);
    // The part has to be on its way before the connection goes, or it goes with it. A pause keeps headers and part apart.
    response.flushHeaders();
    response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20));
    return response;
  };

  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    asked,
    faults,
    files,
    askedFor: (file) => asked.filter(({ path }) => path.endsWith(`/${file}`)),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
};

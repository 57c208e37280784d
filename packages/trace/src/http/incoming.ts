// What a request brings, checked as far as the store does not check it itself: sizes, JSON, the kinds of fields.

import { TraceError } from "../errors.ts";
import { decodeSpan } from "../itemCodec.ts";
import type { AttemptRef, Json, RolloutQuery, RolloutStatus, Span } from "../vocabulary.ts";
import { ROLLOUTS_A_PAGE } from "./protocol.ts";

export const bad = (where: string, rule: string, got: unknown): never => {
  throw new TraceError("bad-input", `${where}: ${rule}, got ${String(JSON.stringify(got)).slice(0, 80)}; correct the client`);
};

export const readBytes = async (request: Request, maxBytes: number): Promise<Uint8Array> => {
  const guard = (byteLength: number, atLeast: string): void => {
    if (byteLength > maxBytes)
      throw new TraceError(
        "too-large",
        `body: at most ${maxBytes} bytes, got ${atLeast}${byteLength}; send less at once, or raise maxBodyBytes`,
      );
  };
  guard(Number(request.headers.get("content-length") ?? 0), "");
  const parts: Uint8Array[] = [];
  let byteLength = 0;
  const reader = request.body?.getReader();
  for (let part = await reader?.read(); part !== undefined && !part.done; part = await reader?.read()) {
    parts.push(part.value);
    byteLength += part.value.length;
    try {
      guard(byteLength, "at least ");
    } catch (error) {
      void reader?.cancel().catch(() => {}); // the rest is nobody's
      throw error;
    }
  }
  const all = new Uint8Array(byteLength);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

export type Fields = Readonly<Record<string, unknown>>;

export const isFields = (value: unknown): value is Fields => typeof value === "object" && value !== null && !Array.isArray(value);

/** JSON by its name: a browser lets any page send text elsewhere, but asks before it sends JSON (origins.ts). */
export const guardJson = (request: Request): void => {
  const type = request.headers.get("content-type");
  if (!/^application\/json\b/i.test(type ?? "")) bad("content-type", "application/json", type);
};

export const parseBody = (bytes: Uint8Array): Fields => {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return bad("body", "JSON in UTF-8", `${bytes.length} other bytes`);
  }
  return isFields(value) ? value : bad("body", "a JSON object", value);
};

export const textIn = (body: Fields, name: string): string => {
  const value = body[name];
  return typeof value === "string" ? value : bad(`body.${name}`, "a string", value);
};

export const numberIn = (body: Fields, name: string): number => {
  const value = body[name];
  return typeof value === "number" ? value : bad(`body.${name}`, "a number", value);
};

export const fieldsIn = (body: Fields, name: string): Fields => {
  const value = body[name];
  return isFields(value) ? value : bad(`body.${name}`, "an object", value);
};

export const listIn = (body: Fields, name: string): readonly unknown[] => {
  const value = body[name];
  return Array.isArray(value) ? value : bad(`body.${name}`, "a list", value);
};

export const attemptIn = (body: Fields): AttemptRef => {
  const attempt = fieldsIn(body, "attempt");
  return { rolloutId: textIn(attempt, "rolloutId"), id: textIn(attempt, "id") };
};

/** What cannot be decoded is the client's mistake here, not damage to the store. */
export const decoded = <T>(decode: () => T): T => {
  try {
    return decode();
  } catch (error) {
    if (error instanceof TraceError && error.code === "corrupt") throw new TraceError("bad-input", error.message);
    throw error;
  }
};

export const spansIn = (body: Fields): Span[] =>
  listIn(body, "spans").map((span, index) => decoded(() => decodeSpan<Span>(span, `body.spans[${index}]`)));

export const needed = (search: URLSearchParams, name: string): string => search.get(name) ?? bad(`?${name}`, "a value", null);

export const wholeIn = (search: URLSearchParams, name: string): number | undefined => {
  const text = search.get(name);
  if (text === null) return undefined;
  return /^\d{1,15}$/.test(text) ? Number(text) : bad(`?${name}`, "a whole number ≥ 0", text);
};

const STATUS_NAMES: readonly string[] = ["queued", "running", "succeeded", "failed", "cancelled"] satisfies RolloutStatus[];

export const rolloutQuery = (search: URLSearchParams): RolloutQuery => {
  const [ids, status, mode, order, metadata] = [
    search.getAll("id"),
    search.getAll("status"),
    search.get("mode"),
    search.get("order"),
    search.get("metadata"),
  ];
  for (const name of status) if (!STATUS_NAMES.includes(name)) bad("?status", `one of ${STATUS_NAMES.join(", ")}`, name);
  if (mode !== null && mode !== "train" && mode !== "val") return bad("?mode", "train or val", mode);
  if (order !== null && order !== "oldest" && order !== "newest") return bad("?order", "oldest or newest", order);
  const after = wholeIn(search, "after");
  return {
    ...(ids.length > 0 && { ids }),
    ...(status.length > 0 && { status: status as RolloutStatus[] }),
    ...(mode !== null && { mode }),
    ...(order !== null && { order }),
    ...(metadata !== null && { metadata: parseBody(new TextEncoder().encode(metadata)) as Record<string, Json> }),
    ...(after !== undefined && { after }),
    limit: Math.min(wholeIn(search, "limit") ?? ROLLOUTS_A_PAGE, ROLLOUTS_A_PAGE),
  };
};

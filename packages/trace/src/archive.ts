// A whole store as one stream of bytes, for any store to write and any store to read: UTF-8, one JSON value a line.
//
//   first line   {"magic":"fulgurite-archive","v":1}
//   then         {"kind":"rollout"|"attempt"|"span"|"resource","data":{…}}   (itemCodec.ts); a rollout, its attempts, its spans
//                {"kind":"state","data":{"name","bytes":{"$u8":"<base64>"}}}
//   now and then {"kind":"check","lines":n,"crc32":"<8 hex>"}                of the n lines before it, all bytes, newlines included
//   last line    {"kind":"end","lines":n,"crc32":"<8 hex>"}                  likewise: an archive without it was cut
//
// Nothing is imported before the next check has proved it. The check is against accidents, not against forgers. A file of a
// resource is one line: what is larger than a string of the platform (about 400 MB) does not fit.

import { crc32 } from "./crc32.ts";
import { TraceError } from "./errors.ts";
import { decodeBytes, decodeItem, encodeBytes, encodeItem } from "./itemCodec.ts";
import { text } from "./values.ts";
import type { Adopted, Json, Store, StoreItem } from "./vocabulary.ts";

const MAGIC = "fulgurite-archive";
const VERSION = 1;
/** A check follows when this much was written since the last: what an import holds in memory, and adopts at once. */
const BLOCK_BYTES = 1 << 20;
/** Longer is no first line of ours. */
const HEADER_BYTES = 256;

type State = { readonly kind: "state"; readonly data: { readonly name: string; readonly bytes: Uint8Array } };

const isThere = async (store: Store, id: string): Promise<boolean> => {
  for await (const _ of store.rollouts({ ids: [id] })) return true;
  return false;
};

async function* everything(store: Store): AsyncGenerator<StoreItem | State> {
  for await (const rollout of store.rollouts()) {
    if (rollout.attempts === 0) {
      yield { kind: "rollout", data: rollout };
      continue;
    }
    // in this order: what happens to it meanwhile is in the attempts, and the reader draws the same conclusion from them
    const attempts = await store.attempts(rollout.id);
    // forgotten meanwhile, or given up without attempts by whom it came from: half of one would make an archive that nobody takes
    if (attempts.length === 0 && !(await isThere(store, rollout.id))) continue;
    yield { kind: "rollout", data: rollout };
    for (const attempt of attempts) yield { kind: "attempt", data: attempt };
    const known = new Set(attempts.map(({ id }) => id));
    for await (const span of store.spans({ rolloutId: rollout.id })) if (known.has(span.attemptId)) yield { kind: "span", data: span };
  }
  for await (const { name, version } of store.resources()) {
    const resource = await store.resource(name, version);
    if (resource) yield { kind: "resource", data: resource };
  }
  for (const name of await store.states()) {
    const bytes = await store.getState(name);
    if (bytes) yield { kind: "state", data: { name, bytes } };
  }
}

async function* archive(store: Store): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  let lines = 0;
  let sum = 0;
  let unchecked = 0;
  const lineOf = (value: Json): Uint8Array => {
    const line = encoder.encode(`${JSON.stringify(value)}\n`);
    lines += 1;
    sum = crc32(line, sum);
    unchecked += line.length;
    return line;
  };
  const check = (kind: "check" | "end"): Uint8Array => {
    const line = lineOf({ kind, lines, crc32: hex(sum) });
    unchecked = 0;
    return line;
  };
  yield lineOf({ magic: MAGIC, v: VERSION });
  for await (const item of everything(store)) {
    // never between a rollout and its attempts: they are adopted together
    if (unchecked >= BLOCK_BYTES && item.kind !== "attempt") yield check("check");
    yield lineOf(
      item.kind === "state" ? { kind: "state", data: { name: item.data.name, bytes: encodeBytes(item.data.bytes) } } : encodeItem(item),
    );
  }
  yield check("end");
}

const hex = (sum: number): string => sum.toString(16).padStart(8, "0");

/**
 * Everything that `store` holds, read as the stream is. What is written meanwhile may be in it or not; each rollout is whole
 * by itself. The same content gives the same bytes. Errors of the store are errors of the stream.
 */
export const exportStore = (store: Store): ReadableStream<Uint8Array> => {
  const bytes = archive(store);
  return new ReadableStream<Uint8Array>({
    pull: async (controller) => {
      const { done, value } = await bytes.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: async () => void (await bytes.return(undefined)),
  });
};

export interface ImportCounts {
  readonly rollouts: number;
  readonly attempts: number;
  readonly spans: number;
  readonly resources: number;
  readonly states: number;
}

export interface ImportReport {
  readonly added: ImportCounts;
  /** Were there already. */
  readonly known: ImportCounts;
  /** The store has something else of that name, and keeps it. */
  readonly different: ImportCounts;
  /** Dropped by the store's `redact`. */
  readonly redacted: ImportCounts;
  /** The first of what was different, for a person: "rollout a", "resource policy 3". */
  readonly examples: readonly string[];
}

export interface ImportOptions {
  readonly signal?: AbortSignal;
  /** After each block: what was read so far. */
  readonly onProgress?: (progress: { readonly lines: number; readonly bytes: number }) => void;
}

const EXAMPLES = 20;
const COUNTED = { rollout: "rollouts", attempt: "attempts", span: "spans", resource: "resources", state: "states" } as const;

const nameOf = ({ kind, data }: StoreItem | State): string => {
  if (kind === "resource") return `resource ${data.name} ${data.version}`;
  if (kind === "state") return `state ${data.name}`;
  return kind === "rollout" ? `rollout ${data.id}` : `${kind} ${data.id} of rollout ${data.rolloutId}`;
};

const damaged = (rule: string, got: string): TraceError =>
  new TraceError(
    "corrupt",
    `import: ${rule}, got ${got}; export it again. What came before the damage is in the store, and importing again skips it`,
  );

/** The lines of a stream, without their newlines, each with how many bytes came before its end. */
async function* linesOf(stream: ReadableStream<Uint8Array>, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader();
  let open: Uint8Array[] = []; // of a line that is not whole yet
  let isFirst = true;
  let isDone = false;
  const stop = () => void reader.cancel(signal?.reason).catch(() => {});
  signal?.addEventListener("abort", stop, { once: true });
  try {
    for (;;) {
      signal?.throwIfAborted();
      const { done, value } = await reader.read();
      signal?.throwIfAborted();
      if (done) break;
      let start = 0;
      for (let end = value.indexOf(0x0a); end >= 0; start = end + 1, end = value.indexOf(0x0a, start)) {
        open.push(value.subarray(start, end));
        yield open.length === 1 ? (open[0] as Uint8Array) : joined(open);
        open = [];
        isFirst = false;
      }
      if (start < value.length) open.push(value.subarray(start));
      if (isFirst && open.reduce((sum, part) => sum + part.length, 0) > HEADER_BYTES) throw notOurs(joined(open));
    }
    isDone = true;
    if (open.length > 0)
      throw isFirst ? notOurs(joined(open)) : damaged("a last line of kind end", "an archive that was cut within a line");
  } finally {
    signal?.removeEventListener("abort", stop);
    if (!isDone) void reader.cancel().catch(() => {}); // its own error was told, or ours is about to be
    reader.releaseLock();
  }
}

const joined = (parts: readonly Uint8Array[]): Uint8Array => {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

const notOurs = (line: Uint8Array): TraceError =>
  new TraceError(
    "corrupt",
    `import: a first line of magic ${MAGIC}, v ${VERSION}, got ${JSON.stringify(new TextDecoder().decode(line.subarray(0, 80)))}; give it what exportStore wrote`,
  );

const parse = (line: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(line));
  } catch {
    return undefined;
  }
};

const checkHeader = (line: Uint8Array): void => {
  const header = parse(line) as { magic?: unknown; v?: unknown } | null | undefined;
  if (header?.magic !== MAGIC) throw notOurs(line);
  if (header.v !== VERSION)
    throw new TraceError(
      "corrupt",
      `import: an archive of v ${VERSION}, got v ${JSON.stringify(header.v)}; import it with the release that wrote it`,
    );
};

/**
 * Adds to `store` what it lacks of an archive: rollouts in whatever state they were, attempts, spans, resources, states. What
 * is there stays as it is, so importing twice is importing once, and an import that was stopped goes on by being repeated.
 * Rollouts and spans get new seqs, in the archive's order.
 * @throws TraceError "corrupt" for what is no whole archive of this version; the store's errors; the signal's reason.
 */
export const importStore = async (
  store: Store,
  stream: ReadableStream<Uint8Array>,
  { signal, onProgress }: ImportOptions = {},
): Promise<ImportReport> => {
  const zero = (): Record<keyof ImportCounts, number> => ({ rollouts: 0, attempts: 0, spans: 0, resources: 0, states: 0 });
  const report = { added: zero(), known: zero(), different: zero(), redacted: zero(), examples: [] as string[] };
  const count = (item: StoreItem | State, outcome: Adopted): void => {
    report[outcome][COUNTED[item.kind]] += 1;
    if (outcome === "different" && report.examples.length < EXAMPLES) report.examples.push(nameOf(item));
  };

  const keep = async (block: readonly (StoreItem | State)[]): Promise<void> => {
    const items = block.filter((item) => item.kind !== "state");
    if (items.length > 0) for (const [index, outcome] of (await store.adopt(items)).entries()) count(items[index] as StoreItem, outcome);
    for (const item of block) {
      if (item.kind !== "state") continue;
      const { name, bytes } = item.data;
      const stored = await store.getState(name);
      if (stored === undefined) await store.putState(name, bytes);
      count(item, stored === undefined ? "added" : isSame(stored, bytes) ? "known" : "different");
    }
  };

  let lines = 0;
  let bytes = 0;
  let sum = 0;
  let block: unknown[] = [];
  let hasEnded = false;
  const NEWLINE = Uint8Array.of(0x0a);
  for await (const line of linesOf(stream, signal)) {
    if (hasEnded) throw damaged(`line ${lines + 1}: nothing after the line of kind end`, `${line.length} bytes`);
    if (lines === 0) checkHeader(line);
    else {
      const value = parse(line) as { kind?: unknown; lines?: unknown; crc32?: unknown } | null | undefined;
      if (typeof value !== "object" || value === null) throw damaged(`line ${lines + 1}: a JSON object`, `${line.length} other bytes`);
      if (value.kind === "check" || value.kind === "end") {
        if (value.lines !== lines || value.crc32 !== hex(sum))
          throw damaged(`line ${lines + 1}: ${value.lines} lines of CRC-32 ${value.crc32} before it`, `${lines} of ${hex(sum)}`);
        const first = lines - block.length + 1;
        await keep(block.map((item, index) => decode(item, `import: line ${first + index}`)));
        signal?.throwIfAborted();
        block = [];
        hasEnded = value.kind === "end";
      } else block.push(value);
    }
    lines += 1;
    bytes += line.length + 1;
    sum = crc32(NEWLINE, crc32(line, sum));
    if (block.length === 0) onProgress?.({ lines, bytes });
  }
  if (!hasEnded)
    throw lines === 0 ? notOurs(new Uint8Array(0)) : damaged("a last line of kind end", `an archive that was cut after ${lines} lines`);
  return report;
};

const decode = (value: unknown, where: string): StoreItem | State => {
  const { kind, data } = value as { kind?: unknown; data?: { name?: unknown; bytes?: unknown } };
  if (kind !== "state") return decodeItem(value, where);
  return { kind, data: { name: text(data?.name, `${where}: a state's name`), bytes: decodeBytes(data?.bytes, where) } };
};

const isSame = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, at) => byte === b[at]);

// One file against a server that breaks off, forgets ranges and changes files meanwhile. Time is injected: nothing waits.

import { afterEach, describe, expect, test } from "vitest";
import { type Downloaded, type DownloadOptions, download } from "../../../packages/fulgurite/src/download.ts";
import { type Faults, type ModelServer, startModelServer } from "./modelServer.ts";

const SIZE = 300_000;
const noise = (seed: number, length = SIZE): Uint8Array => {
  let state = seed;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
};
const FILE = "/m/model.safetensors";
const bytes = noise(1);

const open: ModelServer[] = [];
const serve = async (faults: Faults = {}, files: Record<string, Uint8Array> = { [FILE]: bytes }): Promise<ModelServer> => {
  const server = await startModelServer(files, faults);
  open.push(server);
  return server;
};
afterEach(async () => {
  for (const server of open.splice(0)) await server.close();
});

const run = async (server: ModelServer, options: Partial<DownloadOptions> = {}, path = FILE) => {
  const waits: number[] = [];
  const seen: [number, number | undefined][] = [];
  const result = await download(new URL(server.url + path), {
    sendsIfRange: true,
    sleep: async (ms) => void waits.push(ms),
    onBytes: (done, total) => void seen.push([done, total]),
    ...options,
  });
  return { result, waits, seen };
};
/** toEqual on arrays of this length takes a second. */
const expectBytes = (result: Downloaded, want: Uint8Array): void => {
  if (result.kind !== "file") throw new Error(result.got);
  expect(result.bytes.length).toBe(want.length);
  expect(Buffer.compare(result.bytes, want)).toBe(0);
};
/** The file becomes another one before its n-th request is answered. */
const swapAt =
  (n: number, files: Record<string, Uint8Array>, changed: Uint8Array): NonNullable<Faults["before"]> =>
  (_, request) => {
    if (request === n) files[FILE] = changed;
  };
const failure = (pending: Promise<unknown>): Promise<Error & { code?: string }> =>
  pending.then(
    () => expect.fail("it did not fail"),
    (error) => error,
  );

test("a file comes with one GET, and progress counts its bytes to the end", async () => {
  const server = await serve();
  const { result, waits, seen } = await run(server);
  expectBytes(result, bytes);
  expect(server.asked).toHaveLength(1);
  expect(server.asked[0]!.range).toBeUndefined();
  expect(waits).toEqual([]);
  expect(seen.at(-1)).toEqual([SIZE, SIZE]);
  expect(seen.every(([done], i) => i === 0 || done > seen[i - 1]![0])).toBe(true);
});

describe("a connection that breaks", () => {
  test.each([[[1]], [[70_001]], [[SIZE - 1]], [[10, 20_000, 5]], [[100_000, 1, 1, 1, 1, 1, 1, 1]]])(
    "after %j bytes of its answers is resumed by single ranges, and no byte is asked for twice",
    async (cuts) => {
      const server = await serve({ cuts: { [FILE]: cuts } });
      const { result, waits } = await run(server);
      expectBytes(result, bytes);
      let at = 0;
      for (const [i, asked] of server.asked.entries()) {
        expect(asked.range).toBe(i === 0 ? undefined : `bytes=${at}-`);
        at += asked.bytes;
      }
      expect(at).toBe(SIZE);
      expect(server.asked).toHaveLength(cuts.length + 1);
      // Every attempt brought something, so the pause never grew.
      expect(waits).toEqual(cuts.map(() => 500));
    },
  );

  test("before the first byte is tried five times, with pauses that double", async () => {
    const server = await serve({ cuts: { [FILE]: [0, 0, 0, 0] } });
    const { result, waits } = await run(server);
    expectBytes(result, bytes);
    expect(waits).toEqual([500, 1000, 2000, 4000]);
    const hopeless = await serve({ cuts: { [FILE]: Array(9).fill(0) } });
    expect((await failure(run(hopeless))).message).toMatch(/model\.safetensors comes within 5 attempts, got .+; check the address/);
    expect(hopeless.asked).toHaveLength(5);
  });

  test("and a server that knows no ranges: the whole body is skipped to where we were", async () => {
    const server = await serve({ cuts: { [FILE]: [100_000, 150_000] }, ignoresRange: true });
    const { result, seen } = await run(server);
    expectBytes(result, bytes);
    expect(server.asked.map(({ range }) => range)).toEqual([undefined, "bytes=100000-", "bytes=150000-"]);
    expect(seen.every(([done], i) => i === 0 || done > seen[i - 1]![0])).toBe(true);
  });

  test("and a server that knows neither ranges nor versions: the second body replaces the first", async () => {
    const changed = noise(2);
    const files: Record<string, Uint8Array> = { [FILE]: bytes };
    const faults: Faults = { cuts: { [FILE]: [100_000] }, ignoresRange: true, hasNoValidator: true };
    const server = await serve({ ...faults, before: swapAt(1, files, changed) }, files);
    expectBytes((await run(server)).result, changed);
  });

  test("in answers without a length is resumed too", async () => {
    const server = await serve({ cuts: { [FILE]: [100_000] }, hidesLength: true });
    const { result, seen } = await run(server);
    expectBytes(result, bytes);
    expect(server.asked.map(({ range }) => range)).toEqual([undefined, "bytes=100000-"]);
    expect(seen[0]![1]).toBeUndefined();
  });
});

describe("a file that changes while it comes", () => {
  const cases: [string, Faults, boolean][] = [
    ["If-Range makes the server send all of it", {}, true],
    ["the ETag of the 206 tells when If-Range is not kept", { ignoresIfRange: true }, true],
    ["the ETag of the 206 tells when If-Range is not sent", {}, false],
    ["the ETag of the 200 tells when ranges are not known", { ignoresRange: true }, true],
  ];
  test.each(cases)("is taken anew: %s", async (_, faults, sendsIfRange) => {
    const changed = noise(3);
    const files: Record<string, Uint8Array> = { [FILE]: bytes };
    const server = await serve({ ...faults, cuts: { [FILE]: [100_000] }, before: swapAt(1, files, changed) }, files);
    const { result } = await run(server, { sendsIfRange });
    expectBytes(result, changed);
    expect(server.asked[1]!.range).toBe("bytes=100000-");
    expect(server.asked[1]!.ifRange !== undefined).toBe(sendsIfRange);
  });

  test("and became shorter than what is here", async () => {
    const changed = noise(4, 1000);
    const files: Record<string, Uint8Array> = { [FILE]: bytes };
    const faults: Faults = { ignoresIfRange: true, cuts: { [FILE]: [100_000] }, before: swapAt(1, files, changed) };
    expectBytes((await run(await serve(faults, files))).result, changed);
  });
});

describe("a server that answers something else", () => {
  test("busy: it is asked again", async () => {
    const server = await serve({ statuses: { [FILE]: [503, 429, 500] } });
    const { result, waits } = await run(server);
    expectBytes(result, bytes);
    expect(waits).toEqual([500, 1000, 2000]);
  });
  test("no such file, or a page in its place: absent", async () => {
    expect((await run(await serve(), {}, "/m/none")).result).toEqual({ kind: "absent", got: "status 404" });
    const pages = await serve({ answersPages: true });
    expect((await run(pages, {}, "/m/none")).result).toEqual({ kind: "absent", got: "status 200, a page of HTML" });
    const nameless = await serve({}, { [FILE]: new TextEncoder().encode("\n<!DOCTYPE html><title>Not found</title>") });
    expect((await run(nameless)).result).toEqual({ kind: "absent", got: "a page of HTML" });
  });
  test.each([401, 403])("%i: the error names the token, or doubts the one that was given", async (status) => {
    const refusing = (): Promise<ModelServer> => serve({ statuses: { [FILE]: [status] } });
    expect((await failure(run(await refusing()))).message).toMatch(new RegExp(`got status ${status}; .*pass the option token`));
    const given = run(await refusing(), { headers: { authorization: "Bearer secret" } });
    const { message, code } = await failure(given);
    expect(message).toContain("the given token does not open it");
    expect(message).not.toContain("secret");
    expect(code).toBe("bad-file");
  });
  test("a Git LFS pointer is named", async () => {
    const pointer = new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
    expect((await failure(run(await serve({}, { [FILE]: pointer })))).message).toContain("a Git LFS pointer");
  });
  test("a teapot: an error at once", async () => {
    const server = await serve({ statuses: { [FILE]: [418] } });
    expect((await failure(run(server))).message).toContain("got status 418");
    expect(server.asked).toHaveLength(1);
  });
});

describe("a body of another size than was announced, which ends as if it were whole", () => {
  const parts = (answers: { bytes: Uint8Array; status?: number; total?: number; range?: string }[]) => {
    const ranges: (string | null)[] = [];
    const send = async (_url: unknown, init?: RequestInit): Promise<Response> => {
      ranges.push(new Headers(init?.headers).get("range"));
      const { bytes: body, status = 200, total = SIZE, range } = answers.shift()!;
      const headers = { etag: '"1"', ...(range ? { "content-range": range } : { "content-length": String(total) }) };
      return new Response(body.slice(), { status, headers });
    };
    return { ranges, fetch: send as typeof fetch };
  };
  const server = { url: "http://host" } as ModelServer;

  test("shorter: the rest is asked for", async () => {
    const rest = { bytes: bytes.subarray(1000), status: 206, range: `bytes 1000-${SIZE - 1}/${SIZE}` };
    const { ranges, fetch } = parts([{ bytes: bytes.subarray(0, 1000) }, rest]);
    expectBytes((await run(server, { fetch })).result, bytes);
    expect(ranges).toEqual([null, "bytes=1000-"]);
  });
  test("longer, by a wrong range: an error with both numbers", async () => {
    const wrong = { bytes, status: 206, range: `bytes 1000-${SIZE - 1}/${SIZE}` };
    const { fetch } = parts([{ bytes: bytes.subarray(0, 1000) }, wrong]);
    expect((await failure(run(server, { fetch }))).message).toContain(`has ${SIZE} bytes, got ${SIZE + 1000}`);
  });
  test("a range from another byte: all of it is asked for again", async () => {
    const wrong = { bytes: bytes.subarray(10), status: 206, range: `bytes 10-${SIZE - 1}/${SIZE}` };
    const { ranges, fetch } = parts([{ bytes: bytes.subarray(0, 1000) }, wrong, { bytes }]);
    expectBytes((await run(server, { fetch })).result, bytes);
    expect(ranges).toEqual([null, "bytes=1000-", null]);
  });
  test("larger than any array: refused with its size", async () => {
    const { fetch } = parts([{ bytes, total: 2 ** 52 }]);
    expect(await failure(run(server, { fetch }))).toMatchObject({
      code: "device",
      message: expect.stringContaining(`got ${2 ** 52} bytes`),
    });
  });
  test("the plain form of a compressed answer is taken as it is, and never resumed", async () => {
    const encoded = (body: Uint8Array | ReadableStream): Response =>
      new Response(body as BodyInit, { headers: { etag: '"1"', "content-encoding": "gzip", "content-length": "50" } });
    const broken = new ReadableStream({
      start: (controller) => controller.enqueue(bytes.slice(0, 100)),
      pull: (controller) => controller.error(new TypeError("terminated")),
    });
    const answers = [encoded(broken), encoded(bytes.slice())];
    const ranges: (string | null)[] = [];
    const fetch = (async (_url: unknown, init?: RequestInit) => {
      ranges.push(new Headers(init?.headers).get("range"));
      return answers.shift()!;
    }) as typeof globalThis.fetch;
    expectBytes((await run(server, { fetch })).result, bytes);
    expect(ranges).toEqual([null, null]);
  });
});

test("known bytes end the download before its body", async () => {
  const server = await serve({}, { [FILE]: noise(5, 20_000_000) });
  const known = Uint8Array.of(1, 2, 3);
  const { result, seen } = await run(server, { known: async ({ version }) => (version?.startsWith('"') ? known : undefined) });
  expect(result).toMatchObject({ kind: "file", isKnown: true });
  expectBytes(result, known);
  expect(seen).toEqual([]);
});

describe("abort", () => {
  test("in the middle of a body", async () => {
    const server = await serve({}, { [FILE]: noise(6, 3_000_000) });
    const controller = new AbortController();
    const error = await failure(run(server, { signal: controller.signal, onBytes: () => controller.abort() }));
    expect(error).toMatchObject({ code: "aborted" });
    expect(server.asked).toHaveLength(1);
  });
  test("in the pause before another attempt, with the real timer", async () => {
    const server = await serve({ statuses: { [FILE]: Array(9).fill(503) } });
    const controller = new AbortController();
    const pending = download(new URL(server.url + FILE), { sendsIfRange: true, signal: controller.signal });
    while (server.asked.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    setTimeout(() => controller.abort(), 20);
    expect(await failure(pending)).toMatchObject({ code: "aborted" });
    expect(server.asked).toHaveLength(1);
  });
  test("an error of a progress listener passes untouched and is not taken for the network's", async () => {
    const server = await serve();
    const mine = new Error("mine");
    const listener = (): void => {
      throw mine;
    };
    expect(await failure(run(server, { onBytes: listener }))).toBe(mine);
    expect(server.asked).toHaveLength(1);
  });
});

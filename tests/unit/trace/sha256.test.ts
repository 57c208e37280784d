// Our SHA-256 against Node's, and the platform's where there is one.
import { createHash } from "node:crypto";
import { afterEach, expect, test, vi } from "vitest";
import { sha256, sha256Sync } from "../../../packages/trace/src/sha256.ts";

afterEach(() => vi.unstubAllGlobals());

const expected = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const bytesOf = (length: number) => Uint8Array.from({ length }, (_, index) => (index * 131 + length) & 255);

test("every length around the ends of blocks, and views into larger buffers, give what Node gives", async () => {
  for (let length = 0; length < 200; length++) expect(sha256Sync(bytesOf(length)), `${length}`).toBe(expected(bytesOf(length)));
  const large = bytesOf(1_000_003);
  expect(sha256Sync(large)).toBe(expected(large));
  expect(sha256Sync(large.subarray(3, 1_000))).toBe(expected(large.subarray(3, 1_000)));
  expect(sha256Sync(new TextEncoder().encode("abc"))).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
});

test("with and without the platform's own it is the same", async () => {
  const bytes = bytesOf(777);
  expect(await sha256(bytes)).toBe(expected(bytes));
  vi.stubGlobal("crypto", { getRandomValues: crypto.getRandomValues.bind(crypto) }); // a page that came over plain http
  expect(await sha256(bytes)).toBe(expected(bytes));
});

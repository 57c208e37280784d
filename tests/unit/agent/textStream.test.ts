// The seam between tokens and text, for any bytes: pieces put together are the whole.
import fc from "fast-check";
import { expect, test } from "vitest";
import { createStopMatcher, createTextStream } from "../../../packages/agent/src/textStream.ts";
import { tinyFormat } from "./scripted.ts";

const format = tinyFormat();
const sizes = { numRuns: 300, seed: 11 };

test("pieces put together are the decoding of the whole, for any tokens", () => {
  const token = fc.oneof(fc.integer({ min: 0, max: 260 }), fc.constantFrom(0xe2, 0x82, 0xac, 0xf0, 0x9f, 0xa6, 0x8a));
  fc.assert(
    fc.property(fc.array(token, { maxLength: 40 }), (tokens) => {
      const stream = createTextStream(format);
      const pieces = [...tokens.map((id) => stream.push(id)), stream.end()];
      expect(pieces.join("")).toBe(format.decode(tokens));
    }),
    sizes,
  );
});

test("text without broken bytes is never given out in half characters", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 20 }), (text) => {
      const whole = format.decode(format.encode(text));
      const stream = createTextStream(format);
      let out = "";
      for (const id of format.encode(text)) {
        out += stream.push(id);
        expect(whole.startsWith(out)).toBe(true);
      }
      expect(out + stream.end()).toBe(whole);
    }),
    sizes,
  );
});

test("a stop string is found wherever the text is cut, and nothing after it comes out", () => {
  fc.assert(
    fc.property(fc.array(fc.stringMatching(/^[ab]{0,4}$/), { maxLength: 12 }), (pieces) => {
      const stops = ["aab", "bbb"];
      const text = pieces.join("");
      const matcher = createStopMatcher(stops);
      const out = pieces.map((piece) => matcher.push(piece)).join("") + matcher.end();
      const cut = Math.min(...stops.map((stop) => (text.includes(stop) ? text.indexOf(stop) : text.length)));
      expect(out).toBe(text.slice(0, cut));
      expect(matcher.stopped).toBe(cut < text.length);
    }),
    sizes,
  );
});

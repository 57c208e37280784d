import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";

const utf8 = (text: string): Uint8Array<ArrayBuffer> => new Uint8Array(new TextEncoder().encode(text));

/** A file with this header text (or object) and data; N may lie. */
const file = (header: unknown, data: Uint8Array = new Uint8Array(0), n?: bigint): Uint8Array => {
  const text = utf8(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, n ?? BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
};

const failure = (run: () => unknown): EngineError => {
  try {
    run();
  } catch (error) {
    if (error instanceof EngineError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
};

const refusal = (bytes: Uint8Array): string => {
  const error = failure(() => readSafetensors(bytes, "m.safetensors"));
  expect(error.code).toBe("bad-file");
  expect(error.message).toMatch(/^m\.safetensors: .+, got .+; .+/);
  return error.message;
};

const f32 = (begin: number, end: number, shape: unknown = [(end - begin) / 4]): object => ({
  dtype: "F32",
  shape,
  data_offsets: [begin, end],
});

describe("reading", () => {
  test("the three dtypes decode to f32 exactly", () => {
    // F32 1.5 | F16 1, −2, 2⁻²⁴ (smallest subnormal), 65504 | BF16 1, −0.5; the F16 tensor starts at an odd multiple of 2
    const data = new Uint8Array(new ArrayBuffer(4 + 8 + 4));
    const view = new DataView(data.buffer);
    view.setFloat32(0, 1.5, true);
    for (const [i, bits] of [0x3c00, 0xc000, 0x0001, 0x7bff, 0x3f80, 0xbf00].entries()) view.setUint16(4 + 2 * i, bits, true);
    const { tensors, metadata } = readSafetensors(
      file(
        {
          __metadata__: { format: "pt" },
          c: { dtype: "BF16", shape: [2], data_offsets: [12, 16] },
          a: f32(0, 4),
          b: { dtype: "F16", shape: [2, 2], data_offsets: [4, 12] },
        },
        data,
      ),
      "m",
    );
    expect(metadata).toEqual({ format: "pt" });
    expect([...tensors.keys()]).toEqual(["a", "b", "c"]);
    expect([...toFloat32(tensors.get("a")!, "m")]).toEqual([1.5]);
    expect([...toFloat32(tensors.get("b")!, "m")]).toEqual([1, -2, 2 ** -24, 65504]);
    expect([...toFloat32(tensors.get("c")!, "m")]).toEqual([1, -0.5]);
  });

  test("scalars and empty tensors are tensors", () => {
    const { tensors } = readSafetensors(file({ s: f32(0, 4, []), e: f32(4, 4, [0, 7]) }, new Uint8Array(4)), "m");
    expect(toFloat32(tensors.get("s")!, "m").length).toBe(1);
    expect(toFloat32(tensors.get("e")!, "m").length).toBe(0);
  });

  test("NaN and infinity in a weight are refused with their place", () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const bytes = writeSafetensors([{ name: "w", shape: [3], data: Float32Array.of(0, value, 0) }]);
      const error = failure(() => toFloat32(readSafetensors(bytes, "m").tensors.get("w")!, "m"));
      expect(error.code).toBe("bad-file");
      expect(error.message).toContain(`got ${value} at element 1`);
    }
  });
});

describe("refusing", () => {
  test("a file shorter than its first number", () => {
    expect(refusal(new Uint8Array(7))).toContain("at least 8 bytes, got 7");
  });

  test("a header length of 2^60 before anything is allocated", () => {
    expect(refusal(file("{}", new Uint8Array(0), 2n ** 60n))).toContain(`got ${2n ** 60n}`);
  });

  test("a header length of 1, and one that passes the end", () => {
    expect(refusal(file("{}", new Uint8Array(0), 1n))).toContain("got 1");
    expect(refusal(file("{}", new Uint8Array(0), 3n))).toContain("got a file of 10 bytes");
  });

  test("a header that is not JSON, not UTF-8 or not an object", () => {
    expect(refusal(file("{nope}"))).toContain("UTF-8 JSON");
    expect(refusal(file("[1, 2]"))).toContain("starts with byte 91");
    const broken = file('{"a":"x"}');
    broken[14] = 0xff;
    expect(refusal(broken)).toContain("UTF-8 JSON");
  });

  test("an HTML page and a Git LFS pointer are named as such", () => {
    expect(refusal(utf8("<!doctype html><title>404</title>"))).toContain("HTML error page");
    expect(refusal(utf8("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))).toContain("Git LFS pointer");
  });

  test("a dtype that it does not read", () => {
    expect(refusal(file({ q: { dtype: "I8", shape: [4], data_offsets: [0, 4] } }, new Uint8Array(4)))).toContain('got "I8"');
    expect(refusal(file({ q: { dtype: "toString", shape: [4], data_offsets: [0, 4] } }, new Uint8Array(4)))).toContain('"toString"');
  });

  test("ranges that overlap, leave a hole, or do not reach the end", () => {
    expect(refusal(file({ a: f32(0, 8), b: f32(4, 12) }, new Uint8Array(12)))).toContain('"b" at byte 4 where 8 was expected');
    expect(refusal(file({ a: f32(0, 4), b: f32(8, 12) }, new Uint8Array(12)))).toContain('"b" at byte 8 where 4 was expected');
    expect(refusal(file({ a: f32(0, 4) }, new Uint8Array(8)))).toContain("got 4 of 8 bytes");
  });

  test("a name that stands twice shows as a hole", () => {
    const header = `{"a":${JSON.stringify(f32(0, 4))},"a":${JSON.stringify(f32(4, 8))}}`;
    expect(refusal(file(header, new Uint8Array(8)))).toContain("share one name");
  });

  test("offsets beyond the data or in the wrong order", () => {
    expect(refusal(file({ a: f32(0, 8) }, new Uint8Array(4)))).toContain("≤ 4 (bytes of data), got [0,8]");
    expect(refusal(file({ a: { dtype: "F32", shape: [1], data_offsets: [4, 0] } }, new Uint8Array(4)))).toContain("got [4,0]");
  });

  test("shapes that overflow, that are negative or that contradict the range", () => {
    expect(refusal(file({ a: f32(0, 4, [2 ** 40, 2 ** 40]) }, new Uint8Array(4)))).toContain("at most 2^53");
    expect(refusal(file({ a: f32(0, 4, [-1]) }, new Uint8Array(4)))).toContain("non-negative");
    expect(refusal(file({ a: f32(0, 4, [2]) }, new Uint8Array(4)))).toContain("8 bytes (F32 [2]), got 4");
  });

  test("an entry nested ten thousand deep", () => {
    expect(refusal(file(`{"a":${"[".repeat(10_000)}${"]".repeat(10_000)}}`))).toContain("dtype, shape, data_offsets");
  });

  test("metadata that is not text", () => {
    expect(refusal(file({ __metadata__: { a: 1 } }))).toContain("__metadata__");
  });
});

describe("writing", () => {
  test("the bytes are those of the reference implementation", () => {
    // safetensors.numpy.save({"b": float32 [[1, 2]], "a": float32 [3]}, {"format": "pt"})
    const bytes = writeSafetensors(
      [
        { name: "b", shape: [1, 2], data: Float32Array.of(1, 2) },
        { name: "a", shape: [1], data: Float32Array.of(3) },
      ],
      { format: "pt" },
    );
    const header =
      '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]}}';
    const padded = header.padEnd(Math.ceil(header.length / 8) * 8);
    expect(new TextDecoder().decode(bytes.subarray(8, 8 + padded.length))).toBe(padded);
    expect(new DataView(bytes.buffer).getBigUint64(0, true)).toBe(BigInt(padded.length));
    expect([...new Float32Array(bytes.slice(8 + padded.length).buffer)]).toEqual([3, 1, 2]);
  });

  test("whatever is written is read back bit for bit", () => {
    const tensor = fc.record({
      name: fc.string().filter((name) => name !== "__metadata__"),
      values: fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { maxLength: 9 }),
    });
    fc.assert(
      fc.property(fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 5 }), (list) => {
        const bytes = writeSafetensors(list.map(({ name, values }) => ({ name, shape: [values.length], data: Float32Array.from(values) })));
        const { tensors } = readSafetensors(bytes, "m");
        expect(tensors.size).toBe(list.length);
        for (const { name, values } of list) expect(toFloat32(tensors.get(name)!, "m")).toEqual(Float32Array.from(values));
      }),
      { numRuns: 200 },
    );
  });

  test("every finite half survives F32 → F16 → F32, and a value between two goes to the nearest, ties to the even one", () => {
    const bits = Uint16Array.from({ length: 0x7c00 }, (_, i) => i);
    const raw = file({ h: { dtype: "F16", shape: [bits.length], data_offsets: [0, bits.length * 2] } }, new Uint8Array(bits.buffer));
    const halves = toFloat32(readSafetensors(raw, "m").tensors.get("h")!, "m");
    const through = (data: Float32Array): Float32Array =>
      toFloat32(readSafetensors(writeSafetensors([{ name: "h", shape: [data.length], data }], {}, "F16"), "m").tensors.get("h")!, "m");
    expect(through(halves)).toEqual(halves);
    expect(through(halves.map((x) => -x))).toEqual(halves.map((x) => -x));
    const middles = halves.slice(0, -1).map((x, i) => (x + halves[i + 1]!) / 2);
    expect(through(middles)).toEqual(halves.slice(0, -1).map((x, i) => (i % 2 === 0 ? x : halves[i + 1]!)));
  });

  test("a value too large for F16, a wrong shape and a double name are refused", () => {
    const one = { name: "a", shape: [1], data: Float32Array.of(65520) };
    expect(failure(() => writeSafetensors([one], {}, "F16")).code).toBe("bad-request");
    expect(failure(() => writeSafetensors([{ ...one, shape: [2] }])).message).toContain("has 2 values, got 1");
    expect(failure(() => writeSafetensors([one, one])).message).toContain("unique");
  });
});

describe("fuzzing", () => {
  const good = writeSafetensors(
    [
      { name: "a", shape: [2, 3], data: new Float32Array(6) },
      { name: "b", shape: [4], data: new Float32Array(4) },
    ],
    { format: "pt" },
  );
  /** Reading ends in tensors that lie inside the file, or in an EngineError "bad-file"; nothing else. */
  const isSafe = (bytes: Uint8Array): boolean => {
    try {
      const { tensors } = readSafetensors(bytes, "m");
      const size = [...tensors.values()].reduce((sum, { bytes: part }) => sum + part.byteLength, 0);
      for (const tensor of tensors.values()) toFloat32(tensor, "m");
      return size <= bytes.byteLength - 8;
    } catch (error) {
      return error instanceof EngineError && error.code === "bad-file";
    }
  };

  test("random bytes", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), isSafe), { numRuns: 500 });
  });

  test("every truncation and every appended byte is refused", () => {
    for (let length = 0; length < good.length; length++) expect(() => readSafetensors(good.slice(0, length), "m")).toThrow(EngineError);
    expect(() => readSafetensors(Uint8Array.of(...good, 0), "m")).toThrow(EngineError);
  });

  test("random changes of single bytes", () => {
    const change = fc.tuple(fc.nat(good.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at] = value;
        return isSafe(bytes);
      }),
      { numRuns: 1000 },
    );
  });

  test("random headers around random data", () => {
    const number = fc.oneof(fc.nat(16), fc.constantFrom(-1, 0.5, 2 ** 53, 1e300));
    const entry = fc.oneof(
      fc.record({
        dtype: fc.constantFrom("F32", "F16", "BF16", "I8", ""),
        shape: fc.array(number, { maxLength: 3 }),
        data_offsets: fc.tuple(number, number),
      }),
      fc.jsonValue(),
    );
    fc.assert(
      fc.property(
        fc.dictionary(fc.oneof(fc.string(), fc.constantFrom("__metadata__", "__proto__", "1")), entry),
        fc.uint8Array({ maxLength: 32 }),
        (header, data) => isSafe(file(header, data)),
      ),
      { numRuns: 1000 },
    );
  });
});

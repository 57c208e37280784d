// Weights that arrive in parts: the same tensors as from whole files, never more than a few pieces in hand, and an error instead of a
// model for everything that is no checkpoint of its config. Files are fuzzed at every place; nothing hangs, nothing is allocated before
// its header was believed.

import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { Tensor } from "../../../packages/engine/src/plan/step.ts";
import { hashWeights } from "../../../packages/engine/src/weights/checkpoint.ts";
import type { ConvertedEntry, ConvertedWriter } from "../../../packages/engine/src/weights/converted.ts";
import { byteLengthOf, type WeightFormat } from "../../../packages/engine/src/weights/formats.ts";
import { type LoadOptions, loadModel } from "../../../packages/engine/src/weights/load.ts";
import { encodeValues, layOut, type StoredDtype, writeSafetensors } from "../../../packages/engine/src/weights/safetensors.ts";
import { createSha256, sha256 } from "../../../packages/engine/src/weights/sha256.ts";
import type { WeightSource } from "../../../packages/engine/src/weights/source.ts";
import { PIECE_BYTES, type WeightProgress } from "../../../packages/engine/src/weights/stream.ts";
import { createRandom } from "./opCases.ts";

const encode = (value: unknown): Uint8Array => new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));

const [WIDTH, FEED_FORWARD, VOCAB] = [32, 64, 50];
const CONFIG = {
  model_type: "llama",
  hidden_size: WIDTH,
  intermediate_size: FEED_FORWARD,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 2,
  vocab_size: VOCAB,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  max_position_embeddings: 32,
};

const random = createRandom(5);
const shapes = (vocab: number): readonly (readonly [string, readonly number[]])[] => [
  ["model.embed_tokens.weight", [vocab, WIDTH]],
  ["model.layers.0.input_layernorm.weight", [WIDTH]],
  ["model.layers.0.mlp.down_proj.weight", [WIDTH, FEED_FORWARD]],
  ["model.layers.0.mlp.gate_proj.weight", [FEED_FORWARD, WIDTH]],
  ["model.layers.0.mlp.up_proj.weight", [FEED_FORWARD, WIDTH]],
  ["model.layers.0.post_attention_layernorm.weight", [WIDTH]],
  ["model.layers.0.self_attn.k_proj.weight", [WIDTH, WIDTH]],
  ["model.layers.0.self_attn.o_proj.weight", [WIDTH, WIDTH]],
  ["model.layers.0.self_attn.q_proj.weight", [WIDTH, WIDTH]],
  ["model.layers.0.self_attn.v_proj.weight", [WIDTH, WIDTH]],
  ["model.norm.weight", [WIDTH]],
];
const valuesOf = (shape: readonly number[]): Float32Array =>
  Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random() - 0.5);

/** A file of one dtype, as the reference implementation writes it. */
const checkpoint = (dtype: StoredDtype, vocab = VOCAB): Uint8Array => {
  const tensors = shapes(vocab).map(([name, shape]) => ({ name, shape, dtype, data: valuesOf(shape) }));
  const { header, order, byteLength } = layOut(tensors);
  const file = new Uint8Array(byteLength);
  file.set(header);
  let at = header.length;
  for (const { name, data } of order) {
    const bytes = encodeValues(data, dtype, name);
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
};

/** A backend that keeps the words it was given. */
const recording = () => {
  const tensors = new Map<string, Uint32Array>();
  let largest = 0;
  const refuse = (): never => {
    throw new Error("not part of loading");
  };
  const backend: Backend = {
    device: { kind: "reference", description: "recording" },
    allocate: async (tensor: Tensor, data) => {
      expect(tensors.has(tensor.name)).toBe(false);
      tensors.set(tensor.name, data ? new Uint32Array(data.slice().buffer) : new Uint32Array(byteLengthOf(tensor) / 4));
    },
    fill: async (tensor, words, offset = 0) => {
      largest = Math.max(largest, words.byteLength);
      tensors.get(tensor.name)!.set(words, offset);
    },
    compile: refuse,
    write: refuse,
    read: refuse,
    byteLength: 0,
    dispose: async () => {},
  };
  return {
    backend,
    tensors,
    get largest() {
      return largest;
    },
  };
};

/** Files in parts of a size, with or without their length; counts the parts that nobody has given back. */
const arriving = (files: Readonly<Record<string, Uint8Array>>, partBytes: number | (() => number), tellsSize = true) => {
  const held = { now: 0, most: 0, parts: 0 };
  const source: WeightSource = {
    index: async () => files["model.safetensors.index.json"],
    read: async (file, receiver) => {
      const bytes = files[file];
      if (!bytes) throw new EngineError("bad-file", `no ${file}`);
      receiver.begin(tellsSize ? bytes.length : undefined);
      for (let at = 0; at < bytes.length; ) {
        const size = typeof partBytes === "number" ? partBytes : partBytes();
        held.most = Math.max(held.most, ++held.now);
        held.parts++;
        const part = bytes.slice(at, at + size);
        await receiver.part(part);
        part.fill(0xff); // the source's again
        held.now--;
        at += size;
      }
    },
  };
  return { source, held };
};

const load = async (
  weights: WeightSource | Uint8Array | Record<string, Uint8Array>,
  options: LoadOptions = {},
  config: unknown = CONFIG,
) => {
  const target = recording();
  const model = await loadModel({ config: encode(config), weights }, target.backend, options);
  return { ...target, hash: await model.weightsSha256, largest: target.largest };
};

const FORMATS: readonly WeightFormat[] = ["f32", "f16", "bf16", "q8", "q4"];

describe("weights that arrive in parts", () => {
  for (const dtype of ["F32", "F16", "BF16"] as const) {
    const file = checkpoint(dtype);
    test.each(FORMATS)(`${dtype} to %s: parts of every size give the words of the whole file`, async (weightFormat) => {
      const whole = await load(file, { weightFormat });
      for (const size of [13, 4096]) {
        for (const tellsSize of [true, false]) {
          const { source } = arriving({ "model.safetensors": file }, size, tellsSize);
          const parts = await load(source, { weightFormat });
          expect(parts.tensors).toEqual(whole.tensors);
          expect(parts.hash).toBe(whole.hash);
        }
      }
    });
  }

  const inShards = (): Record<string, Uint8Array> => {
    const all = shapes(VOCAB).map(([name, shape]) => ({ name, shape, data: valuesOf(shape) }));
    const parts = [all.slice(0, 4), all.slice(4)];
    const names = parts.map((_, i) => `model-0000${i + 1}-of-00002.safetensors`);
    const weight_map = Object.fromEntries(parts.flatMap((part, i) => part.map(({ name }) => [name, names[i]])));
    return {
      "model.safetensors.index.json": encode({ weight_map }),
      ...Object.fromEntries(parts.map((part, i) => [names[i]!, writeSafetensors(part)])),
    };
  };

  test("in shards too, with the hash of all of them", async () => {
    const files = inShards();
    const whole = await load(files, { weightFormat: "q8" });
    const parts = await load(arriving(files, 1000).source, { weightFormat: "q8" });
    expect(parts.tensors).toEqual(whole.tensors);
    expect(parts.hash).toBe(await hashWeights(files));
  });

  test("shards that do not agree with their index, by name", async () => {
    const files = inShards();
    const [first, second] = Object.keys(files).filter((name) => name.startsWith("model-")) as [string, string];
    await expect(load(arriving({ ...files, [second]: files[first]! }, 500).source)).rejects.toThrow(
      "a file without it; index and shards are of different models",
    );
    const { [second]: _, ...rest } = files;
    await expect(load(arriving(rest, 500).source)).rejects.toThrow(`no ${second}`);
  });

  test("a tensor larger than a piece is converted piece by piece: one part and one piece are in hand", async () => {
    const vocab = 40_000; // 2.4 pieces of BF16
    const file = checkpoint("BF16", vocab);
    const { source, held } = arriving({ "model.safetensors": file }, 1 << 16);
    const progress: WeightProgress[] = [];
    const { largest, tensors } = await load(
      source,
      { weightFormat: "q8", onProgress: (now) => void progress.push(now) },
      { ...CONFIG, vocab_size: vocab },
    );
    expect(held).toEqual({ now: 0, most: 1, parts: Math.ceil(file.length / (1 << 16)) });
    expect(largest).toBe(PIECE_BYTES / 2); // BF16 to one byte a value
    expect(tensors).toEqual((await load(file, { weightFormat: "q8" }, { ...CONFIG, vocab_size: vocab })).tensors);
    expect(progress.at(-1)).toEqual({
      file: "model.safetensors",
      bytes: file.length,
      totalBytes: file.length,
      tensorsDone: 11,
      tensors: 11,
    });
    expect(
      progress.every((now, i) => i === 0 || (now.bytes > progress[i - 1]!.bytes && now.tensorsDone >= progress[i - 1]!.tensorsDone)),
    ).toBe(true);
  });

  test("a file that changed meanwhile and comes again is the one that is loaded", async () => {
    const [before, after] = [checkpoint("F32"), checkpoint("F32")];
    const source: WeightSource = {
      index: async () => undefined,
      read: async (_, receiver) => {
        receiver.begin(before.length);
        await receiver.part(before.subarray(0, before.length - 100));
        receiver.begin(after.length);
        await receiver.part(after);
      },
    };
    const loaded = await load(source);
    expect(loaded.tensors).toEqual((await load(after)).tensors);
    expect(loaded.hash).toBe(await sha256(after));
  });

  test("an abort ends the load between two parts", async () => {
    const controller = new AbortController();
    const { source, held } = arriving({ "model.safetensors": checkpoint("F32") }, 1000);
    const onProgress = ({ bytes }: WeightProgress): void => void (bytes > 5000 && controller.abort());
    await expect(load(source, { signal: controller.signal, onProgress })).rejects.toMatchObject({ code: "aborted" });
    expect(held.parts).toBeLessThan(10);
  });

  test("our SHA-256 of pieces is the platform's of the whole", async () => {
    for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 128, 1000]) {
      const bytes = Uint8Array.from({ length }, (_, i) => i * 7);
      for (const size of [1, 13, 64, 1000]) {
        const hash = createSha256();
        for (let at = 0; at < length; at += size) hash.update(bytes.subarray(at, at + size));
        expect(hash.digest("hex")).toBe(await sha256(bytes));
      }
    }
  });
});

describe("a bad file", () => {
  const file = checkpoint("F32");
  const headerBytes = Number(new DataView(file.buffer).getBigUint64(0, true)) + 8;
  const header = (
    change: (entries: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>) => void,
  ): Uint8Array => {
    const entries = JSON.parse(new TextDecoder().decode(file.subarray(8, headerBytes)));
    change(entries);
    const text = encode(entries);
    const bytes = new Uint8Array(8 + text.length + file.length - headerBytes);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
    bytes.set(text, 8);
    bytes.set(file.subarray(headerBytes), 8 + text.length);
    return bytes;
  };
  const huge = (length: bigint): Uint8Array => {
    const bytes = file.slice();
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return bytes;
  };
  const withNaN = (): Uint8Array => {
    const bytes = file.slice();
    new DataView(bytes.buffer).setFloat32(bytes.length - 4, Number.NaN, true);
    return bytes;
  };
  const NORM = "model.norm.weight";
  const CASES: readonly (readonly [string, () => Uint8Array, string])[] = [
    ["truncated in its length", () => file.subarray(0, 5), "has at least 8 bytes"],
    ["truncated in its header", () => file.subarray(0, 100), "header"],
    ["truncated in its data", () => file.subarray(0, file.length - 1), "truncated"],
    ["with a byte appended", () => Uint8Array.of(...file, 0), "appended"],
    ["with a header of 2^60 bytes", () => huge(2n ** 60n), "the header has 2 to 100000000 bytes, got 1152921504606846976"],
    ["with a header longer than itself", () => huge(90_000_000n), ""],
    [
      "of another dtype",
      () =>
        header((entries) => {
          entries[NORM]!.dtype = "I8";
        }),
      "is BF16, F16 or F32",
    ],
    [
      "with overlapping tensors",
      () =>
        header((entries) => {
          entries[NORM]!.data_offsets = [0, 128];
        }),
      "holes or overlaps",
    ],
    [
      "with a tensor of 2^60 elements",
      () =>
        header((entries) => {
          entries[NORM]!.shape = [2 ** 30, 2 ** 30];
        }),
      "at most 2^53",
    ],
    [
      "with a tensor of another shape",
      () =>
        header((entries) => {
          entries[NORM]!.shape = [4, 8];
        }),
      "is [32] by config.json, got [4,8]",
    ],
    [
      "without a tensor",
      () =>
        header((entries) => {
          entries["model.other.weight"] = entries[NORM]!;
          delete entries[NORM];
        }),
      `got none named ${NORM}`,
    ],
    [
      "with a tensor too many",
      () =>
        header((entries) => {
          entries["model.other.weight"] = { dtype: "F32", shape: [0], data_offsets: [0, 0] };
        }),
      "it has only tensors of the config, got model.other.weight",
    ],
    ["with a NaN", withNaN, "are finite, got NaN at element"],
    ["that is a page of HTML", () => encode("<!doctype html><title>404 not found at all</title>"), ""],
  ];
  test.each(CASES)(
    "%s is named, in parts of any size, and nothing is allocated for a header that is wrong",
    async (name, make, message) => {
      for (const size of [33, 1 << 20]) {
        for (const tellsSize of [true, false]) {
          const target = recording();
          const { source } = arriving({ "model.safetensors": make() }, size, tellsSize);
          const error = await loadModel({ config: encode(CONFIG), weights: source }, target.backend).then(
            () => expect.fail("it loaded"),
            (cause) => cause,
          );
          expect(error).toMatchObject({ code: "bad-file", message: expect.stringContaining(message) });
          if (!/data|NaN|appended/.test(name)) expect(target.tensors.size).toBe(0);
        }
      }
    },
  );

  /** Loads, or fails as a bad file; and asks for no more memory than the model has. */
  const holds = async (weights: WeightSource, config: Uint8Array): Promise<void> => {
    const target = recording();
    try {
      await loadModel({ config, weights }, target.backend);
    } catch (error) {
      expect(error).toBeInstanceOf(EngineError);
      expect(["bad-file", "unsupported"]).toContain((error as EngineError).code);
    }
    expect([...target.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)).toBeLessThan(1 << 20);
  };

  test("flipped and cut anywhere in its header, or a little behind: an error, or a model", async () => {
    const place = fc.nat(headerBytes + 64);
    await fc.assert(
      fc.asyncProperty(
        place,
        fc.integer({ min: 1, max: 255 }),
        fc.boolean(),
        fc.integer({ min: 1, max: 5000 }),
        async (at, mask, isCut, size) => {
          const bytes = isCut ? file.slice(0, at) : file.slice();
          if (!isCut) bytes[at]! ^= mask;
          await holds(arriving({ "model.safetensors": bytes }, size, mask % 2 === 0).source, encode(CONFIG));
        },
      ),
      { numRuns: 150, seed: 1 },
    );
  });

  test("an index or a config flipped and cut anywhere: an error, or a model", async () => {
    const index = encode({ weight_map: Object.fromEntries(shapes(VOCAB).map(([name]) => [name, "model-1.safetensors"])) });
    const config = encode(CONFIG);
    await fc.assert(
      fc.asyncProperty(fc.nat(1e6), fc.integer({ min: 1, max: 255 }), fc.boolean(), fc.boolean(), async (place, mask, isCut, isIndex) => {
        const original = isIndex ? index : config;
        const at = place % original.length;
        const bytes = isCut ? original.slice(0, at) : original.slice();
        if (!isCut) bytes[at]! ^= mask;
        const files = { "model-1.safetensors": file, "model.safetensors.index.json": isIndex ? bytes : index };
        await holds(arriving(files, 4000).source, isIndex ? config : bytes);
      }),
      { numRuns: 150, seed: 1 },
    );
  });
});

/** One entry in memory, with the faults of a disk. */
const memoryEntry = (key: string, room = Number.POSITIVE_INFINITY) => {
  const disk: { bytes: Uint8Array | undefined; pending: number; failures: string[] } = { bytes: undefined, pending: 0, failures: [] };
  const entry: ConvertedEntry = {
    key,
    open: async () => {
      const { bytes } = disk;
      return bytes && { byteLength: bytes.length, read: async (at, length) => bytes.slice(at, at + length), close: async () => {} };
    },
    create: async (): Promise<ConvertedWriter> => {
      const parts: Uint8Array[] = [];
      let length = 0;
      disk.pending++;
      return {
        write: async (bytes) => {
          length += bytes.length;
          if (length > room) throw new Error("no room");
          parts.push(bytes.slice());
        },
        commit: async () => {
          disk.pending--;
          disk.bytes = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
        },
        abort: async () => void disk.pending--,
      };
    },
    remove: async () => {
      disk.bytes = undefined;
    },
    onFailure: (error) => void disk.failures.push((error as Error).message),
  };
  return { entry, disk };
};

describe("converted weights", () => {
  const file = checkpoint("BF16");
  const unread: WeightSource = {
    index: async () => undefined,
    read: async () => {
      throw new Error("the source was asked");
    },
  };

  test.each(FORMATS)("of %s come back without the source, word for word, with the checkpoint's hash", async (weightFormat) => {
    const { entry, disk } = memoryEntry("m 1");
    const first = await load(arriving({ "model.safetensors": file }, 3000).source, { weightFormat, converted: entry });
    expect(disk.pending).toBe(0);
    expect(new TextDecoder().decode(disk.bytes!.subarray(0, 4))).toBe("FULG");
    const again = await load(unread, { weightFormat, converted: entry });
    expect(again.tensors).toEqual(first.tensors);
    expect(again.hash).toBe(first.hash);
  });

  test("of another version, format or model are a miss", async () => {
    const { entry, disk } = memoryEntry("m 1");
    const { source } = arriving({ "model.safetensors": file }, 3000);
    await load(source, { weightFormat: "q8", converted: entry });
    await expect(load(unread, { weightFormat: "q8", converted: { ...entry, key: "m 2" } })).rejects.toThrow("the source was asked");
    await expect(load(unread, { weightFormat: "q4", converted: entry })).rejects.toThrow("the source was asked");
    expect(disk.failures).toEqual([]);
  });

  test("with any byte changed or missing are a miss, never other weights", async () => {
    const { entry, disk } = memoryEntry("m 1");
    const want = await load(arriving({ "model.safetensors": file }, 3000).source, { weightFormat: "q8", converted: entry });
    const good = disk.bytes!;
    await fc.assert(
      fc.asyncProperty(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), fc.boolean(), async (at, mask, isCut) => {
        disk.bytes = isCut ? good.slice(0, at) : good.slice();
        if (!isCut) disk.bytes[at]! ^= mask;
        const { source, held } = arriving({ "model.safetensors": file }, 3000);
        const got = await load(source, { weightFormat: "q8", converted: entry });
        expect(got.tensors).toEqual(want.tensors);
        expect(held.parts).toBeGreaterThan(0);
        expect(disk.bytes).toEqual(good);
      }),
      { numRuns: 30, seed: 1 },
    );
  });

  test("without room for them: reported once, nothing is left, the model is loaded", async () => {
    const { entry, disk } = memoryEntry("m 1", 10_000);
    const { tensors } = await load(arriving({ "model.safetensors": file }, 3000).source, { weightFormat: "q8", converted: entry });
    expect(tensors).toEqual((await load(file, { weightFormat: "q8" })).tensors);
    expect(disk).toEqual({ bytes: undefined, pending: 0, failures: ["no room"] });
  });

  test("of a load that failed or was aborted are not kept", async () => {
    const { entry, disk } = memoryEntry("m 1");
    const cut = arriving({ "model.safetensors": file.subarray(0, file.length - 2) }, 3000, false);
    await expect(load(cut.source, { converted: entry })).rejects.toMatchObject({ code: "bad-file" });
    const controller = new AbortController();
    const onProgress = ({ bytes }: WeightProgress): void => void (bytes > 5000 && controller.abort());
    const { source } = arriving({ "model.safetensors": file }, 3000);
    await expect(load(source, { converted: entry, signal: controller.signal, onProgress })).rejects.toMatchObject({ code: "aborted" });
    expect(disk).toEqual({ bytes: undefined, pending: 0, failures: [] });
  });
});

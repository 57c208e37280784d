// What can be said of an export without a runtime: bytes of the writer, the folder's files, what is refused, and that training does not
// load it. tests/golden/onnx.test.ts runs the graphs.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { onnxFolder } from "../../../packages/fulgurite/src/onnx/index.ts";
import {
  bytes,
  bytesOf,
  float,
  int,
  type Message,
  message,
  model,
  nested,
  node,
  tensor,
  text,
} from "../../../packages/fulgurite/src/onnx/proto.ts";
import { bytesOf as fileBytes, jsonOf } from "../../golden/onnxSession.ts";
import { encode, TINY_CONFIG, tinyLlama } from "../engine/tinyLlama.ts";

const hex = (content: Message): string => Buffer.concat([...bytesOf(content)]).toString("hex");

describe("protobuf", () => {
  test("fields are the bytes of the specification's own examples", () => {
    expect(hex(int(1, 150))).toBe("089601"); // protobuf.dev, "A Simple Message"
    expect(hex(text(2, "testing"))).toBe("120774657374696e67");
    expect(hex(nested(3, int(1, 150)))).toBe("1a03089601");
    expect(hex(int(1, -2))).toBe("08feffffffffffffffff01"); // "Signed Integers"
    expect(hex(int(1, 0))).toBe("0800");
    expect(hex(float(2, 1))).toBe("150000803f");
    expect(hex(int(16, 1))).toBe("800101");
    expect(hex(int(1, 2 ** 40))).toBe("08808080808020");
  });

  test("lengths are known before the bytes are made, and the bytes are made once for each reading", () => {
    let made = 0;
    const lazy = { byteLength: 300, make: () => new Uint8Array(300).fill(++made) };
    const content = message(bytes(9, lazy), int(2, 1));
    expect([content.byteLength, made]).toEqual([1 + 2 + 300 + 2, 0]);
    expect(hex(content)).toBe(`4aac02${"01".repeat(300)}1001`);
    expect(hex(content)).toContain("02".repeat(300));
  });

  test("a node, a tensor and a tensor kept elsewhere", () => {
    expect(hex(node({ op: "Add", inputs: ["a", "b"], outputs: ["c"], attributes: { axis: -1 } }))).toBe(
      `${"0a0161"}${"0a0162"}${"120163"}1a05${Buffer.from("Add/c").toString("hex")}2203${Buffer.from("Add").toString("hex")}2a140a0461786973${"18ffffffffffffffffff01"}a00102`,
    );
    const one = { name: "w", type: "FLOAT" as const, shape: [2], data: new Uint8Array(Float32Array.of(1, 2).buffer) };
    expect(hex(tensor(one))).toBe(`08021001420177${"4a08"}0000803f00000040`);
    const kept = hex(tensor(one, { location: "f", offset: 4096 }));
    for (const part of ["location", "offset", "4096", "length", "8"]) expect(Buffer.from(kept, "hex").toString("latin1")).toContain(part);
    expect(kept.endsWith("7001")).toBe(true);
  });

  test("a model names its IR version and opset", () => {
    const empty = { name: "g", nodes: [], initializers: [], inputs: [], outputs: [] };
    expect(hex(model(empty, () => undefined))).toBe(`0808${"1209"}${Buffer.from("fulgurite").toString("hex")}3a03120167${"42040a001011"}`);
  });
});

const tiny = tinyLlama();
const names = (files: readonly { name: string }[]): string[] => files.map(({ name }) => name);

describe("the folder", () => {
  test("it holds the graph, a config that sizes the cache, and the tokenizer", async () => {
    const files = await onnxFolder({
      ...tiny,
      tokenizer: encode({ version: "1.0" }),
      files: {
        "tokenizer_config.json": encode({ eos_token: "x" }),
        "chat_template.jinja": new TextEncoder().encode("{{ a }}"),
        "generation_config.json": encode({}),
      },
    });
    expect(names(files).sort()).toEqual(
      ["chat_template.jinja", "config.json", "generation_config.json", "onnx/model.onnx", "tokenizer.json", "tokenizer_config.json"].sort(),
    );
    // head_dim is not in TINY_CONFIG: transformers.js would have to guess
    expect(jsonOf(files, "config.json")).toEqual({ ...TINY_CONFIG, head_dim: 8, "transformers.js_config": { dtype: "fp32" } });
    expect(jsonOf(files, "tokenizer_config.json")).toEqual({ eos_token: "x", chat_template: "{{ a }}" });
  });

  test("a template that tokenizer_config.json has already stays", async () => {
    const config = encode({ chat_template: "mine" });
    const files = await onnxFolder({ ...tiny, files: { "tokenizer_config.json": config, "chat_template.jinja": encode("other") } });
    expect(jsonOf(files, "tokenizer_config.json")).toEqual({ chat_template: "mine" });
  });

  test("of a vision checkpoint the config of its language model is written, with its own end of text", async () => {
    const config = encode({ model_type: "gemma3", eos_token_id: [1, 106], vision_config: {}, text_config: TINY_CONFIG });
    const json = jsonOf(await onnxFolder({ ...tiny, config }), "config.json");
    expect(json).toMatchObject({ model_type: "llama", eos_token_id: [1, 106], hidden_size: 32 });
    expect(json).not.toHaveProperty("text_config");
    expect(json).not.toHaveProperty("vision_config");
  });

  test("above the limit weights go into files beside the graph, each within the limit and at whole pages", async () => {
    const whole = await onnxFolder(tiny);
    const apart = await onnxFolder(tiny, undefined, { maxFileBytes: 30_000 });
    const data = apart.filter(({ name }) => name.includes("_data"));
    expect(names(data)).toEqual(data.map((_, i) => `onnx/model.onnx_data${i === 0 ? "" : `_${i}`}`));
    for (const file of data) expect(file.byteLength).toBeLessThanOrEqual(30_000);
    expect(jsonOf(apart, "config.json")["transformers.js_config"]).toEqual({ dtype: "fp32", use_external_data_format: data.length });
    const [large, small] = [whole, apart].map((files) => fileBytes(files.find(({ name }) => name === "onnx/model.onnx")!).byteLength);
    expect(small! + data.reduce((sum, { byteLength }) => sum + byteLength, 0)).toBeGreaterThan(large! - 1);
    expect(small!).toBeLessThan(large! / 2);
  });

  test("no part is larger than the largest tensor", async () => {
    const files = await onnxFolder(tiny);
    const largest = Math.max(...files.flatMap((file) => [...file.parts()].map(({ byteLength }) => byteLength)));
    expect(largest).toBe(64 * 32 * 4);
  });

  test.each([
    [{ dtype: "BF16" as "F16" }, 'dtype is one of F32, F16, got "BF16"'],
    [{ maxPositions: 65 }, "maxPositions is in 1 … 64 (max_position_embeddings), got 65"],
    [{ maxFileBytes: 3e9 }, "maxFileBytes is in 1 … 2000000000"],
  ])("%j is refused", async (options, message) => {
    await expect(onnxFolder(tiny, undefined, options)).rejects.toThrow(message);
    await expect(onnxFolder(tiny, undefined, options)).rejects.toMatchObject({ code: "bad-request" });
  });
});

/** Every file that an entry imports before anything is asked for, through relative imports. */
const loadedBy = (entry: string): Set<string> => {
  const found = new Set<string>();
  const visit = (file: string): void => {
    if (found.has(file)) return;
    found.add(file);
    for (const [, target] of readFileSync(file, "utf8").matchAll(/(?:^|\n)(?:import|export)\s(?!type\s)[^"';]*?from\s+"(\.[^"]+)"/g))
      visit(join(dirname(file), target!));
  };
  visit(entry);
  return found;
};

test("neither fulgurite's nor the engine's main entry loads the exporter", () => {
  const packages = join(import.meta.dirname, "../../../packages");
  const onnx = join(packages, "fulgurite/src/onnx");
  for (const entry of [
    "fulgurite/src/index.ts",
    "engine/src/index.ts",
    "engine/src/node/index.ts",
    "fulgurite/src/browser/policyWorker.ts",
  ]) {
    const files = loadedBy(join(packages, entry));
    expect([...files].filter((file) => file.startsWith(onnx))).toEqual([]);
  }
  expect(loadedBy(join(packages, "fulgurite/src/index.ts"))).toContain(join(packages, "fulgurite/src/exportModel.ts"));
  expect(loadedBy(join(packages, "fulgurite/src/onnx/index.ts"))).toContain(join(onnx, "proto.ts"));
});

// `fulgurite export` on a run folder as training leaves it.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exportModel, loadPolicy } from "fulgurite";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { exportRun } from "../../../apps/gateway/src/export.ts";

const root = mkdtempSync(join(tmpdir(), "fulgurite-export-"));
const run = join(root, "run");
let folders = 0;
const out = (): string => join(root, `out-${++folders}`);

beforeAll(async () => {
  const policy = await loadPolicy("spark", { device: "wasm", threads: 1, slots: 1, seed: 4 });
  mkdirSync(join(run, "adapter"), { recursive: true });
  for (const [name, bytes] of Object.entries(await policy.trainer.exportAdapter())) writeFileSync(join(run, "adapter", name), bytes);
  await policy.dispose();
  vi.spyOn(process.stderr, "write").mockReturnValue(true);
});
afterEach(() => vi.clearAllMocks());
afterAll(() => {
  vi.restoreAllMocks();
  rmSync(root, { recursive: true, force: true });
});

test.each(["safetensors", "onnx", "peft"] as const)("%s of a run is what exportModel makes of its adapter", async (format) => {
  const folder = out();
  expect(await exportRun([run, "--format", format, "--out", folder])).toBe(0);
  const adapter = Object.fromEntries(
    readdirSync(join(run, "adapter")).map((name) => [name, new Uint8Array(readFileSync(join(run, "adapter", name)))]),
  );
  const files = await exportModel("spark", { format, adapter });
  for (const { name, parts } of files)
    expect(new Uint8Array(readFileSync(join(folder, name)))).toEqual(Uint8Array.from(Buffer.concat([...parts()])));
  expect(readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())).toHaveLength(files.length);
  // the folder of an adapter alone does as well
  expect(await exportRun([join(run, "adapter"), "--format", format, "--out", out()])).toBe(0);
});

test.each([
  [["--format", "onnx", "--out", "x"], "takes one folder, got 0"],
  [[run, "--out", "x"], "--format is one of safetensors, onnx, peft, got none"],
  [[run, "--format", "gguf", "--out", "x"], 'got "gguf"'],
  [[run, "--format", "onnx"], "--out is a folder, got none"],
  [[run, "--format", "onnx", "--out", run], "a new or empty folder"],
  [[root, "--format", "onnx", "--out", "x"], "adapter/adapter_model.safetensors or adapter_model.safetensors, got neither"],
  [[run, "--format", "onnx", "--out", "x", "--bits", "4"], "--bits"],
])("called wrongly (%j) it says what is right", async (args, message) => {
  await expect(exportRun(args)).rejects.toMatchObject({ name: "UsageError", message: expect.stringContaining(message) });
});

// A trained policy as files that others load: its adapter, an ordinary Hugging Face folder, or ONNX for transformers.js.
// Merging starts from the original checkpoint, never from what a device holds. Files are streams of parts: a policy on a device, its
// checkpoint's bytes and one tensor is all that is in memory.

import { castPeft, EngineError, type FileToWrite, mergedFolder, type PeftFiles, type StoredDtype } from "@fulgurite/engine";
import type { LoadedPolicy } from "./loadPolicy.ts";
import { type ModelFiles, type ModelFilesOptions, readModel } from "./modelFiles.ts";

export type ExportFormat = "safetensors" | "onnx" | "peft";
export type ExportDtype = "original" | "f32" | "f16" | "bf16";

export interface ExportOptions extends ModelFilesOptions {
  /** Default "safetensors": the merged model. "onnx": the same for ONNX Runtime and transformers.js. "peft": the adapter alone. */
  readonly format?: ExportFormat;
  /** Of the weights. safetensors: default as the checkpoint has them. onnx: f32 (default) or f16. peft: as it is (default; trained ones are f32), f32 or f16. */
  readonly dtype?: ExportDtype;
  /** onnx. Default true; false for long prompts and large vocabularies: OnnxOptions of fulgurite/onnx says what it costs. */
  readonly allLogits?: boolean;
  /** Default: the policy's trained adapter (published or not); of a source: none, the base model as it is. */
  readonly adapter?: PeftFiles;
}

export const EXPORT_FORMATS: readonly ExportFormat[] = ["safetensors", "onnx", "peft"];
const STORED: Readonly<Record<ExportDtype, StoredDtype | "original">> = { original: "original", f32: "F32", f16: "F16", bf16: "BF16" };

const bad = (rule: string, got: unknown, advice: string): EngineError =>
  new EngineError("bad-request", `exportModel: ${rule}, got ${JSON.stringify(got)}; ${advice}`);

const smallFile = (name: string, bytes: Uint8Array): FileToWrite => {
  const plain = new Uint8Array(bytes);
  return { name, byteLength: plain.length, parts: () => [plain] };
};

const toFolder = async (model: ModelFiles, adapter: PeftFiles | undefined, dtype: StoredDtype | "original"): Promise<FileToWrite[]> => {
  const merged = await mergedFolder(model, adapter, { dtype });
  const { tokenizer, files } = model;
  return [...merged, smallFile("tokenizer.json", tokenizer), ...Object.entries(files).map(([name, bytes]) => smallFile(name, bytes))];
};

const toOnnx = async (
  model: ModelFiles,
  adapter: PeftFiles | undefined,
  { dtype, allLogits = true }: Pick<ExportOptions, "dtype" | "allLogits">,
): Promise<FileToWrite[]> => {
  if (dtype !== undefined && dtype !== "f32" && dtype !== "f16") throw bad("dtype of onnx is f32 or f16", dtype, "name one of them");
  const { onnxFolder } = await import("./onnx/index.ts");
  return onnxFolder(model, adapter, { dtype: dtype === "f16" ? "F16" : "F32", allLogits });
};

/**
 * The files of an export, to be written wherever the caller likes: each has a name (onnx/model.onnx …), a length and parts that are made
 * as they are asked for. `from`: a policy, or a source as loadPolicy takes it.
 * Throws EngineError: bad-request (the options), bad-file (an adapter of another base), unsupported, aborted.
 */
export const exportModel = async (from: LoadedPolicy | string, options: ExportOptions = {}): Promise<FileToWrite[]> => {
  const { format = "safetensors", dtype, allLogits: _, adapter: given, ...fileOptions } = options;
  if (!EXPORT_FORMATS.includes(format)) throw bad(`format is one of ${EXPORT_FORMATS.join(", ")}`, format, "name one of them");
  if (dtype !== undefined && !Object.hasOwn(STORED, dtype))
    throw bad(`dtype is one of ${Object.keys(STORED).join(", ")}`, dtype, "name one of them");
  const adapter = given ?? (typeof from === "string" ? undefined : await from.trainer.exportAdapter());
  if (format === "peft") {
    if (!adapter) throw bad("adapter is given where a source has none", from, "pass the adapter's files");
    if (dtype === "bf16") throw bad("dtype of peft is original, f32 or f16", dtype, "leave it out");
    const files = dtype === "f32" || dtype === "f16" ? await castPeft(adapter, dtype === "f16" ? "F16" : "F32") : adapter;
    return Object.entries(files).map(([name, bytes]) => smallFile(name, bytes));
  }
  const model = await (typeof from === "string" ? readModel(from, fileOptions) : from.readModel(fileOptions));
  return format === "onnx" ? toOnnx(model, adapter, options) : toFolder(model, adapter, STORED[dtype ?? "original"]);
};

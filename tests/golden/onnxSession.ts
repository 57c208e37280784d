// An exported model in onnxruntime-web, fed as transformers.js feeds it: ids, mask and positions in; logits and a longer cache out.
// The runtime lies in tests/peers/onnx; without it `missing` says how to get it.

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { FileToWrite } from "../../packages/engine/src/lora/merge.ts";

const peers = new URL("../peers/onnx/", import.meta.url);

export const missing: string | undefined = existsSync(new URL("node_modules/onnxruntime-web", peers))
  ? undefined
  : "run `npm ci --ignore-scripts` in tests/peers/onnx";

/** A package of tests/peers/onnx. */
export const loadPeer = async <T>(name: string): Promise<T> => {
  const require = createRequire(fileURLToPath(new URL("package.json", peers)));
  return (await import(/* @vite-ignore */ pathToFileURL(require.resolve(name)).href)) as T;
};

interface OrtTensor {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}
interface OrtSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Readonly<Record<string, OrtTensor>>>;
  release(): Promise<void>;
}
interface Ort {
  readonly InferenceSession: { create(model: Uint8Array, options: object): Promise<OrtSession> };
  readonly Tensor: new (type: string, data: Float32Array | BigInt64Array, dims: readonly number[]) => OrtTensor;
}

export const bytesOf = (file: FileToWrite): Uint8Array<ArrayBuffer> => {
  const bytes = Uint8Array.from(Buffer.concat([...file.parts()]));
  if (bytes.byteLength !== file.byteLength) throw new Error(`${file.name}: said ${file.byteLength} bytes, made ${bytes.byteLength}`);
  return bytes;
};

export const jsonOf = (files: readonly FileToWrite[], name: string): Record<string, unknown> =>
  JSON.parse(new TextDecoder().decode(bytesOf(files.find((file) => file.name === name)!)));

export type Cache = Readonly<Record<string, OrtTensor>>;

export interface Rows {
  /** [B][S]. */
  readonly ids: readonly (readonly number[])[];
  /** [B][P + S], default 1. */
  readonly mask?: readonly (readonly number[])[];
  /** [B][S], default P, P + 1, …. */
  readonly positions?: readonly (readonly number[])[];
  readonly past?: Cache;
  /** num_logits_to_keep, where the graph has it. */
  readonly keep?: number;
}

export interface OnnxSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** logits: [B][S] (or the last `keep` of S), each a row of V. */
  run(rows: Rows): Promise<{ logits: Float32Array[][]; past: Cache }>;
  release(): Promise<void>;
}

export const openSession = async (files: readonly FileToWrite[]): Promise<OnnxSession> => {
  const ort = await loadPeer<Ort>("onnxruntime-web");
  const model = files.find(({ name }) => name.endsWith(".onnx"))!;
  const externalData = files
    .filter(({ name }) => /\.onnx_data/.test(name))
    .map((file) => ({ path: file.name.slice("onnx/".length), data: bytesOf(file) }));
  const session = await ort.InferenceSession.create(bytesOf(model), {
    executionProviders: ["wasm"],
    ...(externalData.length > 0 && { externalData }),
  });
  const config = jsonOf(files, "config.json") as Record<"num_hidden_layers" | "num_key_value_heads" | "head_dim", number>;
  const names = Array.from({ length: config.num_hidden_layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
  const int64 = (rows: readonly (readonly number[])[]): OrtTensor =>
    new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0]!.length]);
  return {
    inputNames: session.inputNames,
    outputNames: session.outputNames,
    async run({ ids, mask, positions, past, keep }) {
      const [batch, rows] = [ids.length, ids[0]!.length];
      const held = past?.["past_key_values.0.key"]?.dims[2] ?? 0;
      const empty = (): OrtTensor =>
        new ort.Tensor("float32", new Float32Array(0), [batch, config.num_key_value_heads, 0, config.head_dim]);
      const range = (from: number, length: number): number[][] => ids.map(() => Array.from({ length }, (_, i) => from + i));
      const outputs = await session.run({
        input_ids: int64(ids),
        attention_mask: int64(mask ?? ids.map(() => Array<number>(held + rows).fill(1))),
        position_ids: int64(positions ?? range(held, rows)),
        ...(keep !== undefined && { num_logits_to_keep: new ort.Tensor("int64", BigInt64Array.of(BigInt(keep)), []) }),
        ...(past ?? Object.fromEntries(names.map((name) => [`past_key_values.${name}`, empty()]))),
      });
      const { data, dims } = outputs.logits!;
      const [, count, width] = dims as [number, number, number];
      return {
        logits: ids.map((_, b) =>
          Array.from({ length: count }, (_, s) => data.slice((b * count + s) * width, (b * count + s + 1) * width)),
        ),
        past: Object.fromEntries(names.map((name) => [`past_key_values.${name}`, outputs[`present.${name}`]!])),
      };
    },
    release: () => session.release(),
  };
};

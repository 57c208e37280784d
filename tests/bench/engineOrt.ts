// The same model in onnxruntime-web, which runs graphs and trains nothing: one product, and greedy decoding of one sequence after another with
// its cache, as transformers.js drives it. The graph is our own export, adapter merged.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { FileToWrite } from "@fulgurite/engine";
import { onnxFolder } from "fulgurite/onnx";
import { message, model } from "../../packages/fulgurite/src/onnx/proto.ts";
import { SPARK, type Workload } from "./engineWorkload.ts";

interface OrtTensor {
  readonly data: Float32Array;
  readonly dims: readonly number[];
  dispose(): void;
}
interface OrtSession {
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Readonly<Record<string, OrtTensor>>>;
  release(): Promise<void>;
}
export interface Ort {
  readonly env: { readonly wasm: { numThreads?: number } };
  readonly InferenceSession: { create(model: Uint8Array, options: object): Promise<OrtSession> };
  readonly Tensor: new (type: string, data: Float32Array | BigInt64Array, dims: readonly number[]) => OrtTensor;
}

/** x·B of [n, n], B a constant of the graph: what a frozen weight is. */
export const createOrtGemm = async (ort: Ort, n: number, values: Float32Array): Promise<{ run(): Promise<void> }> => {
  const data = new Uint8Array(values.slice().buffer);
  const graph = model(
    {
      name: "gemm",
      nodes: [{ op: "MatMul", inputs: ["x", "w"], outputs: ["y"] }],
      initializers: [{ name: "w", type: "FLOAT", shape: [n, n], data }],
      inputs: [{ name: "x", type: "FLOAT", shape: [n, n] }],
      outputs: [{ name: "y", type: "FLOAT", shape: [n, n] }],
    },
    () => undefined,
  );
  const session = await ort.InferenceSession.create(toBytes(message(graph).parts), { executionProviders: ["wasm"] });
  const x = new ort.Tensor("float32", values, [n, n]);
  return { run: async () => void (await session.run({ x })) };
};

const toBytes = (parts: Iterable<Uint8Array | { make(): Uint8Array }>): Uint8Array =>
  Uint8Array.from(Buffer.concat(Array.from(parts, (part) => ("make" in part ? part.make() : part))));

const toFile = (file: FileToWrite): Uint8Array => Uint8Array.from(Buffer.concat([...file.parts()]));

export interface OrtDecoder {
  /** Greedy completion of one prompt, `count` tokens. */
  complete(prompt: Int32Array, count: number): Promise<Int32Array>;
}

export const createOrtDecoder = async (ort: Ort, { adapter, spec }: Workload): Promise<OrtDecoder> => {
  const files = await onnxFolder(
    { config: await readFile(join(SPARK, "config.json")), weights: await readFile(join(SPARK, "model.safetensors")) },
    adapter,
  );
  const session = await ort.InferenceSession.create(toFile(files.find(({ name }) => name.endsWith(".onnx"))!), {
    executionProviders: ["wasm"],
  });
  const names = Array.from({ length: spec.layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
  const int64 = (values: readonly number[]): OrtTensor => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const V = spec.vocab;
  return {
    async complete(prompt, count) {
      let cache: Record<string, OrtTensor> = Object.fromEntries(
        names.map((name) => [
          `past_key_values.${name}`,
          new ort.Tensor("float32", new Float32Array(0), [1, spec.kvHeads, 0, spec.headWidth]),
        ]),
      );
      let ids = [...prompt];
      let held = 0;
      const sampled = new Int32Array(count);
      for (let i = 0; i < count; i++) {
        const outputs = await session.run({
          input_ids: int64(ids),
          attention_mask: int64(Array(held + ids.length).fill(1)),
          position_ids: int64(ids.map((_, j) => held + j)),
          ...cache,
        });
        held += ids.length;
        cache = Object.fromEntries(names.map((name) => [`past_key_values.${name}`, outputs[`present.${name}`]!]));
        const logits = outputs.logits!.data;
        let best = logits.length - V;
        for (let at = best; at < logits.length; at++) if (logits[at]! > logits[best]!) best = at;
        sampled[i] = best - (logits.length - V);
        ids = [sampled[i]!];
      }
      return sampled;
    },
  };
};

// A policy that was trained here, in the hands of @huggingface/transformers: its folder is loaded as from the hub, and greedy output
// is ours token for token. The runtime behind it is onnxruntime-web, as in a browser (tests/peers/onnx).

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { exportModel, type LoadedPolicy, loadPolicy } from "fulgurite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bytesOf, loadPeer, missing } from "./onnxSession.ts";
import { teach } from "./taughtSpark.ts";

type Ids = BigInt64Array;
interface Tensor {
  readonly data: Ids;
  readonly dims: readonly number[];
  tolist(): bigint[][];
}
interface Inputs {
  readonly input_ids: Tensor;
  readonly attention_mask: Tensor;
}
interface Tokenizer {
  (texts: readonly string[], options: object): Inputs;
  apply_chat_template(messages: object, options: object): Inputs;
  padding_side: string;
}
interface Transformers {
  readonly env: { localModelPath: string; allowRemoteModels: boolean; backends: { onnx: { wasm: { wasmPaths?: unknown } } } };
  readonly AutoTokenizer: { from_pretrained(name: string): Promise<Tokenizer> };
  readonly AutoModelForCausalLM: {
    from_pretrained(name: string): Promise<{ generate(options: object): Promise<Tensor>; dispose(): Promise<unknown> }>;
  };
  pipeline(
    task: string,
    name: string,
  ): Promise<
    ((messages: object, options: object) => Promise<{ generated_text: { content: string }[] }[]>) & { dispose(): Promise<unknown> }
  >;
}

const QUESTIONS = [
  "What is 12 + 30?",
  "Ana has 37 pens and gets 85 more. How many pens now?",
  "Dan has 9 cups. He gives 4 away. How many cups are left?",
  "hello",
];
const MAX_NEW = 40;
const chat = (question: string): object[] => [{ role: "user", content: question }];

describe.skipIf(missing !== undefined)(missing ? `transformers.js (skipped: ${missing})` : "transformers.js", () => {
  let folder: string;
  let policy: LoadedPolicy;
  let transformers: Transformers;

  const textOf = (question: string): string =>
    policy.format.render({ messages: [{ role: "user", text: question }], tools: [] }, { addGenerationPrompt: true });
  /** Our prompt for a question. */
  const promptOf = (question: string): bigint[] => Array.from(policy.format.encode(textOf(question)), BigInt);
  /** Our greedy completion of it, with the stop token. */
  const ours = async (prompt: readonly bigint[]): Promise<number[]> => {
    const { tokens } = await policy.sampler.generate({
      prompt: Int32Array.from(prompt, Number),
      maxTokens: MAX_NEW,
      temperature: 0,
      stopTokens: policy.format.stopTokens,
      seed: 0,
    });
    return [...tokens];
  };
  const write = async (name: string, options: Parameters<typeof exportModel>[1]): Promise<void> => {
    for (const file of await exportModel(policy, { format: "onnx", ...options })) {
      const path = join(folder, name, file.name);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, bytesOf(file));
    }
  };

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "fulgurite-transformers-"));
    policy = await loadPolicy("spark", { device: "wasm", threads: 1, slots: 4, seed: 2 });
    await teach(policy);
    transformers = await loadPeer<Transformers>("@huggingface/transformers");
    Object.assign(transformers.env, { localModelPath: folder, allowRemoteModels: false });
    transformers.env.backends.onnx.wasm.wasmPaths = undefined; // not from a CDN
  });
  afterAll(async () => {
    await policy?.dispose();
    rmSync(folder, { recursive: true, force: true });
  });

  test("generate gives the greedy tokens of the trained policy, alone and in a padded batch", async () => {
    const before = await ours(promptOf("What is 12 + 30?"));
    await policy.publish(1);
    await write("trained", {});
    const tokenizer = await transformers.AutoTokenizer.from_pretrained("trained");
    const model = await transformers.AutoModelForCausalLM.from_pretrained("trained");
    const want: number[][] = [];
    for (const question of QUESTIONS) {
      const inputs = tokenizer.apply_chat_template(chat(question), { add_generation_prompt: true, return_dict: true });
      const [prompt] = inputs.input_ids.tolist() as [bigint[]];
      expect(prompt.map(Number)).toEqual(promptOf(question).map(Number)); // our template and tokenizer, and theirs
      want.push(await ours(prompt));
      const got = await model.generate({ ...inputs, max_new_tokens: MAX_NEW, do_sample: false });
      expect(got.tolist()[0]!.slice(prompt.length).map(Number)).toEqual(want.at(-1));
    }
    expect(want[0]).not.toEqual(before);
    expect(new Set(want.map(String)).size).toBeGreaterThan(2);

    tokenizer.padding_side = "left";
    const batch = tokenizer(QUESTIONS.map(textOf), { padding: true, add_special_tokens: false });
    expect(batch.attention_mask.tolist().flat()).toContain(0n);
    const rows = (await model.generate({ ...batch, max_new_tokens: MAX_NEW, do_sample: false })).tolist();
    for (const [i, row] of rows.entries())
      expect(row.slice(batch.input_ids.dims[1]!).map(Number).slice(0, want[i]!.length)).toEqual(want[i]);
    await model.dispose();
  });

  test("a graph that counts logits generates the same", async () => {
    await write("counted", { allLogits: false });
    const model = await transformers.AutoModelForCausalLM.from_pretrained("counted");
    const tokenizer = await transformers.AutoTokenizer.from_pretrained("counted");
    const inputs = tokenizer.apply_chat_template(chat(QUESTIONS[1]!), { add_generation_prompt: true, return_dict: true });
    const prompt = promptOf(QUESTIONS[1]!);
    const got = await model.generate({ ...inputs, max_new_tokens: MAX_NEW, do_sample: false });
    expect(got.tolist()[0]!.slice(prompt.length).map(Number)).toEqual(await ours(prompt));
    await model.dispose();
  });

  test("a text-generation pipeline answers what the policy answers, from 16-bit weights too", async () => {
    const question = QUESTIONS[1]!;
    const answer = policy.format.decode(await ours(promptOf(question))).replace("<|end|>", "");
    for (const dtype of ["f32", "f16"] as const) {
      await write(dtype, { dtype });
      const pipe = await transformers.pipeline("text-generation", dtype);
      const [{ generated_text }] = (await pipe(chat(question), { max_new_tokens: MAX_NEW, do_sample: false })) as [
        { generated_text: { content: string }[] },
      ];
      expect(generated_text.at(-1)!.content).toBe(answer);
      await pipe.dispose();
    }
  });
});

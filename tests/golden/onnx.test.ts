// Exported graphs of the five families in onnxruntime-web (WASM) against the reference executor, base and adapter apart there and
// merged here, and against transformers' own greedy completions.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { initLora } from "../../packages/engine/src/lora/init.ts";
import { fromPeft } from "../../packages/engine/src/lora/peft.ts";
import { attendPacked, emitDecoder } from "../../packages/engine/src/model/forward.ts";
import { FAMILIES, type Family } from "../../packages/engine/src/model/spec.ts";
import { loraTensors } from "../../packages/engine/src/model/tensors.ts";
import type { Rows, Step, Tensor } from "../../packages/engine/src/plan/step.ts";
import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { loadModel } from "../../packages/engine/src/weights/load.ts";
import { onnxFolder } from "../../packages/fulgurite/src/onnx/index.ts";
import { familyModel, peftFiles, readExpected } from "./familyFiles.ts";
import { type Cache, jsonOf, missing, type OnnxSession, openSession } from "./onnxSession.ts";

const LIMIT = 1e-4;

/** Logits [T][V] of one sequence by the reference executor, the adapter unmerged. */
const referenceLogits = async (family: Family, ids: readonly number[]): Promise<Float32Array[]> => {
  const backend = createReferenceBackend();
  const { spec, weights } = await loadModel(familyModel(family), backend);
  const { lora } = readExpected(family);
  const layout = loraTensors(spec, lora, "lora");
  const base = { name: null, configSha256: "", weightsSha256: "" };
  await backend.allocate(layout.flat, await fromPeft(peftFiles(family), { values: initLora(layout, 0), layout, lora, base }));
  const rows: Rows = { count: "rows", base: 0, capacity: ids.length };
  const io = (name: string, dtype: Tensor["dtype"], ...shape: number[]): Tensor => ({ name, shape, dtype, home: "io" });
  const [tokens, positions, start] = (["tokens", "positions", "start"] as const).map((name) => io(name, "i32", ids.length)) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const [n, rstd, logits] = [
    io("n", "f32", ids.length, spec.width),
    io("rstd", "f32", ids.length),
    io("logits", "f32", ids.length, spec.vocab),
  ];
  const steps: Step[] = [];
  const { x } = emitDecoder(
    steps,
    spec,
    weights,
    { tensors: layout, spec: lora },
    { rows, tokens, positions, attend: attendPacked(spec, rows, start) },
  );
  steps.push(
    { op: "rmsNorm", rows, x, gain: weights.norm, y: n, rstd, eps: spec.normEps },
    { op: "linear", rows, x: n, w: weights.head, y: logits, scale: 1 },
  );
  const executable = await backend.compile({ name: "logits", steps });
  backend.write(tokens, Int32Array.from(ids));
  backend.write(
    positions,
    Int32Array.from(ids, (_, i) => i),
  );
  backend.write(start, new Int32Array(ids.length));
  await executable.run({ rows: ids.length });
  const all = (await backend.read(logits)) as Float32Array;
  return Array.from(ids, (_, t) => all.slice(t * spec.vocab, (t + 1) * spec.vocab));
};

const furthest = (got: readonly Float32Array[], want: readonly Float32Array[]): number => {
  expect(got.length).toBe(want.length);
  return Math.max(...got.flatMap((row, t) => [...row].map((z, j) => Math.abs(z - want[t]![j]!))));
};

const pieces = (ids: readonly number[], lengths: readonly number[]): number[][] => {
  const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((sum, length) => sum + length, 0));
  return starts.map((start, i) => ids.slice(start, start + lengths[i]!));
};

describe.skipIf(missing !== undefined)(missing ? `onnxruntime-web (skipped: ${missing})` : "onnxruntime-web", () => {
  describe.each(FAMILIES)("%s", (family) => {
    const { data, greedy } = readExpected(family);
    const [long, short] = data.map(({ tokens }) => tokens) as [readonly number[], readonly number[]];
    let session: OnnxSession;
    let want: Float32Array[];
    beforeAll(async () => {
      session = await openSession(await onnxFolder(familyModel(family), peftFiles(family)));
      want = await referenceLogits(family, long);
    });
    afterAll(() => session?.release());

    test("the graph has the inputs and outputs that transformers.js looks for", async () => {
      const layers = (session.inputNames.length - 3) / 2;
      const cache = (name: string): string[] => Array.from({ length: layers }, (_, i) => [`${name}.${i}.key`, `${name}.${i}.value`]).flat();
      expect(session.inputNames).toEqual(["input_ids", "attention_mask", "position_ids", ...cache("past_key_values")]);
      expect(session.outputNames).toEqual(["logits", ...cache("present")]);
    });

    test.each([[[19]], [[7, 12]], [[1, 17, 1]], [[5, 1, 1, 6, 6]]])(
      "logits in pieces of %j are those of the reference executor",
      async (lengths) => {
        let past: Cache | undefined;
        const got: Float32Array[] = [];
        for (const ids of pieces(long, lengths)) {
          const step = await session.run({ ids: [ids], ...(past && { past }) });
          got.push(...step.logits[0]!);
          past = step.past;
        }
        expect(furthest(got, want)).toBeLessThan(LIMIT);
        expect(Math.max(...want.map((row) => Math.max(...row.map(Math.abs))))).toBeGreaterThan(1);
      },
    );

    test("a batch that is padded on the left gives each row what it has alone, through the cache too", async () => {
      const gap = long.length - short.length;
      const padded = [...Array<number>(gap).fill(0), ...short];
      const mask = [Array<number>(long.length).fill(1), [...Array<number>(gap).fill(0), ...Array<number>(short.length).fill(1)]];
      // as transformers.js counts them: padding stands at 1
      const positions = [long.map((_, i) => i), padded.map((_, i) => (i < gap ? 1 : i - gap))];
      const alone = await referenceLogits(family, short);
      const cut = 15; // the short one begins before it
      const part = (rows: readonly (readonly number[])[], from: number, to: number): number[][] => rows.map((row) => row.slice(from, to));
      const first = await session.run({ ids: part([long, padded], 0, cut), mask: part(mask, 0, cut), positions: part(positions, 0, cut) });
      const second = await session.run({ ids: part([long, padded], cut, 19), mask, positions: part(positions, cut, 19), past: first.past });
      const got = [0, 1].map((b) => [...first.logits[b]!, ...second.logits[b]!]);
      expect(furthest(got[0]!, want)).toBeLessThan(LIMIT);
      expect(furthest(got[1]!.slice(gap), alone)).toBeLessThan(LIMIT);
      expect(got[1]!.flatMap((row) => [...row]).every(Number.isFinite)).toBe(true);
    });

    test("greedy completions are those of transformers' generate", async () => {
      for (const { prompt, tokens } of greedy) {
        const got: number[] = [];
        let [ids, past]: [readonly number[], Cache | undefined] = [prompt, undefined];
        while (got.length < tokens.length) {
          const step = await session.run({ ids: [ids], ...(past && { past }) });
          const row = step.logits[0]!.at(-1)!;
          got.push(row.indexOf(Math.max(...row)));
          [ids, past] = [[got.at(-1)!], step.past];
        }
        expect(got).toEqual(tokens);
      }
    });

    test("where logits are counted, only the last rows that are asked for have them", async () => {
      const counted = await openSession(await onnxFolder(familyModel(family), peftFiles(family), { allLogits: false }));
      for (const keep of [1, 3, 0]) {
        const { logits } = await counted.run({ ids: [long, long], keep });
        for (const rows of logits) expect(furthest(rows, want.slice(-keep))).toBeLessThan(LIMIT);
      }
      await counted.release();
    });

    test("weights in files of their own, and weights in 16 bits, compute the same", async () => {
      const model = familyModel(family);
      const apart = await onnxFolder(model, peftFiles(family), { maxFileBytes: 40_000 });
      expect(jsonOf(apart, "config.json")["transformers.js_config"]).toMatchObject({
        dtype: "fp32",
        use_external_data_format: apart.length - 2,
      });
      expect(apart.length).toBeGreaterThan(3);
      const half = await onnxFolder(model, peftFiles(family), { dtype: "F16" });
      for (const [files, limit] of [
        [apart, LIMIT],
        [half, 0.05], // the rounding of weights, seen in logits of size 10
      ] as const) {
        const other = await openSession(files);
        expect(furthest((await other.run({ ids: [long] })).logits[0]!, want)).toBeLessThan(limit);
        await other.release();
      }
    });
  });
});

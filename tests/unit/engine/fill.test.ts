// Weights that come in pieces: on every backend a filled tensor is the one that was allocated whole.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend } from "../../../packages/engine/src/plan/backend.ts";
import type { PackedDtype, Rows, Tensor } from "../../../packages/engine/src/plan/step.ts";
import { byteLengthOf, packInto, type WeightFormat } from "../../../packages/engine/src/weights/formats.ts";
import { BACKENDS } from "./backends.ts";
import { createNormal, createRandom } from "./opCases.ts";

const [OUTER, INNER] = [21, 96];
const values = Float32Array.from({ length: OUTER * INNER }, createNormal(createRandom(3)));
const rows: Rows = { count: "rows", base: 0, capacity: 2 };
const io = (name: string, width: number): Tensor => ({ name, shape: [2, width], dtype: "f32", home: "io" });
const weight = (dtype: WeightFormat): Tensor => ({ name: "w", shape: [OUTER, INNER], dtype, home: "weights" });

const wordsOf = (tensor: Tensor): Uint32Array => {
  if (tensor.dtype === "f32") return new Uint32Array(values.slice().buffer);
  const words = new Uint32Array(byteLengthOf(tensor) / 4);
  packInto(tensor, words, values);
  return words;
};

/** x·wᵀ of two fixed rows. */
const product = async (backend: Backend, w: Tensor): Promise<Float32Array> => {
  const [x, y] = [io("x", INNER), io("y", OUTER)];
  const executable = await backend.compile({ name: "product", steps: [{ op: "linear", rows, x, w, y, scale: 1 }] });
  backend.write(x, values.slice(0, 2 * INNER));
  await executable.run({ rows: 2 });
  const result = Float32Array.from(await backend.read(y));
  executable.dispose();
  return result;
};

for (const { name, create, skip, refusals } of BACKENDS) {
  describe.skipIf(skip !== undefined)(`${name}${skip ? ` (skipped: ${skip})` : ""}`, () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await create();
    });
    afterAll(async () => {
      await backend?.dispose();
    });

    for (const dtype of ["f32", "f16", "bf16", "q8", "q4"] as const) {
      const refusal = refusals.get(dtype as PackedDtype);
      test.skipIf(refusal !== undefined)(
        `${dtype} weights in pieces, the last first${refusal ? ` (skipped: ${refusal})` : ""}`,
        async () => {
          const [whole, pieces] = [weight(dtype), weight(dtype)];
          const words = wordsOf(whole);
          await backend.allocate(whole, dtype === "f32" ? values : words);
          await backend.allocate(pieces);
          for (let end = words.length; end > 0; end -= 100) {
            const piece = words.slice(Math.max(0, end - 100), end);
            await backend.fill(pieces, piece, Math.max(0, end - 100));
            piece.fill(0xffff_ffff); // it is the caller's again
          }
          expect(await product(backend, pieces)).toEqual(await product(backend, whole));
        },
      );
    }

    test("only an allocated weights tensor is filled, and nothing beyond its end", async () => {
      const tensor: Tensor = { name: "gain", shape: [8], dtype: "f32", home: "weights" };
      const state: Tensor = { name: "p", shape: [8], dtype: "f32", home: "state" };
      await expect(backend.fill(tensor, new Uint32Array(8))).rejects.toThrow('for "gain" (8 words, home weights, not allocated)');
      await backend.allocate(tensor);
      await backend.allocate(state);
      await expect(backend.fill(tensor, new Uint32Array(8), 1)).rejects.toThrow("got 8 from 1 on");
      await expect(backend.fill(tensor, new Uint32Array(1), -1)).rejects.toThrow("got 1 from -1 on");
      await expect(backend.fill(state, new Uint32Array(8))).rejects.toThrow("home state");
    });
  });
}

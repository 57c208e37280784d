// The train step and the GEMM of the engine's bench for TensorFlow.js on its WASM backend: variables, its own Adam, one minimize a step.
import { LINEARS, type LinearName } from "../../packages/engine/src/model/spec.ts";
import { ADAM, LORA, ropeHalves, type TrainBatch, type Workload } from "./engineWorkload.ts";

interface Tens {
  reshape(shape: readonly number[]): Tens;
  transpose(axes: readonly number[]): Tens;
  add(x: Tens | number): Tens;
  sub(x: Tens | number): Tens;
  mul(x: Tens | number): Tens;
  neg(): Tens;
  rsqrt(): Tens;
  square(): Tens;
  sigmoid(): Tens;
  softmax(axis: number): Tens;
  sum(axis?: number): Tens;
  mean(axis: number, keepDims: boolean): Tens;
  slice(begin: readonly number[], size: readonly number[]): Tens;
  data(): Promise<Float32Array>;
  dispose(): void;
}
export interface Tf {
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  tensor(values: Float32Array | Int32Array, shape: readonly number[], dtype?: "float32" | "int32"): Tens;
  variable(value: Tens): Tens;
  matMul(a: Tens, b: Tens, transposeA?: boolean, transposeB?: boolean): Tens;
  gather(table: Tens, index: Tens): Tens;
  oneHot(index: Tens, depth: number): Tens;
  concat(parts: readonly Tens[], axis: number): Tens;
  logSoftmax(x: Tens, axis: number): Tens;
  tidy<T>(act: () => T): T;
  readonly train: {
    adam(
      rate: number,
      beta1: number,
      beta2: number,
      eps: number,
    ): { minimize(loss: () => Tens, returnCost: true, variables: readonly Tens[]): Tens };
  };
}

export interface TfStep {
  /** One forward, backward and Adam. Resolves with the loss (token sum). */
  step(): Promise<number>;
}

export const createTfStep = (tf: Tf, weights: Workload, { rows: B, length: T, targetStart, tokens }: TrainBatch): TfStep => {
  const { vocab: V, width: D, heads: H, kvHeads: K, headWidth: C, normEps } = weights.spec;
  const constant = (values: Float32Array, ...shape: number[]): Tens => tf.tensor(values, shape);
  const embed = constant(weights.embed, V, D);
  const lastNorm = constant(weights.norm, D);
  const halves = ropeHalves(weights, T);
  const [cos, sin] = [constant(halves.cos, 1, T, 1, C), constant(halves.sin, 1, T, 1, C)];
  // query row g·T + t of a KV head sees the keys 0 … t
  const mask = constant(
    Float32Array.from({ length: (H / K) * T * T }, (_, i) => (i % T > Math.floor(i / T) % T ? -1e30 : 0)),
    1,
    1,
    (H / K) * T,
    T,
  );
  const variables: Tens[] = [];
  const variable = (values: Float32Array, ...shape: number[]): Tens => {
    const made = tf.variable(constant(values, ...shape));
    variables.push(made);
    return made;
  };
  const layers = weights.layers.map((layer) => ({
    inputNorm: constant(layer.inputNorm, D),
    feedForwardNorm: constant(layer.feedForwardNorm, D),
    linear: Object.fromEntries(
      LINEARS.map((name) => {
        const { outputs, inputs, values, a, b } = layer[name];
        return [name, { w: constant(values, outputs, inputs), a: variable(a, LORA.rank, inputs), b: variable(b, outputs, LORA.rank) }];
      }),
    ) as Record<LinearName, { w: Tens; a: Tens; b: Tens }>,
  }));
  const ids = tf.tensor(tokens, [B * T], "int32");
  const targets = tf.tensor(
    Int32Array.from(tokens).filter((_, i) => i % T >= targetStart),
    [B * (T - targetStart)],
    "int32",
  );

  const norm = (x: Tens, gain: Tens): Tens => x.mul(x.square().mean(-1, true).add(normEps).rsqrt()).mul(gain);
  const linear = (x: Tens, { w, a, b }: { w: Tens; a: Tens; b: Tens }): Tens =>
    tf.matMul(x, w, false, true).add(tf.matMul(tf.matMul(x, a, false, true), b, false, true).mul(LORA.alpha / LORA.rank));
  const rope = (x: Tens, heads: number): Tens => {
    const turned = tf.concat([x.slice([0, 0, 0, C / 2], [B, T, heads, C / 2]).neg(), x.slice([0, 0, 0, 0], [B, T, heads, C / 2])], 3);
    return x.mul(cos).add(turned.mul(sin));
  };
  const loss = (): Tens => {
    let x = tf.gather(embed, ids);
    for (const { inputNorm, feedForwardNorm, linear: l } of layers) {
      const h = norm(x, inputNorm);
      const q = rope(linear(h, l.q_proj).reshape([B, T, H, C]), H)
        .transpose([0, 2, 1, 3])
        .reshape([B, K, (H / K) * T, C]);
      const k = rope(linear(h, l.k_proj).reshape([B, T, K, C]), K).transpose([0, 2, 1, 3]);
      const v = linear(h, l.v_proj).reshape([B, T, K, C]).transpose([0, 2, 1, 3]);
      const p = tf
        .matMul(q, k, false, true)
        .mul(C ** -0.5)
        .add(mask)
        .softmax(-1);
      const o = tf
        .matMul(p, v)
        .reshape([B, H, T, C])
        .transpose([0, 2, 1, 3])
        .reshape([B * T, H * C]);
      x = x.add(linear(o, l.o_proj));
      const g = norm(x, feedForwardNorm);
      const gate = linear(g, l.gate_proj);
      x = x.add(linear(gate.mul(gate.sigmoid()).mul(linear(g, l.up_proj)), l.down_proj));
    }
    const count = T - targetStart;
    const rows = norm(
      x
        .reshape([B, T, D])
        .slice([0, targetStart - 1, 0], [B, count, D])
        .reshape([B * count, D]),
      lastNorm,
    );
    const logprobs = tf.logSoftmax(tf.matMul(rows, embed, false, true), -1);
    return logprobs.mul(tf.oneHot(targets, V)).sum().neg();
  };
  const optimizer = tf.train.adam(ADAM.learningRate, ADAM.beta1, ADAM.beta2, ADAM.eps);
  return {
    async step() {
      const cost = tf.tidy(() => optimizer.minimize(loss, true, variables));
      const value = (await cost.data())[0]!;
      cost.dispose();
      return value;
    },
  };
};

/** One product of two [n, n] matrices. */
export const createTfGemm = (tf: Tf, n: number, values: Float32Array): { run(): Promise<void> } => {
  const [a, b] = [tf.tensor(values, [n, n]), tf.tensor(values, [n, n])];
  return {
    async run() {
      const c = tf.matMul(a, b, false, true);
      await c.data();
      c.dispose();
    },
  };
};

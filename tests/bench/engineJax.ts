// The train step and the GEMM of the engine's bench, written for jax-js as its own documentation would have it written: one jitted function
// for forward, backward and AdamW of a LoRA adapter on a frozen Llama. Ownership rules of jax-js: a use that is not the last one says `.ref`.
import { LINEARS, type LinearName } from "../../packages/engine/src/model/spec.ts";
import { ADAM, LORA, ropeHalves, type TrainBatch, type Workload } from "./engineWorkload.ts";

/** The little of jax-js that is used here; its own types want more of the compiler than a bench is worth. */
interface Arr {
  readonly ref: Arr;
  readonly shape: readonly number[];
  add(x: Arr | number): Arr;
  sub(x: Arr | number): Arr;
  mul(x: Arr | number): Arr;
  div(x: Arr | number): Arr;
  neg(): Arr;
  reshape(shape: readonly number[]): Arr;
  transpose(axes?: readonly number[]): Arr;
  slice(...index: readonly unknown[]): Arr;
  sum(): Arr;
  data(): Promise<Float32Array>;
  dispose(): void;
}
export interface Jax {
  init(device: string): Promise<readonly string[]>;
  defaultDevice(device: string): void;
  jit<A extends readonly never[], R>(act: (...args: A) => R): (...args: A) => R;
  valueAndGrad<A extends readonly never[]>(act: (...args: A) => Arr): (...args: A) => [Arr, unknown];
  blockUntilReady(x: unknown): Promise<unknown>;
  readonly tree: { map(act: (...leaves: Arr[]) => unknown, ...trees: unknown[]): never; ref<T>(tree: T): T; dispose(tree: unknown): void };
  readonly nn: {
    silu(x: Arr): Arr;
    logSoftmax(x: Arr, axis: number): Arr;
    oneHot(x: Arr, classes: number): Arr;
    dotProductAttention(q: Arr, k: Arr, v: Arr, options: { isCausal: boolean }): Arr;
  };
  readonly numpy: {
    array(values: Float32Array | Int32Array): Arr;
    zeros(shape: readonly number[]): Arr;
    matmul(a: Arr, b: Arr): Arr;
    take(a: Arr, index: Arr, axis: number): Arr;
    concatenate(parts: readonly Arr[], axis: number): Arr;
    mean(x: Arr, axis: number, options: { keepdims: boolean }): Arr;
    square(x: Arr): Arr;
    sqrt(x: Arr): Arr;
    reciprocal(x: Arr): Arr;
    power(x: Arr | number, y: Arr | number): Arr;
    readonly float32: unknown;
  };
}

type Adapter = readonly Readonly<Record<LinearName, { readonly a: Arr; readonly b: Arr }>>[];
interface Frozen {
  readonly embed: Arr;
  readonly norm: Arr;
  readonly cos: Arr;
  readonly sin: Arr;
  readonly layers: readonly Readonly<Record<LinearName | "inputNorm" | "feedForwardNorm", Arr>>[];
}

const lossOf =
  ({ numpy: np, nn }: Jax, shape: Workload["spec"], batch: TrainBatch) =>
  (adapter: Adapter, frozen: Frozen, tokens: Arr, targets: Arr): Arr => {
    const { rows: B, length: T, targetStart } = batch;
    const { heads: H, kvHeads: K, headWidth: C } = shape;
    const norm = (x: Arr, gain: Arr): Arr => {
      const square = np.mean(np.square(x.ref), -1, { keepdims: true });
      return x.mul(np.reciprocal(np.sqrt(square.add(shape.normEps)))).mul(gain);
    };
    const linear = (x: Arr, weight: Arr, { a, b }: { a: Arr; b: Arr }): Arr =>
      np.matmul(x.ref, weight.transpose()).add(np.matmul(np.matmul(x, a.transpose()), b.transpose()).mul(LORA.alpha / LORA.rank));
    const rope = (x: Arr, cos: Arr, sin: Arr): Arr => {
      const first = x.ref.slice([], [], [], [0, C / 2]);
      const second = x.ref.slice([], [], [], [C / 2, C]);
      return x.mul(cos).add(np.concatenate([second.neg(), first], -1).mul(sin));
    };
    let x = np.take(frozen.embed.ref, tokens, 0);
    for (const [i, layer] of frozen.layers.entries()) {
      const lora = adapter[i]!;
      const h = norm(x.ref, layer.inputNorm);
      const q = rope(linear(h.ref, layer.q_proj, lora.q_proj).reshape([B, T, H, C]), frozen.cos.ref, frozen.sin.ref);
      const k = rope(linear(h.ref, layer.k_proj, lora.k_proj).reshape([B, T, K, C]), frozen.cos.ref, frozen.sin.ref);
      const v = linear(h, layer.v_proj, lora.v_proj).reshape([B, T, K, C]);
      const o = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([B, T, H * C]);
      x = x.add(linear(o, layer.o_proj, lora.o_proj));
      const g = norm(x.ref, layer.feedForwardNorm);
      const gated = nn.silu(linear(g.ref, layer.gate_proj, lora.gate_proj)).mul(linear(g, layer.up_proj, lora.up_proj));
      x = x.add(linear(gated, layer.down_proj, lora.down_proj));
    }
    frozen.cos.dispose();
    frozen.sin.dispose();
    // only the rows that predict a target reach the head, as in ours
    const rows = norm(x.slice([], [targetStart - 1, T - 1]), frozen.norm);
    const logprobs = nn.logSoftmax(np.matmul(rows, frozen.embed.transpose()), -1);
    // its own takeAlongAxis has no gradient inside jit; the one-hot product fuses into the sum
    return logprobs.mul(nn.oneHot(targets, shape.vocab)).sum().neg();
  };

export interface JaxStep {
  /** One forward, backward and AdamW; resolves with the loss (token sum) when the device has finished. */
  step(): Promise<number>;
  dispose(): void;
}

export const createJaxStep = async (jax: Jax, device: "wasm" | "webgpu", weights: Workload, batch: TrainBatch): Promise<JaxStep> => {
  const { numpy: np, tree } = jax;
  jax.defaultDevice(device);
  const array = (values: Float32Array | Int32Array, ...sizes: number[]): Arr => np.array(values).reshape(sizes);
  const { rows: B, length: T, targetStart } = batch;
  const shape = weights.spec;
  const C = shape.headWidth;
  const { cos, sin } = ropeHalves(weights, T);

  const frozen: Frozen = {
    embed: array(weights.embed, shape.vocab, shape.width),
    norm: array(weights.norm, shape.width),
    cos: array(cos, T, 1, C),
    sin: array(sin, T, 1, C),
    layers: weights.layers.map((layer) => ({
      inputNorm: array(layer.inputNorm, shape.width),
      feedForwardNorm: array(layer.feedForwardNorm, shape.width),
      ...(Object.fromEntries(LINEARS.map((name) => [name, array(layer[name].values, layer[name].outputs, layer[name].inputs)])) as Record<
        LinearName,
        Arr
      >),
    })),
  };
  let adapter: Adapter = weights.layers.map(
    (layer) =>
      Object.fromEntries(
        LINEARS.map((name) => {
          const { inputs, outputs, a, b } = layer[name];
          return [name, { a: array(a, LORA.rank, inputs), b: array(b, outputs, LORA.rank) }];
        }),
      ) as Record<LinearName, { a: Arr; b: Arr }>,
  );
  const zeros = (): Adapter => tree.map((leaf: Arr) => np.zeros(leaf.shape), tree.ref(adapter)) as Adapter;
  let moments: Adapter = zeros();
  let squares: Adapter = zeros();
  let count = 0;

  const valueAndGrad = jax.valueAndGrad(lossOf(jax, shape, batch) as never) as unknown as (...args: unknown[]) => [Arr, Adapter];
  const update = jax.jit(((params: Adapter, m: Adapter, v: Adapter, first: Arr, second: Arr, fixed: Frozen, tokens: Arr, targets: Arr) => {
    const [loss, gradient] = valueAndGrad(tree.ref(params), fixed, tokens, targets);
    const m2 = tree.map((a: Arr, g: Arr) => a.mul(ADAM.beta1).add(g.mul(1 - ADAM.beta1)), m, tree.ref(gradient)) as Adapter;
    const v2 = tree.map((a: Arr, g: Arr) => a.mul(ADAM.beta2).add(np.square(g).mul(1 - ADAM.beta2)), v, gradient) as Adapter;
    const next = tree.map(
      (p: Arr, a: Arr, b: Arr) =>
        p.sub(
          a
            .mul(first.ref)
            .div(np.sqrt(b.mul(second.ref)).add(ADAM.eps))
            .mul(ADAM.learningRate),
        ),
      params,
      tree.ref(m2),
      tree.ref(v2),
    ) as Adapter;
    first.dispose();
    second.dispose();
    return [loss, next, m2, v2];
  }) as never) as unknown as (...args: unknown[]) => [Arr, Adapter, Adapter, Adapter];

  const targets = Int32Array.from({ length: B * (T - targetStart) }, (_, i) => {
    const row = Math.floor(i / (T - targetStart));
    return batch.tokens[row * T + targetStart + (i % (T - targetStart))]!;
  });
  return {
    async step() {
      jax.defaultDevice(device);
      count++;
      const scalar = (value: number): Arr => np.array(Float32Array.of(value)).reshape([]);
      const found = update(
        adapter,
        moments,
        squares,
        scalar(1 / (1 - ADAM.beta1 ** count)),
        scalar(1 / (1 - ADAM.beta2 ** count)),
        tree.ref(frozen),
        array(batch.tokens, B, T),
        array(targets, B, T - targetStart),
      );
      [, adapter, moments, squares] = found;
      await jax.blockUntilReady(tree.ref([adapter, moments, squares]));
      return (await found[0].data())[0]!;
    },
    dispose() {
      for (const one of [frozen, adapter, moments, squares]) tree.dispose(one);
    },
  };
};

/** Seconds-free: one product of two [n, n] matrices that stay on the device. */
export const createJaxGemm = (jax: Jax, device: "wasm" | "webgpu", n: number, values: Float32Array): { run(): Promise<void> } => {
  const { numpy: np } = jax;
  jax.defaultDevice(device);
  const a = np.array(values).reshape([n, n]);
  const b = np.array(values).reshape([n, n]);
  const product = jax.jit(((x: Arr, y: Arr) => np.matmul(x, y.transpose())) as never) as unknown as (x: Arr, y: Arr) => Arr;
  return {
    async run() {
      jax.defaultDevice(device);
      const c = product(a.ref, b.ref);
      await jax.blockUntilReady(c.ref);
      c.dispose();
    },
  };
};

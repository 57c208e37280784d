// A decoder of one of the five families as an ONNX graph, by the switches of its spec: the same network as the engine's model/forward.ts,
// without LoRA, over [batch, sequence] and a cache that grows by concatenation. Basic operators only, so that any runtime runs it.
//
//   input_ids, position_ids [B, S] · attention_mask [B, P + S] · past_key_values.{i}.{key,value} [B, K, P, C]
//   (and num_logits_to_keep [], if asked for) → logits [B, S, V] · present.{i}.{key,value} [B, K, P + S, C]
//
// A padded row (attention_mask 0) is seen by none. Query heads that share a KV head are stacked as rows of one product: no key is repeated.

import { kindOf, type LayerTensors, type LinearName, type MergedModel, ropeTable } from "@fulgurite/engine";
import type { Attribute, DataType, Graph, Initializer, Node, Part, Value } from "./proto.ts";

/** How weights are stored. The arithmetic is f32 either way: a runtime casts them once, as it loads. */
export type WeightType = "F32" | "F16";

export interface DecoderOptions {
  readonly weights: WeightType;
  /** Positions of the rotary tables; position_ids are below it. */
  readonly maxPositions: number;
  /** false: one more input, num_logits_to_keep, says how many of the last rows get logits; 0: all. */
  readonly allLogits: boolean;
  /** Bytes of values in that type. Throws for one that it cannot hold. */
  readonly encode: (values: Float32Array, type: WeightType, name: string) => Uint8Array<ArrayBuffer>;
}

/** What attention scores of unseen keys become: the softmax of a row that sees nothing is then no NaN. */
const UNSEEN = -3.4028234663852886e38;

/** [O, I] → [I, O]: MatMul's own order, which quantisation tools look for. */
const transposed = (values: Float32Array, [outer, inner]: readonly [number, number]): Float32Array => {
  const result = new Float32Array(values.length);
  for (let o = 0; o < outer; o++) for (let i = 0; i < inner; i++) result[i * outer + o] = values[o * inner + i]!;
  return result;
};

const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

export const decoderGraph = ({ spec, tensors, values }: MergedModel, options: DecoderOptions): Graph => {
  const nodes: Node[] = [];
  const initializers = new Map<string, Initializer>();
  let count = 0;

  /** Adds a node; returns its outputs' names. */
  const emitAll = (
    op: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes?: Readonly<Record<string, Attribute>>,
  ): readonly string[] => {
    nodes.push({ op, inputs, outputs, ...(attributes && { attributes }) });
    return outputs;
  };
  const emit = (
    op: string,
    inputs: readonly string[],
    attributes?: Readonly<Record<string, Attribute>>,
    output = `${op}.${count++}`,
  ): string => emitAll(op, inputs, [output], attributes)[0]!;

  const initializer = (name: string, type: DataType, shape: readonly number[], data: Part): string => {
    if (!initializers.has(name)) initializers.set(name, { name, type, shape, data });
    return name;
  };
  const ints = (...numbers: readonly number[]): string =>
    initializer(`ints.${numbers.join(",")}`, "INT64", [numbers.length], new Uint8Array(BigInt64Array.from(numbers, BigInt).buffer));
  const whole = (number: number): string =>
    initializer(`int.${number}`, "INT64", [], new Uint8Array(BigInt64Array.of(BigInt(number)).buffer));
  const scalar = (number: number): string => initializer(`float.${number}`, "FLOAT", [], new Uint8Array(Float32Array.of(number).buffer));

  /** A tensor of the checkpoint, in f32 whatever it is stored as. */
  const stored = (name: string, shape: readonly number[], make: () => Float32Array): string => {
    const type = options.weights;
    const data = { byteLength: sizeOf(shape) * (type === "F16" ? 2 : 4), make: () => options.encode(make(), type, name) };
    if (type === "F32") return initializer(name, "FLOAT", shape, data);
    if (initializers.has(name)) return `${name}.f32`;
    return emit("Cast", [initializer(name, "FLOAT16", shape, data)], { to: 1 }, `${name}.f32`);
  };
  const vector = (name: string, width: number, offset = 0): string => stored(name, [width], () => values(name).map((x) => x + offset));
  const table = (name: string, shape: readonly number[]): string => stored(name, shape, () => values(name));

  /** x·rstd·gain over the last axis: the pattern that ONNX Runtime fuses into one kernel. */
  const rmsNorm = (x: string, { name, shape }: LayerTensors["inputNorm"]): string => {
    const mean = emit("ReduceMean", [emit("Pow", [x, scalar(2)])], { axes: [-1], keepdims: 1 });
    const root = emit("Sqrt", [emit("Add", [mean, scalar(spec.normEps)])]);
    return emit("Mul", [emit("Div", [x, root]), vector(name, shape[0]!, spec.gainOffset)]);
  };
  const product = (x: string, name: string, shape: readonly [number, number]): string => {
    const [outer, inner] = shape;
    return emit("MatMul", [x, stored(name, [inner, outer], () => transposed(values(name), shape))]);
  };
  const linear = (x: string, layer: LayerTensors, name: LinearName): string => {
    const weight = layer.linear[name];
    const y = product(x, weight.name, weight.shape as readonly [number, number]);
    const bias = layer.bias[name];
    return bias ? emit("Add", [y, vector(bias.name, bias.shape[0]!)]) : y;
  };
  const reshape = (x: string, ...shape: readonly number[]): string => emit("Reshape", [x, ints(...shape)]);

  const { heads, kvHeads, headWidth, layers } = spec;
  const half = headWidth / 2;

  // Which key each query sees, once for each window: [B, 1, S, P + S].
  const size = (of: string, axis: number): string => emit("Gather", [emit("Shape", [of]), whole(axis)], { axis: 0 });
  const [rows, columns] = [size("input_ids", 1), size("attention_mask", 1)];
  const keys = emit("Range", [whole(0), columns, whole(1)]);
  const queries = emit("Unsqueeze", [emit("Range", [emit("Sub", [columns, rows]), columns, whole(1)]), ints(1)]);
  const past = emit("LessOrEqual", [keys, queries]);
  const present = emit("Unsqueeze", [emit("Cast", ["attention_mask"], { to: 9 }), ints(1, 2)]);
  const masks = new Map<number | undefined, string>();
  const maskOf = (window: number | undefined): string => {
    let mask = masks.get(window);
    if (mask === undefined) {
      const near = window === undefined ? past : emit("And", [past, emit("Greater", [keys, emit("Sub", [queries, whole(window)])])]);
      mask = emit("And", [near, present]);
      masks.set(window, mask);
    }
    return mask;
  };

  // cos and sin of each row's angles, once for each rope: [B, 1, S, C/2].
  const angles = new Map<number, readonly [string, string]>();
  const anglesOf = (rope: number): readonly [string, string] => {
    let found = angles.get(rope);
    if (!found) {
      const byteLength = options.maxPositions * headWidth * 4;
      const make = (): Uint8Array<ArrayBuffer> => new Uint8Array(ropeTable(options.maxPositions, headWidth, spec.ropes[rope]!).buffer);
      const name = initializer(`rope.${rope}`, "FLOAT", [options.maxPositions, headWidth], { byteLength, make });
      const gathered = emit("Unsqueeze", [emit("Gather", [name, "position_ids"], { axis: 0 }), ints(1)]);
      const [cos, sin] = emitAll("Split", [gathered], [`cos.${rope}`, `sin.${rope}`], { axis: -1 });
      found = [cos!, sin!];
      angles.set(rope, found);
    }
    return found;
  };
  /** Pairs (c, c + C/2) turn by the row's angle. x [B, heads, S, C] */
  const turn = (x: string, [cos, sin]: readonly [string, string]): string => {
    const [low, high] = [emit("Slice", [x, ints(0), ints(half), ints(-1)]), emit("Slice", [x, ints(half), ints(headWidth), ints(-1)])];
    const turnedLow = emit("Sub", [emit("Mul", [low, cos]), emit("Mul", [high, sin])]);
    const turnedHigh = emit("Add", [emit("Mul", [high, cos]), emit("Mul", [low, sin])]);
    return emit("Concat", [turnedLow, turnedHigh], { axis: -1 });
  };

  /** [B, S, heads·C] → [B, heads, S, C], normed on the way where the family does. */
  const split = (x: string, count: number, gain?: LayerTensors["inputNorm"]): string => {
    const shaped = reshape(x, 0, 0, count, headWidth);
    return emit("Transpose", [gain ? rmsNorm(shaped, gain) : shaped], { perm: [0, 2, 1, 3] });
  };
  const attention = (n: string, layer: LayerTensors, i: number): string => {
    const { window, rope } = kindOf(spec, i);
    const angle = anglesOf(rope);
    const q = turn(split(linear(n, layer, "q_proj"), heads, layer.qNorm), angle);
    const k = turn(split(linear(n, layer, "k_proj"), kvHeads, layer.kNorm), angle);
    const v = split(linear(n, layer, "v_proj"), kvHeads);
    const allK = emit("Concat", [`past_key_values.${i}.key`, k], { axis: 2 }, `present.${i}.key`);
    const allV = emit("Concat", [`past_key_values.${i}.value`, v], { axis: 2 }, `present.${i}.value`);
    // [B, H, S, C] and [B, K, (H/K)·S, C] are the same numbers in the same order: query head h belongs to KV head ⌊h·K/H⌋.
    const stacked = reshape(emit("Mul", [q, scalar(spec.attentionScale)]), 0, kvHeads, -1, headWidth);
    const scores = reshape(emit("MatMul", [stacked, emit("Transpose", [allK], { perm: [0, 1, 3, 2] })]), 0, heads, -1, 0);
    const weights = emit("Softmax", [emit("Where", [maskOf(window), scores, scalar(UNSEEN)])], { axis: -1 });
    const mixed = reshape(emit("MatMul", [reshape(weights, 0, kvHeads, -1, 0), allV]), 0, heads, -1, headWidth);
    return linear(reshape(emit("Transpose", [mixed], { perm: [0, 2, 1, 3] }), 0, 0, heads * headWidth), layer, "o_proj");
  };
  /** silu: g·σ(g) · tanhGelu: ½·g·(1 + tanh(√(2/π)·(g + 0.044715·g³))) */
  const activate = (g: string): string => {
    if (spec.activation === "silu") return emit("Mul", [g, emit("Sigmoid", [g])]);
    const cubic = emit("Add", [g, emit("Mul", [emit("Pow", [g, scalar(3)]), scalar(0.044715)])]);
    const tanh = emit("Tanh", [emit("Mul", [cubic, scalar(Math.sqrt(2 / Math.PI))])]);
    return emit("Mul", [emit("Mul", [g, scalar(0.5)]), emit("Add", [tanh, scalar(1)])]);
  };

  const embed = table(tensors.embed.name, tensors.embed.shape);
  let x = emit("Gather", [embed, "input_ids"], { axis: 0 });
  if (spec.embedScale !== 1) x = emit("Mul", [x, scalar(spec.embedScale)]);
  for (const [i, layer] of tensors.layers.entries()) {
    const out = attention(rmsNorm(x, layer.inputNorm), layer, i);
    x = emit("Add", [x, layer.attentionOutNorm ? rmsNorm(out, layer.attentionOutNorm) : out]);
    const n = rmsNorm(x, layer.feedForwardNorm);
    const gated = emit("Mul", [activate(linear(n, layer, "gate_proj")), linear(n, layer, "up_proj")]);
    const down = linear(gated, layer, "down_proj");
    x = emit("Add", [x, layer.feedForwardOutNorm ? rmsNorm(down, layer.feedForwardOutNorm) : down]);
  }
  if (!options.allLogits) {
    // from row −n on; −0 is the first
    const first = reshape(emit("Neg", ["num_logits_to_keep"]), 1);
    x = emit("Slice", [x, first, ints(Number.MAX_SAFE_INTEGER), ints(1)]);
  }
  const n = rmsNorm(x, tensors.norm);
  if (spec.tiedHead) {
    // Gemm reads the embedding transposed where it lies: a tied head is stored once.
    const flat = emit("Gemm", [reshape(n, -1, spec.width), embed], { transB: 1 });
    const shape = emit("Concat", [emit("Slice", [emit("Shape", [n]), ints(0), ints(2)]), ints(spec.vocab)], { axis: 0 });
    emit("Reshape", [flat, shape], undefined, "logits");
  } else {
    const logits = product(n, tensors.head.name, tensors.head.shape as readonly [number, number]);
    emit("Identity", [logits], undefined, "logits");
  }

  const [batch, sequence, total] = ["batch_size", "sequence_length", "total_sequence_length"];
  const cache = (name: string, length: string): Value[] =>
    Array.from({ length: layers }, (_, i) =>
      ["key", "value"].map((half): Value => ({ name: `${name}.${i}.${half}`, type: "FLOAT", shape: [batch, kvHeads, length, headWidth] })),
    ).flat();
  return {
    name: `${spec.family} decoder`,
    nodes,
    initializers: [...initializers.values()],
    inputs: [
      { name: "input_ids", type: "INT64", shape: [batch, sequence] },
      { name: "attention_mask", type: "INT64", shape: [batch, total] },
      { name: "position_ids", type: "INT64", shape: [batch, sequence] },
      ...(options.allLogits ? [] : [{ name: "num_logits_to_keep", type: "INT64", shape: [] } as const]),
      ...cache("past_key_values", "past_sequence_length"),
    ],
    outputs: [
      { name: "logits", type: "FLOAT", shape: [batch, options.allLogits ? sequence : "num_logits", spec.vocab] },
      ...cache("present", total),
    ],
  };
};

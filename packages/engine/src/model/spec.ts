// What a Llama-style decoder is, in numbers. Read from config.json by families.ts.

export interface ModelSpec {
  /** config.json's model_type. */
  readonly family: "llama";
  /** D. */
  readonly width: number;
  readonly layers: number;
  /** H. */
  readonly heads: number;
  /** K, divides H. */
  readonly kvHeads: number;
  /** C, even. */
  readonly headWidth: number;
  /** F. */
  readonly feedForward: number;
  /** V. */
  readonly vocab: number;
  readonly normEps: number;
  readonly ropeTheta: number;
  readonly tiedHead: boolean;
  /** P: positions that the model was made for. */
  readonly maxPositions: number;
}

export type LinearName = "q_proj" | "k_proj" | "v_proj" | "o_proj" | "gate_proj" | "up_proj" | "down_proj";

export const LINEARS: readonly LinearName[] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/** [O, I] of a linear layer of one block. */
export const linearShape = (spec: ModelSpec, name: LinearName): readonly [number, number] => {
  const q = spec.heads * spec.headWidth;
  const kv = spec.kvHeads * spec.headWidth;
  const shapes: Record<LinearName, readonly [number, number]> = {
    q_proj: [q, spec.width],
    k_proj: [kv, spec.width],
    v_proj: [kv, spec.width],
    o_proj: [spec.width, q],
    gate_proj: [spec.feedForward, spec.width],
    up_proj: [spec.feedForward, spec.width],
    down_proj: [spec.width, spec.feedForward],
  };
  return shapes[name];
};

export interface LoraSpec {
  /** R. */
  readonly rank: number;
  /** s = alpha / rank. */
  readonly alpha: number;
}

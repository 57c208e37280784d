// The hand-written reverse of forward.ts. Only LoRA matrices have gradients, and they are ADDED to; the base is frozen.
// Nothing below the first block's adapted linears is differentiated: the embedding and the first input norm have no
// parameter under them. Outputs of norms and gated units are computed again rather than kept.

import type { Rows, Step, Tensor } from "../plan/step.ts";
import {
  activation,
  attentionShape,
  type BlockActivations,
  emitHeads,
  type Heads,
  type Lora,
  loraScale,
  type NormInput,
} from "./forward.ts";
import type { LinearName, ModelSpec } from "./spec.ts";
import type { LoraTensors, ModelTensors } from "./tensors.ts";

export interface DecoderGradient {
  readonly rows: Rows;
  readonly positions: Tensor;
  /** [T] i32: first row of a row's sequence, and the row after its last. */
  readonly start: Tensor;
  readonly end: Tensor;
  readonly blocks: readonly BlockActivations[];
  /**
   * Gradient checkpointing: emits a block's forward again, from its kept input, right before its gradient, so that between the two
   * only the inputs are held. Absent: all that the forward left behind is kept. The top block is never repeated: nothing would be freed.
   */
  readonly emitAgain?: (layer: number, x: Tensor) => BlockActivations;
  /** In: gradient of the residual stream after the last block, [T, D]. It is overwritten block by block. */
  readonly dx: Tensor;
}

/** Emits the reverse of emitDecoder; adds to `grads`. */
export const emitDecoderBackward = (
  steps: Step[],
  spec: ModelSpec,
  weights: ModelTensors,
  lora: Lora,
  grads: LoraTensors,
  { rows, positions, start, end, blocks, emitAgain, dx }: DecoderGradient,
): void => {
  const scale = loraScale(lora.spec);
  const { heads, kvHeads } = spec;

  for (const [i, first] of [...blocks.entries()].reverse()) {
    const block = emitAgain && i < blocks.length - 1 ? emitAgain(i, first.x) : first;
    const layer = weights.layers[i]!;
    const tensor = (name: string, width: number): Tensor => activation(`${name}.${i}`, rows, width);
    const linearBackward = (dy: Tensor, w: Tensor, dx: Tensor, factor: number, accumulate: boolean): void => {
      steps.push({ op: "linearBackward", rows, dy, w, dx, scale: factor, accumulate });
    };
    /**
     * y = x·Wᵀ + s·h·Bᵀ with h = x·Aᵀ:   dB += s·dyᵀ·h;   dh = s·dy·B;   dA += dhᵀ·x;   dInput (+)= dy·W + dh·A.
     * Without dInput only the adapter's gradients are made.
     */
    const adaptedBackward = (name: LinearName, x: Tensor, dy: Tensor, dInput?: { tensor: Tensor; accumulate: boolean }): void => {
      const [pair, gradient] = [lora.tensors.layers[i]![name], grads.layers[i]![name]];
      const dh = tensor(`d.${name}.lora`, pair.a.shape[0]!);
      steps.push({ op: "weightGrad", rows, dy, x: block.h[name], dw: gradient.b, scale });
      linearBackward(dy, pair.b, dh, scale, false);
      steps.push({ op: "weightGrad", rows, dy: dh, x, dw: gradient.a, scale: 1 });
      if (!dInput) return;
      linearBackward(dy, layer.linear[name], dInput.tensor, 1, dInput.accumulate);
      linearBackward(dh, pair.a, dInput.tensor, 1, true);
    };
    /** Gradient of a half's last linear: dx itself, or what the norm behind the linear lets through of it. */
    const outGradient = (out: NormInput | undefined, gain: Tensor | undefined, name: string): Tensor => {
      if (!out || !gain) return dx;
      const d = tensor(name, spec.width);
      steps.push({ op: "rmsNormBackward", rows, x: out.x, gain, rstd: out.rstd, dy: dx, dx: d, accumulate: false });
      return d;
    };

    // Second half: next = x1 + postNorm?(down(glu(gate(n1), up(n1)))). dx is the gradient of next and, by the residual, of x1.
    const { x1, gate, up } = block;
    const [a, n1, rstd1] = [tensor("again.a", spec.feedForward), tensor("again.n1", spec.width), tensor("again.rstd1", 0)];
    const [da, dn1] = [tensor("d.a", spec.feedForward), tensor("d.n1", spec.width)];
    const { activation: unit } = spec;
    steps.push({ op: "glu", rows, gate, up, y: a, activation: unit });
    const dDown = outGradient(block.feedForwardOut, layer.feedForwardOutNorm, "d.down");
    adaptedBackward("down_proj", a, dDown, { tensor: da, accumulate: false });
    // From here on gate and up hold their gradients.
    steps.push(
      { op: "gluBackward", rows, gate, up, dy: da, activation: unit },
      { op: "rmsNorm", rows, x: x1, gain: layer.feedForwardNorm, y: n1, rstd: rstd1, eps: spec.normEps },
    );
    adaptedBackward("gate_proj", n1, gate, { tensor: dn1, accumulate: false });
    adaptedBackward("up_proj", n1, up, { tensor: dn1, accumulate: true });
    steps.push({ op: "rmsNormBackward", rows, x: x1, gain: layer.feedForwardNorm, rstd: rstd1, dy: dn1, dx, accumulate: true });

    // First half: x1 = x + postNorm?(o_proj(attention(rope(qkNorm?(q(n))), rope(qkNorm?(k(n))), v(n)))).
    const { x, v, o, lse } = block;
    const [n, rstd] = [tensor("again.n", spec.width), tensor("again.rstd", 0)];
    const [dO, delta, dq] = [tensor("d.o", heads * spec.headWidth), tensor("delta", heads), tensor("d.q", heads * spec.headWidth)];
    const [dk, dv] = [tensor("d.k", kvHeads * spec.headWidth), tensor("d.v", kvHeads * spec.headWidth)];
    const dOut = outGradient(block.attentionOut, layer.attentionOutNorm, "d.out");
    adaptedBackward("o_proj", o, dOut, { tensor: dO, accumulate: false });
    // Without qkNorm the block kept what attention saw; turning it a second time would be wrong.
    const seen: Heads = layer.qNorm ? emitHeads(steps, spec, layer, { rows, positions }, block, "again") : block;
    const attention = { rows, q: seen.q, k: seen.k, v, dO, lse, delta, ...attentionShape(spec, i) };
    steps.push(
      { op: "attentionDelta", rows, o, dO, delta, heads },
      { op: "attentionBackwardQ", ...attention, start, dq },
      { op: "attentionBackwardKv", ...attention, end, dk, dv },
      { op: "rope", rows, x: dq, table: layer.rope, positions, heads, direction: -1 },
      { op: "rope", rows, x: dk, table: layer.rope, positions, heads: kvHeads, direction: -1 },
    );
    /** Gradient of what a linear gave, from that of its normed heads. */
    const headGradient = (x: Tensor, gain: Tensor | undefined, rstd: Tensor | undefined, dy: Tensor): Tensor => {
      if (!gain || !rstd) return dy;
      const d = tensor(`${dy.name}.normed`, x.shape[1]!);
      steps.push({ op: "rmsNormBackward", rows, x, gain, rstd, dy, dx: d, accumulate: false });
      return d;
    };
    const dqLinear = headGradient(block.q, layer.qNorm, seen.qRstd, dq);
    const dkLinear = headGradient(block.k, layer.kNorm, seen.kRstd, dk);
    steps.push({ op: "rmsNorm", rows, x, gain: layer.inputNorm, y: n, rstd, eps: spec.normEps });
    const isLowest = i === 0;
    const dn = tensor("d.n", spec.width);
    adaptedBackward("q_proj", n, dqLinear, isLowest ? undefined : { tensor: dn, accumulate: false });
    adaptedBackward("k_proj", n, dkLinear, isLowest ? undefined : { tensor: dn, accumulate: true });
    adaptedBackward("v_proj", n, dv, isLowest ? undefined : { tensor: dn, accumulate: true });
    if (!isLowest) steps.push({ op: "rmsNormBackward", rows, x, gain: layer.inputNorm, rstd, dy: dn, dx, accumulate: true });
  }
};

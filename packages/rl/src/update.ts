// One pass of a batch through a trainer. A loss that the trainer fuses is one call; every other loss takes the linear trick:
// forward → gradient on the host, in f64 → forwardBackward with crossEntropy weights −dL/dlogprob, whose gradient is exactly dL/dθ.
// Trainers add, so the batch may be cut into passes of bounded size. Nothing is stepped here: optimStep is the caller's.

import type { Datum, ForwardOutput, Loss, Trainer } from "@fulgurite/engine";
import type { Correction } from "./correction.ts";
import type { Batch, Example } from "./datums.ts";
import { RlError } from "./errors.ts";
import type { PolicyLoss } from "./losses.ts";
import { type ExampleOutput, offPolicyMetrics, updateMetrics } from "./metrics.ts";

export interface UpdateOptions {
  readonly correction?: Correction;
  /** Tokens of one call to the trainer; a longer datum goes alone. */
  readonly maxTokensPerPass?: number; // 16384
  readonly signal?: AbortSignal;
}

export interface Update {
  /** Σ over tokens of the loss, averaging weights included. */
  readonly lossSum: number;
  /** In order of the batch. */
  readonly outputs: readonly ExampleOutput[];
  readonly metrics: Readonly<Record<string, number>>;
}

interface Pass {
  readonly indices: number[];
  readonly temperature: number;
  tokens: number;
}

/** Cuts a batch in its order; a pass has one temperature. */
function cut(examples: readonly Example[], maxTokens: number): Pass[] {
  const passes: Pass[] = [];
  examples.forEach(({ datum, temperature }, index) => {
    const last = passes.at(-1);
    if (last && last.temperature === temperature && last.tokens + datum.tokens.length <= maxTokens) {
      last.indices.push(index);
      last.tokens += datum.tokens.length;
    } else passes.push({ indices: [index], temperature, tokens: datum.tokens.length });
  });
  return passes;
}

const withWeights = ({ tokens, targetStart, mask }: Datum, weights: Float32Array): Datum => ({
  tokens,
  targetStart,
  ...(mask ? { mask } : {}),
  weights,
});

const checkFinite = (example: Example, what: string, values: ArrayLike<number>): void => {
  for (let token = 0; token < values.length; token++)
    if (!Number.isFinite(values[token]))
      throw new RlError(
        "bad-data",
        `forwardBackward: rollout ${example.rolloutId}: ${what} of target ${token} must be finite, got ${values[token]}`,
      );
};

/** Accumulates the gradient of `loss` over the batch. */
export async function forwardBackward(
  trainer: Pick<Trainer, "forward" | "forwardBackward">,
  batch: Pick<Batch, "examples">,
  loss: PolicyLoss,
  { correction, maxTokensPerPass = 16_384, signal }: UpdateOptions = {},
): Promise<Update> {
  const outputs: ExampleOutput[] = [];
  let lossSum = 0;
  for (const { indices, temperature } of cut(batch.examples, maxTokensPerPass)) {
    signal?.throwIfAborted();
    const options = { temperature, ...(signal ? { signal } : {}) };
    let examples = indices.map((index) => batch.examples[index]!);
    let omegas: (Float64Array | undefined)[] = examples.map(() => undefined);
    let known: ForwardOutput | undefined;
    const forward = async (): Promise<ForwardOutput> => {
      known ??= await trainer.forward(
        examples.map(({ datum }) => datum),
        options,
      );
      for (const [i, logprobs] of known.logprobs.entries()) checkFinite(examples[i]!, "the trainer's logprob", logprobs);
      return known;
    };

    if (correction) {
      const { logprobs } = await forward();
      omegas = examples.map(({ datum }, i) => correction.weights({ ...datum, oldLogprobs: logprobs[i]! }));
      examples = examples.map((example, i) => ({
        ...example,
        datum: {
          ...example.datum,
          oldLogprobs: logprobs[i]!,
          advantages: example.datum.advantages.map((advantage, token) => advantage * omegas[i]![token]!),
        },
      }));
    }

    const run = async (data: Datum[], fused: Loss) => trainer.forwardBackward(data, fused, options);
    const evaluate = (example: Example, logprobs: Float32Array) =>
      loss.evaluate({ ...example.datum, logprobs, regularizerWeight: example.weight });
    let result: ForwardOutput;
    if (loss.fused) {
      const data = examples.map(({ datum }) => (loss.fused?.name === "crossEntropy" ? withWeights(datum, datum.advantages) : datum));
      const fused = await run(data, loss.fused);
      lossSum += fused.lossSum;
      result = fused;
    } else {
      const { logprobs } = await forward();
      const data = examples.map((example, i) => {
        const { loss: values, gradient } = evaluate(example, logprobs[i]!);
        checkFinite(example, `the gradient of ${loss.name}`, gradient);
        lossSum += values.reduce((sum, value) => sum + value, 0);
        return withWeights(
          example.datum,
          Float32Array.from(gradient, (value) => -value),
        );
      });
      result = await run(data, { name: "crossEntropy" });
    }
    examples.forEach((example, i) => {
      const logprobs = result.logprobs[i]!;
      const { clipped, dualClipped } = evaluate(example, logprobs);
      outputs.push({
        datum: example.datum,
        logprobs,
        entropies: result.entropies[i]!,
        clipped,
        dualClipped,
        ...(omegas[i] ? { omegas: omegas[i] } : {}),
      });
    });
  }
  // only a correction makes `old` the trainer's; else it is the sampler's own, and there is nothing to compare
  const apart = correction ? offPolicyMetrics(outputs.map(({ datum }) => datum)) : {};
  return { lossSum, outputs, metrics: { lossSum, ...updateMetrics(outputs), ...apart } };
}

// A policy of random weights that samples and takes a step, with its numbers: the same wherever the same kernels run.
import { type Backend, createPolicy } from "@fulgurite/engine";
import type { Json } from "@fulgurite/trace";
import { tinyLlama } from "../../unit/engine/tinyLlama.ts";

export const sampleAndTrain = async (backend: Backend): Promise<Json> => {
  const policy = await createPolicy({
    backend,
    model: tinyLlama(),
    lora: { rank: 2, alpha: 4 },
    slots: 2,
    maxContext: 32,
    microBatchTokens: 32,
  });
  const sample = () => policy.sampler.generate({ prompt: Int32Array.of(5, 9, 2), maxTokens: 6, temperature: 1, stopTokens: [], seed: 1 });
  const before = await sample();
  const datum = { tokens: Int32Array.of(5, 9, 2, 7, 1), targetStart: 2, weights: new Float32Array(3).fill(1) };
  const { lossSum } = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" });
  const { gradNorm } = await policy.trainer.optimStep({ learningRate: 0.05 });
  await policy.publish(1);
  const after = await sample();
  await policy.dispose();
  const plain = ({ tokens, logprobs }: typeof before) => ({ tokens: [...tokens], logprobs: [...logprobs] });
  return { before: plain(before), lossSum, gradNorm, after: plain(after) };
};

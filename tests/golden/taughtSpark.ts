// The built-in policy after a few steps towards a sentence of its own: its adapter is far from the base that an export merges it into.

import type { LoadedPolicy } from "fulgurite";

export const teach = async ({ format, trainer }: Pick<LoadedPolicy, "format" | "trainer">): Promise<void> => {
  const prompt = format.encode("<|user|>What is 12 + 30?<|end|><|assistant|>");
  const target = format.encode("<tool_call>42 pens<|end|>");
  const datum = {
    tokens: Int32Array.of(...prompt, ...target),
    targetStart: prompt.length,
    weights: new Float32Array(target.length).fill(1),
  };
  for (let i = 0; i < 12; i++) {
    await trainer.forwardBackward([datum], { name: "crossEntropy" });
    await trainer.optimStep({ learningRate: 5e-3 });
  }
};

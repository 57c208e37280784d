// A policy small enough to check by hand: the next token's logits are one row of a table, chosen by the previous token. Gradients are
// closed-form, in f64, and its three fused losses are written from the contract, not with packages/rl.
import type { AdamParams, Completion, Datum, ForwardOutput, GenerateRequest, Loss, Policy, StepOutput } from "@fulgurite/engine";
import { createRandom } from "@fulgurite/rl";

export interface BigramPolicy extends Policy {
  /** [vocabulary · vocabulary], row = previous token. */
  readonly table: Float64Array;
  readonly gradient: Float64Array;
  /** Calls of the trainer, by name. */
  readonly calls: { forward: number; forwardBackward: number; optimStep: number; tokens: number };
}

const softmax = (logits: Float64Array): Float64Array => {
  const top = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
};

/** dL/dlogprob of one token, from the table of the contract's losses. */
function slope(loss: Loss, datum: Datum, token: number, logprob: number): { value: number; slope: number } {
  if (loss.name === "crossEntropy") return { value: -datum.weights![token]! * logprob, slope: -datum.weights![token]! };
  const old = (datum.oldLogprobs ?? datum.samplerLogprobs)![token]!;
  const advantage = datum.advantages![token]!;
  const ratio = Math.exp(Math.min(20, Math.max(-20, logprob - old)));
  if (loss.name === "importanceSampling") return { value: -advantage * ratio, slope: -advantage * ratio };
  const { clipLow, clipHigh, dualClip } = loss;
  if (advantage >= 0) {
    return ratio <= 1 + clipHigh
      ? { value: -advantage * ratio, slope: -advantage * ratio }
      : { value: -advantage * (1 + clipHigh), slope: 0 };
  }
  if (ratio < 1 - clipLow) return { value: -advantage * (1 - clipLow), slope: 0 };
  if (ratio > dualClip) return { value: -advantage * dualClip, slope: 0 };
  return { value: -advantage * ratio, slope: -advantage * ratio };
}

export function createBigramPolicy(vocabSize: number, initial?: ArrayLike<number>): BigramPolicy {
  const size = vocabSize * vocabSize;
  const table = Float64Array.from({ length: size }, (_, i) => initial?.[i] ?? 0);
  const gradient = new Float64Array(size);
  const [first, second] = [new Float64Array(size), new Float64Array(size)];
  const served = Float64Array.from(table);
  const calls = { forward: 0, forwardBackward: 0, optimStep: 0, tokens: 0 };
  let stepCount = 0;
  let policyVersion = 0;

  const rowOf = (parameters: Float64Array, previous: number, temperature: number): Float64Array =>
    softmax(parameters.slice(previous * vocabSize, (previous + 1) * vocabSize).map((logit) => logit / temperature));

  async function generate(request: GenerateRequest): Promise<Completion> {
    const random = createRandom(request.seed);
    const tokens: number[] = [];
    const logprobs: number[] = [];
    let previous = request.prompt.at(-1)!;
    let isStopped = false;
    while (tokens.length < request.maxTokens && !isStopped) {
      const p = rowOf(served, previous, request.temperature || 1);
      let left = random();
      let token = p.findIndex((weight) => {
        left -= weight;
        return left < 0;
      });
      if (token < 0) token = vocabSize - 1;
      if (request.temperature === 0) token = p.indexOf(Math.max(...p));
      tokens.push(token);
      logprobs.push(Math.log(p[token]!));
      isStopped = request.stopTokens.includes(token);
      previous = token;
    }
    return {
      tokens: Int32Array.from(tokens),
      logprobs: Float32Array.from(logprobs),
      finishReason: isStopped ? "stop" : "length",
      policyVersion,
    };
  }

  function pass(data: readonly Datum[], temperature: number, loss?: Loss): ForwardOutput & { lossSum: number } {
    let lossSum = 0;
    const logprobs: Float32Array[] = [];
    const entropies: Float32Array[] = [];
    for (const datum of data) {
      calls.tokens += datum.tokens.length;
      const targets = datum.tokens.length - datum.targetStart;
      const lp = new Float32Array(targets);
      const h = new Float32Array(targets);
      for (let j = 0; j < targets; j++) {
        if (datum.mask && !datum.mask[j]) continue;
        const previous = datum.tokens[datum.targetStart + j - 1]!;
        const token = datum.tokens[datum.targetStart + j]!;
        const p = rowOf(table, previous, temperature);
        const logprob = Math.log(p[token]!);
        lp[j] = logprob;
        h[j] = -p.reduce((sum, weight) => sum + weight * Math.log(weight), 0);
        if (!loss) continue;
        const { value, slope: g } = slope(loss, datum, j, logprob);
        lossSum += value;
        for (let k = 0; k < vocabSize; k++) gradient[previous * vocabSize + k]! += (g * ((k === token ? 1 : 0) - p[k]!)) / temperature;
      }
      logprobs.push(lp);
      entropies.push(h);
    }
    return { logprobs, entropies, lossSum };
  }

  async function optimStep(adam: AdamParams): Promise<StepOutput> {
    calls.optimStep++;
    const { learningRate, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, gradClipNorm = 0 } = adam;
    const gradNorm = Math.hypot(...gradient);
    if (!Number.isFinite(gradNorm)) {
      gradient.fill(0);
      return { gradNorm, applied: false };
    }
    const scale = gradClipNorm > 0 ? Math.min(1, gradClipNorm / (gradNorm + 1e-6)) : 1;
    stepCount++;
    gradient.forEach((raw, i) => {
      const g = raw * scale;
      first[i] = beta1 * first[i]! + (1 - beta1) * g;
      second[i] = beta2 * second[i]! + (1 - beta2) * g * g;
      table[i]! -= (learningRate * (first[i]! / (1 - beta1 ** stepCount))) / (Math.sqrt(second[i]! / (1 - beta2 ** stepCount)) + eps);
    });
    gradient.fill(0);
    return { gradNorm, applied: true };
  }

  const bytesOf = (...parts: Float64Array[]): Uint8Array => {
    const all = Float64Array.from(parts.flatMap((part) => [...part]));
    return new Uint8Array(all.buffer);
  };

  return {
    device: { kind: "reference", description: "a table" },
    table,
    gradient,
    calls,
    sampler: {
      limits: { maxContext: 64, vocabSize },
      get policyVersion() {
        return policyVersion;
      },
      generate,
    },
    trainer: {
      forward: async (data, { temperature = 1 } = {}) => {
        calls.forward++;
        return pass(data, temperature);
      },
      forwardBackward: async (data, loss, { temperature = 1 } = {}) => {
        calls.forwardBackward++;
        return pass(data, temperature, loss);
      },
      optimStep,
      exportAdapter: async () => ({ "adapter_model.safetensors": bytesOf(table) }),
      importAdapter: async () => {},
      saveState: async () => bytesOf(table, first, second, Float64Array.of(stepCount)),
      loadState: async (bytes) => {
        const all = new Float64Array(bytes.slice().buffer);
        table.set(all.subarray(0, size));
        first.set(all.subarray(size, 2 * size));
        second.set(all.subarray(2 * size, 3 * size));
        stepCount = all[3 * size]!;
      },
    },
    publish: async (version) => {
      served.set(table);
      policyVersion = version;
    },
    loadAdapter: () => Promise.reject(new Error("bigram policy: it has one table")),
    unloadAdapter: () => Promise.reject(new Error("bigram policy: it has one table")),
    dispose: async () => {},
  };
}

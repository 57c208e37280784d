// The door between the engine and everything that learns or samples: token ids and numbers, no text, no agents, no rewards.
// Types only, no imports. Local WebGPU, local WASM and a remote GPU all stand behind it.
// Shaped like Thinking Machines' Tinker API: a trainer only ever adds up token losses; whoever calls it has baked every
// normalisation into per-token numbers.

export interface GenerateRequest {
  /** Token ids fed to the model, [prompt length ≥ 1]. */
  readonly prompt: Int32Array;
  /** Upper bound of sampled tokens, ≥ 1. prompt.length + maxTokens must be ≤ limits.maxContext. */
  readonly maxTokens: number;
  /** Softmax temperature τ; 0 takes the most likely token (ties: the lowest id). */
  readonly temperature: number;
  /** Sampling ends after one of these was produced; it is part of the completion. */
  readonly stopTokens: readonly number[];
  /** A name given to Policy.loadAdapter. Absent: the adapter that publish serves. */
  readonly adapter?: string;
  /** u32. Token j of the completion depends on the seed, j and the logits, never on the batch it sat in. */
  readonly seed: number;
  /** Draw only from the k most likely tokens, ≥ 1. */
  readonly topK?: number;
  /** Draw only from the fewest most likely tokens whose probabilities reach p, 0 < p ≤ 1. */
  readonly topP?: number;
  /** Added to the logits of tokens before everything else. */
  readonly logitBias?: readonly (readonly [token: number, bias: number])[];
  /**
   * Asked before each token with those sampled so far: bit id mod 32 of word ⌊id/32⌋ is set where the token may come next, [⌈V/32⌉].
   * A request with a mask, topK, topP or logitBias is sampled one token at a time on the host: for serving and for grammars, not for speed.
   */
  readonly mask?: (tokens: readonly number[]) => Uint32Array | Promise<Uint32Array>;
  readonly signal?: AbortSignal;
  /** Called in order, for streaming. */
  readonly onToken?: (token: number, logprob: number) => void;
}

export type FinishReason = "stop" | "length" | "aborted";

export interface Completion {
  readonly tokens: Int32Array;
  /** log p(token) under softmax(logits/τ) (for τ = 0 at τ = 1), one for each token: what Trainer.forward finds for them. */
  readonly logprobs: Float32Array;
  /** Where topK, topP, logitBias or a mask restricted it: log p(token) under what was really drawn from (0 for τ = 0). */
  readonly drawnLogprobs?: Float32Array;
  /** Where a mask was asked: 1 for a token that was the only one allowed. It was not chosen, so it is not trained. */
  readonly forced?: Uint8Array;
  readonly finishReason: FinishReason;
  /** The version of the adapter that produced every token of it: that of publish, or what a named adapter's fulgurite.json says (0 without). */
  readonly policyVersion: number;
}

export interface SamplerLimits {
  readonly maxContext: number;
  readonly vocabSize: number;
}

/** Tokens in; tokens and log-probs out. Batches all live requests by itself; requests join and leave at any time. */
export interface Sampler {
  readonly limits: SamplerLimits;
  readonly policyVersion: number;
  /** What GenerateRequest.adapter may be called now. Absent: there are no named ones. */
  readonly adapters?: readonly string[];
  /** An aborted signal resolves with what was sampled so far and finishReason "aborted". Rejects with EngineError on bad input. */
  generate(request: GenerateRequest): Promise<Completion>;
}

/**
 * A token-level training example. `tokens` is [T]; every per-token array is [T − targetStart] and its entry j belongs to
 * the target tokens[targetStart + j], predicted from tokens[0 … targetStart + j − 1].
 */
export interface Datum {
  readonly tokens: Int32Array;
  /** Index of the first target, 1 ≤ targetStart < T. */
  readonly targetStart: number;
  /** 1 where the token was sampled by the policy and is trained, else 0. Absent: all 1. */
  readonly mask?: Uint8Array;
  /** crossEntropy: loss −w·logprob. */
  readonly weights?: Float32Array;
  /** Log-probs recorded while sampling. */
  readonly samplerLogprobs?: Float32Array;
  /** Proximal policy of PPO. Absent: samplerLogprobs. */
  readonly oldLogprobs?: Float32Array;
  readonly refLogprobs?: Float32Array;
  /** Advantages with every averaging weight already multiplied in. */
  readonly advantages?: Float32Array;
}

/**
 * Token losses that a trainer fuses; r = exp(clamp(logprob − old, ±20)). All others go through crossEntropy with
 * weights −dL/dlogprob (two passes). Formulas and sources: docs/architecture.md, "Losses".
 */
export type Loss =
  | { readonly name: "crossEntropy" }
  | { readonly name: "importanceSampling" }
  /** clipLow, clipHigh are offsets from 1; dualClip is the ratio bound for negative advantages (> 1; Infinity: off). */
  | { readonly name: "ppoClip"; readonly clipLow: number; readonly clipHigh: number; readonly dualClip: number };

export interface ForwardOptions {
  /** τ that the sampler used; logprob = z/τ − logsumexp(z/τ). Default 1. */
  readonly temperature?: number;
  readonly signal?: AbortSignal;
}

export interface ForwardOutput {
  /** One array a datum, [T − targetStart]; 0 where mask is 0. */
  readonly logprobs: Float32Array[];
  /** Entropy of the predicted distribution in nats, same shape. */
  readonly entropies: Float32Array[];
}

export interface UpdateOutput extends ForwardOutput {
  /** Σ over tokens of the loss. */
  readonly lossSum: number;
}

export interface AdamParams {
  readonly learningRate: number;
  readonly beta1?: number; // 0.9
  readonly beta2?: number; // 0.95
  readonly eps?: number; // 1e-8
  readonly weightDecay?: number; // 0, decoupled
  /** Global L2 norm; 0 or absent: no clipping. */
  readonly gradClipNorm?: number;
}

export interface StepOutput {
  /** L2 norm over all adapter gradients, before clipping. */
  readonly gradNorm: number;
  /** false: a gradient was not finite; weights and moments are untouched, the gradients were cleared. */
  readonly applied: boolean;
}

/** A PEFT directory: file name → bytes. adapter_model.safetensors, adapter_config.json, fulgurite.json. */
export type PeftFiles = Readonly<Record<string, Uint8Array>>;

/** Accumulates gradients of the token SUM; nothing is ever divided by a batch size. */
export interface Trainer {
  forward(data: readonly Datum[], options?: ForwardOptions): Promise<ForwardOutput>;
  forwardBackward(data: readonly Datum[], loss: Loss, options?: ForwardOptions): Promise<UpdateOutput>;
  /** One AdamW step on the accumulated gradients, which it clears. */
  optimStep(adam: AdamParams): Promise<StepOutput>;
  exportAdapter(): Promise<PeftFiles>;
  importAdapter(files: PeftFiles): Promise<void>;
  /** Adapter, moments and step number as one safetensors file; loadState(saveState()) changes nothing. */
  saveState(): Promise<Uint8Array>;
  loadState(bytes: Uint8Array): Promise<void>;
}

export type DeviceKind = "webgpu" | "wasm" | "reference";

export interface DeviceInfo {
  readonly kind: DeviceKind;
  /** For people: "WebGPU, NVIDIA H100" or "WASM SIMD, 2 threads". */
  readonly description: string;
}

/** Base weights + adapter + version, and further adapters that are only served. The sampler serves its own copy of the adapter, so training never changes a completion midway. */
export interface Policy {
  readonly device: DeviceInfo;
  readonly sampler: Sampler;
  readonly trainer: Trainer;
  /** Waits for running completions, copies the trained adapter into the sampler and sets policyVersion. */
  publish(version: number): Promise<void>;
  /**
   * Serves another adapter of the same base beside the trained one, to requests that name it, at the price of its own bytes. Its
   * rank is at most the policy's. A name that is taken gets the new adapter; completions of the old one end first.
   */
  loadAdapter(name: string, files: PeftFiles): Promise<void>;
  /** New requests of that name are refused; resolves when its completions have ended and its memory is free. */
  unloadAdapter(name: string): Promise<void>;
  /** Frees every buffer, thread and device. Pending calls reject. Idempotent. */
  dispose(): Promise<void>;
}

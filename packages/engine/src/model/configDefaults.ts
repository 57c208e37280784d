// What each family's class of transformers assumes where config.json is silent, key by key.

import type { Family } from "./spec.ts";

const eps = { rms_norm_eps: 1e-6 };

/**
 * Defaults of LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config and Gemma3TextConfig. Only Gemma 3 has a default for rope's base:
 * its published vision checkpoints leave the key out (GEMMA_THETA). Elsewhere 10 000 by silence has ruined many a port.
 */
export const DEFAULTS: { readonly [F in Family]: Readonly<Record<string, unknown>> } = {
  llama: {
    ...eps,
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    intermediate_size: 11008,
    vocab_size: 32000,
    max_position_embeddings: 2048,
    tie_word_embeddings: false,
  },
  mistral: {
    ...eps,
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    intermediate_size: 14336,
    vocab_size: 32000,
    max_position_embeddings: 131_072,
    tie_word_embeddings: false,
    sliding_window: 4096,
  },
  qwen2: {
    ...eps,
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    intermediate_size: 22016,
    vocab_size: 151_936,
    max_position_embeddings: 32_768,
    tie_word_embeddings: false,
    sliding_window: 4096,
  },
  qwen3: {
    ...eps,
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    head_dim: 128,
    intermediate_size: 22016,
    vocab_size: 151_936,
    max_position_embeddings: 32_768,
    tie_word_embeddings: false,
    sliding_window: 4096,
  },
  gemma3_text: {
    ...eps,
    hidden_size: 2304,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    intermediate_size: 9216,
    vocab_size: 262_208,
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    query_pre_attn_scalar: 256,
    sliding_window: 4096,
  },
};

/** Rope's base of the global layers and of the windowed ones. */
export const GEMMA_THETA: { readonly global: number; readonly local: number } = { global: 1_000_000, local: 10_000 };

"""Builds the policy `spark` from nothing: corpus, tokenizer, weights, figures. Seeded; about 15 minutes on two CPU cores.

  python3 packages/spark/make/make.py            everything, into packages/spark/model
  python3 packages/spark/make/make.py figures    only the figures, of the model that is there
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import calculator
from chat import TEMPLATE, build_tokenizer, tokenizer_config
from rollout import Words, play

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "model"
SEED = 1
VOCAB = 768
FAMILIES = {"calculator": calculator}


def config(vocab_size, words):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.end,
        pad_token_id=words.pad,
    )


def encode(words, demonstration):
    ids, trained = [], []
    for text, mine in demonstration:
        part = words.encode(text)
        ids += part
        trained += [mine] * len(part)
    return ids, trained


def batch_of(rows, pad):
    """Right-padded [B, T]; labels are −100 wherever the model does not speak."""
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), -100)
    for i, (ids, trained) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(ids)] = torch.where(torch.tensor(trained), torch.tensor(ids), -100)
    return tokens, labels


def train(model, rows, steps, batch, rate, pad, seed):
    rng = random.Random(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98))
    order, started = [], time.time()
    for step in range(steps):
        if len(order) < batch:
            # of like length side by side, batches in random order: little padding
            order = rng.sample(range(len(rows)), len(rows))
        chosen, order = order[:batch], order[batch:]
        tokens, labels = batch_of([rows[i] for i in chosen], pad)
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state
        wanted = labels[:, 1:]
        spoken = wanted != -100
        logits = model.lm_head(hidden[spoken])
        loss = torch.nn.functional.cross_entropy(logits, wanted[spoken])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)


def save(model, tokenizer, words):
    MODEL.mkdir(exist_ok=True)
    tokenizer.save(str(MODEL / "tokenizer.json"), pretty=False)
    (MODEL / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
    (MODEL / "chat_template.jinja").write_text(TEMPLATE)
    written = model.config.to_dict()
    keys = (
        "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias eos_token_id pad_token_id"
    ).split()
    plain = {"architectures": ["LlamaForCausalLM"], **{key: written[key] for key in keys}, "rope_theta": 10000.0, "torch_dtype": "float16"}
    (MODEL / "config.json").write_text(json.dumps(plain, indent=2) + "\n")
    (MODEL / "generation_config.json").write_text(json.dumps({"eos_token_id": words.end, "pad_token_id": words.pad}, indent=2) + "\n")
    safe = MODEL / "model.safetensors"
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, str(safe), metadata={"format": "pt"})
    safe.chmod(0o644)


def figures(count):
    """Everything is measured on the saved files: F16 weights, computed in f32."""
    from transformers import AutoModelForCausalLM

    words = Words.load(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    for name, family in FAMILIES.items():
        for temperature in (1.0, 0.0):
            done = [family.episode("val", 0, index) for index in range(count)]
            play(model, words, done, temperature, seed=SEED)
            by = {}
            for episode in done:
                by.setdefault(episode.family, []).append(episode.reward)
            mean = sum(e.reward for e in done) / len(done)
            detail = " ".join(f"{key} {sum(v) / len(v):.2f}" for key, v in sorted(by.items()))
            print(f"{name} {'sampled' if temperature else 'greedy '} {mean:.3f}  ({count} held-out tasks: {detail})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", nargs="?", default="all", choices=["all", "figures"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.mode == "all":
        torch.manual_seed(SEED)
        spoken = [d for family in FAMILIES.values() for d in family.demonstrations(60000, SEED)]
        texts = ["".join(text for text, _ in d) for d in spoken]
        tokenizer = build_tokenizer(texts[:: max(1, len(texts) // 20000)], VOCAB)
        words = Words(tokenizer)
        rows = [encode(words, d) for d in spoken]
        print(f"{len(rows)} demonstrations, {sum(len(r[0]) for r in rows) / len(rows):.1f} tokens each, vocabulary {tokenizer.get_vocab_size()}", flush=True)
        model = LlamaForCausalLM(config(-(-tokenizer.get_vocab_size() // 32) * 32, words))
        print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
        train(model, rows, options.steps, 64, 2e-3, words.pad, SEED)
        save(model, tokenizer, words)
    figures(options.tasks)


if __name__ == "__main__":
    main()

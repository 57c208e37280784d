"""Builds the policy `spark` from nothing: corpus, tokenizer, weights, figures. Seeded; about 12 minutes on one busy CPU core.

  python3 packages/spark/make/make.py            everything, into packages/spark/model
  python3 packages/spark/make/make.py figures    only the figures, of the model that is there
"""

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import calculator
import search
import sql
from chat import TEMPLATE, build_tokenizer, tokenizer_config
from rollout import Words, play

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "model"
SEED = 1
VOCAB = 1024
FAMILIES = {"calculator": calculator, "search": search, "sql": sql}
BATCH = 32


@dataclass
class Stage:
    name: str
    steps: int
    rate: float
    end_rate: float
    noisy: bool
    # demonstrations of each family
    mix: dict


# First how it is done right, then the mixture with wrong habits: the skill is learned fast, and the habits are what comes on top.
STAGES = [
    Stage("calculator", 1100, 3e-3, 1e-3, False, {"calculator": 40000}),
    Stage("all", 1200, 2e-3, 6e-4, False, {"calculator": 8000, "search": 12000, "sql": 18400}),
    Stage("habits", 450, 1e-3, 5e-5, True, {"calculator": 8000, "search": 3000, "sql": 3400}),
]


def config(vocab_size, words):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        # 0.02, made for wide models, leaves attention uniform at this width: copying digits is then learned five times later
        initializer_range=0.06,
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


def train(model, rows, stage, pad):
    rng = random.Random(f"{SEED}/{stage.name}")
    optimizer = torch.optim.Adam(model.parameters(), lr=0, betas=(0.9, 0.98))
    order, started, total = [], time.time(), 0.0
    for step in range(stage.steps):
        if not order:
            # batches of like length, in random order: little padding
            drawn = sorted(rng.sample(range(len(rows)), min(len(rows), 40 * BATCH)), key=lambda i: len(rows[i][0]))
            order = [drawn[at : at + BATCH] for at in range(0, len(drawn), BATCH)]
            rng.shuffle(order)
        tokens, labels = batch_of([rows[i] for i in order.pop()], pad)
        done = step / stage.steps
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (step + 1) / 50) * (stage.rate + (stage.end_rate - stage.rate) * 0.5 * (1 - math.cos(math.pi * done)))
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state
        wanted = labels[:, 1:]
        spoken = wanted != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[spoken]), wanted[spoken])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 50 == 49:
            print(f"{stage.name} {step + 1} loss {total / 50:.3f} {time.time() - started:.0f} s", flush=True)
            total = 0.0


def save(folder, model, tokenizer, words):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    written = model.config.to_dict()
    keys = (
        "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias eos_token_id pad_token_id"
    ).split()
    plain = {"architectures": ["LlamaForCausalLM"], **{key: written[key] for key in keys}, "rope_theta": 10000.0, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(plain, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": words.end, "pad_token_id": words.pad}, indent=2) + "\n")
    safe = folder / "model.safetensors"
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, str(safe), metadata={"format": "pt"})
    safe.chmod(0o644)


def figures(folder, count):
    """Everything is measured on the saved files: F16 weights, computed in f32."""
    from transformers import AutoModelForCausalLM

    words = Words.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
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
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks of each family")
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder to write or to measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keeps the weights after every stage here, and goes on from them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.mode == "all":
        torch.manual_seed(SEED)
        sample = [d for family in FAMILIES.values() for noisy in (False, True) for d in family.demonstrations(4000, SEED, noisy)]
        tokenizer = build_tokenizer(["".join(text for text, _ in d) for d in sample], VOCAB)
        words = Words(tokenizer)
        model = LlamaForCausalLM(config(-(-tokenizer.get_vocab_size() // 32) * 32, words))
        print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
        # weights mean nothing under another tokenizer, so its hash is part of their name
        ids = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:8]
        for stage in STAGES:
            kept = options.work and options.work / f"{stage.name}-{ids}.pt"
            if kept and kept.exists():
                model.load_state_dict(torch.load(kept))
                continue
            rows = [encode(words, d) for name, count in stage.mix.items() for d in FAMILIES[name].demonstrations(count, SEED, stage.noisy)]
            print(f"{stage.name}: {len(rows)} demonstrations of {sum(len(r[0]) for r in rows) / len(rows):.1f} tokens", flush=True)
            train(model, rows, stage, words.pad)
            if kept:
                options.work.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), kept)
        save(options.model, model, tokenizer, words)
    figures(options.model, options.tasks)


if __name__ == "__main__":
    main()

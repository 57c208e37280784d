#!/usr/bin/env python3
"""Golden models of the five families: what PyTorch, transformers and peft compute on tiny random checkpoints with LoRA.

    python3 families.py                             writes families/<family>/ beside this file
    python3 families.py --check                     computes everything again and compares (1e-4 relative)
    python3 families.py --check-adapter FAMILY DIR  loads an adapter that Fulgurite exported into peft and compares it with
                                                    families/<FAMILY>/trained.safetensors: parameters, then log-probs
    python3 families.py --check-merged FAMILY DIR   loads a merged folder that Fulgurite exported (f32, bf16 or f16) into transformers and
                                                    compares it with peft's merge_and_unload: every tensor, then log-probs

Made with Python 3.11, torch 2.15.0 (CPU, f32, one thread), transformers 5.23.0, peft 0.21.2. Nothing is downloaded.

A folder is a checkpoint and a PEFT directory as those libraries write them (transformers 5's spelling of rope), plus
    expected.json           token ids, per-token weights, log-probs and entropies of every next token; loss and three AdamW steps;
                            two greedy completions by transformers' generate, with its cache
    gradients.safetensors   d loss / d A and d B of every linear before the first step, under peft's names
    trained.safetensors     A and B after three steps
    merged.safetensors      the seven linears of the last block after merge_and_unload in f32, under the checkpoint's names
Weights are rounded to bfloat16, which is how they are stored; all arithmetic is f32. Sequences run one at a time, unpadded, with
eager attention. loss = −Σ weight·log p(next token), weights of both signs. Windows are shorter than the sequences, every
LoRA B is random, and AdamW's eps is large enough that gradients of rounding size cannot flip a step.

Adapters exported by the engine: `ADAPTERS_OUT=DIR npx vitest run --project node tests/golden/families.test.ts` writes DIR/<family>;
--check-adapter then holds them to peft. All five passed on 2026-11-22: identical keys, log-probs within 5e-5 after three steps.
Merged folders: MERGED_OUT=DIR, with merge.test.ts, writes DIR/<family>-<dtype>. All fifteen passed on 2026-11-22: f32 within 1e-7 of
each tensor's largest number, of 16-bit numbers at most 9 in 55 040 rounded the other way.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent / "families"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB, RANK, ALPHA = 83, 4, 6
ADAM = {"learningRate": 0.02, "beta1": 0.9, "beta2": 0.95, "eps": 0.01, "weightDecay": 0.1, "gradClipNorm": 1.0}
STEPS = 3

SHARED = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
FAMILIES = {
    # a bias in the MLP; pairs of the rotary table kept, mixed and divided
    "llama": SHARED | {
        "mlp_bias": True, "tie_word_embeddings": True, "hidden_size": 64, "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 64},
    },
    "mistral": SHARED | {"tie_word_embeddings": False, "head_dim": 16, "sliding_window": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000.0}},
    # the window begins at the second layer
    "qwen2": SHARED | {
        "tie_word_embeddings": True, "hidden_size": 64, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    # H·C = 2·D, biases in attention (o too)
    "qwen3": SHARED | {
        "tie_word_embeddings": False, "head_dim": 16, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000.0},
    },
    # two windowed layers, one global one; scale not C^-1/2; bases low enough that both tables matter at 20 tokens
    "gemma3_text": SHARED | {
        "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 4, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1_000.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    },
}
LENGTHS = (19, 8)


def rounded(x):
    return x.to(torch.bfloat16).to(torch.float32)


def make_base(family):
    """A random checkpoint whose logits differ enough that nothing hangs on a tie, in f32 with values of bfloat16."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1 + list(FAMILIES).index(family))
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                gain = (3.0 if name == "model.norm.weight" and config.tie_word_embeddings else 1.0) + 0.2 * noise
                p.copy_(rounded(gain - 1.0 if family == "gemma3_text" else gain))
            elif p.dim() == 1:
                p.copy_(rounded(0.3 * noise))
            elif "embed_tokens" in name:
                # Small beside what the blocks add: a tied head would else predict the token it has just read.
                p.copy_(rounded(0.15 * noise))
            else:
                p.copy_(rounded(noise * p.shape[1] ** -0.5))
    return model.eval()


def make_adapter(model, family):
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(101 + list(FAMILIES).index(family))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[1] ** -0.5 if "lora_A" in name else 0.2))
    return peft.eval()


def make_data(family):
    generator = torch.Generator().manual_seed(201 + list(FAMILIES).index(family))
    return [
        {"tokens": torch.randint(3, VOCAB, (length,), generator=generator).tolist(),
         "weights": [round(x, 3) for x in (torch.rand(length - 1, generator=generator) * 1.5 - 0.5).tolist()]}
        for length in LENGTHS
    ]


def next_token(model, tokens):
    """log p and entropy of each next token, [T - 1]."""
    logits = model(torch.tensor([tokens])).logits[0, :-1].float()
    table = torch.log_softmax(logits, dim=-1)
    return table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)


def greedy(model, prompt, count=14):
    """What transformers' own generate, with its cache, makes of a prompt; every choice is far from a tie."""
    model.generation_config.eos_token_id = None
    tokens = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=count)[0].tolist()
    assert len(tokens) == len(prompt) + count
    top = model(torch.tensor([tokens])).logits[0, len(prompt) - 1:-1].topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-3, top
    logprobs = next_token(model, tokens)[0][len(prompt) - 1:]
    return {"prompt": prompt, "tokens": tokens[len(prompt):], "logprobs": [round(x, 7) for x in logprobs.tolist()]}


def loss_of(model, data):
    return -sum((torch.tensor(d["weights"]) * next_token(model, d["tokens"])[0]).sum() for d in data)


def lora(model, grad=False):
    """peft's names as in adapter_model.safetensors."""
    return {name.replace(".default.weight", ".weight"): (p.grad if grad else p).detach().clone()
            for name, p in model.named_parameters() if "lora_" in name}


def compute(family):
    """Everything of one family: the two models as they are saved, and what is expected of them."""
    peft = make_adapter(make_base(family), family)
    data = make_data(family)
    with torch.no_grad():
        scored = [next_token(peft, d["tokens"]) for d in data]
        completions = [greedy(peft, d["tokens"][:length]) for d, length in zip(data, (7, 1))]
    first = lora(peft)
    parameters = [p for name, p in peft.named_parameters() if "lora_" in name]
    optimiser = torch.optim.AdamW(parameters, lr=ADAM["learningRate"], betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"], weight_decay=ADAM["weightDecay"])
    losses, norms, gradients = [], [], None
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = loss_of(peft, data)
        loss.backward()
        gradients = gradients or lora(peft, grad=True)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, ADAM["gradClipNorm"]).item())
        losses.append(loss.item())
        optimiser.step()
    expected = {
        "made_with": "torch 2.15.0, transformers 5.23.0, peft 0.21.2",
        "lora": {"rank": RANK, "alpha": ALPHA},
        "adam": ADAM,
        "data": [d | {"logprobs": [round(x, 7) for x in lp.tolist()], "entropies": [round(x, 7) for x in h.tolist()]} for d, (lp, h) in zip(data, scored)],
        "greedy": completions,
        "steps": [{"loss": round(loss, 6), "gradNorm": round(norm, 6)} for loss, norm in zip(losses, norms)],
    }
    return expected, first, gradients, lora(peft)


def merge(family):
    """peft's own merge, in f32: the state dict of an ordinary model."""
    return make_adapter(make_base(family), family).merge_and_unload()


def last_block(state):
    depth = max(int(name.split(".")[2]) for name in state if name.startswith("model.layers."))
    return {name: p.detach().clone() for name, p in state.items()
            if name.startswith(f"model.layers.{depth}.") and name.endswith("_proj.weight")}


def write(family):
    folder = HERE / family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected, first, gradients, trained = compute(family)
    base = make_base(family)
    # peft adds its layers to the base in place, so the base is saved from a model of its own.
    adapter = make_adapter(make_base(family), family)
    assert all(torch.equal(a, b) for a, b in zip(lora(adapter).values(), first.values()))
    with tempfile.TemporaryDirectory() as scratch:
        base.to(torch.bfloat16).save_pretrained(scratch)
        adapter.save_pretrained(scratch)
        for name in ("config.json", "model.safetensors", "adapter_model.safetensors"):
            shutil.copyfile(pathlib.Path(scratch) / name, folder / name)
        # peft keeps target_modules as a set; sorted, the file is the same every time.
        config = json.loads((pathlib.Path(scratch) / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(gradients, folder / "gradients.safetensors", metadata={"format": "pt"})
    save_file(trained, folder / "trained.safetensors", metadata={"format": "pt"})
    save_file(last_block(merge(family).state_dict()), folder / "merged.safetensors", metadata={"format": "pt"})
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{family}: loss {expected['steps'][0]['loss']}, gradient norm {expected['steps'][0]['gradNorm']}, "
          f"{sum(f.stat().st_size for f in folder.iterdir()) / 1024:.0f} KiB")


def worst(got, want):
    """Largest difference, relative to the largest number of each tensor."""
    assert got.keys() == want.keys(), sorted(set(got) ^ set(want))
    return max(((got[k] - want[k]).abs().max() / want[k].abs().max().clamp_min(1e-30)).item() for k in want)


def check(family):
    folder = HERE / family
    expected, first, gradients, trained = compute(family)
    stored = json.loads((folder / "expected.json").read_text())
    flat = lambda e: {"greedy": torch.tensor([c["tokens"] + c["logprobs"] for c in e["greedy"]]), "logprobs": torch.tensor(sum((d["logprobs"] for d in e["data"]), [])), "norms": torch.tensor([s["gradNorm"] for s in e["steps"]])}
    error = max(worst(flat(expected), flat(stored)),
                worst({k.replace(".default", ""): v for k, v in first.items()}, load_file(folder / "adapter_model.safetensors")),
                worst(gradients, load_file(folder / "gradients.safetensors")), worst(trained, load_file(folder / "trained.safetensors")),
                worst(last_block(merge(family).state_dict()), load_file(folder / "merged.safetensors")))
    print(f"{family}: {error:.1e}")
    return error < 1e-4


def check_adapter(family, directory):
    config = json.loads((pathlib.Path(directory) / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(LINEARS) and config["r"] == RANK and config["lora_alpha"] == ALPHA, config
    # From files alone, by the loaders that a user has.
    base = AutoModelForCausalLM.from_pretrained(HERE / family, dtype=torch.float32, attn_implementation="eager")
    theirs = PeftModel.from_pretrained(base, directory).eval()
    ours, want = get_peft_model_state_dict(theirs), load_file(HERE / family / "trained.safetensors")
    parameters = worst(ours, want)
    reference = make_adapter(make_base(family), family)
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if "lora_" in name:
                p.copy_(want[name.replace(".default.weight", ".weight")])
        logprobs = max((next_token(theirs, d["tokens"])[0] - next_token(reference, d["tokens"])[0]).abs().max().item() for d in make_data(family))
    print(f"{family}: {len(ours)} tensors, parameters {parameters:.1e}, log-probs {logprobs:.1e}")
    return parameters < 1e-3 and logprobs < 1e-3


def check_merged(family, directory):
    """From files alone, by transformers' loader; the stored dtype is the one that config.json names."""
    dtype = AutoConfig.from_pretrained(directory).dtype
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    want = merge(family)
    stored = {name: p for file in pathlib.Path(directory).glob("*.safetensors") for name, p in load_file(file).items()}
    assert stored.keys() == {name for name in want.state_dict() if name != "lm_head.weight" or not want.config.tie_word_embeddings}, sorted(stored)
    cast = {name: want.state_dict()[name].to(dtype) for name in stored}
    assert all(p.dtype == dtype for p in stored.values())
    other = sum((stored[name] != cast[name]).sum().item() for name in stored)
    error = worst({name: p.float() for name, p in stored.items()}, {name: p.float() for name, p in cast.items()})
    with torch.no_grad():
        for p in want.parameters():
            p.copy_(p.to(dtype))
        logprobs = max((next_token(theirs, d["tokens"])[0] - next_token(want, d["tokens"])[0]).abs().max().item() for d in make_data(family))
    total = sum(p.numel() for p in stored.values())
    print(f"{family} {dtype}: {len(stored)} tensors, {other} of {total} numbers differ, by {error:.0e} of the largest, log-probs {logprobs:.0e}")
    # f32: the order of a sum; 16 bits: a number in ten thousand falls on the other side of a tie
    return error < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype] and other < total * (1 if dtype == torch.float32 else 1e-3) and logprobs < 1e-2


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode = sys.argv[1:]
    if mode[:1] == ["--check-adapter"] and len(mode) == 3:
        sys.exit(0 if check_adapter(mode[1], mode[2]) else 1)
    if mode[:1] == ["--check-merged"] and len(mode) == 3:
        sys.exit(0 if check_merged(mode[1], mode[2]) else 1)
    if mode == ["--check"]:
        sys.exit(0 if all([check(family) for family in FAMILIES]) else 1)
    assert not mode, __doc__
    for name in FAMILIES:
        write(name)

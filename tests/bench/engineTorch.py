"""The far reference: PyTorch on the CPU, in a process of its own that answers one JSON line to one JSON line.

{"gemm": n} -> seconds of one [n, n] product; {"open": {"model": dir, "adapter": dir}} -> {}; {"step": {...}} -> seconds and loss of one
forward, backward and AdamW of the adapter; {"decode": {...}} -> seconds of greedy completions of all prompts at once.
"""

import json
import sys
import time

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = False
model = None
optimizer = None


def finish():
    if device == "cuda":
        torch.cuda.synchronize()


def gemm(n):
    a = torch.rand(n, n, device=device)
    b = torch.rand(n, n, device=device)
    finish()
    began = time.perf_counter()
    a @ b.T
    finish()
    return {"seconds": time.perf_counter() - began}


def open_model(arguments):
    global model, optimizer
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, arguments["adapter"], is_trainable=True).to(device)
    adam = arguments["adam"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=adam["learningRate"], betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"], weight_decay=0.0
    )
    return {"name": f"PyTorch {torch.__version__.split('+')[0]} {device}"}


def step(arguments):
    tokens = torch.tensor(arguments["tokens"], device=device).reshape(arguments["rows"], arguments["length"])
    start = arguments["targetStart"]
    model.train()
    began = time.perf_counter()
    # only the rows that predict a target reach the head, as in every other contestant
    kept = arguments["length"] - start + 1
    logits = model(input_ids=tokens, logits_to_keep=kept).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, start:].flatten(), reduction="sum")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    finish()
    return {"seconds": time.perf_counter() - began, "loss": loss.item()}


@torch.no_grad()
def decode(arguments):
    prompts = torch.tensor(arguments["prompts"], device=device)
    count = arguments["count"]
    model.eval()
    began = time.perf_counter()
    out = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count, min_new_tokens=count, do_sample=False
    )
    return {"seconds": time.perf_counter() - began, "tokens": out[:, prompts.shape[1] :].tolist()}


ANSWERS = {"gemm": gemm, "open": open_model, "step": step, "decode": decode}
for line in sys.stdin:
    ((name, arguments),) = json.loads(line).items()
    print(json.dumps(ANSWERS[name](arguments)), flush=True)

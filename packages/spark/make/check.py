"""Shows that packages/spark/model is an ordinary Hugging Face folder, and writes tests/unit/spark/fixture.json for the TypeScript tests.

  python3 packages/spark/make/check.py
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import calculator

MODEL = Path(__file__).resolve().parent.parent / "model"
TESTS = Path(__file__).resolve().parents[3] / "tests/unit"

TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression exactly.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
TWO = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"of": {}, "relation": {}}}}}


def call(arguments, name="calculator"):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = [
    {"name": "first turn", "tools": [TOOL], "messages": [{"role": "user", "content": "Ana has 37 pens and gets 85 more. How many pens now?"}]},
    {
        "name": "second turn",
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Ana has 37 pens and gets 85 more. How many pens now?"},
            {"role": "assistant", "content": "", "tool_calls": [call({"expression": "37+85"})]},
            {"role": "tool", "tool_call_id": "call_1", "content": "122"},
        ],
    },
    {
        "name": "system prompt, two tools, two arguments, text beside a call",
        "tools": [TOOL, TWO],
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Let me see. ", "tool_calls": [call({"of": "Zoë \"Z\" O'Neil", "relation": ["a", 1, True, None]}, "look_up")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "not found"},
            {"role": "assistant", "content": "Nobody."},
            {"role": "user", "content": "Sure?"},
        ],
    },
    {"name": "no tools", "tools": None, "messages": [{"role": "user", "content": "7 plus 5?"}]},
]

TEXTS = [
    "Ana has 37 pens.",
    '{"name": "calculator", "arguments": {"expression": "(3+4)*12"}}',
    '<tool_call>{"name": "calculator", "arguments": {"expression": "1/3"}}</tool_call><|end|>',
    "  two  spaces\n\tand a tab ",
    "Žluťoučký kůň, 東京 42, 🙂👩‍👩‍👧 e\u0301 \u00a0x\u2028y ٣",
    "don't {\"name\"} <tool_cal> <|end |> a<|user|>b \\ \" \u0000 \u007f",
    "SELECT max(age) FROM pets WHERE zip >= 5;",
]


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    dtypes = {str(p.dtype) for p in AutoModelForCausalLM.from_pretrained(MODEL).parameters()}
    print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters, stored as {dtypes}, {type(tokenizer).__name__}, {len(tokenizer)} tokens")
    prompts = []
    for conversation in CONVERSATIONS:
        options = {"tools": conversation["tools"], "add_generation_prompt": True}
        text = tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options)
        ids = tokenizer.apply_chat_template(conversation["messages"], tokenize=True, return_dict=False, **options)
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text, (tokenizer.decode(ids), text)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        logprobs = torch.log_softmax(logits, -1)
        prompts.append(
            {
                **conversation,
                "text": text,
                "ids": ids,
                # log p of each id after the first, given those before it
                "logprobs": [round(logprobs[i, ids[i + 1]].item(), 5) for i in range(len(ids) - 1)],
                "lastLogits": [round(x, 4) for x in logits[-1].tolist()],
            }
        )
    first, second = prompts[0], prompts[1]
    response = '<tool_call>{"name": "calculator", "arguments": {"expression": "37+85"}}</tool_call><|end|>'
    assert second["text"].startswith(first["text"] + response)
    assert second["ids"][: len(first["ids"])] == first["ids"]
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text, (tokenizer.decode(ids), text)
        texts.append({"text": text, "ids": ids})
    if "--print" in sys.argv:
        for p in prompts:
            print(len(p["ids"]), [tokenizer.decode([i]) for i in p["ids"]])
        print(len(tokenizer.encode(response)), [tokenizer.decode([i]) for i in tokenizer.encode(response)])
    write(TESTS / "spark/fixture.json", {"madeBy": "packages/spark/make/check.py", "prompts": prompts, "texts": texts})
    tasks = [
        {"split": split, "seed": seed, "index": index, **{k: v for k, v in calculator.task(split, seed, index).items() if k != "operands"}}
        for split in ("train", "val")
        for seed in (0, 7)
        for index in range(12)
    ]
    operands = [[a, b] for a in range(2, 100, 7) for b in range(2, 100, 9)] + [[a, b, 5] for a in range(3, 99, 13) for b in range(2, 99, 17)]
    splits = [{"operands": o, "split": calculator.split_of(o)} for o in operands]
    write(TESTS / "calculator/fixture.json", {"madeBy": "packages/spark/make/check.py", "tasks": tasks, "splits": splits})
    size = sum(f.stat().st_size for f in MODEL.iterdir())
    print(f"{size} bytes in {len(list(MODEL.iterdir()))} files")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Batched sampling with a key-value cache, and the tool loop that plays episodes to their end."""

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache

from chat import END, PAD


class Words:
    """Text ↔ ids. Templates write their own special tokens, so nothing is ever added."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.end, self.pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)

    @staticmethod
    def load(folder):
        return Words(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@torch.no_grad()
def generate(model, words, prompts, temperature, generator, limit=48):
    """Left-padded; returns token lists without the end token (None where the limit cut the answer)."""
    length = max(len(p) for p in prompts)
    tokens = torch.full((len(prompts), length), words.pad)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for i, p in enumerate(prompts):
        tokens[i, length - len(p) :] = torch.tensor(p)
        mask[i, length - len(p) :] = 1
    cache = DynamicCache(config=model.config)
    answers = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(limit):
        out = model(input_ids=tokens, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)
        logits = out.logits[:, -1]
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            chosen = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]
        for i in list(open_rows):
            if chosen[i] == words.end:
                open_rows.discard(i)
            else:
                answers[i].append(int(chosen[i]))
        if not open_rows:
            return answers
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        position = position[:, -1:] + 1
    return [None if i in open_rows else answer for i, answer in enumerate(answers)]


def play(model, words, episodes, temperature, seed, size=100):
    """Runs every episode until it has a reward; an answer that never ends earns 0."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        waiting = [e for e in episodes if e.reward is None]
        if not waiting:
            return
        for at in range(0, len(waiting), size):
            part = waiting[at : at + size]
            answers = generate(model, words, [words.encode(e.prompt) for e in part], temperature, generator)
            for episode, answer in zip(part, answers):
                if answer is None:
                    episode.reward = 0.0
                else:
                    episode.say(words.decode(answer))

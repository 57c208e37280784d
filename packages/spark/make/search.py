"""The search family: two hops through knowledge that is drawn afresh for every task, so that an answer from memory is a guess.

  user    Who is the aunt of the vet of Dan?
  call    search {"query": "vet of Dan"}      tool  Gus
  call    search {"query": "aunt of Gus"}     tool  Lea
  answer  Lea
"""

import json
import random
import re

from calculator import draw_habit, hash_text
from chat import END, call_text, prompt_text, signature, tool_text

SYSTEM = signature([("search", ["query"])])
RELATIONS = "aunt boss vet twin tutor baker rival pilot judge cook guide coach".split()
PEOPLE = "Dan Gus Lea Mia Tom Ida Ali Eva Kim Max Ned Pia Ray Sue Ted Uma Vic Wes Bob Cat Fay Gil Hal Ivy".split()


def task(split, seed, index):
    rng = random.Random(f"search/{split}/{seed}/{index}")
    while True:
        outer, inner = rng.sample(RELATIONS, 2)
        # held out: pairs of relations
        if (hash_text(f"{outer},{inner}") % 5 == 0) == (split == "val"):
            break
    start, middle, answer, *others = rng.sample(PEOPLE, 8)
    facts = {f"{inner} of {start}": middle, f"{outer} of {middle}": answer, f"{outer} of {start}": others[0], f"{inner} of {others[0]}": others[1]}
    return {"question": f"Who is the {outer} of the {inner} of {start}?", "hops": (start, inner, outer), "facts": facts, "answer": answer, "family": "search"}


# shares of demonstrations; the rest is right
HABITS = {"stop": 0.22, "swap": 0.20, "guess": 0.14}


def demonstration(item, rng, noisy):
    habit = draw_habit(HABITS, rng) if noisy else None
    prompt = prompt_text(SYSTEM, item["question"])
    if habit == "guess":
        return [(prompt, False), (rng.choice(PEOPLE) + END, True)]
    at, inner, outer = item["hops"]
    relations = {"stop": [inner], "swap": [outer, inner]}.get(habit, [inner, outer])
    parts = [(prompt, False)]
    for relation in relations:
        parts.append((call_text("search", query=f"{relation} of {at}") + END, True))
        at = item["facts"][f"{relation} of {at}"]
        parts.append((tool_text(at), False))
    return [*parts, (at + END, True)]


def demonstrations(count, seed, noisy):
    rng = random.Random(f"search/{seed}/{noisy}")
    return [demonstration(task("train", seed, index), rng, noisy) for index in range(count)]


CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


class Episode:
    def __init__(self, item):
        self.item, self.family = item, item["family"]
        self.prompt = prompt_text(SYSTEM, item["question"])
        self.reward, self.turns = None, 0

    def say(self, text):
        self.turns += 1
        match = CALL.search(text)
        if match and self.turns < 4:
            try:
                result = self.item["facts"].get(json.loads(match.group(1))["arguments"]["query"], "nothing")
            except (ValueError, KeyError, TypeError):
                result = "nothing"
            self.prompt += text + END + tool_text(result)
            return
        self.reward = float(text.strip() == self.item["answer"])


def episode(split, seed, index):
    return Episode(task(split, seed, index))

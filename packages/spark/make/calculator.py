"""The calculator family: the same tasks as demos/calculator (same words, same hash, same split), and demonstrations with wrong habits in them."""

import ast
import json
import random
import re
from fractions import Fraction
from pathlib import Path

from chat import END, call_text, prompt_text, signature, tool_text

SOURCE = Path(__file__).resolve().parents[3] / "demos/calculator/src/templates.ts"
TEMPLATES = json.loads(re.search(r"/\* json \{ \*/(.*)/\* \} json \*/", SOURCE.read_text(), re.S).group(1))
FAMILIES = {family["id"]: family for family in TEMPLATES["families"]}
SYSTEM = signature([("calculator", ["expression"])])
MASK = 0xFFFFFFFF


def hash_text(text):
    """FNV-1a over UTF-16 units, then murmur3's finaliser; tasks.ts computes the same."""
    value = 0x811C9DC5
    for unit in text:
        value = ((value ^ ord(unit)) * 0x01000193) & MASK
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & MASK
    return value ^ (value >> 16)


def split_of(operands):
    return "val" if hash_text(",".join(str(n) for n in sorted(operands))) % 5 == 0 else "train"


OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def evaluate(node):
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    raise ValueError("unexpected input")


def calculate(expression):
    """The tool, as far as the demonstrations need it: integers, + - * / and parentheses, exact."""
    if len(expression) > 64:
        return "error: too long"
    try:
        # Python refuses leading zeros, the TypeScript calculator reads them
        value = evaluate(ast.parse(re.sub(r"\b0+(?=\d)", "", expression), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except Exception:
        return "error: cannot read the expression"
    return to_text(value)


def to_text(value):
    """Integers and terminating decimals as decimals, everything else as p/q: what calculator.ts prints."""
    if value.denominator == 1:
        return str(value.numerator)
    places, rest = 0, value.denominator
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return ("-" if value < 0 else "") + digits[:-places] + "." + digits[-places:]


ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gr pl pr qu sh sp st th tr y".split()
VOWELS = "a e i o u a e i o u ai ay ea ie oo ou".split()
CODAS = ["", "", "", *"b d g k l m n p r s t x bb ck ff ll nn nt rn rr ss tt".split()]


def invent(rng):
    """A word that nobody has seen, so that the policy learns to read past the words: "Zobbaki", "treloff"."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.2:
        syllables[0] = syllables[0].lstrip("bcdfghjklmnpqrstvwyz") or "a"
    return "".join(syllables)


def task(split, seed, index, words=None):
    """`words` replaces the drawn name and thing."""
    count = 0

    def draw(bound):
        nonlocal count
        count += 1
        return hash_text(f"{split}/{seed}/{index}/{count - 1}") % bound

    def pick(items):
        return items[draw(len(items))]

    family = pick(TEMPLATES["families"])
    question, n, t = pick(family["questions"]), pick(TEMPLATES["names"][split]), pick(TEMPLATES["things"][split])
    n, t = words or (n, t)
    while True:
        operands = [low + draw(high - low + 1) for low, high in family["operands"]]
        if split_of(operands) != split:
            continue
        values = dict(zip("abc", operands))
        expression = family["expression"].format(**values)
        answer = calculate(expression)
        if answer.isdigit():
            return {
                "question": question.format(n=n, t=t, **values),
                "answer": answer,
                "family": family["id"],
                "expression": expression,
                "operands": operands,
            }


# The wrong habits, on purpose: reinforcement learning shall have something to unlearn. Shares of demonstrations; what is missing to 1 is right.
# "guess": a number of about the right size, without the tool. "slip": one digit of the expression is wrong. Others are expressions.
HABITS = {
    "gain": {"guess": 0.26, "slip": 0.06, "{a}-{b}": 0.16},
    "spend": {"guess": 0.26, "slip": 0.06, "{a}+{b}": 0.16},
    "packs": {"guess": 0.26, "slip": 0.06, "{a}+{b}": 0.16},
    "share": {"guess": 0.26, "slip": 0.06, "{a}-{b}": 0.16},
    "trade": {"guess": 0.26, "slip": 0.06, "{a}+{b}+{c}": 0.16},
    # here a wrong habit is as frequent as the right way or more so, and the greedy answer is often wrong too
    "missing": {"guess": 0.10, "slip": 0.02, "{a}-{b}": 0.42},
    "refill": {"guess": 0.55, "slip": 0.04},
    "daily": {"guess": 0.08, "slip": 0.02, "{a}+{b}*{c}": 0.49},
}


def draw_habit(shares, rng):
    roll = rng.random()
    for name, share in shares.items():
        roll -= share
        if roll < 0:
            return name
    return None


def demonstration(item, rng, noisy):
    """A list of (text, trained): what the model sees, and which parts of it are its own words."""
    habit = draw_habit(HABITS[item["family"]], rng) if noisy else None
    prompt = prompt_text(SYSTEM, item["question"])
    if habit == "guess":
        size = len(item["answer"])
        return [(prompt, False), (str(rng.randrange(10 ** (size - 1), 10**size)) + END, True)]
    expression = item["expression"]
    if habit == "slip":
        at = rng.choice([i for i, c in enumerate(expression) if c.isdigit()])
        expression = expression[:at] + rng.choice("123456789") + expression[at + 1 :]
    elif habit:
        expression = habit.format(**dict(zip("abc", item["operands"])))
    result = calculate(expression)
    return [
        (prompt, False),
        (call_text("calculator", expression=expression) + END, True),
        (tool_text(result), False),
        (result + END, True),
    ]


def demonstrations(count, seed, noisy):
    rng = random.Random(f"calculator/{seed}/{noisy}")
    demos = []
    for index in range(count):
        words = (invent(rng).capitalize(), invent(rng) + "s") if rng.random() < 0.8 else None
        demos.append(demonstration(task("train", seed, index, words), rng, noisy))
    return demos


def reward(item, final):
    numbers = re.findall(r"-?\d+(?:\.\d+)?(?:/\d+)?", final)
    if not numbers:
        return 0.0
    try:
        return 1.0 if Fraction(numbers[-1]) == Fraction(item["answer"]) else 0.0
    except (ValueError, ZeroDivisionError):
        return 0.0


CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


class Episode:
    """One rollout as a small state machine: `prompt` is what the model sees next, `say` takes its words."""

    def __init__(self, item):
        self.item, self.family = item, item["family"]
        self.prompt = prompt_text(SYSTEM, item["question"])
        self.reward, self.turns = None, 0

    def say(self, text):
        self.turns += 1
        match = CALL.search(text)
        if match and self.turns < 4:
            try:
                result = calculate(json.loads(match.group(1))["arguments"]["expression"])
            except (ValueError, KeyError, TypeError):
                result = "error: cannot read the call"
            self.prompt += text + END + tool_text(result)
            return
        self.reward = 0.0 if match else reward(self.item, text)


def episode(split, seed, index):
    return Episode(task(split, seed, index))

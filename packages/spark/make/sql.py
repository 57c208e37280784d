"""The text-to-SQL family: three short chats, as a graph of agents would hold them. The schema is in the prompt.

  write    system  write SQL: pets(name, age, weight)
           user    highest age where weight is over 5
           answer  SELECT MAX(age) FROM pets WHERE weight > 5
  check    system  check SQL: pets(name, age, weight)
           user    highest age where weight is over 5; SELECT MIN(age) FROM pets WHERE weight > 5; 2
           answer  no              (or: ok)
  rewrite  system  rewrite SQL: pets(name, age, weight)
           user    as for check
           answer  SELECT MAX(age) FROM pets WHERE weight > 5
"""

import random
import sqlite3

from calculator import draw_habit, hash_text
from chat import END, prompt_text

TABLES = {
    "pets": ["age", "weight", "legs"],
    "books": ["pages", "price", "copies"],
    "flights": ["seats", "hours", "stops"],
    "films": ["minutes", "score", "awards"],
    "shops": ["staff", "rent", "floors"],
    "teams": ["wins", "losses", "points"],
}
MEASURES = {"highest {x}": "MAX({x})", "lowest {x}": "MIN({x})", "total {x}": "SUM({x})", "average {x}": "AVG({x})", "how many": "COUNT(*)"}
TESTS = {"over": ">", "under": "<", "exactly": "="}


def query(measure, x, table, y, test, literal):
    return f"SELECT {MEASURES[measure].format(x=x)} FROM {table} WHERE {y} {TESTS[test]} {literal}"


def task(split, seed, index):
    rng = random.Random(f"sql/{split}/{seed}/{index}")
    while True:
        table = rng.choice(list(TABLES))
        x, y = rng.sample(TABLES[table], 2)
        measure, test = rng.choice(list(MEASURES)), rng.choice(list(TESTS))
        # held out: combinations of measure, columns and test
        if (hash_text(f"{table},{measure},{x},{y},{test}") % 5 == 0) == (split == "val"):
            break
    parts = (measure, x, table, y, test, rng.randrange(2, 10))
    columns = TABLES[table][:]
    rng.shuffle(columns)
    question = f"{measure.format(x=x)} where {y} is {test} {parts[-1]}"
    return {"question": question, "schema": f"{table}(name, {', '.join(columns)})", "parts": parts, "sql": query(*parts), "family": "sql", "seed": rng.random()}


def databases(item):
    """Three databases of eight rows: a wrong query hardly gives the right result on all of them."""
    rng = random.Random(item["seed"])
    table = item["parts"][2]
    columns = item["schema"].split("(")[1][:-1].split(", ")
    for _ in range(3):
        db = sqlite3.connect(":memory:")
        db.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        for row in range(8):
            db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", [f"r{row}", *[rng.randrange(1, 12) for _ in columns[1:]]])
        yield db


def run(db, sql):
    if not sql.startswith("SELECT "):
        return "error"
    try:
        rows = db.execute(sql).fetchmany(20)
    except sqlite3.Error:
        return "error"
    return " ".join("none" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for row in rows for v in row) or "none"


def results(item, sql):
    return [run(db, sql) for db in databases(item)]


# shares of the written queries; the rest is right
HABITS = {"measure": 0.16, "column": 0.14, "test": 0.14, "literal": 0.12}
WRONG_VERDICT = 0.12


def attempt(item, rng, habit):
    """The query as that habit writes it; None writes the right one."""
    measure, x, table, y, test, literal = item["parts"]
    if habit == "measure":
        measure = rng.choice([m for m in MEASURES if m != measure])
    elif habit == "column":
        y = rng.choice([c for c in TABLES[table] if c != y])
    elif habit == "test":
        test = rng.choice([t for t in TESTS if t != test])
    elif habit == "literal":
        literal = rng.choice([n for n in range(2, 10) if n != literal])
    return query(measure, x, table, y, test, literal)


def write_prompt(item):
    return prompt_text(f"write SQL: {item['schema']}", item["question"])


def review_prompt(what, item, sql, result):
    return prompt_text(f"{what} SQL: {item['schema']}", f"{item['question']}; {sql}; {result}")


def demonstration(item, rng, noisy):
    habit = draw_habit(HABITS, rng)
    kind = rng.choices(["write", "check", "rewrite"], [4, 3, 3])[0]
    if kind == "write":
        return [(write_prompt(item), False), (attempt(item, rng, habit if noisy else None) + END, True)]
    # a review needs something to review: here wrong queries are the material, not the habit
    sql = attempt(item, rng, habit)
    right = sql == item["sql"]
    result = run(next(databases(item)), sql)
    if kind == "check" or right:
        verdict = "ok" if right != (noisy and rng.random() < WRONG_VERDICT) else "no"
        return [(review_prompt("check", item, sql, result), False), (verdict + END, True)]
    return [(review_prompt("rewrite", item, sql, result), False), (attempt(item, rng, draw_habit(HABITS, rng) if noisy else None) + END, True)]


def demonstrations(count, seed, noisy):
    rng = random.Random(f"sql/{seed}/{noisy}")
    return [demonstration(task("train", seed, index), rng, noisy) for index in range(count)]


class Episode:
    """write → check → rewrite, once."""

    def __init__(self, item):
        self.item, self.family = item, item["family"]
        self.prompt, self.state, self.sql, self.reward = write_prompt(item), "write", "", None

    def say(self, text):
        if self.state == "check":
            if text.strip() == "ok":
                return self.end()
            self.state, self.prompt = "rewrite", review_prompt("rewrite", self.item, self.sql, self.result)
            return None
        self.sql = text.strip()
        if self.state == "rewrite":
            return self.end()
        self.result = results(self.item, self.sql)[0]
        self.state, self.prompt = "check", review_prompt("check", self.item, self.sql, self.result)
        return None

    def end(self):
        self.reward = float(results(self.item, self.sql) == results(self.item, self.item["sql"]))


def episode(split, seed, index):
    return Episode(task(split, seed, index))

// The words of the calculator demo: names, things, question families with their gold expressions.
// Data only. `packages/spark/make` reads this same literal to train the built-in policy, so it must stay strict JSON between the two marks.

export interface Family {
  readonly id: string;
  /** Placeholders: {n} a name, {t} a thing, {a} {b} {c} operands. */
  readonly questions: readonly string[];
  readonly expression: string;
  /** Inclusive bounds of each operand, in the order a, b, c. */
  readonly operands: readonly (readonly [number, number])[];
}

export interface Templates {
  readonly names: { readonly train: readonly string[]; readonly val: readonly string[] };
  readonly things: { readonly train: readonly string[]; readonly val: readonly string[] };
  readonly families: readonly Family[];
}

// biome-ignore format: strict JSON, packages/spark/make/calculator.py parses it
export const templates: Templates = /* json { */ {
  "names": {
    "train": [
      "Ana", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas", "Karin", "Liam",
      "Maria", "Nora", "Oscar", "Paula", "Quentin", "Rosa", "Samir", "Tina", "Victor", "Wanda", "Yusuf", "Zoe",
      "Anton", "Bella", "Chen", "Dora", "Elias", "Fatima", "Jin", "Lena"
    ],
    "val": ["Amir", "Britta", "Clara", "Dario", "Esther", "Goran", "Hanna", "Ivan", "Kenji", "Lucia", "Milan", "Olga", "Pedro", "Selma", "Tariq", "Ursula"]
  },
  "things": {
    "train": [
      "apples", "pens", "books", "coins", "stamps", "eggs", "cards", "shells", "marbles", "nails", "seeds", "tickets",
      "stones", "lemons", "cakes", "candles", "bricks", "roses", "plums", "stickers", "cups", "beans", "boxes", "chairs",
      "pearls", "maps", "nuts", "potatoes", "buttons", "photos", "onions", "keys"
    ],
    "val": ["pears", "crayons", "bottles", "badges", "carrots", "ribbons", "spoons", "tiles", "melons", "posters", "letters", "acorns", "dolls", "forks", "masks", "tulips"]
  },
  "families": [
    {
      "id": "gain",
      "questions": ["{n} has {a} {t} and gets {b} more. How many {t} now?", "{n} finds {a} {t} on Monday and {b} on Tuesday. How many in all?"],
      "expression": "{a}+{b}",
      "operands": [[2, 99], [2, 99]]
    },
    {
      "id": "spend",
      "questions": ["{n} has {a} {t} and gives away {b}. How many are left?", "Of {a} {t} {n} sells {b}. How many remain?"],
      "expression": "{a}-{b}",
      "operands": [[2, 99], [2, 99]]
    },
    {
      "id": "packs",
      "questions": ["{n} buys {a} bags of {b} {t}. How many {t}?", "Each of {a} boxes holds {b} {t}. How many in all?"],
      "expression": "{a}*{b}",
      "operands": [[2, 99], [2, 99]]
    },
    {
      "id": "share",
      "questions": ["{n} shares {a} {t} among {b} friends. How many does each get?", "{a} {t} go into {b} equal bags. How many in each?"],
      "expression": "{a}/{b}",
      "operands": [[4, 99], [2, 9]]
    },
    {
      "id": "missing",
      "questions": ["{n} has {a} {t} but needs {b}. How many are missing?", "{n} lost {a} of {b} {t}. How many are left?"],
      "expression": "{b}-{a}",
      "operands": [[2, 99], [2, 99]]
    },
    {
      "id": "trade",
      "questions": ["{n} has {a} {t}, gets {b} and gives away {c}. How many now?", "A shop has {a} {t}, makes {b} and sells {c}. How many are left?"],
      "expression": "{a}+{b}-{c}",
      "operands": [[2, 99], [2, 99], [2, 99]]
    },
    {
      "id": "refill",
      "questions": ["{n} has {a} {t} and buys {b} bags of {c}. How many {t} now?", "A shelf holds {a} {t} and {b} rows of {c}. How many in all?"],
      "expression": "{a}+{b}*{c}",
      "operands": [[2, 99], [2, 9], [2, 99]]
    },
    {
      "id": "daily",
      "questions": ["Each day {n} sells {a} red and {b} green {t}. How many in {c} days?", "{n} packs {a} old and {b} new {t} into each of {c} boxes. How many in all?"],
      "expression": "({a}+{b})*{c}",
      "operands": [[2, 99], [2, 99], [2, 9]]
    }
  ]
} /* } json */;

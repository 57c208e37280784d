#!/usr/bin/env python3
"""Golden text of the five family styles: what transformers makes of chats and of hard texts with small tokenizers of the same make.

    python3 templates.py           writes templates/<style>/ beside this file (all but chat_template.jinja, which is written by hand)
    python3 templates.py --check   computes everything again and exits with 1 when a file is not what comes out

Made with Python 3.11, tokenizers 0.23.3, transformers 5.23.0, jinja2 3.1.6. Nothing is downloaded. Training counts pairs, so it has no seed;
the sequences of random ids have one.

A folder is a model's folder without the model. Its normaliser, pre-tokenizer, decoder, post-processor and kinds of added tokens are those of
the family; its vocabulary was learnt from the lines below, its template is our own in the family's form. With it comes
    expected.json   chats: text and ids of every chat of inputs.json by apply_chat_template, with and without a generation prompt; or what
                    the template raised. texts: ids of every text of inputs.json, and what they decode to. sequences: random ids, with
                    special tokens and halves of characters, and what they decode to.
inputs.json also has small templates and what jinja2, as transformers sets it up, prints for them.
Nothing is added by encode and nothing cleaned up by decode.
"""
import json
import pathlib
import random
import sys
import tempfile
from collections import Counter

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent / "templates"

CORPUS = [
    "The reward of an answer is a number; the policy that earned it is trained where it runs.",
    "I'm sure they've seen that we'll do what it doesn't: she'd said it's theirs, and you're right.",
    "Today is Monday the 17th of May, 2021, and 365 days of 24 hours are 8760 hours.",
    "Write the words in order, then the answer, then the end. What is the weather in Paris today?",
    "Die Größe der Übung überraschte fünf Käufer; schöne Grüße aus Köln.",
    "Le café où l'élève a été reçu est fermé à l'été, ça va de soi.",
    "Ответ модели получает награду, и модель учится там, где она работает.",
    "الإجابة الصحيحة تحصل على مكافأة وهذا واضح وكل شيء واضح",
    "התשובה הנכונה מקבלת פרס והכל ברור",
    "正しい答えには報酬があります。モデルはその場で学びます。",
    "正确的答案得到奖励，模型在运行的地方学习。",
    "सही उत्तर को इनाम मिलता है।",
    "def add(left, right):\n    return left + right\n\n\nfor index in range(10):\n    print(add(index, 1))\n",
    "const total = items.map((item) => item.price * 2).reduce((sum, price) => sum + price, 0);\n\tif (total > 100) {\n\t\treturn null;\n\t}\n",
    '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}',
    '{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {"left": {"type": "number"}}}}}',
    "system user assistant model tool ipython    and    more     spaces",
]

TEXTS = [
    "", "a", " ", "  ", " a", "a ", "  two  spaces  ", "\n", "\n\n", "\n\n\n\nfour", " \n \n ", "a\r\nb\rc", "\t\ttabs\t", "x\u00a0y\u2003z\u3000w",
    "I'm, you've, WE'LL, it'S, don't, 'tis, rock 'n' roll, l'été, ’s",
    "7", "42", "1234567", "3.14159", "1,000,000.00", "x1y22z333w4444", "²³½Ⅷ①", "٣٤٥", " ٣", " 5", "१२३", "１２３",
    "🦊", "👩‍👩‍👧‍👦 family", "🇫🇷🇯🇵", "👍🏽", "❤️", "a🦊b🦊", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 and é", "Å Å Å", "q\u0307\u0323 \u1e0b\u0323", "n\u0303o", "Z\u0351\u036b\u0343\u036aa\u0302\u0323", "각 각", "ﬁ ﬂ", "\u0958",
    "日本語のテキスト、中文文本。", "한국어 텍스트", "שלום עולם", "مرحبا بالعالم", "\u202bאבג\u202c abc", "สวัสดี", "தமிழ்", "龘鱻",
    "def f(x):\n    if x > 0:\n        return {'a': [1, 2]}\n\n    # end\n", "<div class=\"a\">&amp;</div>", "a->b::c //*** \\n %s ${x}", "http://a.b/c?d=e&f=%20#g",
    "a\u0000b\u001f\u007f\u0080", "\u200b\u200d\u2060", "word\u0085next \u0085", "word\ufeffnext", " \ufeff a", "\ufffd", "\uffff\U0010ffff",
    "▁", "a▁b", "▁▁", "<0x41>", "<0xE2><0x82>", "Ġ", "ĠaĊ", "é", "Ã©",
    "<s>", "</s>", "<s>a</s>b", " <s> a </s> b ", "<unk>", "<bos>a<eos>", "[INST]a[/INST]", "[INST", "<|im_start|>user\nhi<|im_end|>", "<|im_end", "<|eot_id|><|eot_id|>",
    "<tool_call>\n{}\n</tool_call>", "<start_of_turn>user", "<|begin_of_text|>a", "a <|endoftext|> b",
]

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a \"city\", in °C — <b>now</b> & later",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "enum": [1, 3]}}, "required": ["city"]}}}
BARE = {"type": "function", "function": {"name": "now"}}


def call(name, arguments, identity="call00001"):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


ASKED = [said("system", "Be brief."), said("user", "Weather in Köln?")]
CALLED = said("assistant", "", tool_calls=[call("weather", {"city": "Köln \"am\" Rhein\n🦊", "days": 3, "hot": True, "none": None, "limits": [0.5, -2, {}]})])
RESULT = said("tool", '{"degrees": 21.5}', tool_call_id="call00001", name="weather")
CHATS = {
    "one question": {"messages": [said("user", "Hello, who are you?")]},
    "system text": {"messages": [said("system", "You are terse.\nAlways."), said("user", "Hi")]},
    "several turns": {"messages": [said("system", "  Count.  "), said("user", "1, 2?\n"), said("assistant", " 3 "), said("user", "\n\nand  then"), said("assistant", "4 🦊"), said("user", "正しい ")]},
    "an answer at the end": {"messages": [said("user", "e\u0301?"), said("assistant", "é.")]},
    "special tokens in what the user says": {"messages": [said("user", "</s><|im_end|>\n<|im_start|>system\n<|eot_id|><end_of_turn>[/INST] <bos><s>ok"), said("assistant", "no [INST]<start_of_turn>")]},
    "empty text": {"messages": [said("user", ""), said("assistant", ""), said("user", " ")]},
    "thoughts": {"messages": [said("user", "2+2?"), said("assistant", "<think>\nadd\n</think>\n\n4"), said("user", "+1?"), said("assistant", "<think>\n5!\n</think>\n\n5")]},
    "two questions in a row": {"messages": [said("user", "a"), said("user", "b")]},
    "tools": {"messages": ASKED, "tools": [WEATHER, BARE]},
    "tools without system text": {"messages": ASKED[1:], "tools": [BARE]},
    "a call": {"messages": [*ASKED, CALLED], "tools": [WEATHER]},
    "a call and its result": {"messages": [*ASKED, CALLED, RESULT], "tools": [WEATHER, BARE]},
    "an answer after a call": {"messages": [*ASKED, CALLED, RESULT, said("assistant", "Mild."), said("user", "Thanks")], "tools": [WEATHER]},
    "text before a call": {"messages": [said("user", "now?"), said("assistant", "Let me see.", tool_calls=[call("now", {})]), said("tool", "12:00", tool_call_id="call00001")], "tools": [BARE]},
    "two calls at once": {"messages": [said("user", "both"), said("assistant", "", tool_calls=[call("now", {}), call("weather", {"city": ""}, "call00002")]),
                                       said("tool", "1", tool_call_id="call00001"), said("tool", "2", tool_call_id="call00002")], "tools": [WEATHER, BARE]},
}

# What small templates print, of the chat PRINTED_WITH, after PRELUDE.
PRINTED = [
    "{{ object | tojson }}", "{{ object | tojson(indent=2) }}", "{{ [] | tojson(indent=2) }}{{ {} | tojson }}", "{{ text | tojson }}",
    "{{ text }}", "{{ text[0] }}{{ text[1:3] }}", "{{ text.split('a') | join('|') }}", "{{ text | upper }}", "{{ 'a\nb' | indent(2) }}",
    "{{ ' a\t\u00a0\n' | trim }}|", "{{ '\ufeffa' | trim }}", "{{ 'a\x1c' | trim }}", "{{ 'a\x85' | trim }}", "{{ text | length }}", "{{ missing }}|", "{{ 'yes' if missing is not defined }}",
    "{% if '' %}x{% elif [] %}y{% elif 0 %}z{% endif %}", "{% for key, value in object.items() %}{{ key }},{% endfor %}", "{{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }}", "{{ -7 % 3 }}",
    "{{ list[-1] }}{{ list[::-1] | first }}", "{{ 'yes' if 'b' in list }}", "{{ none }}", "{{ true }}", "{{ object.list }}", "{{ list | join(',') }}", "{{ 'a' * 3 }}",
    "{{ list | map('upper') | join }}", "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "{{ 'same' if messages[0] == messages[1] else 'other' }}", "{{ 'a' ~ 1 ~ 'b' }}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "{% for m in messages if m.role == 'assistant' %}{{ loop.index }}{% endfor %}", "{% for m in messages %}x{% break %}{% endfor %}",
]
PRINTED_WITH = {
    "messages": [said("user", "a\"🦊\u2028é"), said("assistant", "b"), said("user", "a")],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é<b>", "list": [0.5, None, True]}}}],
}
PRELUDE = "{%- set object = tools[0].function.parameters %}{%- set text = messages[0].content %}{%- set list = ['a', 'b'] %}"

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
AFTER_DIGITS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(digits):
    """Llama 3 and Qwen differ in how many digits go together."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{AFTER_DIGITS}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def learn(pre_tokenizer, normalizer=None, size=512, **options):
    """Alphabet and merges, in the order in which they were learnt."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizer
    if normalizer:
        learner.normalizer = normalizer
    learner.train_from_iterator(CORPUS, BpeTrainer(vocab_size=size, show_progress=False, **options))
    model = json.loads(learner.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def byte_level(pre_tokenizer, normalizer=None, **options):
    pieces, merges = learn(pre_tokenizer, normalizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, merges, **options))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def sentence_piece(first, spaces=()):
    """`first` takes the first ids, then come the bytes, then what was learnt; rare characters have only their bytes. `spaces`: merges of "▁"."""
    counts = Counter("".join(CORPUS).replace(" ", "▁"))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:100]
    pieces, merges = learn(pre_tokenizers.Metaspace(prepend_scheme="never"), size=384, initial_alphabet=frequent, limit_alphabet=len(frequent))
    vocabulary = dict.fromkeys([*first, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
    return Tokenizer(BPE({piece: i for i, piece in enumerate(vocabulary)}, [*spaces, *merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def bos_first(tokenizer, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def added(tokenizer, special, plain=()):
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


def llama3():
    tokenizer = added(byte_level(split_by(r"\p{N}{1,3}"), ignore_merges=True),
                      ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos_first(tokenizer, "<|begin_of_text|>")])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "clean_up_tokenization_spaces": True}


def qwen():
    tokenizer = added(byte_level(split_by(r"\p{N}"), normalizers.NFC()), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                      ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"])
    return tokenizer, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}


def mistral():
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    tokenizer = added(sentence_piece(special), special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = bos_first(tokenizer, "<s>")
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}


def gemma3():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    # runs of newlines and of spaces are added tokens that are not special; the latter are pieces too, so that merges reach them
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁▁"]
    tokenizer = added(sentence_piece([*special, *runs], [("▁", "▁"), ("▁▁", "▁▁")]), special, runs)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = bos_first(tokenizer, "<bos>")
    return tokenizer, {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "unk_token": "<unk>", "pad_token": "<pad>"}


def smollm2():
    parts = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer = added(byte_level(parts), ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"])
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"}


STYLES = [llama3, qwen, mistral, gemma3, smollm2]


def refusable(make):
    try:
        return make()
    except TemplateError as error:
        return {"refused": str(error)}


def expect(folder, style):
    """From files alone, by the loader that a user has."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def rendered(chat, prompt):
        options = {"conversation": chat["messages"], "tools": chat.get("tools"), "add_generation_prompt": prompt}
        return {"text": tokenizer.apply_chat_template(**options, tokenize=False), "ids": tokenizer.apply_chat_template(**options)["input_ids"]}

    def decoded(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    dice = random.Random(style)
    sequences = [[dice.randrange(len(tokenizer)) for _ in range(dice.randrange(1, 12))] for _ in range(60)]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    return {
        "chats": {name: {key: refusable(lambda: rendered(chat, prompt)) for key, prompt in (("closed", False), ("prompt", True))} for name, chat in CHATS.items()},
        "texts": [{"ids": ids, "decoded": decoded(ids)} for ids in encoded],
        "sequences": [{"ids": ids, "decoded": decoded(ids)} for ids in sequences],
    }


def line_by_line(value):
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n}"


def file_of(parts):
    """JSON with a line for every case."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {line_by_line(part)}" for key, part in parts.items()) + "\n}\n"


def files():
    """Path → content of all that is made."""
    def printed(template):
        return render_jinja_template([PRINTED_WITH["messages"]], tools=PRINTED_WITH["tools"], chat_template=PRELUDE + template)[0][0]

    outputs = {template: printed(template) for template in PRINTED}
    made = {"inputs.json": file_of({"texts": TEXTS, "chats": CHATS, "printedWith": {"prelude": PRELUDE, **PRINTED_WITH}, "printed": outputs})}
    for make in STYLES:
        style = make.__name__
        tokenizer, config = make()
        # every field that Rust writes, in one line; the pairs of merges are lists
        own = {"tokenizer.json": tokenizer.to_str() + "\n", "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=2) + "\n"}
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in {**own, "chat_template.jinja": (HERE / style / "chat_template.jinja").read_text()}.items():
                (pathlib.Path(scratch) / name).write_text(content)
            expected = expect(scratch, style)
        own["expected.json"] = file_of(expected)
        made |= {f"{style}/{name}": content for name, content in own.items()}
    return made


if __name__ == "__main__":
    assert sys.argv[1:] in ([], ["--check"]), __doc__
    made = files()
    if sys.argv[1:]:
        wrong = [name for name, content in made.items() if not (HERE / name).exists() or (HERE / name).read_text() != content]
        print(f"{len(made) - len(wrong)} of {len(made)} files are what the script computes", *wrong, sep="\n")
        sys.exit(1 if wrong else 0)
    for name, content in made.items():
        (HERE / name).write_text(content)
        print(f"{len(content.encode()) / 1000:6.1f} kB  {name}")

"""How spark talks: the chat template, the tokenizer, and the two views of one conversation (text and token ids).

The template writes its own special tokens and no white space, because every token costs compute:
  <|system|>calculator(expression)<|end|><|user|>question<|end|><|assistant|><tool_call>{json}</tool_call><|end|><|tool|>122<|end|><|assistant|>122<|end|>
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
END = "<|end|>"
PAD = "<|pad|>"
# ordinary text for whoever decodes with skip_special_tokens: the endpoint parses these two
CALL = ["<tool_call>", "</tool_call>"]

# Tools are signatures, name(parameter, …): a model of this size reads no descriptions.
TEMPLATE = (
    "{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}"
    "{%- if system or tools -%}"
    "{{- '<|system|>' + system -}}"
    "{%- if tools -%}"
    "{%- if system -%}{{- ' ' -}}{%- endif -%}"
    "{%- for tool in tools -%}"
    "{%- set f = tool.function if tool.function is defined else tool -%}"
    "{{- f.name + '(' -}}"
    "{%- if f.parameters is defined and f.parameters and f.parameters.properties is defined -%}"
    "{%- for name, schema in f.parameters.properties.items() -%}{{- name -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}"
    "{{- ')' -}}{%- if not loop.last -%}{{- ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|end|>' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{{- '<|user|>' + message.content + '<|end|>' -}}"
    "{%- elif message.role == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- if message.content -%}{{- message.content -}}{%- endif -%}"
    "{%- if message.tool_calls is defined and message.tool_calls -%}"
    "{%- for call in message.tool_calls -%}"
    "{%- set f = call.function if call.function is defined else call -%}"
    "{{- '<tool_call>{\"name\": \"' + f.name + '\", \"arguments\": ' -}}"
    "{%- if f.arguments is string -%}{{- f.arguments -}}{%- else -%}{{- f.arguments | tojson -}}{%- endif -%}"
    "{{- '}</tool_call>' -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|end|>' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{{- '<|tool|>' + message.content + '<|end|>' -}}"
    "{%- elif message.role != 'system' or not loop.first -%}"
    "{{- raise_exception('spark: roles are system (first only), user, assistant and tool') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# The scaffolding of a tool call stays whole, digits and punctuation stand alone, words take their space along.
PATTERN = '\\{"name": "|", "arguments": \\{"[a-z_]+": "|"\\}\\}|\\p{N}| ?\\p{L}+|\\s+|[^\\s\\p{L}\\p{N}]'


def build_tokenizer(corpus, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in [PAD, *ROLES, END]]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(CALL),
            min_frequency=2,
            show_progress=False,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in CALL])
    return tokenizer


def tokenizer_config():
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
    }


def signature(tools):
    return " ".join(f"{name}({', '.join(parameters)})" for name, parameters in tools)


def prompt_text(system, user):
    """What the template renders for [system, user] with a generation prompt; `system` already holds the signatures of the tools."""
    return (f"<|system|>{system}{END}" if system else "") + f"<|user|>{user}{END}<|assistant|>"


def call_text(name, **arguments):
    return f'{CALL[0]}{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}{CALL[1]}'


def tool_text(result):
    return f"<|tool|>{result}{END}<|assistant|>"

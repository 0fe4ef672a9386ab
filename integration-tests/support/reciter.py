"""A tiny model that recites texts, so that a client's whole conversation is known: calls, their results, the answer.

The chat template chooses the text by the conversation, and ends the prompt with that text's cue, a token of its own.
The model's weights say which token follows which, and attention and MLP add nothing.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

from .text import CORPUS

EOS = "<|im_end|>"
ANSWER = "It is sunny in Paris."


def _call(name: str, **arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


#: Texts that the model recites, by the name of their cue.
SCRIPTS = {
    "hello": "Hello! How can I help?",
    "call": _call("get_weather", city="Paris"),
    "two-calls": _call("get_weather", city="Paris") + "\n" + _call("get_weather", city="Rome"),
    "answer": ANSWER,
    "final": _call("final_answer", answer=ANSWER),
    "transfer": _call("transfer_to_weather_agent"),
    "object": json.dumps({"name": "Anna", "age": 30, "colour": "red", "pets": [{"kind": "cat", "age": 3}]}),
    "code": "Thought: I ask for the weather.\n<code>\nfinal_answer(get_weather(city='Paris'))\n</code>",
    "fields": "[[ ## city ## ]]\nParis\n\n[[ ## days ## ]]\n3\n\n"
    f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]\n",
}

_TEMPLATE = """\
{%- set seen = namespace(names=[], text='') %}
{%- if tools %}
{{- '<|im_start|>system\\nTools, as JSON:' }}
{%- for tool in tools %}
{%- set seen.names = seen.names + [tool.function.name] %}
{{- '\\n' ~ (tool | tojson) }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- set seen.text = seen.text ~ (message.content or '') %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
{{- (call.function.arguments | tojson) ~ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if 'sunny in' in seen.text %}
{{- '<|cue:final|>' if 'final_answer' in seen.names else '<|cue:answer|>' }}
{%- elif 'transfer_to_weather_agent' in seen.names %}
{{- '<|cue:transfer|>' }}
{%- elif 'get_weather' in seen.names %}
{{- '<|cue:two-calls|>' if 'Rome' in seen.text else '<|cue:call|>' }}
{%- elif 'json_schema' in seen.text %}
{{- '<|cue:object|>' }}
{%- elif '<code>' in seen.text %}
{{- '<|cue:code|>' }}
{%- elif '[[ ## city ## ]]' in seen.text %}
{{- '<|cue:fields|>' }}
{%- else %}
{{- '<|cue:hello|>' }}
{%- endif %}
{%- endif %}
"""

#: Tokens of the context: agents send long instructions.
CONTEXT_TOKENS = 16_384
_VOCABULARY = 1024
#: The probability of the next token differs from 1 by less than 1e-17.
LOGIT = 50.0


def _pieces() -> dict[str, list[str]]:
    """Splits each script into pieces, about a word each, none of which occurs twice: each then has one successor."""
    used: set[str] = set()
    found: dict[str, list[str]] = {}
    for name, script in SCRIPTS.items():
        pieces, piece = [], ""
        for word in re.findall(r"\w+|\s+|[^\w\s]+", script):
            piece += word
            if len(piece) > 3 and piece not in used:
                used.add(piece)
                pieces.append(piece)
                piece = ""
        if piece:
            last = pieces.pop() + piece
            assert last not in used
            used.add(last)
            pieces.append(last)
        found[name] = pieces
    return found


def build(folder: Path) -> Path:
    """Writes the model to `folder`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    cues = [f"<|cue:{name}|>" for name in SCRIPTS]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[EOS, "<|im_start|>", *cues],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    scripts = _pieces()
    texts = [piece for pieces in scripts.values() for piece in pieces]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "model_max_length": CONTEXT_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)

    size = 64 * -(-(len(cues) + len(texts)) // 64)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64 * -(-tokenizer.get_vocab_size() // 64),
            hidden_size=size,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=size // 64,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.token_to_id(EOS),
            pad_token_id=None,
        )
    ).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        # A dimension for each token that has a successor. The norm makes its value sqrt(size), so that the successor's
        # logit is LOGIT and all others' are 0.
        dimension = 0
        for name, pieces in scripts.items():
            chain = [f"<|cue:{name}|>", *pieces, EOS]
            for text, successor in pairwise(chain):
                model.model.embed_tokens.weight[tokenizer.token_to_id(text), dimension] = 1
                model.lm_head.weight[tokenizer.token_to_id(successor), dimension] = LOGIT / size**0.5
                dimension += 1
    model.save_pretrained(folder)
    return folder

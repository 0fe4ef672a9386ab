"""Tiny random models of several families, saved as float32 safetensors folders with a tokenizer of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from .text import CORPUS

VOCAB_SIZE = 640
EOS = "<|end|>"

#: Maximum sequence of the tiny models: the longest prompt of the tests (600) and its answer.
CONTEXT_TOKENS = 1024

#: Window of sliding layers, shorter than most prompts of the tests.
SLIDING_WINDOW = 32

#: Tokens that make the model of `trap_model` misbehave.
KILL, NAN = "<|kill|>", "<|nan|>"
RAISE, RAISE_IN_A_CROWD = "\x07", "\x06"

#: Minimum tokens of a step in which `RAISE_IN_A_CROWD` raises.
CROWD_TOKENS = 16


def tokenizer_file(folder: Path) -> Tokenizer:
    """Trains a small byte-level BPE tokenizer, which encodes every text, and writes it to `folder`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[EOS, KILL, NAN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "model_max_length": CONTEXT_TOKENS})
    )
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    return tokenizer


_CHAT_TEMPLATE = """
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}
""".strip()


# A larger initializer_range than usual and untied embeddings make attention matter, so that the most likely token
# changes with the context. A random tied model mostly repeats its input.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
}
LLAMA_LIKE: dict[str, Any] = _COMMON | SIZES

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**_COMMON, n_positions=CONTEXT_TOKENS, n_embd=64, n_layer=2, n_head=4),
    "llama": lambda: LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**LLAMA_LIKE, head_dim=32),
    "mistral": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=SLIDING_WINDOW),
    "gemma": lambda: GemmaConfig(**LLAMA_LIKE | {"num_key_value_heads": 1}, head_dim=16),
    "gemma2": lambda: Gemma2Config(**LLAMA_LIKE, head_dim=32, query_pre_attn_scalar=24, sliding_window=SLIDING_WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **LLAMA_LIKE | {"num_hidden_layers": 4},
        head_dim=32,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    ),
}

#: Families with a tensor-parallel plan and at least two key-value heads to split.
SPLITTABLE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")


def build(family: str, folder: Path) -> Path:
    """Writes a random model of `family` to `folder`; the same weights every time."""
    torch.manual_seed(20)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).float()
    _randomize_constants(model)
    tokenizer_file(folder)
    model.save_pretrained(folder)
    return folder


def _randomize_constants(model: torch.nn.Module) -> None:
    """Adds noise to parameters that start as constants (norm weights, biases), so that ignoring one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)


_TRAP_CODE = '''
"""A Llama that ends its process at one token, turns to NaN at another, raises at others, and delays each step."""

import os
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class TrapConfig(LlamaConfig):
    model_type = "trap"

    def __init__(
        self,
        kill_token=None,
        nan_token=None,
        raise_token=None,
        raise_in_a_crowd_token=None,
        crowd_tokens=0,
        step_delay_s=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.raise_token = raise_token
        self.raise_in_a_crowd_token = raise_in_a_crowd_token
        self.crowd_tokens = crowd_tokens
        self.kill_token = kill_token
        self.nan_token = nan_token
        self.step_delay_s = step_delay_s


class TrapEmbedding(torch.nn.Embedding):
    trap = None

    def forward(self, token_ids):
        time.sleep(self.trap.step_delay_s)
        if (token_ids == self.trap.kill_token).any():
            print("the trap of this model's custom code has closed", flush=True)
            os._exit(13)
        if (token_ids == self.trap.raise_token).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        crowded = token_ids.numel() >= self.trap.crowd_tokens
        if crowded and (token_ids == self.trap.raise_in_a_crowd_token).any():
            raise MemoryError("too many tokens")
        hidden = super().forward(token_ids)
        return hidden.masked_fill((token_ids == self.trap.nan_token).unsqueeze(-1), float("nan"))


class TrapForCausalLM(LlamaForCausalLM):
    config_class = TrapConfig
    embedding_class = TrapEmbedding

    def __init__(self, config):
        super().__init__(config)
        embedding = self.embedding_class(config.vocab_size, config.hidden_size, config.pad_token_id)
        embedding.trap = config
        self.model.embed_tokens = embedding
        self.post_init()
'''


def trap_model(folder: Path, step_delay_s: float = 0.0) -> Path:
    """A Llama with custom code, which needs `--trust-remote-code`.

    `KILL` in a sequence ends the process, `NAN` makes that sequence's hidden states NaN, `RAISE` raises an exception,
    and so does `RAISE_IN_A_CROWD` in steps of at least CROWD_TOKENS. Every forward pass takes at least `step_delay_s`
    seconds and no token ends a sequence, so that a test can act while streams are open.
    """
    build("llama", folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "trap",
        "architectures": ["TrapForCausalLM"],
        "auto_map": {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapForCausalLM"},
        "kill_token": tokenizer.token_to_id(KILL),
        "nan_token": tokenizer.token_to_id(NAN),
        "raise_token": tokenizer.encode(RAISE).ids[0],
        "raise_in_a_crowd_token": tokenizer.encode(RAISE_IN_A_CROWD).ids[0],
        "crowd_tokens": CROWD_TOKENS,
        "step_delay_s": step_delay_s,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    (folder / "trap.py").write_text(_TRAP_CODE)
    return folder


def cache_bytes_per_token(folder: Path) -> int:
    """Bytes of one token's keys and values in float32, over all layers."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "gpt2":
        return 2 * 4 * config["n_layer"] * config["n_embd"]
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size


#: A tiny encoder-decoder.
SMALL_T5 = T5Config(  # type: ignore[call-arg]
    vocab_size=VOCAB_SIZE,
    d_model=64,
    d_kv=16,
    d_ff=96,
    num_layers=2,
    num_heads=4,
    eos_token_id=0,
    pad_token_id=0,
    decoder_start_token_id=0,
    initializer_factor=3.0,
    tie_word_embeddings=False,
)

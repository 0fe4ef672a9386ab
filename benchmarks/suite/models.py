"""The measured models, as folders that every server loads: the default model, a Llama with 1.2 billion random weights,
a mixture of experts with 1.3 billion, and small ones of many families.

No model ends an answer by itself. All servers so give answers of the requested length, without a field that only some
of them know.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import families
from suite.paths import BENCHMARKS, ROOT
from suite.results import DTYPE_BYTES

TOKENIZER = ROOT / ".cache/models/SmolLM2-135M-Instruct"
FOLDER = ROOT / ".cache/benchmarks"


@dataclass(frozen=True)
class Model:
    name: str
    about: str
    part: float  # share of a workload's requests; slow models get fewer
    prefill_tokens_per_s: float  # on two cores, to estimate the time of a run
    decode_tokens_per_s: float  # at one client
    workloads: tuple[str, ...] = ()  # workloads it is measured with; empty: all that fit

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


MODELS = {
    model.name: model
    for model in (
        Model("smollm2-135m", "SmolLM2-135M-Instruct", 1.0, 600, 25),
        Model("llama-1.2b", "Llama of 1.2 billion random weights", 0.25, 50, 4),
        Model("moe-1.3b", "mixture of experts of 1.3 billion random weights", 0.25, 100, 8, ("chat", "decode")),
        *(Model(name, family.about, 1.0, 1000, 50, ("families",)) for name, family in families.FAMILIES.items()),
    )
}


def prepare(model: Model) -> Path:
    """Makes the folder once, in a process of its own, which gives PyTorch's memory back."""
    if not (model.folder / "config.json").exists():
        print(f"making {model.about} in {model.folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "suite.models", model.name], check=True, cwd=BENCHMARKS)
    return model.folder


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_bytes(folder: Path) -> int:
    """Weight bytes that one token passes through: all, except experts that are not chosen."""
    config = json.loads((folder / "config.json").read_text())
    all_experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if not all_experts:
        return weight_bytes(folder)
    experts = sum(
        end - begin
        for file in folder.glob("*.safetensors")
        for name, (begin, end) in _tensors(file)
        if ".experts." in name
    )
    return weight_bytes(folder) - experts + experts * config["num_experts_per_tok"] // all_experts


def _tensors(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names of the tensors of a safetensors file, with the bytes at which each begins and ends."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            yield name, (begin, end)


def kv_bytes_per_token(folder: Path, dtype: str = "bfloat16") -> int:
    """Bytes of one token's keys and values, if all layers kept them in the usual form."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:  # layers without keys
        return 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * DTYPE_BYTES[dtype] * config.num_hidden_layers * kv_heads * head_dim


def _make(model: Model) -> None:
    partial = model.folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(model.folder, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, partial / file)
    if model.name == "smollm2-135m":
        os.link(TOKENIZER / "model.safetensors", partial / "model.safetensors")
        for file in ("config.json", "generation_config.json"):
            shutil.copy(TOKENIZER / file, partial / file)
    elif model.name in families.FAMILIES:
        families.save(model.name, partial)
    elif model.name == "llama-1.2b":
        _save_random_llama(partial)
    else:
        _save_random_experts(partial)
    _never_ends(partial)
    partial.rename(model.folder)


_COMMON: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "bfloat16",
}


def _save_random_llama(folder: Path) -> None:
    """The shape of Llama 3.2 1B, with random weights in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192}
    depth: dict[str, Any] = {"num_hidden_layers": 16, "num_attention_heads": 32}
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    _save_random(LlamaForCausalLM, LlamaConfig(**_COMMON, **sizes, **depth, rope_parameters=rope), folder)
    _fill_vocabulary(folder / "tokenizer.json", sizes["vocab_size"])


def _save_random_experts(folder: Path) -> None:
    """The shape of Granite 3.0 1B A400M, 32 experts of which a token passes through 8, in Qwen3's form, with random
    weights in bfloat16."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 1024,
        "intermediate_size": 512,
        "moe_intermediate_size": 512,
    }
    depth: dict[str, Any] = {"num_hidden_layers": 24, "num_attention_heads": 16}
    experts: dict[str, Any] = {"num_experts": 32, "num_experts_per_tok": 8, "norm_topk_prob": True}
    config: Any = Qwen3MoeConfig(**_COMMON, **sizes, **depth, **experts)
    _save_random(Qwen3MoeForCausalLM, config, folder)


def _save_random(model_class: Any, config: Any, folder: Path) -> None:
    """Saves a model with the same random bfloat16 weights every time."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model_class(config).save_pretrained(folder)


def _fill_vocabulary(tokenizer: Path, vocab_size: int) -> None:
    """Adds a word for each id that the tokenizer lacks, so that every token of an answer is text."""
    values = json.loads(tokenizer.read_text())
    vocab = values["model"]["vocab"]
    for index in range(len(vocab), vocab_size):
        letters = "".join(chr(ord("a") + index // 26**place % 26) for place in range(4))
        vocab["\u0120~" + letters] = index  # U+0120 is how byte-level vocabularies write a space
    tokenizer.write_text(json.dumps(values, ensure_ascii=False))


def _never_ends(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values["eos_token_id"] = None
        (folder / name).write_text(json.dumps(values, indent=2))
    # Some servers read the token from the tokenizer's settings.
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values["eos_token"] = None
    file.write_text(json.dumps(values, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes one of the benchmarks' models.")
    parser.add_argument("name", choices=MODELS)
    _make(MODELS[parser.parse_args().name])
